"""Python's collector of cycles, told what it need not look at.

A service's modules and settings are hundreds of thousands of objects that live as long as the process. Going through
them again and again costs a share of the CPU under load, and each full round holds every call up for tens of
milliseconds.
"""

from __future__ import annotations

import gc

# Objects that are made before the youngest are looked at, and rounds before those that survived are: a request makes a
# few hundred, nearly all of which go by themselves.
_ROUNDS = (10_000, 20, 20)


def keep_what_is_there() -> None:
    """What there is now is not looked at any more; for when a process is about to serve."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_ROUNDS)
