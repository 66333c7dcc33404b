"""Two runs that do not fit the host together: one waits for the other, and says so."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from flows import tickets
from tests.shop import Shop

pytestmark = [pytest.mark.timeout(280), pytest.mark.xdist_group("prefect")]


@pytest.fixture
def limit(prefect_server: str) -> Iterator[str]:
    """A server on which no two runs of 512 MiB fit."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name("memory-mib", 700)
        yield prefect_server
        client.delete_global_concurrency_limit_by_name("memory-mib")


def _shop(directory: Path) -> Shop:
    directory.mkdir()
    made = Shop(directory).open()
    made.order(*[(key, key, key / 10) for key in range(50)])
    (directory / "shop.yaml").write_text(yaml.safe_dump(made.spec.model_dump(mode="json", exclude_defaults=True)))
    return made


def _start(shop: Shop, server: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PREFECT_API_URL": server, "COLUMNS": "200"}
    command = [sys.executable, "-m", "headrace", "extract", "shop.yaml", *arguments]
    return subprocess.Popen(
        command, env=environment, cwd=shop.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_run_that_does_not_fit_beside_another_waits_and_says_so(tmp_path: Path, limit: str) -> None:
    from prefect.concurrency.sync import concurrency

    shop = _shop(tmp_path / "shop")
    with contextlib.ExitStack() as other:
        other.enter_context(concurrency("memory-mib", occupy=512, strict=True))
        with _start(shop, limit) as run:
            assert run.stderr is not None
            first = run.stderr.readline()
            assert "waiting: 512 MiB are needed, 512 of 700 MiB of memory-mib are held by other runs" in first
            assert run.poll() is None
            assert not shop.workspace.table("raw").exists()
            other.close()
            _, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert len(shop.rows()) == 50


def test_more_than_the_limit_is_refused_at_once(tmp_path: Path, limit: str) -> None:
    with _start(_shop(tmp_path / "shop"), limit, "--memory", "1GiB") as run:
        _, errors = run.communicate(timeout=100)
    assert run.returncode == 2
    assert "more than the 700 MiB of the limit memory-mib" in errors


def test_who_loses_a_race_for_the_last_slots_says_that_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found all of them free: the one that then waits cannot have known it before."""
    held, said = [0], list[str]()

    @contextlib.contextmanager
    def other_was_first(*arguments: object, **options: object) -> Iterator[None]:
        held[0] = 512
        until = time.monotonic() + 20
        while not said and time.monotonic() < until:
            time.sleep(0.01)
        yield

    limit = lambda: SimpleNamespace(active=True, limit=700, active_slots=held[0])  # noqa: E731
    monkeypatch.setattr(tickets, "_limit", limit)
    monkeypatch.setattr(tickets, "concurrency", other_was_first)
    settings = SimpleNamespace(api=SimpleNamespace(url="http://a-server"))
    monkeypatch.setattr(tickets, "get_current_settings", lambda: settings)
    with tickets.memory_ticket(512 * 2**20, waiting=said.append):
        pass
    assert said == ["512 MiB are needed, 512 of 700 MiB of memory-mib are held by other runs: going on when they end"]

    @contextlib.contextmanager
    def slowly(*arguments: object, **options: object) -> Iterator[None]:
        held[0] = 0
        time.sleep(1.5)  # as a server under load: nobody else holds anything
        yield

    monkeypatch.setattr(tickets, "concurrency", slowly)
    with tickets.memory_ticket(512 * 2**20, waiting=said.append):
        pass
    assert len(said) == 1


def test_without_a_server_that_answers_the_hosts_ticket_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    held: list[int] = []

    @contextlib.contextmanager
    def host_ticket(size_mib: int, **options: object) -> Iterator[None]:
        held.append(size_mib)
        yield

    monkeypatch.setattr(tickets, "host_ticket", host_ticket)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), tickets.memory_ticket(2**29, waiting=print):
        assert held == [512]
