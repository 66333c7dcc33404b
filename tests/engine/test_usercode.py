"""Where a transform's module lies, and when its code counts as changed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine.usercode import module_file, transform_code


def test_a_module_is_found_under_the_directory_first_and_in_packages_without_importing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, own = tmp_path / "installed", tmp_path / "own"
    for name in ("only.py", "both.py", "package/__init__.py", "package/part.py", "package/deep/__init__.py"):
        path = installed / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise RuntimeError('imported')\n")
    (own / "nested").mkdir(parents=True)
    (own / "beside").mkdir()
    for name in ("both.py", "nested/mine.py", "beside/__init__.py"):
        (own / name).write_text("")
    monkeypatch.syspath_prepend(str(installed))
    places = {
        "both": own / "both.py",
        "nested.mine": own / "nested/mine.py",
        "beside": own / "beside/__init__.py",
        "only": installed / "only.py",
        "package": installed / "package/__init__.py",
        "package.part": installed / "package/part.py",
        "package.deep": installed / "package/deep/__init__.py",
        "package.none": None,
        "none": None,
        "sys": None,  # it has no file
    }
    assert {name: module_file(name, directory=own) for name in places} == places
    assert not {"only", "package"} & sys.modules.keys()


def test_code_is_the_same_whatever_its_comments_and_layout_and_no_other(tmp_path: Path) -> None:
    def code(text: str) -> str:
        (tmp_path / "own.py").write_text(text)
        return transform_code("own:f", directory=tmp_path)

    first = code("def f(rows):\n    return rows\n")
    assert first == code("# a remark\n\ndef f( rows ):\n\n        return (rows)  # another\n")
    assert first != code("def f(rows):\n    return rows.head()\n")
    assert code("def f(rows:\n") == transform_code("none:f", directory=tmp_path) == ""
    assert transform_code(None, directory=tmp_path) == ""
