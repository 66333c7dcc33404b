"""How far sums, means and standard deviations of one to ten rows are from exact ones, at the end of keys of 12 M rows.

48 M rows: 12 M of a key of amounts, 12 M of one of mean 1e6 and deviation 1, 6 M each of two neighbours that hold 1e12
and 1e-3, the others of a million keys. Headrace prepares all of it under 1 GiB; Polars' rolling expressions and
differences of plain running sums in float64 get the rows of one key at a time, without a limit. Sampled rows of each
key's last tenth are held against fractions. ``python -m benchmarks.windows_precision [--rows N]``
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import cards, raw_rows
from benchmarks.results import Contender, write_results
from engine.layout import KEY, prepared_table
from engine.stage import StageContext, run_stage
from engine.stages.prepare import PrepareStage

if TYPE_CHECKING:
    import numpy.typing as npt
    import polars as pl
    import pyarrow as pa

_ROWS = 48_000_000
_SAMPLES = 500  # of each key
_STEP = 1_000_000  # microseconds from a row to the next
_STATISTICS = ("sum", "mean", "std")
_LENGTHS = {"5s": 1, "9s": 2, "21s": 5, "41s": 10}  # with how many rows of a key that has every fourth row
_ALLOWED = 1e-9  # relative error
_DIGITS = Context(prec=60)


@dataclass(frozen=True)
class _Key:
    """Which rows a key has: those whose number, divided by ``every``, leaves ``rest``."""

    card: int
    every: int
    rest: int


_KEYS = {
    "amounts": _Key(1, 4, 0),
    "mean 1e6 and std 1": _Key(2, 4, 1),
    "1e12": _Key(3, 8, 2),
    "1e-3": _Key(4, 8, 6),
}
_Errors = dict[str, float]  # the worst of each key and statistic


def main() -> None:
    """Prepare, compare, write ``benchmarks/results/windows_precision.json``; exit 1 where an error is too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=_ROWS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("HEADRACE_BENCH_DIR", ".")) as scratch:
        home = Path(scratch).absolute()
        spec = cards.spec_of(home, "amount", lengths=tuple(_LENGTHS), statistics=_STATISTICS)
        raw_rows.generate(
            spec, home, _block, rows=given.rows, commit_rows=cards.COMMIT_ROWS, block_rows=cards.BLOCK_ROWS
        )
        context, started = StageContext.of(spec, directory=home), time.monotonic()
        memory = run_stage(PrepareStage(), context).memory
        seconds = time.monotonic() - started
        prepared = prepared_table(context.workspace, spec.feature_set).chunks()
        names = {
            (length, statistic): f"events_card_{length}_amount_{statistic}"
            for length in _LENGTHS
            for statistic in _STATISTICS
        }
        errors: dict[str, _Errors] = {"headrace": {}, "polars": {}, "plain_sums": {}}
        for title, key in _KEYS.items():
            ids = _sampled(key, given.rows)
            held = _of_key(context.workspace.table("raw").chunks(), key)
            exact = [_exact(held, key, row) for row in ids]
            found = _prepared(prepared, ids, names)
            answers = {"headrace": found, "polars": _polars(held, ids), "plain_sums": _plain_sums(held, key, ids)}
            for contender, rows in answers.items():
                errors[contender] |= _worst(title, rows, exact)
    done = {
        "headrace": Contender(round(seconds, 2), memory.measured_bytes, "ok", given.rows, errors["headrace"]),
        **{name: Contender(0.0, 0, "ok", given.rows, errors[name]) for name in ("polars", "plain_sums")},
    }
    print(f"wrote {write_results('windows_precision', done)}")
    worst = max(errors["headrace"].values())
    if not worst <= _ALLOWED:
        raise SystemExit(f"a relative error is {worst:.2g}; at most {_ALLOWED} is allowed")


def _block(start: int, rows: int) -> pa.RecordBatch:
    """Return rows ``start`` and following; the digits of their values reach as far as floats have them."""
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng([13, start])
    ids = np.arange(start, start + rows)
    amounts = random.lognormal(3.0, 1.5, rows)
    others = random.zipf(1.2, rows) % 1_000_000 + 10
    values = {"mean 1e6 and std 1": random.normal(1e6, 1.0, rows), "1e12": 1e12 + amounts, "1e-3": 1e-3 * amounts}
    for title, key in _KEYS.items():
        mine = ids % key.every == key.rest
        others[mine] = key.card
        amounts[mine] = values.get(title, amounts)[mine]
    times = cards.times_of(ids, step=_STEP)
    return pa.record_batch({"id": pa.array(ids), "at": times, "card": pa.array(others), "amount": pa.array(amounts)})


