"""A flow run's memory profile: memray around each task, and one page that the run's artifacts link to."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from engine import events
from engine.stage import StageContext
from flows.artifacts import report_link
from profiling.session import ProfilingSession


@contextlib.contextmanager
def recorded(context: StageContext) -> Iterator[StageContext]:
    """Return the context with recorder and launcher in it; the page is written and linked at the end, also of a
    failure.
    """
    session = ProfilingSession(context.workspace.root / "profiles", title=context.spec.pipeline)
    hook = events.fan_out(context.hook, session.hook)
    try:
        with session:
            yield dataclasses.replace(context, hook=hook, launcher=session.launcher)
    finally:
        report_link(session.page.as_uri())
