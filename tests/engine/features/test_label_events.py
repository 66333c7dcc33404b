"""Label records get what the newest version of their row says, and no more rows are held than have labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.features import label_events
from engine.features.label_events import STAMP, join_labels

START = datetime(2026, 1, 1, tzinfo=UTC)
LABELS = pa.schema({"key": pa.int64(), "value": pa.bool_(), "labelled_at": STAMP})
RAW = pa.schema({"id": pa.int64(), "written": pa.int64(), "at": STAMP, "town": pa.string()})


@given(
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=9), max_size=9),
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
)
def test_the_newest_version_of_a_row_gives_the_keys_of_its_labels(
    batches: list[list[int]], labelled: list[int]
) -> None:
    newest = dict[int, int]()

    def raw() -> Iterator[pa.RecordBatch]:
        """Yield versions in order of their number, which is in the event time and the key, too."""
        version = 0
        for ids in batches:
            rows = []
            for number in ids:
                version += 1
                newest[number] = version
                rows.append(
                    {"id": number, "written": version, "at": START + timedelta(hours=version), "town": f"{version}"}
                )
            yield pa.RecordBatch.from_pylist(rows, schema=RAW)

    labels = [{"key": key, "value": True, "labelled_at": START + timedelta(hours=i)} for i, key in enumerate(labelled)]
    found, waiting = join_labels(
        pa.Table.from_pylist(labels, schema=LABELS),
        raw(),
        key="id",
        cursor="written",
        event_time="at",
        window_keys=["town"],
        delay=timedelta(hours=3),
    )
    expected = [
        (row["key"], row["labelled_at"], START + timedelta(hours=newest[row["key"]]), f"{newest[row['key']]}")
        for row in labels
        if row["key"] in newest
    ]
    names = ("key", "labelled_at", "event_time", *(["town"] if expected else []))
    assert sorted(tuple(row[name] for name in names) for row in found.to_pylist()) == sorted(expected)
    assert [row["key"] for row in waiting.to_pylist()] == [key for key in labelled if key not in newest]
    for row in found.to_pylist():
        assert row["known_at"] == max(row["event_time"] + timedelta(hours=3), row["labelled_at"])


def test_older_versions_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    newest = label_events._newest

    def watched(found: Sequence[pl.DataFrame]) -> pl.DataFrame:
        held.append(sum(part.height for part in found))
        return newest(found)

    monkeypatch.setattr(label_events, "_newest", watched)
    keys, versions = range(503), range(41)
    at = [START] * len(keys)
    found, _ = join_labels(
        pa.table({"key": list(keys), "value": [True] * len(keys), "labelled_at": at}, schema=LABELS),
        (
            pa.record_batch({"id": list(keys), "written": [n] * len(keys), "at": at, "town": [f"{n}"] * len(keys)}, RAW)
            for n in versions
        ),
        key="id",
        cursor="written",
        event_time="at",
        window_keys=["town"],
        delay=timedelta(0),
    )
    assert set(found.column("town").to_pylist()) == {"40"}
    assert found.num_rows == len(keys)
    assert max(held) <= 2.25 * len(keys)
