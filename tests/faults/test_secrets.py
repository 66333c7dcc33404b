"""Passwords come from a Prefect Secret block or the driver's own files, and never show: not in what commands print, in
the workspace, or in errors.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.faults.conftest import Server

pytestmark = [pytest.mark.timeout(280), pytest.mark.xdist_group("prefect")]

PASSWORD, WRONG = "correct-horse-battery", "wrong-horse-staple"


@pytest.fixture
def guarded(crashing_server: Server) -> Iterator[Server]:
    """A server whose user ``clerk`` has to give a password."""
    crashing_server.run(
        "DROP TABLE IF EXISTS orders, verdicts",
        "CREATE TABLE orders AS SELECT g AS id, g % 7 AS amount, "
        "timestamptz '2026-01-01' + g * interval '1 minute' AS at FROM generate_series(1, 200) g",
        "CREATE TABLE verdicts AS SELECT id, id % 5 = 0 AS fraud, at AS decided_at FROM orders",
        f"CREATE ROLE clerk LOGIN PASSWORD '{PASSWORD}'",
        "GRANT SELECT ON orders, verdicts TO clerk",
    )
    rules = crashing_server.directory / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text("local all clerk scram-sha-256\n" + before)
    crashing_server.run("SELECT pg_reload_conf()")
    yield crashing_server
    rules.write_text(before)
    crashing_server.run("SELECT pg_reload_conf()", "DROP OWNED BY clerk", "DROP ROLE clerk")


def _pipeline(directory: Path, uri: str) -> Path:
    path = directory / "orders.yaml"
    value = {
        "pipeline": "orders",
        "workspace": str(directory / "workspace"),
        "source": {"uri": uri, "table": "orders", "key": "id", "cursor": "at"},
        "event_time": "at",
        "labels": {"table": "verdicts", "key": "id", "value": "fraud", "labelled_at": "decided_at"},
        "features": {"numeric": ["amount"]},
        "resources": {"memory": "512MiB"},
    }
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return path


def _headrace(*arguments: str, api: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PREFECT_API_URL": api, "COLUMNS": "400", **more}
    command = [sys.executable, "-m", "headrace", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def _assert_hidden(directory: Path, *outputs: subprocess.CompletedProcess[str], secrets: tuple[str, ...]) -> None:
    for done in outputs:
        assert "Traceback" not in done.stderr
        for secret in secrets:
            assert secret not in done.stdout + done.stderr
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    for path in files:
        for secret in secrets:
            assert secret.encode() not in path.read_bytes(), path


def _save(name: str, value: str) -> None:
    from prefect.blocks.system import Secret

    Secret(value=value).save(name, overwrite=True)


def test_a_password_of_a_secret_block_opens_the_source_and_shows_nowhere(
    guarded: Server, prefect_server: str, tmp_path: Path
) -> None:
    reference = "${secret:orders-password}"
    pipeline = str(_pipeline(tmp_path, f"postgresql://clerk:{reference}@/postgres?host={guarded.directory}"))
    _save("orders-password", WRONG)
    refused = _headrace("extract", pipeline, api=prefect_server)
    assert refused.returncode == 3, refused.stderr
    assert "password authentication failed" in refused.stderr
    _save("orders-password", PASSWORD)
    done = [_headrace(command, pipeline, api=prefect_server) for command in ("extract", "check", "status")]
    assert [one.returncode for one in done] == [0, 0, 0], [one.stderr for one in done]
    _assert_hidden(tmp_path, refused, *done, secrets=(PASSWORD, WRONG))


def test_a_block_that_is_missing_or_holds_no_text_is_named(prefect_server: str, tmp_path: Path) -> None:
    pipeline = str(_pipeline(tmp_path, "postgresql://clerk:${secret:no-such-block}@/postgres"))
    missing = _headrace("check", pipeline, api=prefect_server)
    assert missing.returncode == 2
    assert "orders.yaml:4: source.uri: there is no Prefect Secret block 'no-such-block'" in missing.stderr
    from prefect.blocks.system import Secret

    Secret(value={"password": WRONG}).save("not-a-text", overwrite=True)
    pipeline = str(_pipeline(tmp_path, "postgresql://clerk:${secret:not-a-text}@/postgres"))
    no_text = _headrace("check", pipeline, api=prefect_server)
    assert no_text.returncode == 2
    assert "'not-a-text' holds no text" in no_text.stderr
    _assert_hidden(tmp_path, missing, no_text, secrets=(WRONG,))


def test_a_server_that_does_not_answer_is_said(tmp_path: Path) -> None:
    pipeline = str(_pipeline(tmp_path, "postgresql://clerk:${secret:orders-password}@/postgres"))
    done = _headrace("check", pipeline, api="http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES="0")
    assert done.returncode == 2, done.stderr
    assert "'orders-password' cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("way", ["password file", "service file"])
def test_the_drivers_own_files_open_the_source(guarded: Server, prefect_server: str, tmp_path: Path, way: str) -> None:
    files = tmp_path / "home"
    files.mkdir()
    if way == "password file":
        path = files / "pgpass"
        path.write_text(f"*:*:*:clerk:{PASSWORD}\n")
        path.chmod(0o600)
        uri, more = f"postgresql://clerk@/postgres?host={guarded.directory}", {"PGPASSFILE": str(path)}
    else:
        path = files / "services.conf"
        path.write_text(f"[orders]\nhost={guarded.directory}\ndbname=postgres\nuser=clerk\npassword={PASSWORD}\n")
        uri, more = "postgresql://?service=orders", {"PGSERVICEFILE": str(path)}
    pipeline = str(_pipeline(tmp_path, uri))
    done = _headrace("extract", pipeline, api=prefect_server, **more)
    assert done.returncode == 0, done.stderr
    _assert_hidden(tmp_path / "workspace", done, secrets=(PASSWORD,))
