"""All ways to prepared rows lead to the same: several deliveries in any order, all at once, and the definition.

Tasks run in this process; plans, commits, segments and chunks are real. What a window is over given rows, with floats
of any scale, is held by ``tests/engine/features/test_windows.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine import stage
from engine.batching import Chunk, atomic, read_batches
from engine.batching.tables import chunk_prefix
from engine.features import open_windows, segment_sets, tiers, window_slices
from engine.layout import chunk_writer, prepared_table
from engine.preparing import label_commits, windowed_rows
from engine.spec import FeaturesSpec, PipelineSpec, WindowSpec
from engine.stage import StageContext, run_stage
from engine.stages.prepare import PrepareStage
from engine.units import microseconds
from tests.definition import Row, inside, known, statistic
from tests.stopped import stop

HOUR = 3_600_000_000
STARTS = [datetime(2024, 3, 30, tzinfo=UTC), datetime(1969, 12, 31, 12, tzinfo=UTC)]
STAMP = pa.timestamp("us", tz="UTC")
RAW = pa.schema(
    {
        "id": pa.int64(),
        "at": STAMP,
        "written": STAMP,
        "shop": pa.int64(),
        "lane": pa.float64(),
        "card": pa.string(),
        "amount": pa.float64(),
        "wide": pa.float64(),
        "cents": pa.int64(),
        "flag": pa.bool_(),
        "place": pa.string(),
    }
)
LABELS = pa.schema({"key": pa.int64(), "value": pa.bool_(), "labelled_at": STAMP})

EVENTS: list[Row] = [
    {"keys": ["card"], "column": "amount"}
    | {"statistics": ["count", "sum", "mean", "std", "min", "max", "ratio", "since"]},
    {"keys": ["card"], "column": "wide", "statistics": ["sum", "mean", "max", "distinct"]},
    {"keys": ["card", "lane"], "column": "cents"}
    | {"statistics": ["distinct", "count", "sum", "mean", "std", "min", "max", "ratio", "since"]},
    {"keys": ["shop"], "column": "flag", "statistics": ["rate", "count", "since"]},
    {"keys": ["shop"], "column": "place", "statistics": ["distinct"]},
]
# A label record keeps the key that its row had when it came: these keys are the same in all versions of a row.
OVER_LABELS: list[Row] = [
    {"keys": ["shop"], "statistics": ["count", "rate", "since"]},
    {"keys": ["shop", "lane"], "statistics": ["rate", "count"]},
]
LENGTHS = [timedelta(hours=1), timedelta(hours=3), timedelta(hours=8), timedelta(microseconds=2)]
LONGER_THAN_ALL = timedelta(days=400)
GAPS = [timedelta(0), timedelta(0), timedelta(hours=2), timedelta(microseconds=1)]

# Squares of these have fewer than 159 bits between them: beyond that ``std`` may show how rows are cut.
AMOUNTS = [0.1, 1 / 3, 2.5, -7.25, 640.0, 2.5, None]
WIDE = [0.1, 1e12, -1e12, 1e-3, 3.3, None]
CENTS = [1, 2, 2, -9, 700, 2**62, None]
CARDS, LANES = ["a", "a", "b", None], [1.5, 1.5, 0.0, -0.0, math.nan, None]
NEARBY = [-1, 0, 0, 1]  # microseconds
ODD = [math.nan, math.inf, -math.inf, 0.0, -0.0]


@dataclass(frozen=True)
class Cut:
    """How a workspace cuts rows."""

    span_rows: int
    commit_spans: int
    segment_rows: int = 1_000_000
    label_rows: int = 1_000
    fan_in: int = 4
    tier_keys: int = 1_000  # that a tier may have
    block_rows: int = 32_768


@dataclass(frozen=True)
class Case:
    """What is asked, and what arrives with each delivery."""

    features: FeaturesSpec
    delay: timedelta
    rows: list[list[Row]]  # by delivery: versions of rows
    labels: list[list[Row]]  # by delivery: records
    prepared: list[bool]  # after each delivery
    cuts: tuple[Cut, Cut]  # of the workspace of several deliveries, and of that of one


@st.composite
def features(draw: st.DrawFn) -> FeaturesSpec:
    """Return windows, those over labels first or last."""
    over_labels = draw(st.lists(st.sampled_from(OVER_LABELS), min_size=1, unique_by=id))
    over_events = draw(
        st.lists(st.sampled_from(EVENTS), min_size=draw(st.sampled_from([0, 1, 1, 1])), max_size=3, unique_by=id)
    )
    lengths = [*LENGTHS, LONGER_THAN_ALL] if draw(st.integers(0, 3)) == 0 else LENGTHS
    windows = []
    for over, asked in (("labels", over_labels), ("events", over_events)):
        for window in asked:
            gap = draw(st.none() | st.sampled_from(GAPS))
            choices = {
                "over": over,
                "lengths": draw(st.lists(st.sampled_from(lengths), min_size=1, max_size=2, unique=True)),
                "gap": gap,
                "null_keys": draw(st.sampled_from(["own", "exclude"])),
                "same_instant": over == "events" and gap == timedelta(0) and draw(st.booleans()),
            }
            windows.append({**window, **choices})
    if draw(st.booleans()):
        windows.reverse()
    gap = draw(st.sampled_from(GAPS))
    return FeaturesSpec.model_validate({"numeric": ["amount"], "gap": gap, "windows": _named_once(windows)})


def _named_once(windows: Sequence[dict[str, Any]]) -> list[WindowSpec]:
    """Return the windows without statistics whose name one before has: a count is not called by its column."""
    out, names = list[WindowSpec](), set[str]()
    for value in windows:
        made = WindowSpec.model_validate(value)
        taken = {statistic for _, statistic, name in made.names() if name in names}
        if left := [one for one in made.statistics if one not in taken]:
            out.append(made.model_copy(update={"statistics": tuple(left)}))
            names |= {name for _, _, name in out[-1].names()}
    return out


def _reaches(asked: FeaturesSpec, delay: timedelta) -> list[int]:
    """Return how far from a row or record windows begin and end, in microseconds; the farthest most often."""
    ends = {asked.gap_of(window) + length for window in asked.windows for length in window.lengths}
    near = {delay, *map(asked.gap_of, asked.windows)}
    return [0, 0, 0, *map(microseconds, [*near, *ends]), *2 * [_farthest(asked, "events"), _farthest(asked, "labels")]]


def _farthest(asked: FeaturesSpec, over: str) -> int:
    """Return where the windows that reach farthest begin, in microseconds before a row."""
    ends = [asked.gap_of(window) + max(window.lengths) for window in asked.windows if window.over == over]
    return microseconds(max(ends, default=timedelta(0)))


CUTS = st.builds(
    Cut,
    span_rows=st.sampled_from([1, 2, 2, 4, 40]),
    segment_rows=st.sampled_from([1_000_000, 2, 1]),
    commit_spans=st.sampled_from([64, 6]),
    label_rows=st.sampled_from([1_000, 6]),
    fan_in=st.sampled_from([2, 4]),
    tier_keys=st.sampled_from([1_000, 3]),
    block_rows=st.sampled_from([32_768, 3]),
)


@st.composite
def cases(draw: st.DrawFn, *, late_labels: bool) -> Case:
    """Return a case; unless ``late_labels``, records are extracted before any row that sees them is prepared."""
    asked, delay = draw(features()), draw(st.sampled_from([timedelta(0), timedelta(hours=2)]))
    odd = ODD if draw(st.booleans()) else []
    deliveries, arrival = draw(st.integers(3, 5)), draw(st.sampled_from(["in time", "backwards", "any"]))
    start, reaches = draw(st.sampled_from(STARTS)), st.sampled_from(_reaches(asked, delay))

    def moment(since: int = 0, *, first: int = 0) -> int:
        """Return a half hour, less or more than one microsecond beside it."""
        return since + draw(st.integers(first, 40)) * HOUR // 2 + draw(st.sampled_from(NEARBY))

    places = list[dict[str, Any]]()
    for _ in range(draw(st.integers(6, 22))):
        if draw(st.booleans()) and places:  # where a window of an earlier row's key begins or ends
            other = draw(st.sampled_from(places))
            places.append({**other, "at": other["at"] + draw(reaches) + draw(st.sampled_from(NEARBY))})
        else:
            place: dict[str, Any] = {"at": moment(), "shop": draw(st.sampled_from([1, 1, 2, None]))}
            places.append(place | {"card": draw(st.sampled_from(CARDS)), "lane": draw(st.sampled_from(LANES))})
    if draw(st.booleans()):
        places.sort(key=lambda place: place["at"])
    # One row comes last and alone, where it, or a record that waits for it, just is in windows of another row's key.
    other, far = draw(st.sampled_from(places)), {over: _farthest(asked, over) for over in ("events", "labels")}
    near = min(microseconds(asked.gap_of(window)) for window in asked.windows if window.over == "labels")
    last = draw(st.sampled_from(["seen", "sees", "waited for", "waited for"]))
    when = other["at"] + draw(st.sampled_from([1 - far["labels"], -near, -near - 1]))
    at = {"seen": other["at"] - far["events"] + 1, "sees": other["at"] + max(far.values()) - 1}
    at |= {"waited for": when - far["events"] - microseconds(delay) - HOUR}
    places.append(other | {"at": at[last]})
    rank = {time: number for number, time in enumerate(sorted(place["at"] for place in places))}

    def arrives(time: int) -> int:
        """Return the number of a row's delivery."""
        if arrival == "any":
            return draw(st.integers(0, deliveries - 2))
        regular = rank[time] * (deliveries - 1) // len(places)
        regular = regular if arrival == "in time" else deliveries - 2 - regular
        return min(deliveries - 2, regular + draw(st.sampled_from([0, 0, 0, 0, 1, 3])))

    rows: list[list[Row]] = [[] for _ in range(deliveries)]
    for number, place in enumerate(places):
        cards = [f"once {number}"] if draw(st.integers(0, 7)) == 0 else [place["card"], place["card"], *CARDS]
        for version in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
            values: dict[str, Any] = {
                "card": draw(st.sampled_from(cards)),
                "amount": draw(st.sampled_from([*AMOUNTS, *odd])),
                "wide": draw(st.sampled_from([*WIDE, *odd])),
                "cents": draw(st.sampled_from(CENTS)),
                "flag": draw(st.sampled_from([True, False, None])),
                "place": draw(st.sampled_from(["x", "x", "y", None])),
            }
            values |= {"id": number, "at": start + timedelta(microseconds=place["at"])}
            values |= {"written": start + timedelta(days=500, seconds=version)}
            arrived = deliveries - 1 if number == len(places) - 1 else arrives(place["at"])
            rows[arrived].append({**place, **values})

    labels: list[list[Row]] = [[] for _ in range(deliveries)]
    moments = set[tuple[int, int]]()
    for number in range(draw(st.integers(4, 16))):
        of = draw(st.integers(0, len(places)))  # one row never comes
        time = places[of]["at"] if of < len(places) else 0
        if last == "waited for" and not number:
            of, labelled = len(places) - 1, when
        elif draw(st.booleans()):  # where a window of another row begins or ends
            labelled = draw(st.sampled_from(places))["at"] - draw(reaches) + draw(st.sampled_from(NEARBY))
        else:
            labelled = moment(time, first=-2)
        record: dict[str, Any] = {"key": of, "value": draw(st.sampled_from([True, False, None]))}
        record |= {"labelled_at": start + timedelta(microseconds=labelled)}
        arrived = draw(st.integers(0, deliveries - 1))
        if (of, labelled) in moments:
            continue
        moments.add((of, labelled))
        if not late_labels:
            seen = _seen_by(asked, delay, rows, record)
            arrived = min([arrived, *(number for number, some in enumerate(rows) if any(map(seen, some)))])
        labels[arrived].append(record)
    prepared = [draw(st.integers(0, 3)) > 0 for _ in range(deliveries - 1)] + [True]
    return Case(asked, delay, rows, labels, prepared, (draw(CUTS), draw(CUTS)))


