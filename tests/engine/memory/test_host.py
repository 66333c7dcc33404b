"""The smaller of the machine's memory and what any control group above allows."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from engine.memory.host import auto_budget_bytes, host_memory_bytes
from engine.memory.tickets import tickets_mib
from engine.spec import ResourcesSpec

MIB = 2**20


def _host(tmp_path: Path, line: str, limits: dict[str, str]) -> int:
    (tmp_path / "cgroup").write_text(line)
    for path, text in limits.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return host_memory_bytes(root_v1=tmp_path / "v1", root_v2=tmp_path / "v2", proc=tmp_path / "cgroup")


@pytest.mark.parametrize(
    ("line", "root", "name", "none"),
    [
        ("0::/docker/abc\n", "v2", "memory.max", "max"),
        ("7:cpu:/x\n4:memory:/docker/abc\n", "v1", "memory.limit_in_bytes", "9223372036854771712"),
    ],
)
def test_the_least_limit_on_the_way_up_counts(tmp_path: Path, line: str, root: str, name: str, none: str) -> None:
    physical = psutil.virtual_memory().total
    own, parent = f"{root}/docker/abc/{name}", f"{root}/docker/{name}"
    assert _host(tmp_path, line, {own: f"{none}\n", parent: f"{none}\n"}) == physical
    assert _host(tmp_path, line, {parent: f"{300 * MIB}\n"}) == 300 * MIB
    assert _host(tmp_path, line, {own: f"{200 * MIB}\n"}) == 200 * MIB
    assert _host(tmp_path, line, {own: str(4 * physical)}) == 300 * MIB


def test_auto_is_two_fifths_of_this_host_in_whole_mib_and_the_default() -> None:
    found = auto_budget_bytes()
    assert found % MIB == 0
    assert abs(found - host_memory_bytes() * 0.4) < MIB
    assert ResourcesSpec().memory == "auto"
    assert 2 * found <= tickets_mib() * MIB  # two runs fit side by side
