"""A pipeline's own row-wise transform, ``module:function`` on a Polars LazyFrame: loading it, applying it to a batch.

What it breaks is a typed error that says what and where. Polars does the work; nothing here knows the columns.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pyarrow as pa

from engine.batching.frames import to_arrow
from engine.errors import SpecError
from engine.refs import content_hash
from engine.spec import PipelineSpec
from engine.usercode import TRANSFORM, own_file, transform_code

if TYPE_CHECKING:
    import polars as pl

_SAMPLE_ROWS = 1_000


def transform_of(
    spec: PipelineSpec, *, directory: Path, types: Mapping[str, str] | None = None
) -> Callable[[pa.Table], pa.Table]:
    """Return a pipeline's transform as a function on batches, as ``load_transform`` does.

    Parameters
    ----------
    types
        That rows are prepared with, of ``preparing.retyped``: they have the hash of its code, where that is known.

    Raises
    ------
    SpecError
        As of ``load_transform``; also where it changes a column by which rows are told apart or ordered, and where its
        code is another than that of ``types``.
    """
    reference = spec.features.transform
    planned, code = (types or {}).get(TRANSFORM), transform_code(reference, directory=Path(directory))
    if planned and code and code != planned:
        raise SpecError(
            f"features.transform: the code of {reference} is another than rows are prepared by: it was changed",
            hint="run again: all rows are prepared anew by the new code then",
        )
    keeps = (spec.source.key, spec.event_time, spec.source.cursor)
    return load_transform(reference, directory=directory, keeps=keeps)


def load_transform(
    reference: str | None, *, directory: Path, keeps: Sequence[str] = ()
) -> Callable[[pa.Table], pa.Table]:
    """Return the transform as a function on batches; without a reference, one that returns the batch.

    Parameters
    ----------
    reference
        ``module:function``.
    directory
        Where the module's file lies (the pipeline file's directory); an installed module is found too.
    keeps
        Columns that it must leave as they are.

    Raises
    ------
    SpecError
        The module or the function is not there, or the module fails on import. The function that is returned raises it
        when the transform fails, or is not row-wise: drops, adds or mixes rows, or drops a column that it was given, or
        changes one that it must keep.
    """
    if reference is None:
        return _unchanged
    module_name, _, function_name = reference.partition(":")
    module = _load(module_name, directory=Path(directory))
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise SpecError(
            f"features.transform: module {module_name!r} has no function {function_name!r}",
            hint=_nearest(function_name, names) or f"define {function_name}(rows: pl.LazyFrame) -> pl.LazyFrame in it",
        )
    return _Transform(reference, function, keeps)


class LazyTransform:
    """The same function for Polars to plan with, on rows that nobody holds: its contract is held against some of them.

    Parameters
    ----------
    spec, directory, types
        As of ``transform_of``, with the errors that it raises.
    """

    def __init__(self, spec: PipelineSpec, *, directory: Path, types: Mapping[str, str] | None = None) -> None:
        self._checked = transform_of(spec, directory=directory, types=types)

    def check(self, rows: pa.Table) -> None:
        """Apply it to some rows, and raise SpecError where it breaks its contract."""
        self._checked(rows)

    def __call__(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """Return the frame with the transform in its plan; it has been checked before."""
        if not isinstance(self._checked, _Transform):
            return frame
        return self._checked.function(frame)  # type: ignore[return-value]


class _Transform:
    """The function with its checks; the costly one is made on the first batch with two rows or more."""

    def __init__(self, reference: str, function: Callable[[pl.LazyFrame], object], keeps: Sequence[str]) -> None:
        self._reference = reference
        self.function = function
        self._keeps = keeps
        self._checked = False

    def __call__(self, rows: pa.Table) -> pa.Table:
        import polars as pl

        given = pl.DataFrame(rows)
        out = self._apply(given)
        if out.height != given.height:
            raise self._error(
                f"returned {out.height:,} rows for {given.height:,}",
                "it must keep each row: it may not filter, join, group or explode",
            )
        lost = [name for name in given.columns if name not in out.columns]
        if lost:
            raise self._error(f"dropped the columns {', '.join(lost)}", "add columns with rows.with_columns(...)")
        changed = [name for name in self._keeps if name in given.columns and not out[name].equals(given[name])]
        if changed:
            raise self._error(
                f"changed {', '.join(changed)}, by which rows are told apart and ordered",
                "write what it makes of it to a column of another name",
            )
        if not self._checked and given.height > 1:
            self._check_row_wise(given, out)
            self._checked = True
        return to_arrow(out)

    def _apply(self, given: pl.DataFrame) -> pl.DataFrame:
        import polars as pl

        try:
            lazy = self.function(given.lazy())
            out = lazy.collect() if isinstance(lazy, pl.LazyFrame) else None
        except MemoryError:  # the budget's: the task is tried again with smaller batches
            raise
        except Exception as error:  # it is the user's own code, and may raise anything
            where = _last_line(error)
            raise self._error(
                f"raised {type(error).__name__}: {_first_line(error)}{where}",
                "it is given all columns of the source that are known at the event",
            ) from error
        if out is None:
            raise self._error(f"returned a {type(lazy).__name__}", "it must return a polars LazyFrame")
        return out

    def _check_row_wise(self, given: pl.DataFrame, out: pl.DataFrame) -> None:
        """Compare with what some of the rows give alone: batches differ from run to run, features must not.

        The parts begin inside the batch, or shifts and running sums would pass.
        """
        for start in (given.height // 2, given.height - 1):
            alone, together = (frame.slice(start, _SAMPLE_ROWS) for frame in (given, out))
            alone = self._apply(alone)
            mixed = [name for name in together.columns if name not in alone or not alone[name].equals(together[name])]
            if mixed:
                raise self._error(
                    f"gives other values of {', '.join(mixed)} when it sees fewer rows",
                    "it must be row-wise: no sum, mean, rank, shift, sort or random number over the rows",
                )

    def _error(self, what: str, hint: str) -> SpecError:
        return SpecError(f"features.transform: {self._reference} {what}", hint=hint)


def _unchanged(rows: pa.Table) -> pa.Table:
    return rows


def _load(name: str, *, directory: Path) -> ModuleType:
    path = own_file(name, directory=directory)
    try:
        with _searched(directory):
            return _from_file(name, path) if path.is_file() else importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _import_error(name, error) from error
        beside = [file.stem for file in sorted(directory.glob("*.py"))]
        raise SpecError(
            f"features.transform: there is no module {name!r}: neither {path} nor an installed one",
            hint=_nearest(name, beside) or "write module:function, with the module beside the pipeline file",
        ) from error
    except (Exception, SystemExit) as error:  # as above; a script may end itself, and us with it
        raise _import_error(name, error) from error


def _from_file(name: str, path: Path) -> ModuleType:
    """Load a file under a name of its own: two pipelines may each have a module of the same name."""
    private = f"_headrace_transform_{content_hash(str(path.resolve()))}"
    found = importlib.util.spec_from_file_location(private, path)
    if found is None or found.loader is None:
        raise ModuleNotFoundError(name=name)
    module = importlib.util.module_from_spec(found)
    sys.modules[private] = module
    try:
        found.loader.exec_module(module)
    except BaseException:  # half of a module is not to be found by the next load
        del sys.modules[private]
        raise
    return module


@contextlib.contextmanager
def _searched(directory: Path) -> Iterator[None]:
    """Let the module import its neighbours."""
    entry = str(directory.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _import_error(name: str, error: BaseException) -> SpecError:
    return SpecError(
        f"features.transform: module {name!r} fails on import: {type(error).__name__}: "
        f"{_first_line(error)}{_last_line(error)}",
        hint="correct the module",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def _last_line(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}? there are: {', '.join(names)}" if close else ""
