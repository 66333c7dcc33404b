"""When each key of a segment had each value first and last, carried from segment to segment for ``distinct.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engine.features.keys import Codes, KeyDictionary, SortedKeys, build_dictionary, merged_columns

Places = npt.NDArray[np.int64]

NEVER = int(np.iinfo(np.int64).min)
"""The time of a previous row that there is none of, as far back as any window reaches."""

_LATEST = int(np.iinfo(np.int64).max)


@dataclass(frozen=True)
class PairTimes:
    """Each pair of a key and a value that a segment has, with times in microseconds.

    All but the last of the dictionary's values and pairs are those of the dictionary of the keys alone.
    """

    pairs: KeyDictionary  # over the key's columns and the value, which comes last
    before: Places  # (pairs.size,) of its previous row in an earlier segment, or NEVER
    last: Places  # (pairs.size,) of its last row in the segment

    def key_and_value(self) -> tuple[Codes, Codes]:
        """Return each pair's index in the dictionary of the keys alone, and the code of its value, 0 for null."""
        key, value = np.divmod(self.pairs.pairs[-1], len(self.pairs.values[-1]) + 1)
        return key, value


def pair_times(rows: SortedKeys, times: Places, *, earlier: Sequence[PairTimes], reach: int) -> PairTimes:
    """Return the pairs of a new segment.

    Parameters
    ----------
    rows
        The segment's by ``sort_keys`` over the key's columns and the value.
    times
        int64 (rows,): microseconds, as given to it.
    earlier
        Of all segments before it that end later than its first time less ``reach``, the latest first. Segments have to
        follow one another in time; of two that share an instant either may be the earlier, but always the same one.
    reach
        Microseconds, the longest window that will be asked for.

    Raises
    ------
    SchemaMismatch
        A key or the value is of another type in an earlier segment.

    Notes
    -----
    A window that holds a row at time t begins at ``far >= t - reach``, whatever its gap. So a previous row at
    ``t - reach`` or before counts as none does, and is taken for none: a segment depends on no row further back than
    ``reach`` before its first time. A late row changes the segments that hold its time or begin less than ``reach``
    after it, which are made anew as their windows are; to later ones it is none, as was what it took the place of.
    """
    pairs, index = build_dictionary(rows.columns)
    first, last = (times[rows.order[edge]] for edge in (rows.starts[:-1], rows.starts[1:] - 1))
    before = np.full(len(index), NEVER, dtype=np.int64)
    left = np.arange(len(index))  # most pairs of a busy key are in the latest segment, and looked for in no other
    for part in earlier:
        if not len(left):
            break
        found = part.pairs.find([replace(column, codes=column.codes[left]) for column in rows.columns])
        known = found >= 0
        before[left[known]] = part.last[found[known]]
        left = left[~known]
    before[before <= np.maximum(first, NEVER + reach) - reach] = NEVER
    return PairTimes(pairs, before, last)


def merged_times(parts: Sequence[PairTimes]) -> PairTimes:
    """Return the pairs of several segments as if they were one, of windows that hold all of these whole.

    Others may lie between them. A pair's previous row is the earliest of those that its parts have: in a window that
    is not longer than their ``reach`` no part's is taken for none but the first's.
    """
    columns = merged_columns([part.pairs for part in parts])
    pairs, _ = build_dictionary(columns)
    before = np.full(pairs.size, _LATEST, dtype=np.int64)
    last = np.full(pairs.size, NEVER, dtype=np.int64)
    for part in parts:
        found = part.pairs.find(columns)
        here = np.flatnonzero(found >= 0)
        before[here] = np.minimum(before[here], part.before[found[here]])
        last[here] = np.maximum(last[here], part.last[found[here]])
    return PairTimes(pairs, before, last)
