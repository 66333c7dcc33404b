"""What a run held of the server (its MiB of ``memory-mib``, its deployment's slot) comes free when it is killed,
alone or with the whole service. On what ``headrace up`` starts: only a full server takes leases back.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from headrace.up import POOL
from tests.faults.payments import Payments
from tests.faults.service import Deployment, Service, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("service")]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "home")
    made.start()
    made.limit_memory(700)  # no two runs of 512 MiB
    yield made
    made.close()


@pytest.fixture
def deployment(service: Service, payments: Payments) -> Iterator[Deployment]:
    made = Deployment(service.api, payments)
    made.create(pool=POOL)
    yield made
    made.close()


def _stopped_run(deployment: Deployment, service: Service) -> tuple[str, int]:
    """Start a run; return its id and pid when it is about to commit."""
    directory = deployment.payments.directory
    (directory / "stop").write_text("record")
    run = deployment.run()
    until((directory / "stopped").exists, seconds=120, what="a run that is about to commit")
    assert service.held_mib() == 512
    return run, int((directory / "stopped").read_text())


def _next_run(deployment: Deployment, service: Service, *, seconds: float) -> None:
    for name in ("stop", "stopped", "running"):
        (deployment.payments.directory / name).unlink(missing_ok=True)
    since = time.monotonic()
    assert deployment.ended(deployment.run(), seconds=seconds)[0] == "COMPLETED"
    print(f"the next run ended {time.monotonic() - since:.0f} s after it was asked for")
    deployment.payments.check()
    until(lambda: service.held_mib() == 0, seconds=30, what="the memory of runs that have ended")


def test_memory_that_a_killed_flow_run_held_comes_free(service: Service, deployment: Deployment) -> None:
    run, pid = _stopped_run(deployment, service)
    os.kill(pid, signal.SIGKILL)
    assert deployment.ended(run)[0] == "CRASHED"
    _next_run(deployment, service, seconds=240)


def test_after_the_whole_service_is_killed_nothing_stays_held(service: Service, deployment: Deployment) -> None:
    _, pid = _stopped_run(deployment, service)
    service.kill()
    assert not psutil.pid_exists(pid)
    service.start()
    service.limit_memory(700)
    _next_run(deployment, service, seconds=600)
