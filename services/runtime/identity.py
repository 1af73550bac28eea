"""Who calls. The gateway puts the verified certificate into `x-forwarded-client-cert` and removes any that a client
sent; a call without it came straight through the service's socket, whose folder only its owner can enter."""

from __future__ import annotations

from collections.abc import Iterable

from services.runtime.errors import PermissionDenied

LOCAL = "local"
HEADER = "x-forwarded-client-cert"
OPERATORS = "spiffe://foresight/operator/"


def caller_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The URI of the caller's certificate, or `local`. Raises PermissionDenied unless it has exactly one."""
    headers = [value for key, value in metadata if key == HEADER]
    if not headers:
        return LOCAL
    elements = ";".join(h if isinstance(h, str) else h.decode("latin-1") for h in headers)
    uris = [part.partition("=")[2] for part in elements.split(";") if part.startswith("URI=")]
    # A comma separates the certificates of a chain of proxies; the one gateway sends one. Quotes stand around values
    # that hold separators: in an identity they could only be there to look like another one.
    if "," in elements or '"' in elements or len(uris) != 1 or not uris[0].startswith("spiffe://"):
        raise PermissionDenied("the certificate does not name exactly one identity")
    return uris[0]


def is_operator(caller: str) -> bool:
    """Whether a caller may do what concerns the system as a whole: operators, and whoever reaches the socket itself."""
    return caller == LOCAL or caller.startswith(OPERATORS)
