"""The page of a recording: well-formed, self-contained, with the figures; names are text, never markup."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from engine import events
from profiling.comparison import compare
from profiling.recorder import Recorder, TaskRecording, read_recording
from profiling.report import render
from tests.profiling.pages import Page

MIB = 2**20
HOSTILE = '<script>alert("1")</script>&amp;\'"/><svg onload=alert(1)>'


def _task(name: str = "fit.1", **changes) -> TaskRecording:
    values = {
        "stage": "train",
        "task": name,
        "began": 2.0,
        "allowed_bytes": 509 * MIB,
        "enforced_by": "cgroup-v2",
        "samples": [(2.1, 97 * MIB), (3.0, 211 * MIB), (4.0, 151 * MIB)],
        "batches": [(2.5, 1234, 7 * MIB), (2.6, 99, MIB)],
        "chunks": [(3.5, "part-1.parquet", 1333)],
        "pressures": [(2.9, "shrink")],
        "outcome": "ok",
        "ended": 4.5,
        "reserved_bytes": 101 * MIB,
        "projected_bytes": 307 * MIB,
        "measured_bytes": 211 * MIB,
    }
    return TaskRecording(**values | changes)


def test_the_page_shows_the_four_figures_the_peak_and_when_it_was():
    page = Page(render([_task()], title="flights"))
    cards = page.text[page.text.index("allowed") :]
    assert cards.startswith("allowed 509 MiB reserved 101 MiB projected 307 MiB measured 211 MiB")
    assert "No task passed its budget." in page.text
    assert "peak 211 MiB at 1.0 s" in page.text
    for line in ("budget 509 MiB", "projected 307 MiB", "reserved 101 MiB"):
        assert line in page.text


def test_batches_chunks_and_pressure_are_marks_with_what_they_were():
    html = render([_task()], title="flights")
    text = Page(html).text
    assert [html.count(f'<rect class="{kind}"') for kind in ("batches", "chunks", "pressure")] == [2, 1, 1]
    for tip in ("1,234 rows, 7 MiB, at 0.5 s", "part-1.parquet: 1,333 rows, at 1.5 s", "pressure: shrink, at 0.9 s"):
        assert tip in text


def test_a_task_with_several_attempts_links_each_to_its_own_flame_graph():
    page = Page(render([_task(outcome="killed"), _task()], title="flights", flame_graphs={0: "a #1.html", 1: "b.html"}))
    assert page.links == ["a%20%231.html", "b.html"] * 2
    assert "A task was stopped at its budget." in page.text


def test_nothing_is_loaded_from_elsewhere_and_there_is_no_script():
    html = render([_task()], title="flights", flame_graphs={0: "a.html"})
    page = Page(html)
    assert page.loaded == []
    assert {"script", "link", "img", "iframe"} & set(page.tags) == set()
    assert re.findall(r"https?://|@import|url\(", html) == []
    assert "prefers-color-scheme: dark" in html


def test_hostile_names_are_text_everywhere():
    hostile = {
        "stage": HOSTILE,
        "enforced_by": HOSTILE,
        "outcome": HOSTILE,
        "chunks": [(3.0, HOSTILE, 1)],
        "pressures": [(3.0, HOSTILE)],
        "notes": [HOSTILE],
    }
    html = render([_task(HOSTILE, **hostile)], title=HOSTILE, flame_graphs={0: HOSTILE}, failures=[HOSTILE])
    page = Page(html)  # refuses an attribute that is a script
    assert "script" not in page.tags
    assert page.tags.count("svg") == 1
    # title, heading, summary, failure, table, section, note and two tooltips
    assert page.text.count('alert("1")') >= 9


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": [], "ended": None, "outcome": "running", "measured_bytes": 0},
        {"samples": [(2.0, 1)], "ended": 2.0, "allowed_bytes": 1, "projected_bytes": 0, "reserved_bytes": 0},
        {"allowed_bytes": 2**50, "projected_bytes": 2**49},
        {"allowed_bytes": 101 * MIB, "projected_bytes": 101 * MIB, "reserved_bytes": 101 * MIB},
    ],
    ids=["no sample", "one instant", "a petabyte", "all lines on one another"],
)
def test_every_coordinate_lies_within_the_drawing(changes):
    html = render([_task(**changes)], title="flights")
    Page(html)
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', html).groups())
    across = [float(x) for x in re.findall(r' (?:x|x1|x2|cx)="([^"]+)"', html)]
    down = [float(y) for y in re.findall(r' (?:y|y1|y2|cy)="([^"]+)"', html)]
    points = [point.split(",") for line in re.findall(r'points="([^"]+)"', html) for point in line.split()]
    across += [float(x) for x, _ in points]
    down += [float(y) for _, y in points]
    assert min(across) >= 0
    assert max(across) <= width
    assert min(down) >= 0
    assert max(down) <= height


def test_labels_of_lines_that_lie_close_do_not_overlap():
    html = render([_task(reserved_bytes=101 * MIB, projected_bytes=102 * MIB, allowed_bytes=103 * MIB)], title="x")
    heights = sorted(
        float(y) for y in re.findall(r'<text class="(?:budget|projected|reserved)" x="[^"]+" y="([^"]+)"', html)
    )
    assert len(heights) == 3
    assert min(b - a for a, b in pairwise(heights)) >= 12


def test_a_recording_reads_back_as_what_happened(tmp_path):
    record = Recorder(tmp_path)
    for event in (
        events.TaskStarted("train", "fit.1", 1000, "polling"),
        events.BatchDone("train", "fit.1", 7, 70),
        events.MemorySample("train", "fit.1", 900),
        events.MemorySample("train", "another", 5000),  # of a task that never began: nothing to add it to
        events.Pressure("train", "fit.1", "pause", 900),
        events.TaskEnded("train", "fit.1", "killed", 950, 1.0, 11, 13),
        events.Note("train", "fit.1", "again\nwith less"),
        events.TaskStarted("train", "fit.1", 1000, "polling"),
        events.ChunkWritten("train", "fit.1", "é.parquet", 7, 30),
        events.TaskEnded("train", "fit.1", "ok", 400, 1.0, 11, 13),
    ):
        record(event)
    record.close()
    killed, done = read_recording(tmp_path)
    assert (killed.outcome, killed.peak[1], killed.notes) == ("killed", 950, ["again\nwith less"])
    assert [rows for _, rows, _ in killed.batches] == [7]
    assert [level for _, level in killed.pressures] == ["pause"]
    assert (killed.reserved_bytes, killed.projected_bytes) == (11, 13)
    assert (done.outcome, done.peak[1]) == ("ok", 400)
    assert [path for _, path, _ in done.chunks] == ["é.parquet"]
    assert read_recording(tmp_path / "events.ndjson") == (killed, done)


def test_two_recordings_compare_by_what_tasks_do_with_highest_peak_and_all_seconds():
    before = [_task("fit.1"), _task("rows.0", stage="extract")]
    after = [
        _task("fit.2", samples=[(3.0, 53 * MIB)], measured_bytes=53 * MIB),
        _task("fit.3", samples=[(3.0, 59 * MIB)], measured_bytes=59 * MIB),
        _task("check.0123456789abcdef", stage="validate"),
    ]
    rows = {row.name: row for row in compare(before, after)}
    assert list(rows) == ["train fit", "extract rows", "validate check"]
    assert rows["train fit"].peak_bytes == (211 * MIB, 59 * MIB)
    assert rows["train fit"].seconds == (2.5, 5.0)
    assert rows["extract rows"].peak_bytes == (211 * MIB, None)
    assert rows["validate check"].seconds == (None, 2.5)
