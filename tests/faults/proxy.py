"""A TCP proxy before a database's socket that cuts or stalls connections on command. For tests of broken networks."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_PIECE_BYTES = 1 << 14


class Proxy:
    """Listens on loopback and passes everything on, up to a number of bytes from the server on one connection.

    Parameters
    ----------
    target
        The server's Unix socket.
    """

    def __init__(self, target: Path) -> None:
        self._target = str(target)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._limit: int | None = None
        self._cuts = False
        self._lock = threading.Lock()
        self._released = threading.Event()
        self.reached = threading.Event()  # a connection came to the limit
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.heal()
        self._listener.close()

    def cut_after(self, size_bytes: int) -> None:
        """Reset the first connection that is to give more than so many bytes."""
        self._arm(size_bytes, cuts=True)

    def stall_after(self, size_bytes: int) -> None:
        """Hold back what goes beyond so many bytes of a connection, until ``heal``."""
        self._arm(size_bytes, cuts=False)

    def heal(self) -> None:
        """Pass everything again."""
        with self._lock:
            self._limit = None
        self._released.set()

    def _arm(self, size_bytes: int, *, cuts: bool) -> None:
        with self._lock:
            self._limit, self._cuts = size_bytes, cuts
            self._released.clear()
            self.reached.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._target)
            except OSError:  # the server is down, as a client sees it
                _reset(client)
                continue
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        """Pass both directions in one thread: a socket that another one reads from would stay open when closed."""
        passed = 0
        with contextlib.suppress(OSError):  # either side went away: so does the other
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if client in ready:
                    data = client.recv(_PIECE_BYTES)
                    if not data:
                        break
                    server.sendall(data)
                if server in ready:
                    data = server.recv(_PIECE_BYTES)
                    if not data or not self._answer(client, data, passed):
                        break
                    passed += len(data)
        _reset(client)
        server.close()

    def _answer(self, client: socket.socket, data: bytes, passed: int) -> bool:
        """Pass what the server said, as far as the limit lets it; return whether the connection is to stay."""
        with self._lock:
            limit, cuts = self._limit, self._cuts
            over = limit is not None and passed + len(data) > limit
            if over and cuts:
                self._limit = None
        if over and limit is not None:
            before = max(0, limit - passed)
            client.sendall(data[:before])
            self.reached.set()
            if cuts:
                return False
            self._released.wait()
            data = data[before:]
        client.sendall(data)
        return True


def _reset(one: socket.socket) -> None:
    """Close with a reset instead of an orderly end, as a firewall or a crashed host does."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
