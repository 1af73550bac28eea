"""Errors of the services, one type per meaning. `status.py` maps each to a gRPC status and a reason.

    ServiceError
    ├── NotFound               no such thing
    ├── FeatureMissing         a feature whose policy is to fail has no value
    ├── AlreadyExists          an id was used before with other content
    ├── StaleEtag              somebody else was faster
    ├── FailedPrecondition     the state does not allow it
    │   ├── ModelNotReady
    │   └── TransformMismatch
    ├── OutOfRange             a time or cursor outside of what can be served
    ├── LimitExceeded          too large, too many
    │   ├── SpoolFull
    │   └── Overloaded         more work than can be done in time; says when to come again
    ├── PermissionDenied
    ├── DataLoss               stored bytes do not match their digest
    └── Unavailable            something that the call needs does not answer

What is wrong whatever the state is `foresight.values.InvalidValue`. Everything else is a bug and is answered as
INTERNAL with a fixed text. Messages reach clients: they never hold paths, SQL, class names or addresses.
"""

from __future__ import annotations


class ServiceError(Exception):
    """An expected failure; `metadata` names what is concerned."""

    # When the call may be repeated, seconds from now; None: nothing is known of that.
    retry_after_s: float | None = None

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class NotFound(ServiceError):
    """No such thing."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"no {kind} {name}", kind=kind, name=name)


class FeatureMissing(ServiceError):
    """A feature whose policy is to fail has no value."""


class AlreadyExists(ServiceError):
    """An id was used before with other content."""


class StaleEtag(ServiceError):
    """The thing changed since it was read."""


class FailedPrecondition(ServiceError):
    """The state of the system does not allow the call."""


class ModelNotReady(FailedPrecondition):
    """The deployment's model is not loaded."""


class TransformMismatch(FailedPrecondition):
    """A transform's source differs here from the registered one."""


class OutOfRange(ServiceError):
    """A time or cursor lies outside of what can be served."""


class LimitExceeded(ServiceError):
    """A bound on size, rows or queued work was hit."""


class SpoolFull(LimitExceeded):
    """The durable spool or its disk is full."""


class Overloaded(LimitExceeded):
    """More is asked for at once than can be answered in time; `retry_after_s` says when to come again."""

    def __init__(self, message: str, retry_after_s: float = 1.0, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_after_s = retry_after_s


class PermissionDenied(ServiceError):
    """The caller may not do this."""


class DataLoss(ServiceError):
    """Stored bytes do not match their digest."""


class Unavailable(ServiceError):
    """A service or database that the call needs does not answer."""
