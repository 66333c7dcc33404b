"""The service as one machine runs it: a real server and worker, a deployment, and labels that land and wake a
training."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from headrace.operations import build_operations_database


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _outside(processes: list[psutil.Process]) -> list[str]:
    """Return connections of these processes to anything but this machine."""
    found = []
    for process in processes:
        try:
            connections = process.net_connections(kind="inet")
        except psutil.Error:
            continue  # it has ended since
        found += [f"{process.pid} {c.raddr}" for c in connections if c.raddr and c.raddr.ip not in ("127.0.0.1", "::1")]
    return found


@pytest.mark.timeout(280)
def test_labels_that_land_wake_a_training_and_a_model_is_promoted(tmp_path: Path, checkout: Path) -> None:
    home = tmp_path / "home"
    build_operations_database(home / "operations.db", months=[1, 2], origins=["LGA"])
    port = _free_port()
    log = tmp_path / "up.log"
    environment = {
        **os.environ,
        "HEADRACE_HOME": str(home),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
    }
    headrace = [sys.executable, "-m", "headrace"]
    with open(log, "w") as sink:
        up = subprocess.Popen(
            [*headrace, "up", "--port", str(port)], env=environment, cwd=checkout, stdout=sink, stderr=sink
        )
    family: list[psutil.Process] = []
    try:
        _until(lambda: "ready:" in log.read_text(), up, log, seconds=100)
        prefect = [sys.executable, "-m", "prefect", "deployment", "run", "extract/extract-hourly"]
        subprocess.run(prefect, env=environment, cwd=checkout, check=True, capture_output=True)
        outside: list[str] = []

        def promoted() -> bool:
            family[:] = [psutil.Process(up.pid), *psutil.Process(up.pid).children(recursive=True)]
            outside.extend(_outside(family))
            done = subprocess.run(
                [*headrace, "status", "pipelines/flights.yaml", "--json"],
                env=environment,
                cwd=checkout,
                capture_output=True,
                text=True,
                check=True,
            )
            return json.loads(done.stdout)["champion"] is not None

        _until(promoted, up, log, seconds=160)
        assert outside == []
        _until(lambda: _scheduled(environment["PREFECT_API_URL"]) > 0, up, log, seconds=60)
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def _scheduled(api: str) -> int:
    """Return how many runs the server's scheduler has laid out for the hourly extraction."""
    question = {
        "deployments": {"name": {"any_": ["extract-hourly"]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    return int(httpx.post(f"{api}/flow_runs/count", json=question, timeout=10).json())


def _until(holds, up: subprocess.Popen[bytes], log: Path, *, seconds: float) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while not holds():
        assert up.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(2)
