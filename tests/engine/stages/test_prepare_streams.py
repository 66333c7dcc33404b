"""Prepare without windows: rows in order are streamed, others sorted, and both ways lead to the same table."""

from __future__ import annotations

import dataclasses
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from benchmarks.wide_prepare import CONTENDERS, add_features, generate, run, spec_of
from engine import events
from engine.batching import Chunk, ChunkWriter
from engine.batching.tables import chunk_prefix
from engine.errors import SpecError
from engine.features import footprints
from engine.features.row_streams import MOST_STREAMED_COLUMNS
from engine.features.spans import Span
from engine.features.stretches import stretches
from engine.layout import chunk_writer, largest_row_bytes, prepared_app, prepared_table
from engine.preparing import streamed_rows, windowed_rows
from engine.stage import StageContext, run_stage
from engine.stages.extract import ExtractStage
from engine.stages.prepare import PrepareStage
from engine.units import microseconds
from tests.shop import Shop, at

ROWS = 30_000


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose ``raw`` has rows of five and a half hours, to be prepared in three spans."""
    monkeypatch.setattr(streamed_rows, "SPAN_ROWS", 12_000)
    generate(tmp_path, rows=ROWS)
    return tmp_path


def _context(home: Path, *, memory: int = 2**30, seen: list[events.Event] | None = None) -> StageContext:
    spec = spec_of(home)
    spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"memory": memory})})
    return StageContext.of(spec, directory=home, hook=[].append if seen is None else seen.append)


def _rows(context: StageContext) -> pl.DataFrame:
    return pl.read_parquet([chunk.path for chunk in _chunks(context)]).sort("key")


def _chunks(context: StageContext) -> list[Any]:
    return prepared_table(context.workspace, context.spec.feature_set).chunks()


def _expected(context: StageContext) -> pl.DataFrame:
    raw = pl.scan_parquet([chunk.path for chunk in context.workspace.table("raw").chunks()])
    newest = raw.sort("id", "updated_at").unique("id", keep="last")
    names = {"key": "id", "event_time": "placed_at"} | {name: name for name in context.spec.features.names()}
    return add_features(newest).select(pl.col(old).alias(new) for new, old in names.items()).sort("key").collect()


def _add(context: StageContext, *, at: datetime, ids: list[int], updated: datetime) -> None:
    """Commit copies of the first rows to ``raw``, with other keys and times."""
    raw = context.workspace.table("raw")
    rows = pl.read_parquet(raw.chunks()[0].path, n_rows=len(ids)).with_columns(
        id=pl.Series(ids), placed_at=pl.lit(at), updated_at=pl.lit(updated), amount=pl.lit(-1.0)
    )
    batch = rows.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(raw.schema()).combine_chunks().to_batches()[0]
    with chunk_writer(context.spec, raw, prefix=chunk_prefix(2, "raw"), schema=batch.schema) as writer:
        writer.write(batch)
    micros = microseconds(at - datetime(1970, 1, 1, tzinfo=UTC))
    record = {"rows": len(ids), "memory_bytes": batch.nbytes, "hours": {str(micros // 3_600_000_000): len(ids)}}
    record |= {"event_minimum": micros, "event_maximum": micros}
    context.workspace.journal.write_commit("extract:raw", 2, record)
    raw.commit(app="extract:raw", n=2, schema=batch.schema, add=writer.chunks)


def test_rows_in_order_are_streamed_and_under_a_small_budget_sorted_to_the_same(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home, home / "other")
    context = _context(home)
    report = run_stage(PrepareStage(), context)
    assert report.slices == 1
    assert report.memory.measured_bytes <= report.memory.projected_bytes
    assert len(_chunks(context)) == 3
    assert all("-stream-" in chunk.name for chunk in _chunks(context))
    streamed = _rows(context)
    assert streamed.equals(_expected(context))
    monkeypatch.setattr(footprints, "_STREAM_COPIES", 1_000)  # as if there were many rows more
    small = _context(home / "other", memory=192 * 2**20)
    run_stage(PrepareStage(), small)
    assert all("-sort." in chunk.name for chunk in _chunks(small))
    assert _rows(small).equals(streamed)
    assert _rows(small).schema == streamed.schema


def test_hours_with_more_rows_than_a_span_takes_are_streamed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_rows, "SPAN_ROWS", 1_001)  # an hour is cut evenly, not where its rows lie
    context = _context(home)
    run_stage(PrepareStage(), context)
    assert len(_chunks(context)) > 30
    assert all("-stream-" in chunk.name for chunk in _chunks(context))
    assert len({chunk.rows for chunk in _chunks(context)}) > 2
    assert _rows(context).equals(_expected(context))


def test_a_late_row_and_a_new_version_have_only_their_chunk_written_anew(home: Path) -> None:
    context = _context(home)
    run_stage(PrepareStage(), context)
    before = [chunk.name for chunk in _chunks(context)]
    first, later = _chunks(context)[1].minimum["event_time"], datetime(2025, 6, 1, tzinfo=UTC)
    known = int(_rows(context).filter(pl.col("event_time") == first)["key"][0])
    _add(context, at=first, ids=[known, 10_000_000], updated=later)
    report = run_stage(PrepareStage(), context)
    assert report.slices == 1
    after = [chunk.name for chunk in _chunks(context)]
    assert len(set(before) - set(after)) == 1
    assert _rows(context).equals(_expected(context))
    assert _rows(context).filter(pl.col("key") == known)["amount"].to_list() == [-1.0]
    assert run_stage(PrepareStage(), context).slices == 0


def test_pieces_to_be_sorted_are_bounded_by_bytes_where_rows_are_large(tmp_path: Path) -> None:
    texts = ["a" * 31] * 5_003 + ["b" * 70_001] * 53 + ["a" * 31] * 5_003
    rows = pa.table({"placed_at": pa.array(range(len(texts)), pa.timestamp("us", "UTC")), "text": texts})
    with ChunkWriter(tmp_path, prefix=chunk_prefix(1, "raw"), schema=rows.schema, row_group_bytes=200_003) as writer:
        for batch in rows.to_batches():
            writer.write(batch)
    chunk = Chunk(tmp_path / writer.chunks[0].path, writer.chunks[0].path, 1, len(texts), writer.chunks[0].bytes)
    asked = {"columns": rows.column_names, "time": "placed_at", "rows": 4_001, "most_bytes": 1_000_003.0}
    pieces = list(stretches([chunk], span=Span(0, len(texts)), **asked))
    assert [piece.low for piece in pieces[1:]] == [piece.high for piece in pieces[:-1]]
    assert (pieces[0].low, pieces[-1].high) == (0, len(texts))
    parts = [rows.slice(piece.low, piece.high - piece.low) for piece in pieces]
    assert [part.num_rows for part in parts] == [piece.rows for piece in pieces]
    assert max(part.num_rows for part in parts) == 4_001
    assert max(part.nbytes for part in parts) <= 1_100_000


def test_rows_out_of_order_are_left_to_be_sorted_and_said_to_be(home: Path) -> None:
    context = _context(home)
    _add(context, at=datetime(2025, 1, 1, 1, tzinfo=UTC), ids=[10_000_000], updated=datetime(2025, 6, 1, tzinfo=UTC))
    seen: list[events.Event] = []
    run_stage(PrepareStage(), dataclasses.replace(context, hook=seen.append))
    kinds = {chunk.name.split("-")[1].split(".")[0] for chunk in _chunks(context)}
    assert kinds == {"stream", "sort"}
    assert any("they are sorted" in event.message for event in seen if isinstance(event, events.Note))
    assert _rows(context).equals(_expected(context))


def test_chunks_are_streamed_in_order_of_time_whichever_was_extracted_first(home: Path) -> None:
    context = _context(home)
    first = datetime(2024, 12, 31, 23, 59, tzinfo=UTC)
    _add(context, at=first, ids=[-2, -1], updated=datetime(2025, 6, 1, tzinfo=UTC))
    run_stage(PrepareStage(), context)
    assert all("-stream-" in chunk.name for chunk in _chunks(context))
    for chunk in _chunks(context):
        rows = pl.read_parquet(chunk.path)
        assert rows.equals(rows.sort("event_time", "key"))
    assert _rows(context).equals(_expected(context))


def test_columns_that_are_no_features_do_not_keep_rows_from_being_streamed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = {"uri": str(tmp_path / "in"), "table": "", "key": "id", "cursor": "at"}
    shop = Shop(tmp_path, source=source, event_time="at")
    more = range(MOST_STREAMED_COLUMNS)
    lines = [f"{key},{key * 7},2026-01-0{key},{','.join(map(str, more))}" for key in range(1, 9)]
    header = ",".join(["id,amount,at", *(f"c{i}" for i in more)])
    (tmp_path / "in" / "orders.csv").write_text("\n".join([header, *lines]) + "\n")
    context = shop.context(10**9)
    shop.extract(10**9)
    run_stage(PrepareStage(), context)
    assert ["-stream-" in chunk.name for chunk in _chunks(context)] == [True]
    assert _rows(context).select("key", "amount").rows() == [(key, key * 7) for key in range(1, 9)]


def test_a_transform_that_drops_rows_far_from_the_first_ones_is_refused(home: Path) -> None:
    (home / "picky.py").write_text(
        "import polars as pl\n\ndef choose(rows):\n    return rows.filter(pl.col('id') < 29_000)\n"
    )
    spec = spec_of(home)
    features = spec.features.model_copy(update={"transform": "picky:choose", "numeric": ("amount",)})
    context = dataclasses.replace(_context(home), spec=spec.model_copy(update={"features": features}))
    with pytest.raises(SpecError, match=r"returned .* rows for"):
        run_stage(PrepareStage(), context)


def test_the_benchmark_runs_all_contenders_on_a_few_rows(tmp_path: Path) -> None:
    generate(tmp_path, rows=2_000)
    found = run(tmp_path, rows=2_000)
    assert {name: one.rows for name, one in found.items()} == dict.fromkeys(CONTENDERS, 2_000)
    assert all(one.outcome == "ok" and one.peak_bytes > 0 for one in found.values())
    assert timedelta(seconds=found["headrace"].seconds) > timedelta(0)


def _moments(minute: int) -> list[str]:
    return [f"{at(minute):%Y-%m-%d %H:%M:%S.%f}"] * 2


def test_what_the_largest_row_takes_is_known_of_raw_and_of_what_is_prepared_from_then_on(tmp_path: Path) -> None:
    shop = Shop(tmp_path).open()
    shop.order((1, 1, 1))
    shop.sql("ALTER TABLE orders ADD COLUMN note TEXT")

    def known() -> list[int]:
        spec = shop.spec
        spec = spec.model_validate({**spec.model_dump(mode="json"), "features": {"categorical": ["note"]}})
        context = dataclasses.replace(shop.context(60), spec=spec)
        run_stage(ExtractStage("raw"), context)
        run_stage(PrepareStage(), context)
        apps = ("extract:raw", prepared_app(spec.feature_set))
        return [largest_row_bytes(context.workspace, app) for app in apps]

    assert known() == [0, 0]
    shop.sql("INSERT INTO orders VALUES (?, 2, ?, ?, ?)", values=[(2, *_moments(2), "n" * 100_003)])
    raw, prepared = known()
    assert 100_003 < prepared <= raw < 100_103
    shop.sql("INSERT INTO orders VALUES (?, 3, ?, ?, ?)", values=[(3, *_moments(3), "short")])
    assert known() == [raw, prepared]


@pytest.mark.parametrize("windows", [[], [{"over": "events", "keys": ["amount"], "lengths": ["9d"]}]])
@pytest.mark.parametrize("rows", [1, 3, 10**6])
def test_rows_of_any_year_are_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, windows: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(windowed_rows, "windowed_rows_per_span", lambda *_: rows)
    monkeypatch.setattr(streamed_rows, "SPAN_ROWS", rows)
    shop = Shop(tmp_path).open()
    days = [day * 1_440 + 750 for day in (-37_001, -37_000, -36_999, -20_454, -20_453, -20_452, 0, 1)]  # half past noon
    shop.order(*[(key, 1, 5) for key in days])
    shop.extract(10)
    features = {"numeric": ["amount"], "windows": [window | {"statistics": ["count"]} for window in windows]}
    value = {**shop.spec.model_dump(mode="json"), "features": features}
    spec = shop.spec.model_validate(value).model_copy(update={"source": shop.spec.source})
    context = dataclasses.replace(shop.context(10), spec=spec)
    run_stage(PrepareStage(), context)
    assert _rows(context)["key"].to_list() == days
