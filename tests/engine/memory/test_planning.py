"""Budget, projection, governor and disk checks: arithmetic, refusals, hysteresis."""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import PlanRefused, WorkspaceError
from engine.memory import governor as module
from engine.memory.budget import ATTEMPTS, Budget
from engine.memory.disk import filesystem, refuse_memory, require_room
from engine.memory.governor import Governor, PressureState
from engine.memory.learned import Learned
from engine.memory.measure import Measure, measure_self, measure_tree
from engine.memory.projection import Projection

MIB = 2**20


def test_a_projection_is_reserved_and_every_term() -> None:
    projection = Projection("train", 2, {"rows": 3, "batches": 5, "decoder": 7})
    assert projection.projected_bytes == 17
    assert projection.worst_term == ("decoder", 7)


def test_a_refusal_names_the_worst_term_and_the_smallest_budget_that_would_do() -> None:
    projection = Projection("prepare", 101 * MIB, {"span": 307 * MIB, "others": 104 * MIB})
    with pytest.raises(PlanRefused) as caught:
        projection.check(Budget(512 * MIB - 1))
    details = caught.value.details
    assert (details["worst_term"], details["smallest_budget_bytes"]) == ("span", 512 * MIB)
    assert "512MiB" in caught.value.hint
    projection.check(Budget(details["smallest_budget_bytes"]))


def test_the_budget_that_a_refusal_names_has_room_for_the_least_batch_and_no_smaller_one_does() -> None:
    def project(budget: Budget) -> Projection:
        return Projection("extract", 101 * MIB, {"page of each column": 307 * MIB, "batches": 13 * budget.batch_bytes})

    with pytest.raises(PlanRefused) as caught:
        project(Budget(256 * MIB)).check(Budget(256 * MIB))
    named = int(caught.value.details["smallest_budget_bytes"])
    for allowed, fits in ((named, True), (named - MIB, False)):
        budget = project(Budget(allowed)).fitting(Budget(allowed))
        assert budget.batch_bytes >= 64 * 1024
        assert (project(budget).projected_bytes <= allowed) == fits


def test_where_rows_are_held_the_budget_that_a_refusal_names_has_room_for_its_own_batches() -> None:
    def project(budget: Budget) -> Projection:
        terms = {"span": 307 * MIB, "batches": 13 * budget.batch_bytes}
        return Projection("prepare", 101 * MIB, terms, rows=11, row_term="span")

    with pytest.raises(PlanRefused) as caught:
        project(Budget(256 * MIB)).check(Budget(256 * MIB))
    named = Budget(caught.value.details["smallest_budget_bytes"])
    assert project(named).fitting(named) == named
    project(named).check(named)


@pytest.mark.parametrize(("allowed", "batch"), [(512 * MIB, 8 * MIB), (MIB, 64 * 1024), (2**40, 8 * MIB)])
def test_a_batch_is_a_64th_of_the_budget_within_bounds(allowed: int, batch: int) -> None:
    assert Budget(allowed).batch_bytes == batch


def test_another_try_has_ever_smaller_batches_and_at_last_one_row() -> None:
    budget = Budget(512 * MIB)
    sizes = [budget.for_attempt(number).batch_bytes for number in range(2, ATTEMPTS + 1)]
    assert sizes == [4 * MIB, MIB // 2, 32 * 1024, 1024]


def test_another_try_has_no_more_than_was_seen_to_fit() -> None:
    budget = Budget(512 * MIB)
    assert budget.for_attempt(2, fitting_bytes=3 * MIB).batch_bytes == 3 * MIB
    assert budget.for_attempt(2, fitting_bytes=7 * MIB).batch_bytes == 4 * MIB
    assert budget.for_attempt(2, fitting_bytes=0).batch_bytes == 1024


def test_reserved_keeps_the_largest_figure_of_a_stage(tmp_path: Path) -> None:
    learned = Learned(tmp_path / "memory")
    first = learned.reserved_bytes("train.fit")
    assert first > 0
    for measured in (0, 5, 11, 7):
        learned.save_reserved("train.fit", measured)
    assert learned.reserved_bytes("train.fit") == 11
    assert Learned(tmp_path / "memory").reserved_bytes("unheard of") > 0


def test_tasks_that_end_at_once_all_keep_their_reserved(tmp_path: Path) -> None:
    learned = Learned(tmp_path / "memory")
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(lambda size: learned.save_reserved("train.fit", size), range(1, 801))
        )  # raises what a save raised
    assert 0 < learned.reserved_bytes("train.fit") <= 800
    assert [path.name for path in (tmp_path / "memory").iterdir()] == ["train.fit.reserved"]


