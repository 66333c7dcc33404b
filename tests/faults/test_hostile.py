"""Tables that are small on disk and large in memory, or broken, at a twentieth of their size under 256 MiB: each stage
ends within budget and projection, or says why not. At their true sizes: ``make bench-hostile-matrix``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.hostile import TABLES
from benchmarks.hostile_matrix import STAGES, Cell, run_cells

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

_WHOLE = dict.fromkeys(STAGES, "ok")
_STOPPED = {  # at which stage, and what it says
    "fat rows": ("extract", "budget", ["rows.parquet", "row group", "--memory"]),
    "2,000 columns": ("extract", "refused", ["page of each column", "--memory"]),
    "200 booleans": ("train", "refused", ["encoders and drift reference", "--memory"]),
    "zero rows": ("train", "error", ["there are no prepared rows to train on", "headrace run"]),
    "damaged row group": ("extract", "error", ["rows.parquet cannot be read", "row group", "move a damaged one away"]),
    "truncated": ("extract", "error", ["rows.parquet cannot be read", "move a damaged one away"]),
}


def _cells(name: str, directory: Path, *, memory: str = "256MiB") -> dict[str, Cell]:
    if not (directory / "rows").exists():
        (directory / "rows").mkdir()
        rows = TABLES[name].write(directory / "rows", 0.05)
        TABLES[name].write_labels(directory / "labels", rows)
    return {cell.stage: cell for cell in run_cells(name, directory, memory=memory)}


@pytest.mark.parametrize("name", [name for name in TABLES if name not in _STOPPED])
def test_every_stage_ends_within_its_budget_and_its_projection(name: str, tmp_path: Path) -> None:
    cells = _cells(name, tmp_path)
    assert {stage: cell.outcome for stage, cell in cells.items()} == _WHOLE
    for cell in cells.values():
        assert cell.measured_bytes <= cell.allowed_bytes, cell
        assert 0 < cell.share <= 1.0, cell


@pytest.mark.parametrize("name", _STOPPED)
def test_what_cannot_be_done_is_said_with_its_place_and_what_to_do(name: str, tmp_path: Path) -> None:
    cells = _cells(name, tmp_path)
    stage, outcome, said = _STOPPED[name]
    assert list(cells)[-1] == stage
    assert cells[stage].outcome == outcome
    for text in said:
        assert text in cells[stage].text


def test_the_budget_that_is_named_for_a_row_of_200_mib_is_enough_to_put_it_in_quarantine(tmp_path: Path) -> None:
    stopped = _cells("fat rows", tmp_path)["extract"]
    named = re.search(r"--memory (\d+MiB)", stopped.text)
    assert named is not None
    done = _cells("fat rows", tmp_path, memory=named.group(1))["extract"]
    assert done.outcome == "quarantine"
    assert done.measured_bytes <= done.allowed_bytes


def test_the_budget_that_is_named_for_2000_columns_is_enough_for_every_stage(tmp_path: Path) -> None:
    refused = _cells("2,000 columns", tmp_path)["extract"]
    named = re.search(r"--memory (\d+MiB)", refused.text)
    assert named is not None
    cells = _cells("2,000 columns", tmp_path, memory=named.group(1))
    assert {stage: cell.outcome for stage, cell in cells.items()} == _WHOLE
    assert all(0 < cell.share <= 1.0 for cell in cells.values()), cells