def _seen_by(
    asked: FeaturesSpec, delay: timedelta, rows: Sequence[Sequence[Row]], record: Row
) -> Callable[[Row], bool]:
    """Return what tells whether windows over labels of a row hold a record."""
    records = known([row for some in rows for row in some], [record], delay)

    def seen(row: Row) -> bool:
        return any(
            inside(window, asked.gap_of(window), max(window.lengths), row, records)
            for window in asked.windows
            if window.over == "labels"
        )

    return seen


def _defined(case: Case, deliveries: int) -> dict[int, dict[str, Any]]:
    """Return by key what the definition gives after some deliveries."""
    versions = [row for some in case.rows[:deliveries] for row in some]
    newest = {row["id"]: row for row in sorted(versions, key=lambda row: row["written"])}
    rows = list(newest.values())
    records = known(rows, [record for some in case.labels[:deliveries] for record in some], case.delay)
    out = {row["id"]: {"event_time": row["at"], "amount": row["amount"]} for row in rows}
    for window in case.features.windows:
        over, gap = (rows if window.over == "events" else records), case.features.gap_of(window)
        for row in rows:
            held = {length: inside(window, gap, length, row, over) for length in window.lengths}
            for length, name_of, name in window.names():
                out[row["id"]][name] = statistic(name_of, row, held[length], window.column or "value")
    return out


