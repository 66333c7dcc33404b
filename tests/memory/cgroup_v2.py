"""Runs a command in a guest that has control groups of version 2 only: ``make test-cgroup-v2``.

The guest is Debian's user-mode Linux: a kernel that is a process, on this system's files. What it writes goes to a disk
of its own, and with it. It panics where its processes are suspended and continued (Ctrl-Z): run it again. The command
is in a leaf below a group that is delegated to it, as in a service of systemd with ``Delegate=yes`` and
``DelegateSubgroup=main``. What is tested there: ``test_cage.py``, and other places in ``places_v2.py``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MEMORY = "1536M"  # as little as the tests bear: one fills it
PASSED_ON = ("LANG", "PATH", "PYTHONPATH")

INIT = """#!/bin/sh
mount -t tmpfs tmpfs /mnt && mkdir /mnt/disk /mnt/root
mount -t ext4 /dev/ubda /mnt/disk && mkdir /mnt/disk/upper /mnt/disk/work
insmod $(ls /usr/lib/uml/modules/*/kernel/fs/overlayfs/overlay.ko*)
mount -t overlay -o lowerdir=/,upperdir=/mnt/disk/upper,workdir=/mnt/disk/work overlay /mnt/root
cd /mnt/root
mount -t proc proc proc && mount -t sysfs sysfs sys && mount -t devtmpfs devtmpfs dev
mkdir -p dev/pts dev/shm && mount -t devpts devpts dev/pts && mount -t tmpfs tmpfs dev/shm
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t hostfs -o {directory} hostfs mnt
chroot . /bin/sh mnt/session
sync
echo o > proc/sysrq-trigger
sleep 60
"""

SESSION = """
ip link set lo up
mkdir -p /sys/fs/cgroup/service/main
echo +memory > /sys/fs/cgroup/cgroup.subtree_control
(echo 0 > /sys/fs/cgroup/service/main/cgroup.procs && cd {here} && exec env -i HOME=/root {environment} {command})
echo $? > /mnt/code
"""


def main(command: list[str]) -> int:
    """Run the command in the guest and return its exit code, 1 where the guest itself failed."""
    linux = shutil.which("linux.uml")
    if linux is None:
        print("user-mode Linux is missing. On Debian: apt-get install user-mode-linux", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as directory:
        disk, swap, init, session, code = (Path(directory, it) for it in ("disk", "swap", "init", "session", "code"))
        for file, size in ((disk, 8 * 2**30), (swap, 2**30)):
            file.touch()
            os.truncate(file, size)  # sparse
        subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", str(disk)], check=True)
        environment = shlex.join(f"{name}={os.environ[name]}" for name in PASSED_ON if name in os.environ)
        here, inside = shlex.quote(os.getcwd()), shlex.join(command)
        session.write_text(SESSION.format(here=here, environment=environment, command=inside))
        init.write_text(INIT.format(directory=directory))
        init.chmod(0o755)
        files = ["rootfstype=hostfs", "rootflags=/", "ro", f"ubda={disk}", f"ubdb={swap}", f"uml_dir={directory}"]
        guest = [linux, f"mem={MEMORY}", *files, f"init={init}", "quiet", "con=null", "con0=null,fd:1"]
        subprocess.run(guest, stdin=subprocess.DEVNULL, check=False)
        return int(code.read_text()) if code.exists() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
