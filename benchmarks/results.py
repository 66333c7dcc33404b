"""What every benchmark prints and writes: contenders by name, versions, machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from engine.units import format_bytes

_LIBRARIES = ("prefect", "polars", "pyarrow", "deltalake", "duckdb", "scikit-learn", "lightgbm", "mlflow")


@dataclass(frozen=True)
class Contender:
    """One measured way of doing the work."""

    seconds: float
    peak_bytes: int  # anonymous, of the process tree
    outcome: str  # ok, killed or timeout
    rows: int
    figures: Mapping[str, Any] = field(default_factory=dict)  # others of this benchmark


def write_results(name: str, contenders: Mapping[str, Contender]) -> Path:
    """Print a table and write ``benchmarks/results/<name>.json``; return its path."""
    table = Table("contender", "seconds", "peak", "outcome", "rows", "other", title=name, box=None)
    for title, one in contenders.items():
        other = ", ".join(f"{key} {value:.4g}" for key, value in one.figures.items() if isinstance(value, float | int))
        table.add_row(title, f"{one.seconds:.1f}", format_bytes(one.peak_bytes), one.outcome, f"{one.rows:,}", other)
    Console().print(table)
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    value = {
        "contenders": {title: asdict(one) for title, one in contenders.items()},
        "versions": {library: _version(library) for library in _LIBRARIES} | {"python": platform.python_version()},
        "machine": {
            "cores": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "system": platform.platform(),
        },
    }
    path.write_text(json.dumps(value, indent=2) + "\n")
    return path


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""
