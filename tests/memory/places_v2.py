"""Where a group of version 2 can be made and where not, and what is told apart there; run by ``make test-cgroup-v2``.

Not collected by other runs: it makes groups at the root of its machine, and fills that machine's memory and swap.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.memory.groups import memory_group

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/ubdb"), reason="only in the guest of cgroup_v2.py")

MIB = 2**20
ROOT = Path("/sys/fs/cgroup")
HERE = Path(__file__).parent

TASK = f"""
import json, subprocess, sys
sys.path.insert(0, {str(HERE)!r})
from engine.errors import HeadraceError
from engine.memory.budget import Budget
from engine.memory.cage import run_caged
from engine.memory.groups import enforcement
from engine.refs import Task
function, budget, inputs, at_progress = json.loads(sys.argv[1])
def hook(event):
    if type(event).__name__ == "Progress" and at_progress:
        subprocess.run([word.format(pid=event.what) for word in at_progress])
said = {{"plan": enforcement()}}
try:
    result = run_caged(
        Task("test", "one", "tasks:" + function, inputs), context={{}}, budget=Budget(budget), hook=hook, attempts=1
    )
    said |= {{"by": result.memory.enforced_by, "outputs": result.outputs, "error": None}}
except HeadraceError as error:
    said |= {{"by": error.details.get("enforced_by"), "error": type(error).__name__, "text": str(error)}}
    said |= {{"measured": error.details.get("measured_bytes")}}
print(json.dumps(said))
"""

# Takes 16 MiB at a time until the process whose number it is given has ended, in the group that it is given.
HOG = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
held = []
while os.path.exists("/proc/" + sys.argv[2]):
    held.append(b"\\x01" * 2**24)
"""

CONTAINER = ("unshare", "--cgroup", "--mount", "sh", "-c")
OWN_VIEW = "umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup"
ENTRYPOINT = 'mkdir /sys/fs/cgroup/main && echo 0 > /sys/fs/cgroup/main/cgroup.procs && exec "$@"'


@pytest.fixture
def top() -> Iterator[Path]:
    """A group to make others in, all of which are gone afterwards."""
    path = ROOT / "places"
    path.mkdir()
    yield path
    left = [directory for directory, _, _ in os.walk(path, topdown=False)]
    assert [name for name in left if "headrace-" in name] == []
    for directory in left:
        os.rmdir(directory)


def _group(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("_", ".", 1)).write_text(text)
    return path


def _run(
    group: Path,
    *wrapper: str,
    function: str = "allocate",
    budget: int = 256 * MIB,
    at_progress: tuple[str, ...] = (),
    **inputs: object,
) -> dict[str, object]:
    """Run a task from a process in this group; by default it passes its budget."""
    task = json.dumps([function, budget, inputs or {"mib": 1024}, at_progress])
    join = ["sh", "-c", f'echo 0 > {group}/cgroup.procs && exec "$@"', "sh"]
    command = [*join, *wrapper, sys.executable, "-c", TASK, task]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    said: dict[str, object] = json.loads(done.stdout)
    return said


def _stopped_by(said: dict[str, object]) -> object:
    """Return who stopped a task at its budget; the plan has said so before."""
    assert said["error"] == "MemoryBudgetExceeded", said
    assert said["by"] == said["plan"]
    return said["by"]


def test_at_the_root_of_the_machine() -> None:
    assert _stopped_by(_run(ROOT)) == "cgroup-v2"
    assert not list(ROOT.glob("headrace-*"))


def test_in_a_leaf_whose_parent_is_delegated(top: Path) -> None:
    assert _stopped_by(_run(_group(top / "main"))) == "cgroup-v2"


def test_in_a_leaf_beside_processes(top: Path) -> None:
    with _process_in(top):
        assert _stopped_by(_run(_group(top / "main"))) == "polling"


def test_where_the_controller_ends_above(top: Path) -> None:
    assert _stopped_by(_run(_group(top / "plain" / "main"))) == "polling"


