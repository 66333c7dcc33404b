"""A span is searched by pieces of bounded bytes, whatever its batches are."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from engine.features.row_slices import _grouped
from engine.spec import PipelineSpec
from tests.shop import Shop


@pytest.fixture
def spec(tmp_path: Path) -> PipelineSpec:
    return Shop(tmp_path).spec


def _pieces(texts: list[list[str]], spec: PipelineSpec, path: Path, *, batch_bytes: int) -> list[pa.Table]:
    batches = [pa.record_batch({"text": part}) for part in texts]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    with pa.memory_map(str(path), "rb") as source, pa.ipc.open_file(source) as reader:
        return [
            pa.table({"text": piece["text"].to_pylist()})
            for piece in _grouped(reader, spec, batch_bytes=lambda: batch_bytes)
        ]


def test_long_texts_make_pieces_of_few_rows_and_short_ones_of_many(spec: PipelineSpec, tmp_path: Path) -> None:
    texts = [["a"] * 900, ["b" * 10_000] * 200, ["c"] * 300, ["d"] * 300]
    pieces = _pieces(texts, spec, tmp_path / "rows.arrow", batch_bytes=100_000)
    assert [text for piece in pieces for text in piece["text"].to_pylist()] == [text for part in texts for text in part]
    assert max(piece.nbytes for piece in pieces) <= 130_000
    assert 20 <= len(pieces) <= 28  # 20 of the long texts; short batches that follow one another share a piece
