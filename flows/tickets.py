"""A run's memory as slots of a concurrency limit of the Prefect server; without a server as a ticket of the host."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator

from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from engine.errors import PlanRefused
from engine.memory.tickets import MEMORY_LIMIT, host_ticket
from engine.units import format_bytes

_SAY_AFTER_SECONDS = 1.0
_LEASE_SECONDS = 60.0  # the least that Prefect takes: so long after a kill the slots are free again
_MIB = 2**20


@contextlib.contextmanager
def memory_ticket(allowed_bytes: int, *, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold a run's memory while the block runs, waiting until it is free.

    Parameters
    ----------
    allowed_bytes
        The run's budget: of a server that answers, else of the host.
    waiting
        Told once, when it begins to wait.

    Raises
    ------
    PlanRefused
        It is more than may be held in all.
    """
    size_mib = -(-allowed_bytes // _MIB)
    limit = _limit() if get_current_settings().api.url else None
    if limit is None or not limit.active:
        with host_ticket(size_mib, waiting=waiting):
            yield
        return
    if size_mib > limit.limit:
        raise PlanRefused(
            f"the budget of {format_bytes(size_mib * _MIB)} is more than the {limit.limit} MiB of the limit "
            f"{MEMORY_LIMIT}",
            hint=f"set resources.memory to at most {limit.limit}MiB, or raise it: prefect gcl update {MEMORY_LIMIT}",
        )
    with contextlib.ExitStack() as held:
        with _said_after(_SAY_AFTER_SECONDS, lambda: _say_waiting(size_mib, waiting)):
            # Not with a timeout first, to learn whether there is a wait: Prefect logs that as an error.
            held.enter_context(concurrency(MEMORY_LIMIT, occupy=size_mib, lease_duration=_LEASE_SECONDS, strict=True))
        yield


def _limit() -> GlobalConcurrencyLimitResponse | None:
    """Return the server's limit as it is now, None where it has none, or where there is no server."""
    with get_client(sync_client=True) as client:
        if client.api_healthcheck() is not None:
            return None  # whatever needs the server says so itself
        try:
            return client.read_global_concurrency_limit_by_name(MEMORY_LIMIT)
        except ObjectNotFound:
            return None


def _say_waiting(size_mib: int, waiting: Callable[[str], None]) -> None:
    limit = _limit()
    if limit is not None and limit.active_slots + size_mib > limit.limit:
        waiting(
            f"{size_mib} MiB are needed, {limit.active_slots} of {limit.limit} MiB of {MEMORY_LIMIT} are held by "
            "other runs: going on when they end"
        )


@contextlib.contextmanager
def _said_after(seconds: float, say: Callable[[], None]) -> Iterator[None]:
    """Call ``say`` in a thread, in this one's context, unless the block ends before: who comes at the same moment as
    another cannot know beforehand which of them waits.
    """
    timer = threading.Timer(seconds, contextvars.copy_context().run, (say,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
