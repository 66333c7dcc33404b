"""A Prefect server and a worker on loopback, with the deployments of prefect.yaml: for one machine, in the
foreground.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import typer

from engine.errors import HeadraceError
from engine.memory.tickets import MEMORY_LIMIT, tickets_mib

POOL = "headrace"
_START_SECONDS = 90.0
_RUNS_AT_ONCE = 4  # that do not fit together wait for one another's memory


def run_up(*, port: int) -> None:
    """Start server and worker, deploy, and wait; Ctrl-C or SIGTERM stops both.

    Raises
    ------
    HeadraceError
        The port is taken, prefect.yaml is missing, or a part did not start.
    """
    if not Path("prefect.yaml").exists():
        raise HeadraceError("prefect.yaml is not here", hint="run it from the checkout: make up")
    url = f"http://127.0.0.1:{port}/api"
    if _answers(url):
        raise HeadraceError(f"port {port} is taken", hint="choose another: headrace up --port 4201")
    import flows  # noqa: F401 - sets the environment that keeps telemetry off, which the children inherit

    home = Path(
        os.environ.get("PREFECT_HOME", Path(os.environ.get("HEADRACE_HOME", ".headrace")) / "prefect")
    ).absolute()
    home.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_WORKER_QUERY_SECONDS": os.environ.get("PREFECT_WORKER_QUERY_SECONDS", "2"),
        # On SQLite a heartbeat that meets another write fails with a page of traceback (Prefect reads before it writes,
        # and such a transaction cannot wait). One worker beside its server needs none every 30 seconds.
        "PREFECT_WORKER_HEARTBEAT_SECONDS": os.environ.get("PREFECT_WORKER_HEARTBEAT_SECONDS", "600"),
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        # In memory, as is Prefect's default, leases are lost with the server, and what they held is held for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a script's `&` leaves it ignored, and children inherit that
    signal.signal(signal.SIGTERM, _stop)
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        typer.echo("starting the Prefect server")
        server = [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        started.append(subprocess.Popen(server, env=environment, stdout=subprocess.DEVNULL))
        _wait(url, started[0])
        deploy(environment)
        worker = [*prefect, "worker", "start", "--pool", POOL, "--limit", str(_RUNS_AT_ONCE)]
        started.append(subprocess.Popen(worker, env=environment, stdout=subprocess.DEVNULL))
        typer.echo(f"ready: http://127.0.0.1:{port} (Ctrl-C stops it)")
        typer.echo(f"from another shell: PREFECT_API_URL={url} .venv/bin/headrace run pipelines/flights.yaml")
        while all(process.poll() is None for process in started):
            time.sleep(0.5)
        raise HeadraceError("the server or the worker ended", hint=f"see the Prefect log in {home}")
    except KeyboardInterrupt:
        typer.echo("stopping")
    finally:
        for process in reversed(started):
            _end(process)


def run_deploy() -> None:
    """Deploy prefect.yaml to the server of ``PREFECT_API_URL``, with its work pool and the limit on memory.

    Raises
    ------
    HeadraceError
        prefect.yaml is missing, no server is named, or it refuses.
    """
    if not Path("prefect.yaml").exists():
        raise HeadraceError("prefect.yaml is not here", hint="run it from the checkout")
    if not os.environ.get("PREFECT_API_URL"):
        raise HeadraceError(
            "PREFECT_API_URL is not set", hint="name the server, such as http://127.0.0.1:4200/api; make up starts one"
        )
    import flows  # noqa: F401 - telemetry off, for the commands too

    deploy(dict(os.environ))


def deploy(environment: Mapping[str, str]) -> None:
    """Create the work pool and the limit on memory, and deploy everything in prefect.yaml."""
    tickets = str(tickets_mib())
    _prefect(environment, "work-pool", "create", POOL, "--type", "process", "--overwrite")
    if _prefect(environment, "gcl", "update", MEMORY_LIMIT, "--limit", tickets, may_fail=True):
        _prefect(environment, "gcl", "create", MEMORY_LIMIT, "--limit", tickets)
    _prefect(environment, "deploy", "--all")


def _prefect(environment: Mapping[str, str], *arguments: str, may_fail: bool = False) -> int:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode and not may_fail:
        tail = (done.stdout + done.stderr).strip().splitlines()[-5:]
        raise HeadraceError(f"prefect {' '.join(arguments)} failed", hint="\n  ".join(tail))
    return done.returncode


def _stop(number: int, frame: object) -> None:
    del number, frame
    raise KeyboardInterrupt


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return int(answer.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_SECONDS
    while not _answers(url):
        if server.poll() is not None or time.monotonic() > until:
            raise HeadraceError("the Prefect server did not start", hint="run `prefect server start` to see why")
        time.sleep(0.5)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
