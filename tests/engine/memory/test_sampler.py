"""The sampler where the measure itself fails: nobody would enforce the budget, so the child ends, and one is told."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from engine.memory import sampler as module
from engine.memory.measure import Measure
from engine.memory.sampler import Sampler


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process
        process.kill()


@pytest.fixture(autouse=True)
def _failing_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([Measure(1)])

    def measure(pid: int) -> Measure:
        for one in looks:
            return one
        raise PermissionError(f"/proc/{pid}")

    monkeypatch.setattr(module, "measure_tree", measure)


def test_a_measure_that_fails_ends_the_child_and_is_raised(child: subprocess.Popen[bytes]) -> None:
    def sampled() -> None:
        with Sampler(child.pid, started=time.monotonic(), stop_at_bytes=None):
            assert child.wait(timeout=30) == -signal.SIGKILL

    with pytest.raises(PermissionError, match=f"/proc/{child.pid}"):
        sampled()


def test_a_measure_that_fails_is_noted_on_an_error_that_came_first(child: subprocess.Popen[bytes]) -> None:
    def interrupted() -> None:
        with Sampler(child.pid, started=time.monotonic(), stop_at_bytes=None):
            child.wait(timeout=30)
            raise LookupError("came first")

    with pytest.raises(LookupError, match="came first") as caught:
        interrupted()
    assert caught.value.__notes__ == [f"and its memory could not be sampled: PermissionError('/proc/{child.pid}')"]
