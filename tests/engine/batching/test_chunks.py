"""How chunks are encoded. What they hold and when they are part of a table is ``test_tables.py``."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine.batching import ChunkWriter


def test_dictionaries_are_built_only_for_text_that_repeats(tmp_path: Path) -> None:
    rows = pa.record_batch({"order": [f"order {i}" for i in range(4_000)], "method": ["card", "cash"] * 2_000})
    with ChunkWriter(tmp_path, prefix="1-raw", schema=rows.schema) as writer:
        writer.write(rows)
    group = pq.read_metadata(tmp_path / writer.chunks[0].path).row_group(0)
    assert [group.column(at).has_dictionary_page for at in (0, 1)] == [False, True]
    assert pq.read_table(tmp_path / writer.chunks[0].path).to_batches() == [rows]
