"""Ctrl-C and SIGTERM in the middle of a run: it ends at once, leaves nothing, and the next run completes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.shop import Shop

ROWS = 1_500_000  # enough that it is met while it writes


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    shop = Shop(tmp_path).open()
    shop.sql(
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS}) "
        "INSERT INTO orders SELECT i, i % 97, datetime('2026-01-01', '+' || i || ' seconds'), "
        "datetime('2026-01-01', '+' || i || ' seconds') FROM n"
    )
    spec = shop.spec.model_dump(mode="json", exclude_defaults=True)
    for section in ("source", "labels"):
        spec[section]["uri"] = f"sqlite:///{shop.database}"
    (tmp_path / "shop.yaml").write_text(json.dumps(spec))
    return shop


def _headrace(shop: Shop, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "headrace", *arguments]
    return subprocess.Popen(
        command, cwd=shop.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _unfinished(shop: Shop) -> list[Path]:
    return list(shop.workspace.root.rglob("*.tmp")) + list(shop.workspace.scratch.glob("*"))


@pytest.mark.timeout(280)
@pytest.mark.xdist_group("prefect")
@pytest.mark.parametrize(
    ("number", "times"), [pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow), (signal.SIGTERM, 1)]
)
def test_an_interrupted_run_leaves_nothing_and_the_next_one_completes_it(
    shop: Shop, number: signal.Signals, times: int
) -> None:
    with _headrace(shop, "extract", "shop.yaml") as process:
        until = time.monotonic() + 120
        while not list(shop.workspace.root.rglob("tables/raw/.*.tmp")):
            assert time.monotonic() < until
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        for _ in range(times):
            os.kill(process.pid, number)
            time.sleep(0.02)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "interrupted: what was committed stays" in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert _unfinished(shop) == []
    assert not list(Path("/sys/fs/cgroup").glob(f"**/headrace-{process.pid}-*"))

    with _headrace(shop, "extract", "shop.yaml") as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert shop.workspace.table("raw").rows() == ROWS
    assert _unfinished(shop) == []
