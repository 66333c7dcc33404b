"""The pipeline's own row-wise transform: found beside the pipeline file, applied to each batch, and held to its contract."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from engine.batching.frames import to_arrow
from engine.errors import SpecError

if TYPE_CHECKING:
    import polars as pl

Transform = Callable[[pa.Table], pa.Table]


def load_transform(name: str | None, *, directory: Path) -> Transform:
    """Return what turns a batch of raw rows into one with the transform's columns; without a name, the batch itself.

    Parameters
    ----------
    name
        ``module:function``; the function takes and returns a Polars LazyFrame.
    directory
        Of the pipeline file; searched first.

    Raises
    ------
    SpecError
        The module or function is missing; later, when applied, the function raised or changed the number of rows.
    """
    if name is None:
        return lambda rows: rows
    function = _find(name, directory)

    def apply(rows: pa.Table) -> pa.Table:
        import polars as pl

        try:
            out = function(pl.DataFrame(rows).lazy()).collect()
        except Exception as error:  # whatever a user's code raises is told with its name
            raise SpecError(
                f"features.transform {name} failed: {type(error).__name__}: {str(error).splitlines()[0]}",
                hint=f"try it on a few rows; it is given the columns {', '.join(rows.column_names)}",
            ) from error
        if out.height != rows.num_rows:
            raise SpecError(
                f"features.transform {name} returned {out.height:,} rows for {rows.num_rows:,}",
                hint="a transform is row-wise: it may add columns, never add, drop or join rows",
            )
        return to_arrow(out)

    return apply


def _find(name: str, directory: Path) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
    module, _, attribute = name.partition(":")
    where = str(directory.absolute())
    if where not in sys.path:
        sys.path.insert(0, where)
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise SpecError(f"features.transform: {module} imports {error.name!r}, which is not installed") from error
        raise SpecError(
            f"features.transform: there is no module {module!r}", hint=f"expected {directory / (module + '.py')}"
        ) from error
    function = getattr(loaded, attribute, None)
    if not callable(function):
        known = ", ".join(sorted(key for key, value in vars(loaded).items() if callable(value) and key[0] != "_"))
        raise SpecError(f"features.transform: {module} has no function {attribute!r}", hint=f"it has: {known or 'none'}")
    found: Callable[[pl.LazyFrame], pl.LazyFrame] = function
    return found
