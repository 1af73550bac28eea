"""What the gateway answers when a call does not reach a service: one fixed text per case, with an ErrorInfo.

Envoy's own texts name sockets and policies. It maps the HTTP status of its answers to a gRPC status: 403 to
PERMISSION_DENIED, 404 to UNIMPLEMENTED, 503 to UNAVAILABLE; 504 is a call whose own deadline has passed.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

ERROR_DOMAIN = "foresight"
_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One case; `reason` is the name of a foresight.errors.v1.ErrorReason without its prefix."""

    http_status: int
    grpc_status: int
    reason: str
    message: str

    @property
    def details(self) -> str:
        """The value of the header `grpc-status-details-bin`: a google.rpc.Status, in base64."""
        info = _field(1, self.reason.encode()) + _field(2, ERROR_DOMAIN.encode())
        packed = _field(1, _ERROR_INFO.encode()) + _field(2, info)
        status = bytes([1 << 3, self.grpc_status]) + _field(2, self.message.encode()) + _field(3, packed)
        return base64.b64encode(status).decode().rstrip("=")


REFUSALS: Sequence[Refusal] = (
    Refusal(403, 7, "PERMISSION_DENIED", "the certificate does not allow this call"),
    Refusal(404, 12, "UNIMPLEMENTED", "there is no such service"),
    Refusal(503, 14, "UNAVAILABLE", "the service does not answer"),
    Refusal(504, 4, "DEADLINE_EXCEEDED", "the deadline of the call has passed"),
)


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited protobuf field of at most 16,383 bytes."""
    length = len(value)
    size = bytes([length]) if length < 0x80 else bytes([length & 0x7F | 0x80, length >> 7])
    return bytes([number << 3 | 2]) + size + value
