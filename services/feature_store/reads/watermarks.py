"""Which commits a read sees: those up to a number, or those that were published by a time."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from foresight.values import InvalidValue
from services.feature_store.commits import watermark


class CommitTimes(Protocol):
    """Says how far the commits go."""

    async def last(self) -> int:
        """Number of the last commit."""
        ...

    async def last_by(self, instant: datetime) -> int:
        """Number of the last commit that was published by then, 0 for none; none can be published by then later."""
        ...


class Watermarks:
    """Resolves what a caller asked for to the number of a commit."""

    def __init__(self, commits: CommitTimes) -> None:
        self._commits = commits

    async def resolve(self, commit: int = 0, as_of_time: datetime | None = None) -> int:
        """The commit up to which rows count: `commit`, or the last one by `as_of_time`, or else the last one.

        The answer 0 means that nothing had been committed yet. Raises InvalidValue for both at once, OutOfRange for a
        commit that does not exist yet.
        """
        if as_of_time is None:
            return watermark(commit, await self._commits.last())
        if commit:
            raise InvalidValue("as_of_time", "does not go with commit; give one of them")
        return await self._commits.last_by(as_of_time)
