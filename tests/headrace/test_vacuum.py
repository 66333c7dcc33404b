"""``headrace vacuum`` from the command line: what it says, its exit codes, and the lock that it holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.commits import commit_slice
from tests.shop import Shop


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    made = Shop(tmp_path)
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(made.spec.model_dump(mode="json", exclude_defaults=True)))
    return made


def _headrace(shop: Shop, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-m", "headrace", "vacuum", "shop.yaml", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=shop.directory, check=False)
    assert "Traceback" not in done.stderr + done.stdout
    return done


def test_a_dry_run_changes_nothing_and_says_what_a_real_one_then_frees(shop: Shop) -> None:
    for n in range(1, 13):
        commit_slice(shop.workspace, n, rows=1)
    plans = shop.workspace.root / "plans/extract/raw"
    for path in plans.iterdir():
        os.utime(path, (0, 0))
    version = shop.workspace.table("raw").ref().version
    dry = json.loads(_headrace(shop, "--dry-run", "--json").stdout)
    assert (dry["dry_run"], dry["keep_seconds"], dry["freed"]["plans"]["files"]) == (True, 7 * 86_400, 12)
    assert len(list(plans.iterdir())) == 12
    assert shop.workspace.table("raw").ref().version == version
    done = _headrace(shop, "--keep", "1d")
    assert done.returncode == 0, done.stderr
    assert "freed" in done.stdout
    assert list(plans.iterdir()) == []
    assert len(shop.workspace.table("raw").chunks()) == 1
    assert shop.versions() == [(10 * n, 10 * n) for n in range(1, 13)]


def test_it_refuses_while_another_run_holds_the_lock_and_an_age_that_is_none(shop: Shop) -> None:
    with shop.workspace.lock():
        done = _headrace(shop, "--json")
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"] == "WorkspaceLocked"
    refused = _headrace(shop, "--keep", "soon")
    assert refused.returncode == 2
    assert "soon" in refused.stderr