@pytest.mark.parametrize("damage", ["", "[1", "7", '["x"]', "{}"])
def test_a_figure_that_was_cut_off_is_measured_again(tmp_path: Path, damage: str) -> None:
    learned = Learned(tmp_path)
    first = learned.reserved_bytes("train.fit")
    (tmp_path / "train.fit.reserved").write_text(damage)
    assert learned.reserved_bytes("train.fit") == first
    learned.save_reserved("train.fit", 13)
    assert learned.reserved_bytes("train.fit") == 13


def test_bytes_of_a_row_are_those_that_the_last_runs_over_the_table_measured(tmp_path: Path) -> None:
    learned = Learned(tmp_path)

    def held(table: str = "flights", base: float = 100.0) -> float:
        return learned.row_bytes("prepare.gather", table, base=base, copies=5)

    assert held() == 500.0
    learned.save_row_bytes("prepare.gather", "flights", 300.0, base=100.0)
    assert held() == pytest.approx(315.0)
    assert held(base=200.0) == pytest.approx(630.0)  # rows became larger
    assert held("taxis") == 500.0
    learned.save_row_bytes("prepare.gather", "flights", 700.0, base=100.0)
    assert held() == pytest.approx(735.0)
    for _ in range(8):
        learned.save_row_bytes("prepare.gather", "flights", 200.0, base=100.0)
    assert held() == pytest.approx(210.0)


def test_a_run_says_what_its_rows_took_where_they_are_most_of_it_or_took_more_than_was_thought() -> None:
    many = Projection("gather", 101, {"span": 700, "batches": 300}, rows=7, row_term="span")
    assert many.row_bytes == 100.0
    assert many.observed_row_bytes(101 + 77) == 11.0
    few = Projection("gather", 101, {"span": 299, "batches": 300}, rows=7, row_term="span")
    assert few.observed_row_bytes(101 + 599) is None
    assert few.observed_row_bytes(101 + 300 + 700) == 100.0
    assert Projection("score", 101, {"batches": 300}).observed_row_bytes(5_000) is None


def test_pressure_rises_at_once_and_falls_only_below_the_threshold_under_it() -> None:
    state = PressureState(reserved_bytes=100, allowed_bytes=1_100)  # thresholds at 700, 800, 900
    seen = [state.update(measured) for measured in (699, 700, 799, 800, 750, 700, 699, 900, 850, 799, 750, 600)]
    assert seen == [0, 1, 1, 2, 2, 2, 0, 3, 3, 2, 2, 0]


@given(st.lists(st.integers(0, 2_000), max_size=60))
def test_pressure_never_lies_under_what_the_measure_reaches(measures: list[int]) -> None:
    state = PressureState(reserved_bytes=0, allowed_bytes=1_000)
    for measured in measures:
        reached = sum(measured >= bound for bound in (600, 700, 800))
        assert reached <= state.update(measured) <= 3