def _context(home: Path, asked: FeaturesSpec, delay: timedelta = timedelta(0)) -> StageContext:
    spec = PipelineSpec.model_validate(
        {
            "pipeline": "cards",
            "workspace": str(home / "workspace"),
            "source": {"uri": str(home / "in"), "key": "id", "cursor": "written"},
            "event_time": "at",
            "labels": {"key": "id", "value": "good", "labelled_at": "labelled_at", "delay": delay},
            "features": asked.model_dump(),
        }
    )
    return StageContext.of(spec, directory=home, as_of=datetime(2026, 1, 1, tzinfo=UTC))


def _deliver(context: StageContext, what: str, rows: Sequence[Row]) -> None:
    """Commit rows to ``raw``, or records to ``labels``, as extraction leaves them."""
    if not rows:
        return
    table, app = context.workspace.table(what), f"extract:{what}"
    n = table.transaction(app) + 1
    order = {"raw": ("at", "id", "written"), "labels": ("labelled_at", "key")}[what]
    rows = sorted(rows, key=lambda row: [row[name] for name in order])
    batch = pa.RecordBatch.from_pylist(rows, schema=RAW if what == "raw" else LABELS)
    with chunk_writer(context.spec, table, prefix=chunk_prefix(n, what), schema=batch.schema) as writer:
        writer.write(batch)
    record: dict[str, Any] = {"rows": len(rows), "memory_bytes": batch.nbytes}
    if what == "raw":
        times = batch.column("at").cast(pa.int64()).to_pylist()
        record |= {"hours": dict(Counter(str(time // HOUR) for time in times))}
        record |= {"event_minimum": min(times), "event_maximum": max(times)}
    context.workspace.journal.write_commit(app, n, record)
    table.commit(app=app, n=n, schema=batch.schema, add=writer.chunks)


@contextmanager
def _cut(cut: Cut) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        stop(patch)  # never: tasks run in this process
        patch.setattr(stage, "record_runs", lambda *_, **__: None)  # a third of all commits
        patch.setattr(atomic, "_sync", lambda _: None)
        patch.setattr(windowed_rows, "windowed_rows_per_span", lambda *_: cut.span_rows)
        patch.setattr(window_slices, "_LEAST_ROWS", 1)
        patch.setattr(windowed_rows, "COMMIT_SPANS", cut.commit_spans)
        patch.setattr(label_commits, "label_rows_per_slice", lambda *_: cut.label_rows)
        patch.setattr(segment_sets, "SEGMENT_ROWS", cut.segment_rows)
        patch.setattr(tiers, "FAN_IN", cut.fan_in)
        patch.setattr(window_slices, "tier_keys", lambda _: cut.tier_keys)
        patch.setattr(open_windows, "BLOCK_ROWS", cut.block_rows)
        yield


def _prepared(context: StageContext, *, version: int | None = None) -> dict[int, dict[str, Any]]:
    chunks = prepared_table(context.workspace, context.spec.feature_set).chunks(version=version)
    found = [row for batch in read_batches([chunk.path for chunk in chunks]) for row in batch.to_pylist()]
    assert len({row["key"] for row in found}) == len(found)
    return {row.pop("key"): row for row in found}


def _check(found: Mapping[int, Row], wanted: Mapping[int, Row]) -> None:
    assert found.keys() == wanted.keys()
    for key, row in wanted.items():
        assert found[key].keys() == row.keys()
        for name, right in row.items():
            value = found[key][name]
            if isinstance(right, float) and isinstance(value, float):
                assert math.isclose(value, right, rel_tol=1e-12) or (value != value and right != right), (key, name)
            else:
                assert value == right, (key, name)


def _bits(found: Mapping[int, Row]) -> dict[int, str]:
    return {key: repr(sorted(row.items())) for key, row in found.items()}


@pytest.mark.parametrize(
    ("late_labels", "examples"), [(False, 8), (True, 25)], ids=["labels in time", "labels extracted late"]
)
def test_rows_are_prepared_as_defined_whatever_order_they_come_in(
    tmp_path: Path, late_labels: bool, examples: int
) -> None:
    # To shrink a case takes longer than a test may.
    @settings(max_examples=examples, phases=[Phase.reuse, Phase.generate], suppress_health_check=[HealthCheck.too_slow])
    @given(cases(late_labels=late_labels))
    def holds(case: Case) -> None:
        with TemporaryDirectory(dir=tmp_path) as home:
            _check_paths(case, Path(home))

    holds()


def _check_paths(case: Case, home: Path) -> None:
    several, one = (_context(home / name, case.features, case.delay) for name in ("several", "one"))
    with _cut(case.cuts[0]):
        for number, is_prepared in enumerate(case.prepared):
            _deliver(several, "raw", case.rows[number])
            _deliver(several, "labels", case.labels[number])
            if is_prepared:
                run_stage(PrepareStage(), several)
                _check(_prepared(several), _defined(case, number + 1))
    for what, delivered in (("raw", case.rows), ("labels", case.labels)):
        _deliver(one, what, [row for some in delivered for row in some])
    with _cut(case.cuts[1]):
        run_stage(PrepareStage(), one)
    assert _bits(_prepared(several)) == _bits(_prepared(one))


def test_late_rows_replace_the_spans_they_touch_in_one_version_and_older_versions_stay_readable(tmp_path: Path) -> None:
    window = {"over": "events", "keys": ["card"], "lengths": ["3h"], "statistics": ["count"]}
    context = _context(tmp_path, FeaturesSpec.model_validate({"windows": [window]}))
    table = prepared_table(context.workspace, context.spec.feature_set)

    def delivered(hours: Sequence[float]) -> int:
        """Return how many slices rows took; with ids of ten times their hours."""
        times = {int(10 * hour): STARTS[0] + timedelta(hours=hour) for hour in hours}
        _deliver(context, "raw", [{"id": key, "at": time, "written": time, "card": "a"} for key, time in times.items()])
        with _cut(Cut(span_rows=3, commit_spans=2)):
            return run_stage(PrepareStage(), context).slices

    def counts(version: int | None = None) -> dict[int, int]:
        rows = _prepared(context, version=version)
        return {key: row["events_card_3h_count"] for key, row in rows.items()}

    assert delivered(range(24)) == 4  # of two spans each
    version, before, were = table.ref().version, {chunk.name: chunk for chunk in table.chunks()}, counts()
    assert delivered([4.5, 16.5]) == 1
    after = {chunk.name: chunk for chunk in table.chunks()}
    removed, added = (
        [some[name] for name in some.keys() - other.keys()] for some, other in ((before, after), (after, before))
    )
    assert table.ref().version == version + 1
    assert (len(before), len(removed), len(added)) == (
        8,
        4,
        6,
    )  # spans that take three rows have four now: they are cut
    assert _hours(removed) == [3, 6, 15, 18]
    assert _hours(added) == [3, 4.5, 6, 15, 16, 18]
    changed = {key for key, count in counts().items() if were.get(key) != count}
    assert changed == {45, 50, 60, 70, 165, 170, 180, 190}
    assert counts(version) == were


def _hours(chunks: Sequence[Chunk]) -> list[float]:
    """Return at which hour each chunk begins."""
    return sorted((chunk.minimum["event_time"] - STARTS[0]) / timedelta(hours=1) for chunk in chunks)
