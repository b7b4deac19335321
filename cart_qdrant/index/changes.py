"""Which points have changed since identifiers, prefix tree and item table were last up to date.

A file in the work folder says that some have. It is written before the first change and removed
when tree and table are up to date again, so it outlives a killed run. The ids are kept in memory
alone: a run that finds the file of a killed one does not know them, and builds all parts anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cart_qdrant.files import write_atomic

MANY = 200_000
"""Changed points from which all parts are built anew; about 200 bytes of memory each."""


class Changes:
    """The changed points of one index.

    Args:
        work: The work folder of the index.

    Attributes:
        ids: Ids of points that were written or removed; incomplete where `unknown`.
        unknown: Whether other points than these may have changed.
    """

    def __init__(self, work: Path) -> None:
        self._mark = work / "changed"
        self._mine = False
        self.ids: set[str] = set()
        self._many = False

    @property
    def pending(self) -> bool:
        """Whether a point has changed, in this run or in a killed one."""
        return self._mark.exists()

    @property
    def unknown(self) -> bool:
        """Whether other points than `ids` may have changed."""
        return self._many or (self.pending and not self._mine)

    def add(self, ids: Iterable[str]) -> None:
        """Record that points are about to be written or removed."""
        if not self._mark.exists():
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._mark, b"")
            self._mine = True
        if not self.unknown:
            self.ids.update(ids)
            if len(self.ids) > MANY:
                self.forget_ids()

    def forget_ids(self) -> None:
        """Let all parts be built anew."""
        self.ids.clear()
        self._many = True

    def settle(self) -> None:
        """Record that identifiers, tree and table are up to date; the store was flushed."""
        self._mark.unlink(missing_ok=True)
        self.ids.clear()
        self._mine = self._many = False
