"""How much larger rows become between what a source gives and what a table keeps: by other types, and by the columns
that say which file a row came from.
"""

from __future__ import annotations

from engine.batching.streams import BatchBytes, bound

_FIRST_BYTES = 256 * 1024  # of a batch, before any was seen: the name of a file may be longer than its rows


class Growth:
    """The bound of the next batch as the source gives it, such that it keeps ``batch_bytes`` as the table has it.

    Parameters
    ----------
    batch_bytes
        Upper bound of a batch as the table has it.
    """

    def __init__(self, batch_bytes: BatchBytes) -> None:
        self._most = batch_bytes
        self._factor: float | None = None

    def source_bytes(self) -> int:
        """Return the bound of the next batch as the source gives it."""
        most = bound(self._most)
        return min(most, _FIRST_BYTES) if self._factor is None else max(1, int(most / self._factor))

    def saw(self, source_bytes: int, table_bytes: int) -> None:
        """Say what a batch was as the source gave it, and as the table has it; one that was rejected tells nothing."""
        if source_bytes and table_bytes:
            self._factor = max(1.0, table_bytes / source_bytes)