def test_in_a_group_with_a_limit_of_its_own(top: Path) -> None:
    _group(top, cgroup_subtree_control="+memory")
    assert _stopped_by(_run(_group(top / "main", memory_max=str(2048 * MIB)))) == "polling"


def test_where_nobody_let_us_move_processes(top: Path) -> None:
    main = _group(top / "main")
    top.chmod(0o777)
    os.chown(top / "cgroup.procs", 1, 1)
    assert _stopped_by(_run(main, "setpriv", "--bounding-set", "-dac_override")) == "polling"


def test_in_a_container(top: Path) -> None:
    """Its processes are in the root that it sees, which is a group like any other; a leaf is what it lacks."""
    container = (*CONTAINER, f'{OWN_VIEW} && exec "$@"', "sh")
    assert _stopped_by(_run(top, *container)) == "polling"
    assert _stopped_by(_run(top, *container, "sh", "-c", ENTRYPOINT, "sh")) == "cgroup-v2"


def test_outside_of_what_the_namespace_shows(top: Path) -> None:
    inside, outside = _group(top / "inside"), _group(top / "outside")
    leave = f'exec 9> {outside}/cgroup.procs; {OWN_VIEW} && echo 0 >&9 && exec 9>&- "$@"'
    assert _stopped_by(_run(inside, *CONTAINER, leave, "sh")) == "polling"


def test_page_cache_is_no_part_of_the_budget(top: Path, tmp_path: Path) -> None:
    said = _run(_group(top / "main"), function="read_file", path=_file(tmp_path))
    assert (said["error"], said["by"]) == (None, "cgroup-v2")
    outputs = said["outputs"]
    assert isinstance(outputs, dict)
    assert outputs["max"] > 0  # it came to its limit
    assert (outputs["oom"], outputs["oom_kill"]) == (0, 0)


@pytest.mark.parametrize("whose", ["machine", "container"])
def test_a_kill_for_want_of_memory_elsewhere_is_a_crash(top: Path, tmp_path: Path, whose: str) -> None:
    """Though the group has been full of page cache."""
    _group(top, cgroup_subtree_control="+memory")
    if whose == "container":
        _group(top, memory_max=str(512 * MIB))
    hog = (sys.executable, "-c", HOG, str(_group(top / "hog")), "{pid}")
    said = _run(
        _group(top / "main"), function="read_file", path=_file(tmp_path), seconds=100, at_progress=hog, budget=128 * MIB
    )
    assert said["error"] == "TaskCrashed"
    assert "outside of this task's budget" in str(said["text"])


def test_what_passes_the_limit_ends_the_whole_group() -> None:
    with memory_group(64 * MIB) as group:
        assert group is not None
        grandchild = f"{sys.executable} -c 'held = bytes([1]) * 2**28'"
        command = ["sh", "-c", f"echo 0 > {group.path}/cgroup.procs; {grandchild}; sleep 100"]
        assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
        assert group.was_full()
        assert group.kills() > 0


def test_swap_is_no_way_out(top: Path) -> None:
    subprocess.run(["mkswap", "/dev/ubdb"], check=True)
    subprocess.run(["swapon", "/dev/ubdb"], check=True)
    try:
        said = _run(_group(top / "main"))
    finally:
        subprocess.run(["swapoff", "/dev/ubdb"], check=True)
    assert _stopped_by(said) == "cgroup-v2"
    assert 128 * MIB < int(str(said["measured"])) <= 256 * MIB


def _file(directory: Path) -> str:
    """Return the path of a file larger than the budgets, none of it in memory."""
    path = directory / "large"
    with path.open("wb") as file:
        for _ in range(400):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return str(path)


@contextlib.contextmanager
def _process_in(group: Path) -> Iterator[None]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        (group / "cgroup.procs").write_text(str(process.pid))
        try:
            yield
        finally:
            process.kill()
