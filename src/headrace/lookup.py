"""Single rows, as they are given on the command line, looked up with what serves them (``engine/serving.py``)."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.errors import RowError
from engine.serving import Champion, RowFeatures
from engine.stage import StageContext
from engine.units import format_time
from headrace.calling import read_pipeline


def looked_up(pipeline: Path, *, row: str | None, key: str | None) -> Iterator[dict[str, Any]]:
    """Yield, for each row, its features, the champion's verdict (None before the first) and how fresh they are.

    Where there is a champion, the features are its own: a file that was edited since has others.

    Parameters
    ----------
    row
        JSON, or ``-`` for a row in each line of standard input; None: the row is the one of ``key``.
    """
    context = StageContext.of(read_pipeline(pipeline), directory=pipeline.parent)
    champion = Champion.of(context.workspace)
    if champion is not None:
        context = dataclasses.replace(context, spec=champion.spec(context.spec))
    with RowFeatures.open(context) as opened:
        through = opened.prepared_through
        fresh = {
            name: None if time is None else format_time(time)
            for name, time in (("rows", through.rows), ("labels", through.labels))
        }
        for place, text in _texts(row):
            try:
                prepared = opened.prepared(opened.stored(key) if text is None else _row(text))
            except RowError as error:
                raise RowError(f"{place}{error.message}", hint=error.hint, details=error.details) from None
            names = context.spec.features.names()
            yield {
                "features": {name: prepared.column(name)[0].as_py() for name in names},
                "champion": None if champion is None else _verdict(champion, prepared),
                "prepared_through": fresh,
            }


def _texts(row: str | None) -> Iterator[tuple[str, str | None]]:
    """Yield each row's text, with where it is from."""
    if row != "-":
        yield "", row
        return
    for number, line in enumerate(sys.stdin, 1):
        if line.strip():
            yield f"line {number}: ", line


def _row(text: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise RowError(f"the row is no JSON: {error}", hint="""write '{"column": value, …}'""") from None
    if not isinstance(row, dict):
        raise RowError(f"the row is JSON, but a {type(row).__name__}", hint="""write '{"column": value, …}'""")
    return row


def _verdict(champion: Champion, prepared: pa.Table) -> dict[str, Any]:
    found = champion.verdict(prepared)
    return {"version": champion.version, **dataclasses.asdict(found), "threshold": champion.bundle.threshold}
