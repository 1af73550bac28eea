"""Rules for names and texts."""

from __future__ import annotations

import re
import unicodedata

from foresight.values.errors import InvalidValue, quoted

NAME_BYTES_MAX = 63
TEXT_BYTES_MAX = 1_024
STRING_BYTES_MAX = 4_096
RESERVED_PREFIXES = ("log_", "prediction_")
# Columns that tables carry beside keys and features.
RESERVED_NAMES = frozenset(
    {"event_time", "known_at", "deleted", "commit", "split", "run_id", "as_of", "scored_at", "scheduled_for"}
    | {"model", "model_version"}
)
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


def check_name(name: str, field: str = "name", *, reserved: bool = False) -> str:
    """Returns `name` when it may name a group, view, model, deployment or field.

    `reserved=True` also allows the names that the platform keeps to itself. Raises InvalidValue.
    """
    if not name:
        raise InvalidValue(field, "is required")
    if len(name) > NAME_BYTES_MAX and not reserved:
        raise InvalidValue(field, f"is longer than {NAME_BYTES_MAX} bytes")
    if not _NAME.match(name):
        raise InvalidValue(
            field,
            f"{quoted(name)} is not made of lower-case letters, digits and underscores, starting with a letter",
        )
    if not reserved and (name.startswith(RESERVED_PREFIXES) or name in RESERVED_NAMES):
        raise InvalidValue(field, f"{quoted(name)} is reserved for the platform")
    return name


def check_text(text: str, field: str, limit: int = TEXT_BYTES_MAX) -> str:
    """Returns `text` when it is NFC, has no NUL and at most `limit` UTF-8 bytes. Raises InvalidValue."""
    if text.isascii():
        size = len(text)
    else:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise InvalidValue(field, "is not valid Unicode") from None
        if not unicodedata.is_normalized("NFC", text):
            raise InvalidValue(field, "is not in Unicode normal form C")
    if size > limit:
        raise InvalidValue(field, f"is longer than {limit} bytes")
    if "\0" in text:
        raise InvalidValue(field, "contains a NUL character")
    return text
