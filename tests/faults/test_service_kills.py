"""Extraction as the service runs it, on a real server and a real PostgreSQL: its flow run or its worker is killed at
each of its moments. After the next run ``raw`` holds every version that the cursor showed, once.

The same kills without Prefect, of the caged child too, are in ``test_extraction.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.payments import Payments
from tests.faults.proxy import Proxy
from tests.faults.service import Deployment, Worker, until

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("prefect")]

_MID_STREAM_BYTES = 600_000  # of a slice's 2.3 MB; all that the flow run asks is far less
_POOL = "faults"


@pytest.fixture(scope="module")
def one_worker(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = Worker(prefect_server, _POOL, log=tmp_path_factory.mktemp("worker") / "worker.log")
    yield made
    made.close()


@pytest.fixture
def worker(one_worker: Worker) -> Worker:
    if not one_worker.is_alive:
        one_worker.start()
    return one_worker


@pytest.fixture
def deployment(worker: Worker, payments: Payments) -> Iterator[Deployment]:
    made = Deployment(worker.api, payments)
    made.create(pool=_POOL)
    yield made
    made.close()


def _stopped(payments: Payments) -> Path:
    return payments.directory / "stopped"


def _at(where: str, deployment: Deployment, proxy: Proxy) -> tuple[str, psutil.Process, list[psutil.Process]]:
    """Start a run and return, once it is at this moment, its id, its process and what runs below that."""
    payments = deployment.payments
    stop = payments.directory / "stop"
    if where == "connected":
        stop.write_text("started")
    elif where == "mid-stream":
        proxy.stall_after(_MID_STREAM_BYTES)
    else:
        stop.write_text(where)
    run = deployment.run()
    if where == "mid-stream":
        until(proxy.reached.is_set, seconds=90, what="the middle of the stream")
    else:
        until(_stopped(payments).exists, seconds=90, what=where)
    if where == "connected":  # what the flow run itself asks has been asked by now
        proxy.stall_after(0)
        stop.unlink()
        until(proxy.reached.is_set, seconds=60, what="the child's connection")
    process = psutil.Process(int((payments.directory / "running").read_text()))
    return run, process, process.children(recursive=True)


def _clear(payments: Payments, proxy: Proxy) -> None:
    proxy.heal()
    for name in ("stop", "stopped", "running"):
        (payments.directory / name).unlink(missing_ok=True)


def _committed(where: str) -> int:
    return 20_000 if where == "commit" else 0


def _next_run(deployment: Deployment) -> None:
    payments = deployment.payments
    payments.sql("UPDATE payments SET updated_at = clock_timestamp(), payload = 'later' WHERE id % 1000 = 7")
    assert deployment.ended(deployment.run())[0] == "COMPLETED"
    payments.check()


@pytest.mark.parametrize(
    "where",
    [
        "record",
        *(pytest.param(where, marks=pytest.mark.slow) for where in ("connected", "mid-stream", "chunk", "commit")),
    ],
)
def test_a_flow_run_killed_at_each_of_its_moments(
    worker: Worker, deployment: Deployment, proxy: Proxy, where: str
) -> None:
    run, process, children = _at(where, deployment, proxy)
    assert children or where in ("record", "commit"), "there is no child"
    process.kill()
    _, alive = psutil.wait_procs([process, *children], timeout=10)
    assert not alive, f"{alive} outlived the flow run"
    _clear(deployment.payments, proxy)
    assert deployment.ended(run)[0] == "CRASHED"
    until(lambda: not worker.family, seconds=30, what="the end of what the worker started for it")
    assert deployment.payments.workspace.table("raw").rows() == _committed(where)
    _next_run(deployment)


@pytest.mark.slow
def test_a_run_that_is_cancelled_in_the_middle_leaves_nothing(
    worker: Worker, deployment: Deployment, proxy: Proxy
) -> None:
    run, process, children = _at("mid-stream", deployment, proxy)
    assert children
    deployment.cancel(run)
    assert deployment.ended(run)[0] == "CANCELLED"
    _, alive = psutil.wait_procs([process, *children], timeout=30)
    assert not alive, f"{alive} outlived the run that was cancelled"
    until(lambda: not worker.family, seconds=30, what="the end of what the worker started for it")
    root = deployment.payments.workspace.root
    assert not list(root.rglob("*.tmp"))
    assert not list(deployment.payments.workspace.scratch.iterdir())
    assert not list(Path("/sys/fs/cgroup").glob(f"**/headrace-{process.pid}-*"))
    _clear(deployment.payments, proxy)
    assert deployment.payments.workspace.table("raw").rows() == 0
    _next_run(deployment)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["connected", "mid-stream", "chunk", "record", "commit"])
def test_a_run_whose_worker_is_killed_ends_and_the_next_doubles_nothing(
    worker: Worker, deployment: Deployment, proxy: Proxy, where: str
) -> None:
    """It goes on until it has something to log: the worker was at the other end of its output."""
    run, process, children = _at(where, deployment, proxy)
    family = {*worker.family, process, *children}
    worker.kill()
    assert process.is_running()
    _clear(deployment.payments, proxy)
    assert deployment.ended(run)[0] == "CRASHED"
    _, alive = psutil.wait_procs(list(family), timeout=30)
    assert not alive, f"{alive} are left of a run that has ended"
    worker.start()
    _next_run(deployment)
