"""Extraction from a real PostgreSQL, broken at each of its moments: after the next run ``raw`` holds every version that
the cursor showed, once. What a kill does to the stages after it is ``test_kill.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from engine.errors import TaskCrashed
from tests.faults.conftest import Server
from tests.faults.payments import Payments
from tests.faults.proxy import Proxy

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("extraction")]

_MID_STREAM_BYTES = 600_000  # of a slice's 2.3 MB; all that the parent asks is far less


def _children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def _kill(process: subprocess.Popen[str], *, victim: str) -> str:
    """Kill the process that runs the stage, or its caged child; return what it said."""
    children = _children(process)
    if victim == "child":
        assert children, "there is no child to kill"
        for child in children:
            child.kill()
    else:
        os.kill(process.pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, f"{alive} outlived their parent"
    assert process.returncode == (-signal.SIGKILL if victim == "parent" else TaskCrashed.exit_code), out
    return out


def _wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    raise AssertionError(f"it ended before it said {word!r}")


def _let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize(
    ("victim", "where"),
    [
        ("child", "mid-stream"),
        pytest.param("child", "connected", marks=pytest.mark.slow),
        pytest.param("parent", "connected", marks=pytest.mark.slow),
        pytest.param("parent", "mid-stream", marks=pytest.mark.slow),
    ],
)
def test_killed_on_the_wire(payments: Payments, proxy: Proxy, victim: str, where: str) -> None:
    with payments.start("started") as process:
        _wait_for(process, "started")
        proxy.stall_after(0 if where == "connected" else _MID_STREAM_BYTES)
        _let_go(process)
        assert proxy.reached.wait(60)
        out = _kill(process, victim=victim)
    assert victim == "parent" or json.loads(out.splitlines()[-1])["error"] == "TaskCrashed"
    proxy.heal()
    assert payments.workspace.table("raw").rows() == 0
    payments.finish()
    payments.check()


@pytest.mark.parametrize(
    ("stop", "committed_rows"),
    [
        pytest.param("chunk", 0, marks=pytest.mark.slow),
        ("record", 0),
        pytest.param("commit", 20_000, marks=pytest.mark.slow),
    ],
)
def test_killed_around_a_commit(payments: Payments, stop: str, committed_rows: int) -> None:
    with payments.start(stop) as process:
        _wait_for(process, "stopped")
        _kill(process, victim="parent")
    assert payments.workspace.table("raw").rows() == committed_rows
    payments.finish()
    payments.check()


def _fails(payments: Payments, process: subprocess.Popen[str], *, kind: str) -> dict[str, str]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0, out
    error: dict[str, str] = json.loads(out.splitlines()[-1])
    assert error["error"] == kind
    return error


def test_a_connection_that_is_cut_is_an_error_of_the_source_and_the_next_run_goes_on(
    payments: Payments, proxy: Proxy
) -> None:
    proxy.cut_after(_MID_STREAM_BYTES)
    with payments.start() as process:
        error = _fails(payments, process, kind="SourceError")
    assert "run again" in error["hint"]
    payments.finish()
    payments.check()


@pytest.mark.slow
@pytest.mark.parametrize("where", [0, 200])
def test_a_connection_that_is_cut_at_its_start(payments: Payments, proxy: Proxy, where: int) -> None:
    proxy.cut_after(where)
    with payments.start() as process:
        error = _fails(payments, process, kind="SourceError")
    assert "check source.uri" in error["hint"]
    assert not payments.workspace.table("raw").exists()
    payments.finish()
    payments.check()


@pytest.mark.slow
def test_the_server_crashes_in_the_middle_of_a_read(payments: Payments, proxy: Proxy, crashing_server: Server) -> None:
    proxy.stall_after(_MID_STREAM_BYTES)
    with payments.start() as process:
        assert proxy.reached.wait(60)
        crashing_server.crash()
        try:
            proxy.heal()
            _fails(payments, process, kind="SourceError")
        finally:
            crashing_server.start()
    payments.finish()
    payments.check()


@pytest.mark.slow
def test_a_full_disk_loses_nothing(payments: Payments, small_disk: Path) -> None:
    payments.workspace_path = small_disk / "workspace"
    payments.workspace.prepare()
    ballast = small_disk / "ballast"
    with open(ballast, "wb") as handle:
        handle.write(b"\x01" * max(0, os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize - 600_000))
    with payments.start() as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 4, out
    assert "is full" in out
    ballast.unlink()
    payments.finish()
    payments.check()


@pytest.fixture
def fresh(payments: Payments) -> Payments:
    payments.sql("DROP SEQUENCE IF EXISTS fresh")
    payments.sql("CREATE SEQUENCE fresh START 1000000")
    return payments


@pytest.mark.parametrize(
    ("kills", "seed"), [(1, None), *(pytest.param(20, seed, marks=pytest.mark.slow) for seed in range(10))]
)
def test_killed_at_random_moments_while_rows_change_in_between(fresh: Payments, kills: int, seed: int | None) -> None:
    """Kill again and again while rows come, change and go between the kills.

    The moments are drawn from as long as a run takes on this host: a time that grows until a run ends by itself, and is
    then that run's.
    """
    payments, killed, span = fresh, 0, 2.0
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    rng = random.Random(seed)
    print(f"seed {seed}")
    while killed < kills:
        payments.sql(
            "INSERT INTO payments SELECT nextval('fresh'), clock_timestamp(), md5(random()::text) "
            f"FROM generate_series(1, {rng.randrange(1, 200)})"
        )
        payments.sql(
            "UPDATE payments SET updated_at = clock_timestamp(), payload = md5(random()::text) "
            f"WHERE id % 997 = {rng.randrange(997)}"
        )
        payments.sql(f"DELETE FROM payments WHERE id % 4999 = {rng.randrange(4999)}")
        started = time.monotonic()
        with payments.start() as process:
            try:
                process.wait(timeout=rng.uniform(0.1, 1.1) * span)
                assert process.returncode == 0, f"seed {seed}: {process.communicate()[0]}"
                span = time.monotonic() - started
            except subprocess.TimeoutExpired:
                span *= 1.1
                victim = "child" if rng.random() < 0.5 and _children(process) else "parent"
                targets = _children(process) if victim == "child" else [psutil.Process(process.pid)]
                children = _children(process)
                for one in targets:
                    with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended since it was looked for
                        one.kill()
                process.communicate(timeout=60)
                _, alive = psutil.wait_procs(children, timeout=10)
                assert not alive, f"seed {seed}: {alive} outlived their parent"
                killed += 1
    payments.finish()
    payments.check()


class _Writer:
    """Inserts, updates and deletes until it is stopped, in transactions that stay open for up to a second."""

    def __init__(self, payments: Payments, *, seed: int) -> None:
        self._payments = payments
        self._rng = random.Random(seed)
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self.transactions = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        assert self._failure is None, self._failure

    def _run(self) -> None:
        import adbc_driver_postgresql.dbapi

        try:
            with adbc_driver_postgresql.dbapi.connect(self._payments.server) as connection, connection.cursor() as work:
                while not self._stopped.is_set():
                    which = self._rng.randrange(500)
                    for statement in (
                        "INSERT INTO payments SELECT nextval('fresh'), clock_timestamp(), md5(random()::text) "
                        "FROM generate_series(1, 20)",
                        "UPDATE payments SET updated_at = clock_timestamp(), payload = md5(random()::text) "
                        f"WHERE id % 500 = {which}",
                        f"DELETE FROM payments WHERE id % 2003 = {which}",
                    ):
                        work.execute(statement)
                        if self._rng.random() < 0.3:
                            time.sleep(self._rng.uniform(0, 0.5))
                    connection.commit()
                    self.transactions += 1
        except BaseException as error:  # shown by the test's own thread
            self._failure = error


@pytest.mark.parametrize("runs", [1, pytest.param(25, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_rows_that_change_while_they_are_read_and_commit_late_all_come_in(fresh: Payments, runs: int) -> None:
    """With a lag longer than any transaction, each run holds what was there before it and is still there after it."""
    fresh.lag = "5s"
    with _Writer(fresh, seed=runs) as writer:
        for _ in range(runs):
            before = fresh.current()
            fresh.finish()
            steady = before & fresh.current()
            assert steady, "nothing stood still"
            missing = steady - set(fresh.raw())
            assert not missing, f"{len(missing)} rows that a run could see are missing, such as {sorted(missing)[:3]}"
    assert writer.transactions > runs
    fresh.finish()
    fresh.check()
