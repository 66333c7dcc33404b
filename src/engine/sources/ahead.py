"""Reading ahead in a thread: the wire, the checks and the disk work at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

_T = TypeVar("_T")
_END = object()


@dataclass(frozen=True)
class _Failure:
    error: BaseException


@dataclass
class _Ahead:
    """What passes from the thread that reads."""

    waiting: queue.Queue[Any]
    stopped: threading.Event = field(default_factory=threading.Event)


def read_ahead(stream: Iterator[_T], *, waiting: int) -> Generator[_T, None, None]:
    """Yield the same values, of which a thread reads ``waiting`` ahead.

    An error of the reader is raised here. When this generator is closed early, the reader ends with it, and ``stream``
    is closed: whoever leaves it by an error has to close it before what the stream reads from.
    """
    ahead = _Ahead(queue.Queue(waiting))

    def put(value: Any) -> bool:
        while not ahead.stopped.is_set():
            try:
                ahead.waiting.put(value, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for value in stream:
                if not put(value):
                    return
            put(_END)
        except BaseException as error:  # handed over, whatever it is: the other side raises it
            put(_Failure(error))
        finally:
            if isinstance(stream, Generator):
                stream.close()

    thread = threading.Thread(target=work, name="headrace-reader", daemon=True)
    thread.start()
    try:
        while (value := ahead.waiting.get()) is not _END:
            if isinstance(value, _Failure):
                raise value.error
            yield value
    finally:
        ahead.stopped.set()
        thread.join()
