"""The flights loop by stage, with its windows and without: seconds, peak memory, and what the windows are worth."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results import Contender, write_results
from engine.batching import Workspace, read_batches
from headrace.demo import run_demo


def main() -> None:
    """Run the demo twice in a directory of its own and write ``benchmarks/results/loop.json``."""
    contenders: dict[str, Contender] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("HEADRACE_BENCH_DIR", ".")) as scratch:
        home = Path(scratch)
        for windows in (True, False):
            result = run_demo(home=home, windows=windows)
            name = "loop" if windows else "loop_without_windows"
            if windows:
                contenders |= _by_stage(Workspace(home / "flights"))
            contenders[name] = Contender(
                seconds=result["seconds"],
                peak_bytes=result["peak_bytes"],
                outcome="ok",
                rows=sum(month["new_rows"] for month in result["months"]),
                figures={"realised_average_precision": result["realised_average_precision"]},
            )
    print(f"wrote {write_results('loop', contenders)}")


def _by_stage(workspace: Workspace) -> dict[str, Contender]:
    sums: dict[str, dict[str, Any]] = {}
    table = workspace.table("runs")
    columns = ["stage", "seconds", "measured_bytes", "rows_in"]
    for batch in read_batches([chunk.path for chunk in table.chunks()], columns=columns):
        for row in batch.to_pylist():
            known = sums.setdefault(row["stage"], {"seconds": 0.0, "peak": 0, "rows": 0})
            known["seconds"] += row["seconds"]
            known["peak"] = max(known["peak"], row["measured_bytes"])
            known["rows"] += row["rows_in"]
    return {stage: Contender(round(one["seconds"], 1), one["peak"], "ok", one["rows"]) for stage, one in sums.items()}


if __name__ == "__main__":
    main()