def test_the_governor_shrinks_batches_under_pressure_and_lets_them_grow_back(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = [0]
    monkeypatch.setattr(module, "measure_self", lambda: Measure(measured[0]))
    monkeypatch.setattr(module, "_LOOK_EVERY_SECONDS", 0.0)
    told: list[str] = []
    governor = Governor(Budget(512 * MIB), reserved_bytes=0, on_pressure=lambda level, size: told.append(level))
    assert governor.batch_bytes() == 8 * MIB
    measured[0] = 400 * MIB  # over shrink, 0.70
    assert [governor.batch_bytes(), governor.batch_bytes()] == [4 * MIB, 2 * MIB]
    measured[0] = 100 * MIB
    assert [governor.batch_bytes(), governor.batch_bytes(), governor.batch_bytes()] == [4 * MIB, 8 * MIB, 8 * MIB]
    assert told == ["shrink", "none"]


def test_many_small_batches_after_one_look_shrink_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure_self", lambda: Measure(400 * MIB))
    monkeypatch.setattr(module, "_LOOK_EVERY_SECONDS", 3600.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: 10_000.0)
    governor = Governor(Budget(512 * MIB), reserved_bytes=0)
    assert {governor.batch_bytes() for _ in range(20)} == {4 * MIB}


def test_unused_memory_is_given_back_by_bytes_that_have_passed_not_by_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[int] = []
    monkeypatch.setattr(module, "release_pools", lambda: released.append(1))
    monkeypatch.setattr(module, "measure_self", lambda: Measure(100 * MIB))
    governor = Governor(Budget(512 * MIB), reserved_bytes=100 * MIB)
    for _ in range(4_000):  # as of many small chunks: each release takes some hundredths of a second
        governor.passed(MIB // 64)
    assert not released
    for _ in range(16):
        governor.passed(8 * MIB)
    assert len(released) == 2


def test_unused_memory_is_given_back_sooner_as_more_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, released = [100 * MIB], list[int]()

    def release() -> None:
        released.append(measured[0] // MIB)
        measured[0] -= 4 * MIB  # the rest is in use

    monkeypatch.setattr(module, "release_pools", release)
    monkeypatch.setattr(module, "measure_self", lambda: Measure(measured[0]))
    governor = Governor(Budget(512 * MIB), reserved_bytes=100 * MIB)
    for _ in range(24):
        measured[0] += 2 * MIB
        governor.passed(4 * MIB)
    assert released == [116, 128, 140]  # each 16 MiB above what was left


@pytest.mark.parametrize(("done", "least"), [("step_done", 238), ("part_done", 306)])
def test_unused_memory_is_given_back_between_steps_where_a_third_and_within_one_where_half_is_held(
    monkeypatch: pytest.MonkeyPatch, done: str, least: int
) -> None:
    measures, released = [(least - 1) * MIB, least * MIB, 480 * MIB], list[int]()
    monkeypatch.setattr(module, "measure_self", lambda: Measure(measures[0]))
    monkeypatch.setattr(module, "release_pools", lambda: released.append(measures[0] // MIB))
    governor = Governor(Budget(512 * MIB), reserved_bytes=100 * MIB)
    while measures:
        getattr(governor, done)()
        del measures[0]
    assert released == [least, 480]


def test_waiting_under_pause_ends_even_when_nothing_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure_self", lambda: Measure(500 * MIB))
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.1)
    governor = Governor(Budget(512 * MIB), reserved_bytes=0)
    governor.wait()
    assert governor.batch_bytes() < 8 * MIB


def test_what_did_not_fall_is_not_waited_for_again_until_it_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, slept = [450 * MIB], []
    monkeypatch.setattr(module, "measure_self", lambda: Measure(measured[0]))
    monkeypatch.setattr(module.time, "sleep", slept.append)
    monkeypatch.setattr(module, "_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(module, "_LOOK_EVERY_SECONDS", 0.0)
    governor = Governor(Budget(512 * MIB), reserved_bytes=0)
    governor.wait()
    waited = len(slept)
    assert waited >= 1
    for _ in range(20):
        governor.wait()
    assert len(slept) == waited
    measured[0] = 490 * MIB
    governor.wait()
    assert len(slept) > waited


def test_the_measure_sees_what_is_allocated_and_not_what_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    path.write_bytes(b"\x01" * 64 * MIB)
    before = measure_self()
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) > 0
        after = measure_self()
        assert after.counted_bytes - before.counted_bytes < 16 * MIB
        assert after.file_bytes - before.file_bytes > 48 * MIB
    before = measure_self()
    held = b"\x01" * (64 * MIB)
    assert measure_tree(os.getpid()).counted_bytes - before.counted_bytes > 48 * MIB
    del held


def test_memory_in_disguise_is_refused(tmp_path: Path) -> None:
    refuse_memory(tmp_path)
    assert filesystem(Path("/dev/shm")) == "tmpfs"
    with pytest.raises(WorkspaceError, match="files are memory"):
        refuse_memory(Path("/dev/shm"))


def test_a_disk_without_room_is_named_with_both_figures(tmp_path: Path) -> None:
    require_room(tmp_path, needed_bytes=1, allowed_bytes=1, what="a test")
    with pytest.raises(PlanRefused, match=r"a test needs .* TiB"):
        require_room(tmp_path, needed_bytes=2**60, allowed_bytes=2**61, what="a test")
    with pytest.raises(PlanRefused, match="1 B are allowed"):
        require_room(tmp_path, needed_bytes=2, allowed_bytes=1, what="a test")


def test_the_largest_batch_that_would_fit_comes_from_the_terms_that_grow_with_it() -> None:
    terms = {"batches in flight": 7 * MIB, "batches of results": 13 * MIB, "model": 31 * MIB}
    projection = Projection(stage="score", reserved_bytes=101 * MIB, terms=terms)
    budget = Budget(142 * MIB, batch_bytes=MIB)  # ten MiB are left for what takes twenty
    assert projection.largest_batch_bytes(budget) == MIB // 2
    with pytest.raises(PlanRefused, match=r"with batches of 512 KiB it would fit"):
        projection.check(budget)
    assert projection.largest_batch_bytes(Budget(132 * MIB, batch_bytes=MIB)) == 0
    with pytest.raises(PlanRefused, match="no smaller batch would fit"):
        projection.check(Budget(100 * MIB, batch_bytes=MIB))
