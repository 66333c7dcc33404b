"""A run's memory as slots of a concurrency limit of the Prefect server; without a server as a ticket of the host."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from engine.errors import PlanRefused
from engine.memory.tickets import MEMORY_LIMIT, host_ticket
from engine.units import format_bytes

_LEASE_SECONDS = 60.0  # the least that Prefect takes: so long after a kill the slots are free again
_MIB = 2**20


@contextlib.contextmanager
def memory_ticket(allowed_bytes: int, *, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold a run's memory while the block runs, waiting until it is free.

    Parameters
    ----------
    allowed_bytes
        The run's budget.
    waiting
        Told once, when it begins to wait.

    Raises
    ------
    PlanRefused
        It is more than may be held in all.
    """
    size_mib = -(-allowed_bytes // _MIB)
    if not os.environ.get("PREFECT_API_URL") or not _is_limited(size_mib, waiting):
        with host_ticket(size_mib, waiting=waiting):
            yield
        return
    # Not with a timeout first, to learn whether there is a wait: Prefect logs that as an error.
    with concurrency(MEMORY_LIMIT, occupy=size_mib, lease_duration=_LEASE_SECONDS, strict=True):
        yield


def _is_limited(size_mib: int, waiting: Callable[[str], None]) -> bool:
    """Return whether the server has the limit; refuse what is more than all of it, and say where there is a wait."""
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(MEMORY_LIMIT)
        except ObjectNotFound:
            return False
    if size_mib > limit.limit:
        raise PlanRefused(
            f"the budget of {format_bytes(size_mib * _MIB)} is more than the {limit.limit} MiB of the limit "
            f"{MEMORY_LIMIT}",
            hint=f"set resources.memory to at most {limit.limit}MiB, or raise it: prefect gcl update {MEMORY_LIMIT}",
        )
    if limit.active and limit.active_slots + size_mib > limit.limit:
        waiting(
            f"{size_mib} MiB are needed, {limit.active_slots} of {limit.limit} MiB of {MEMORY_LIMIT} are held by "
            "other runs: going on when they end"
        )
    return bool(limit.active)
