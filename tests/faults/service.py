"""Payments as a deployment: a worker of its own on a Prefect server, the runs that it starts, and what they leave.

The flow that it runs is in ``deployed.py``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from engine.memory.tickets import MEMORY_LIMIT
from tests.faults.payments import ROOT, Payments

_TERMINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def until(holds: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """Return what ``holds`` returns once that is true; fail when it takes longer than any host would."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)
    return found


class Worker:
    """A process worker of a pool; ``Worker.start`` waits until it polls."""

    def __init__(self, api: str, pool: str, *, log: Path) -> None:
        self.api, self.pool, self._log = api, pool, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it makes its pool."""
        environment = {**os.environ, "PREFECT_API_URL": self.api, "PREFECT_WORKER_QUERY_SECONDS": "1"}
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", self.pool, "--type", "process"]
        with open(self._log, "ab") as sink:
            self._process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=sink, stderr=sink, start_new_session=True
            )
        until(self._polls, seconds=90, what="the worker")

    def _polls(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        return "Worker 'ProcessWorker" in self._log.read_text() and "started!" in self._log.read_text()

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> psutil.Process:
        """Its process."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    @property
    def family(self) -> list[psutil.Process]:
        """Whatever runs below it: supervisors, flow runs, caged children."""
        return self.process.children(recursive=True)

    def kill(self) -> None:
        """Kill it alone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._log.write_text("")

    def close(self) -> None:
        """Stop it and all that it runs."""
        if not self.is_alive:
            return
        family = self.family
        self.kill()
        for one in family:
            if one.is_running():
                one.kill()


@dataclass
class Deployment:
    """The deployment ``extract-payments``, one run at a time as those of prefect.yaml."""

    api: str
    payments: Payments
    id: str = ""
    _client: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))

    def close(self) -> None:
        """Let go of the connection to the server."""
        self._client.close()

    def create(self, *, pool: str) -> None:
        """Deploy."""
        self.payments.write_pipeline()
        flow = self._post("flows/", {"name": "extract"})
        made = self._post(
            "deployments/",
            {
                "name": f"extract-{self.payments.directory.name}",
                "flow_id": flow["id"],
                "entrypoint": "tests.faults.deployed.extract",
                "work_pool_name": pool,
                "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
                "parameters": {"parameters": {"pipeline": str(self.payments.pipeline), "what": "raw"}},
                "enforce_parameter_schema": False,
                "concurrency_limit": 1,
                "concurrency_options": {"collision_strategy": "ENQUEUE"},
            },
        )
        self.id = made["id"]

    def run(self) -> str:
        """Ask for a run; return its id."""
        return str(self._post(f"deployments/{self.id}/create_flow_run", {})["id"])

    def cancel(self, run: str) -> None:
        """Cancel a run as the button in the UI does."""
        state = {"type": "CANCELLING", "name": "Cancelling", "message": "cancelled by a person"}
        self._post(f"flow_runs/{run}/set_state", {"state": state})

    def state(self, run: str) -> tuple[str, str]:
        """Return the type of a run's state, and its message."""
        state = self._ask("GET", f"flow_runs/{run}")["state"] or {}
        return str(state.get("type")), str(state.get("message"))

    def ended(self, run: str, *, seconds: float = 120) -> tuple[str, str]:
        """Wait for a run's end and return its state."""
        return until(  # type: ignore[no-any-return]
            lambda: (state := self.state(run))[0] in _TERMINAL and state, seconds=seconds, what=f"the end of run {run}"
        )

    def _post(self, path: str, value: dict[str, Any]) -> dict[str, Any]:
        return self._ask("POST", path, json=value)

    def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """Ask the server; again while its SQLite is busy, as Prefect's own client does."""

        def answered() -> httpx.Response | None:
            answer = self._client.request(method, f"{self.api}/{path}", **more)
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

        answer = until(answered, seconds=60, what=path)
        assert answer.is_success, answer.text
        return dict(answer.json())


class Service:
    """What ``headrace up`` starts: a server with all of its services, on SQLite, and a worker."""

    def __init__(self, home: Path) -> None:
        self._home = home
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self._port = int(found.getsockname()[1])
        self.api = f"http://127.0.0.1:{self._port}/api"
        self.log = home / "up.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        self._home.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        own = {
            "HEADRACE_HOME": str(self._home),
            "PREFECT_HOME": str(self._home / "prefect"),
            "PREFECT_API_URL": self.api,
        }
        command = [sys.executable, "-m", "headrace", "up", "--port", str(self._port)]
        with open(self.log, "ab") as sink:
            self._process = subprocess.Popen(command, env={**os.environ, **own}, cwd=ROOT, stdout=sink, stderr=sink)
        until(self._is_ready, seconds=150, what="the service")

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        return "ready:" in self.log.read_text()

    def kill(self) -> None:
        """Kill all of it at once, as a host does that loses its power: server, worker and whatever they run."""
        assert self._process is not None
        family = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # it died with the one before it
                one.kill()
        self._process.wait()
        psutil.wait_procs(family, timeout=20)

    def close(self) -> None:
        """Stop it as Ctrl-C does."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(timeout=60)

    def limit_memory(self, size_mib: int) -> None:
        """Let runs hold so much together."""
        answer = httpx.patch(f"{self.api}/v2/concurrency_limits/{MEMORY_LIMIT}", json={"limit": size_mib}, timeout=60)
        assert answer.is_success, answer.text

    def held_mib(self) -> int:
        """Return what runs hold of it."""
        answer = httpx.get(f"{self.api}/v2/concurrency_limits/{MEMORY_LIMIT}", timeout=60)
        assert answer.is_success, answer.text
        return int(answer.json()["active_slots"])
