"""What a run that ends with an exception leaves in its workspace."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.batching import Workspace


class _Ended(BaseException):
    pass


def _half_done(workspace: Workspace) -> None:
    with workspace.lock():
        raw = workspace.table("raw").path
        raw.mkdir(parents=True)
        (raw / ".1.parquet.tmp").write_text("half")
        (raw / "0.parquet").write_text("whole")
        (workspace.scratch / "spill").mkdir()
        (workspace.scratch / "spill" / "part").write_text("x")
        raise _Ended


def _disk_gone(workspace: Workspace) -> None:
    with workspace.lock():
        shutil.rmtree(workspace.root)
        raise _Ended


def test_a_run_that_ends_with_an_exception_leaves_no_unfinished_file_and_no_scratch(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    with pytest.raises(_Ended):
        _half_done(workspace)
    assert [path.name for path in workspace.table("raw").path.iterdir()] == ["0.parquet"]
    assert list(workspace.scratch.iterdir()) == []
    with workspace.lock():  # and it is free again
        pass


def test_the_error_that_ended_a_run_is_shown_though_nothing_can_be_removed(tmp_path: Path) -> None:
    with pytest.raises(_Ended):
        _disk_gone(Workspace(tmp_path / "w"))
