"""Digests of contents that can be gone on with: what was read of a file is hashed as it is read, slice by slice, and
never a second time.

Whole pieces of 4 MiB are chained, and what is behind the last one stands apart: the digest of a file's first bytes is
enough to go on from, with those behind the last whole piece.
"""

from __future__ import annotations

import hashlib

PIECE_BYTES = 4 * 2**20
_START = "0" * 64


class Digest:
    """The digest of bytes that come in order.

    Parameters
    ----------
    before
        Text of the digest of the bytes so far; empty at the beginning.
    at
        How many those are. ``update`` must first be given the last ``Digest.behind(at)`` of them again.
    """

    def __init__(self, before: str = "", *, at: int = 0) -> None:
        self._chain = before[:64] or _START
        self._tail, self._length = hashlib.sha256(), 0
        self.at = at - self.behind(at)

    @staticmethod
    def behind(at: int) -> int:
        """Return how many of ``at`` bytes lie behind the last whole piece."""
        return at % PIECE_BYTES

    def update(self, data: bytes) -> None:
        """Add bytes."""
        view = memoryview(data)
        while view:
            part = view[: PIECE_BYTES - self._length]
            self._tail.update(part)
            self._length += len(part)
            self.at += len(part)
            view = view[len(part) :]
            if self._length == PIECE_BYTES:
                self._chain = hashlib.sha256(bytes.fromhex(self._chain) + self._tail.digest()).hexdigest()
                self._tail, self._length = hashlib.sha256(), 0

    def text(self) -> str:
        """Return the digest of the bytes so far: 128 hexadecimal digits."""
        return self._chain + self._tail.hexdigest()
