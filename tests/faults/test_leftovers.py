"""What a killed process leaves behind is taken up by the next one: control groups and half-written files.

What the tables hold after a kill is ``test_kill.py``.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from engine.features.segments import build_segment
from engine.memory.groups import memory_group

LIMIT = 64 * 2**20
DIES_IN_ITS_GROUP = f"""
import os, signal
from engine.memory.groups import memory_group
with memory_group({LIMIT}) as group:
    print(group.path if group else "", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
DIES_WRITING_A_SEGMENT = """
import os, signal, sys
from pathlib import Path
import pyarrow as pa
from engine.features import segments
segments.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
rows = pa.table({"key": ["a", "b"], "at": pa.array([1, 2], pa.timestamp("us", "UTC"))})
segments.build_segment(rows, keys=("key",), time="at", measures=(), path=Path(sys.argv[1]))
"""


def _die(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.strip()


def test_the_control_group_of_a_killed_run_is_removed_by_the_next() -> None:
    left = _die(DIES_IN_ITS_GROUP)
    with memory_group(LIMIT) as group:
        if group is None:
            pytest.skip("no control group can be made here: the removal of what a kill leaves was NOT exercised")
        assert left
        assert not Path(left).exists()


def test_the_control_group_of_a_living_run_is_kept() -> None:
    with memory_group(LIMIT) as mine, memory_group(LIMIT):
        if mine is None:
            pytest.skip("no control group can be made here: that a living run keeps its own was NOT exercised")
        assert mine.path.exists()


def test_a_half_written_segment_is_replaced_by_the_next_attempt(tmp_path: Path) -> None:
    path = tmp_path / "segment.arrow"
    for _ in range(2):
        _die(DIES_WRITING_A_SEGMENT, str(path))
    assert len(list(tmp_path.iterdir())) == 1  # one half-written file, however many attempts
    rows = pa.table({"key": ["a", "b"], "at": pa.array([1, 2], pa.timestamp("us", "UTC"))})
    build_segment(rows, keys=("key",), time="at", measures=(), path=path)
    assert list(tmp_path.iterdir()) == [path]
