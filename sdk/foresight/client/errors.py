"""What a call can fail with.

    ForesightError
    ├── InvalidArgument        the request is wrong whatever the state; `violations` name each field (also a ValueError)
    ├── NotFound               no such thing, or a feature whose policy is to fail has no value
    ├── AlreadyExists          an id was used before with other content
    ├── Aborted                somebody else changed the thing since it was read
    ├── FailedPrecondition     the state of the system does not allow it
    ├── OutOfRange             a time or cursor outside of what can be served
    ├── ResourceExhausted      too large, too many, a full spool; when overloaded (`retry_after_s`) it was retried
    ├── PermissionDenied       the certificate does not allow the call
    ├── Unimplemented          the service has no such method
    ├── Unavailable            nobody answers; calls were already retried when this is raised
    │   └── NotConnected       the gateway itself cannot be reached, or refuses the certificate
    ├── DeadlineExceeded       no answer in time
    ├── DataLoss               stored or received bytes are damaged
    └── Internal               a bug; the service's log has the details

`reason` is the name of a value of `foresight.errors.v1.ErrorReason` without its prefix, or '' when no service was
reached. A value that is wrong before anything is sent is `foresight.values.InvalidValue`, a ValueError too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from foresight.values import Violation

# Reason of a NotConnected that no retry can mend.
CERTIFICATE = "CERTIFICATE"


class ForesightError(Exception):
    """A call failed. Subclasses stand for one status each; `code` is its name, as in `NOT_FOUND`."""

    default_code: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        reason: str = "",
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        # When the service says that the call may be repeated, seconds; None: it says nothing of that.
        self.retry_after_s = retry_after_s


class InvalidArgument(ForesightError, ValueError):
    """The request is wrong whatever the state of the system."""

    default_code = "INVALID_ARGUMENT"


class NotFound(ForesightError):
    """No such thing."""

    default_code = "NOT_FOUND"


class AlreadyExists(ForesightError):
    """An id was used before with other content."""

    default_code = "ALREADY_EXISTS"


class Aborted(ForesightError):
    """Somebody else was faster: read again and repeat."""

    default_code = "ABORTED"


class FailedPrecondition(ForesightError):
    """The state of the system does not allow the call."""

    default_code = "FAILED_PRECONDITION"


class OutOfRange(ForesightError):
    """A time or cursor lies outside of what can be served."""

    default_code = "OUT_OF_RANGE"


class ResourceExhausted(ForesightError):
    """A limit was hit."""

    default_code = "RESOURCE_EXHAUSTED"


class PermissionDenied(ForesightError):
    """The caller's certificate does not allow the call."""

    default_code = "PERMISSION_DENIED"


class Unimplemented(ForesightError):
    """The service has no such method."""

    default_code = "UNIMPLEMENTED"


class Unavailable(ForesightError):
    """A service does not answer."""

    default_code = "UNAVAILABLE"


class NotConnected(Unavailable):
    """There is no connection to the gateway."""


class DeadlineExceeded(ForesightError):
    """No answer came in time."""

    default_code = "DEADLINE_EXCEEDED"


class DataLoss(ForesightError):
    """Bytes are damaged."""

    default_code = "DATA_LOSS"


class Internal(ForesightError):
    """A bug of a service."""

    default_code = "INTERNAL"


BY_CODE: Mapping[str, type[ForesightError]] = {
    error.default_code: error
    for error in (
        *(InvalidArgument, NotFound, AlreadyExists, Aborted, FailedPrecondition, OutOfRange, ResourceExhausted),
        *(PermissionDenied, Unimplemented, Unavailable, DeadlineExceeded, DataLoss, Internal),
    )
}
