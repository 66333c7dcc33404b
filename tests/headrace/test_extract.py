"""Extraction from the command line: backfill, quarantine and replay, against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.shop import Shop

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("prefect")]


@pytest.fixture
def shop(tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    made = Shop(tmp_path, source={"max_quarantine_share": 0.5}).open()
    value = made.spec.model_dump(mode="json", exclude_defaults=True)
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(value))
    return made


def _headrace(shop: Shop, *arguments: str, code: int = 0) -> str:
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", "headrace", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=shop.directory, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    return done.stdout if code == 0 else done.stderr


def _json(shop: Shop, *arguments: str) -> Any:
    return json.loads(_headrace(shop, *arguments, "--json"))


def test_quarantined_rows_are_shown_and_replayed_and_a_backfill_finds_what_was_late(shop: Shop) -> None:
    shop.order((1, 1, 1), (2, "two", 2), (3, 3, 3))
    report = _json(shop, "extract", "shop.yaml", "--as-of", "2026-01-01T01:00:00Z")
    assert report["stages"]["extract"]["rows_out"] == 2
    found = _json(shop, "quarantine", "shop.yaml")
    assert found["reasons"] == [{"table": "raw", "reason": "column 'amount': it holds text", "rows": 1}]
    assert (found["examples"][0]["key"], found["examples"][0]["value"]) == ("2", "two")
    assert "headrace quarantine shop.yaml --replay" in _headrace(shop, "quarantine", "shop.yaml")
    shop.sql("UPDATE orders SET amount = 2 WHERE id = 2")
    assert _json(shop, "quarantine", "shop.yaml", "--replay") == {"rows": 0, "reasons": [], "examples": []}
    assert sorted(shop.versions()) == [(1, 1), (2, 2), (3, 3)]
    shop.order((4, 4, 0.5))
    backfill = ("extract", "shop.yaml", "--from", "2026-01-01", "--to", "2026-01-01T00:01:00")
    assert _json(shop, *backfill)["stages"]["extract"]["rows_out"] == 1
    assert sorted(shop.versions()) == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_window_that_ends_before_it_begins_is_refused_before_anything_runs(shop: Shop) -> None:
    said = _headrace(shop, "extract", "shop.yaml", "--from", "2026-02-01", "--to", "2026-01-01", code=1)
    assert "--from is later than --to" in said
    assert "none of all, raw, labels" in _headrace(shop, "quarantine", "shop.yaml", "--table", "rows", code=2)
    assert not shop.workspace.table("raw").exists()


def test_of_two_extractions_at_once_one_waits_and_nothing_is_doubled(shop: Shop) -> None:
    shop.order(*[(key, key, key / 10) for key in range(500)])
    command = [sys.executable, "-m", "headrace", "extract", "shop.yaml", "--json"]
    both = [
        subprocess.Popen(command, cwd=shop.directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    rows = [json.loads(one.communicate(timeout=200)[0])["stages"]["extract"]["rows_out"] for one in both]
    assert sorted(rows) == [0, 500]
    assert sorted(key for key, _ in shop.versions()) == list(range(500))


def test_a_source_that_changed_stops_with_the_difference_and_goes_on_when_allowed(shop: Shop) -> None:
    shop.order((1, 1, 1))
    _headrace(shop, "extract", "shop.yaml")
    shop.sql("ALTER TABLE orders DROP COLUMN amount")
    shop.sql("INSERT INTO orders VALUES (2, '2026-01-01', '2026-01-01 00:02:00')")
    said = _headrace(shop, "extract", "shop.yaml", code=3)
    assert "amount" in said
    assert "source.allow: [dropped]" in said
