"""Runs that do not fit together wait for one another, whatever becomes of the one that holds."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.errors import PlanRefused
from engine.memory.tickets import host_ticket, tickets_mib

_HOLD = """
import sys, time
from pathlib import Path
from engine.memory.tickets import host_ticket
with host_ticket(int(sys.argv[2]), total_mib=1000, directory=Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def _holder(place: Path, size_mib: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _HOLD, str(place), str(size_mib)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_ticket_that_fits_beside_others_is_had_at_once(tmp_path: Path) -> None:
    said: list[str] = []
    with (
        host_ticket(400, total_mib=1000, directory=tmp_path, waiting=said.append),
        host_ticket(600, total_mib=1000, directory=tmp_path, waiting=said.append),
    ):
        assert len(list(tmp_path.glob("*.ticket"))) == 2
    assert said == []
    assert list(tmp_path.glob("*.ticket")) == []


def test_one_that_does_not_fit_waits_until_the_holder_is_killed_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    began = time.monotonic()
    with _holder(tmp_path, 700) as holder:

        def waiting(message: str) -> None:
            said.append(message)
            holder.kill()

        with host_ticket(500, total_mib=1000, directory=tmp_path, waiting=waiting):
            assert holder.wait(timeout=10) == -9
    assert time.monotonic() - began < 60
    assert said == ["500 MiB are needed, 700 of 1000 MiB are held by other runs on this host: going on when they end"]


def test_more_than_the_host_has_is_refused_without_waiting(tmp_path: Path) -> None:
    with (
        pytest.raises(PlanRefused, match="more than the 1000 MiB"),
        host_ticket(1001, total_mib=1000, directory=tmp_path),
    ):
        pytest.fail("it was had")


def test_a_ticket_that_is_given_back_while_it_is_counted_counts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder lets go between the look at its lock and that at its size."""
    read = Path.read_text

    def gone_by_then(path: Path, *arguments: str) -> str:
        path.unlink(missing_ok=True)
        return read(path, *arguments)

    said: list[str] = []
    with host_ticket(700, total_mib=1000, directory=tmp_path):
        [given_back] = tmp_path.glob("*.ticket")
        monkeypatch.setattr(Path, "read_text", gone_by_then)
        with host_ticket(500, total_mib=1000, directory=tmp_path, waiting=said.append):
            [mine] = tmp_path.glob("*.ticket")
    assert mine != given_back
    assert said == []


def test_all_runs_of_a_user_share_one_place_whatever_their_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with host_ticket(1):
        assert list(tmp_path.iterdir()) == []


def test_the_host_keeps_a_reserve() -> None:
    import psutil

    assert 0 < tickets_mib() <= psutil.virtual_memory().total * 0.8 / 2**20
