"""The pipeline's own transform: found beside the file, and refused when it is not row-wise."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from engine.errors import SpecError
from engine.features.transform import load_transform

ROWS = pa.table({"a": [3, 1, 4, 2], "s": ["x", "y", None, "x"]})


def written(directory, body, *, name="mine"):
    lines = ["import polars as pl", "def f(rows):", *(f"    {line}" for line in body.splitlines())]
    (directory / f"{name}.py").write_text("\n".join(lines) + "\n")
    return load_transform(f"{name}:f", directory=directory)


def test_columns_are_added_and_the_given_ones_keep_their_types(tmp_path):
    transform = written(tmp_path, "return rows.with_columns(b=pl.col('a') * 2, t=pl.col('s') + '!')")
    out = transform(ROWS)
    assert out.column("b").to_pylist() == [6, 2, 8, 4]
    assert out.schema.field("t").type == pa.string()
    assert out.select(ROWS.column_names) == ROWS


def test_without_a_reference_rows_pass_unchanged(tmp_path):
    assert load_transform(None, directory=tmp_path)(ROWS) is ROWS


def test_the_flights_transform_gives_local_hours():
    pipelines = Path(__file__).parents[3] / "pipelines"
    stamps = pa.array([datetime(2013, 7, 1, 4, 30, tzinfo=UTC)], pa.timestamp("us", tz="UTC"))
    out = load_transform("flights:add_calendar", directory=pipelines)(pa.table({"scheduled_departure": stamps}))
    assert (out.column("hour")[0].as_py(), out.column("weekday")[0].as_py()) == (0, 1)
    assert out.schema.field("scheduled_departure").type == pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return rows.filter(pl.col('a') > 1)", "returned 3 rows for 4"),
        ("return pl.concat([rows, rows])", "returned 8 rows for 4"),
        ("return rows.select('a')", "dropped the columns s"),
        ("return rows.with_columns(b=pl.col('a').mean())", "other values of b when it sees fewer rows"),
        ("return rows.with_columns(b=pl.col('a').shift(1))", "other values of b when it sees fewer rows"),
        ("return rows.with_columns(b=pl.col('a').cum_sum())", "other values of b when it sees fewer rows"),
        ("return rows.with_columns(s=pl.col('s').forward_fill())", "other values of s when it sees fewer rows"),
        ("return rows.sort('a')", "when it sees fewer rows"),
        ("return rows.with_columns(b=pl.col('c'))", "raised ColumnNotFoundError"),
        ("return 1 / 0", r"raised ZeroDivisionError: division by zero \(mine.py:3\)"),
        ("return rows.collect()", "returned a DataFrame"),
        ("return None", "returned a NoneType"),
    ],
)
def test_what_is_not_row_wise_is_refused(tmp_path, body, message):
    with pytest.raises(SpecError, match=message) as caught:
        written(tmp_path, body)(ROWS)
    assert "mine:f" in caught.value.message
    assert caught.value.hint


def test_a_missing_module_or_function_is_named_with_the_nearest(tmp_path):
    written(tmp_path, "return rows")
    with pytest.raises(SpecError, match="no module 'mime'") as caught:
        load_transform("mime:f", directory=tmp_path)
    assert "did you mean 'mine'" in caught.value.hint
    with pytest.raises(SpecError, match="no function 'g'"):
        load_transform("mine:g", directory=tmp_path)


def test_a_module_that_fails_on_import_is_told_from_one_that_is_missing(tmp_path):
    (tmp_path / "broken.py").write_text("import not_there_at_all\n")
    with pytest.raises(SpecError, match=r"'broken' fails on import: ModuleNotFoundError.*\(broken.py:1\)"):
        load_transform("broken:f", directory=tmp_path)
    (tmp_path / "syntax.py").write_text("def f(:\n")
    with pytest.raises(SpecError, match="'syntax' fails on import: SyntaxError"):
        load_transform("syntax:f", directory=tmp_path)


def test_a_module_that_ends_the_process_on_import_ends_nothing(tmp_path):
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(SpecError, match=r"'script' fails on import: SystemExit: 0 \(script.py:2\)"):
        load_transform("script:f", directory=tmp_path)


def test_want_of_memory_is_the_budgets_and_not_an_error_of_the_transform(tmp_path):
    with pytest.raises(MemoryError):
        written(tmp_path, "raise MemoryError")(ROWS)


def test_two_directories_may_each_have_a_module_of_one_name_and_import_their_neighbours(tmp_path):
    before = list(sys.path)
    for number in (1, 2):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / f"near{number}.py").write_text(f"N = {number}\n")
        body = f"from near{number} import N\nimport polars as pl\ndef f(rows):\n    return rows.with_columns(n=N)\n"
        (directory / "mine.py").write_text(body)
    out = [load_transform("mine:f", directory=tmp_path / n)(ROWS).column("n")[0].as_py() for n in "12"]
    assert out == [1, 2]
    assert sys.path == before


def test_an_empty_batch_and_a_batch_of_one_row_pass(tmp_path):
    transform = written(tmp_path, "return rows.with_columns(b=pl.col('a') + 1)")
    assert transform(ROWS.slice(0, 0)).num_rows == 0
    assert transform(ROWS.slice(0, 1)).column("b").to_pylist() == [4]
