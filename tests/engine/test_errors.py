import json
import pickle

import pytest

from engine import errors
from engine.errors import HeadraceError, MemoryBudgetExceeded, SpecError, TaskError, from_json


def _all(root: type[HeadraceError]) -> list[type[HeadraceError]]:
    return [root, *(found for child in root.__subclasses__() for found in _all(child))]


EVERY_ERROR = _all(HeadraceError)


def _example(kind: type[HeadraceError]) -> HeadraceError:
    return kind("512 MiB allowed, 600 MiB measured", hint="give it more", details={"allowed_bytes": 512 * 2**20})


def _content(error: HeadraceError) -> tuple[object, ...]:
    return type(error), error.message, error.hint, error.details, str(error)


@pytest.mark.parametrize("kind", EVERY_ERROR)
def test_every_error_crosses_as_json(kind):
    error = _example(kind)
    assert _content(from_json(json.loads(json.dumps(error.to_json())))) == _content(error)


@pytest.mark.parametrize("kind", EVERY_ERROR)
def test_every_error_pickles(kind):
    error = _example(kind)
    assert _content(pickle.loads(pickle.dumps(error))) == _content(error)


def test_the_tree_at_the_top_of_the_module_has_every_error_with_its_exit_code():
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        words = [word for word in line.split() if word not in ("|", "|--", "`--")]
        if words and words[0] in {kind.__name__ for kind in EVERY_ERROR}:
            drawn[words[0]] = int(next(word for word in words if word.isdigit()))
    assert drawn == {kind.__name__: kind.exit_code for kind in EVERY_ERROR}


def test_no_error_exits_as_success():
    assert 0 not in {kind.exit_code for kind in EVERY_ERROR}


def test_a_killed_task_can_be_caught_as_a_task_error():
    with pytest.raises(TaskError):
        raise _example(MemoryBudgetExceeded)


def test_the_hint_stands_on_its_own_line():
    assert str(SpecError("wrong", hint="do this")) == "wrong\n  do this"
    assert str(SpecError("wrong")) == "wrong"


def test_an_error_of_a_newer_child_is_kept_as_the_root():
    error = from_json({"error": "NotKnownHere", "message": "what it said"})
    assert type(error) is HeadraceError
    assert error.message == "what it said"
    assert error.details == {}


def test_details_are_a_copy():
    details = {"rows": 1}
    error = HeadraceError("x", details=details)
    details["rows"] = 2
    assert error.details == {"rows": 1}