def _sampled(key: _Key, rows: int) -> list[int]:
    """Return ids of the last tenth of a key's rows, in order."""
    import numpy as np

    last = rows // key.every
    places = np.random.default_rng(5).integers(last - last // 10, last, _SAMPLES)
    return [int(place) * key.every + key.rest for place in np.unique(places)]


def _of_key(chunks: Sequence[Any], key: _Key) -> pl.DataFrame:
    """Return a key's rows in order of time."""
    import polars as pl

    rows = pl.scan_parquet([chunk.path for chunk in chunks]).filter(pl.col("card") == key.card)
    return rows.select("id", "at", "amount").collect(engine="streaming").sort("at")


_Row = Mapping[tuple[str, str], Any]  # by length and statistic


def _exact(held: pl.DataFrame, key: _Key, row: int) -> _Row:
    """Return a row's sums and means as fractions, deviations to sixty digits."""
    values: npt.NDArray[Any] = held["amount"].to_numpy()
    out: dict[tuple[str, str], Any] = {}
    place = row // key.every
    for length, of_four in _LENGTHS.items():
        count = of_four * 4 // key.every
        inside = [Fraction(float(value)) for value in values[place - count : place]]
        total = sum(inside, Fraction(0))
        out[length, "sum"] = total
        out[length, "mean"] = total / count if count else None
        spread = sum(((value - total / count) ** 2 for value in inside), Fraction(0)) / (count - 1) if count > 1 else 0
        square = _DIGITS.divide(Decimal(Fraction(spread).numerator), Decimal(Fraction(spread).denominator))
        out[length, "std"] = Fraction(square.sqrt(_DIGITS)) if count > 1 else None
    return out


def _prepared(chunks: Sequence[Any], ids: Sequence[int], names: Mapping[tuple[str, str], str]) -> list[_Row]:
    import polars as pl

    rows = pl.scan_parquet([chunk.path for chunk in chunks]).filter(pl.col(KEY).is_in(list(ids)))
    found = rows.select(KEY, *names.values()).collect(engine="streaming").sort(KEY)
    return [{at: row[name] for at, name in names.items()} for row in found.iter_rows(named=True)]


def _polars(held: pl.DataFrame, ids: Sequence[int]) -> list[_Row]:
    import polars as pl

    rolling: dict[str, pl.Expr] = {}
    for length in _LENGTHS:
        value = pl.col("amount")
        rolling[f"{length} sum"] = value.rolling_sum_by("at", length, closed="none")
        rolling[f"{length} mean"] = value.rolling_mean_by("at", length, closed="none")
        rolling[f"{length} std"] = value.rolling_std_by("at", length, closed="none")
    found = held.select("id", **rolling).filter(pl.col("id").is_in(list(ids))).sort("id")
    return [
        {(length, name): row[f"{length} {name}"] for length in _LENGTHS for name in _STATISTICS}
        for row in found.iter_rows(named=True)
    ]


def _plain_sums(held: pl.DataFrame, key: _Key, ids: Sequence[int]) -> list[_Row]:
    """Return differences of running sums in float64, of values and of their squares."""
    import numpy as np

    values = held["amount"].to_numpy()
    sums, squares = np.concatenate([[0.0], values.cumsum()]), np.concatenate([[0.0], (values**2).cumsum()])
    out: list[_Row] = []
    for row in ids:
        one: dict[tuple[str, str], Any] = {}
        for length, of_four in _LENGTHS.items():
            count, place = of_four * 4 // key.every, row // key.every
            total, square = sums[place] - sums[place - count], squares[place] - squares[place - count]
            one[length, "sum"], one[length, "mean"] = total, total / count if count else None
            spread = (square - total**2 / count) / (count - 1) if count > 1 else None
            one[length, "std"] = None if spread is None else max(spread, 0.0) ** 0.5
        out.append(one)
    return out


def _worst(title: str, found: Sequence[_Row], exact: Sequence[_Row]) -> _Errors:
    """Return the largest relative error of each statistic of a key; where one is absent the other has to be, too."""
    out = {f"{statistic} of {title}": 0.0 for statistic in _STATISTICS}
    for mine, wanted in zip(found, exact, strict=True):
        for (length, statistic), value in wanted.items():
            answer, name = mine[length, statistic], f"{statistic} of {title}"
            if value is None or value == 0:
                if answer != value:
                    out[name] = float("inf")
                continue
            error = float("inf") if answer is None else abs(float((Fraction(float(answer)) - value) / value))
            out[name] = max(out[name], error)
    return out


if __name__ == "__main__":
    main()
