"""Reading a pipeline file into a ``PipelineSpec``, or into one error that lists everything that is wrong with it.

What a pipeline file may hold is in ``spec.py``, YAML and ``${VAR}`` in ``specyaml.py``; whether the source has the
columns that are named is for ``sources/``. A value from the environment, and a ``uri``, never shows in an error.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from engine.errors import SpecError
from engine.spec import PipelineSpec
from engine.specyaml import Document, KeyPath, Problem, Secrets, plain_scalar, read_document

# What pydantic calls an error -> what a person is told is allowed.
_ALLOWED = {
    "string_type": "text; put it in quotes if it looks like a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "tuple_type": "a list, such as [a, b]",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
}
_KINDS = ((bool, "true or false"), (int | float, "a number"), (str, "text"), (list, "a list"), (dict, "a mapping"))
_SECTION = re.compile(r"^([a-z_]+(?:\.[a-z_]+)*): ")


def load_spec(path: Path, *, environ: Mapping[str, str] = os.environ, secrets: Secrets | None = None) -> PipelineSpec:
    """Return the pipeline that a file describes.

    Parameters
    ----------
    path
        ``pipelines/<name>.yaml``.
    environ
        Where ``${NAME}`` and ``${NAME:-default}`` come from.
    secrets
        Where ``${secret:name}`` comes from; see ``flows.secrets``.

    Returns
    -------
    PipelineSpec
        With paths as the file has them: a relative ``workspace`` or SQLite path counts from the current directory.

    Raises
    ------
    SpecError
        When the file is missing, cannot be read, or is wrong; see ``parse_spec``.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise _missing(path) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problem = Problem((), line, f"byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8")
    except OSError as error:
        problem = Problem((), 1, f"cannot be read: {error.strerror}")
    else:
        return parse_spec(text, name=str(path), environ=environ, secrets=secrets)
    raise _spec_error([problem], name=str(path))


def parse_spec(
    text: str, *, name: str, environ: Mapping[str, str] = os.environ, secrets: Secrets | None = None
) -> PipelineSpec:
    """Return the pipeline that the text of a file describes.

    Parameters
    ----------
    text
        YAML; see ``specyaml.read_document`` for ``${NAME}``.
    name
        What errors call the file.
    environ, secrets
        As of ``load_spec``.

    Returns
    -------
    PipelineSpec
        Valid by all rules that need only the file.

    Raises
    ------
    SpecError
        With one line for each problem, ``file:line: key.path: what is wrong``, in the file's order. ``details`` has
        ``file`` and ``problems`` (path, line, message, nearest). Rules between sections are asked once each section
        is right by itself.
    """
    document = read_document(text, environ=environ, secrets=secrets)
    problems = list(document.problems)
    spec = None
    if isinstance(document.values, dict):
        _type_substitutes(document)
        try:
            spec = PipelineSpec.model_validate(document.values)
        except ValidationError as error:
            found = [_explain(dict(item), document) for item in error.errors(include_url=False, include_input=False)]
            # A field that YAML or its variable has spoilt is named already.
            spoilt = {problem.path for problem in problems if problem.path}
            problems += [problem for problem in found if not any(problem.path[: len(path)] == path for path in spoilt)]
        else:
            problems += _coerced(spec.model_dump(), document.values, (), document)
    # Outside the except block: as this error's context, pydantic's would carry the file's values along.
    if spec is None or problems:
        raise _spec_error(problems, name=name)
    return spec


def _missing(path: Path) -> SpecError:
    folder = path if path.is_dir() else path.parent
    found = sorted(str(other) for other in folder.glob("*.yaml")) if folder.is_dir() else []
    nearest = _nearest(str(path), found)
    hint = f"did you mean '{nearest}'? " if nearest else ""
    hint += f"Found: {', '.join(found)}." if found else f"There is no *.yaml in {folder}; `headrace init` writes one."
    message = f"{path}: a directory, not a pipeline file" if path.is_dir() else f"{path}: there is no such file"
    return SpecError(message, hint=hint, details={"file": str(path), "problems": [], "found": found})


def _spec_error(problems: Iterable[Problem], *, name: str) -> SpecError:
    lines, details = [], []
    for problem in sorted(problems, key=lambda problem: problem.line):
        written = _written(problem.path)
        question = f"; did you mean '{problem.nearest}'?" if problem.nearest else ""
        lines.append(
            ": ".join(part for part in (f"{name}:{problem.line}", written, problem.message + question) if part)
        )
        details.append({"path": written, "line": problem.line, "message": problem.message, "nearest": problem.nearest})
    return SpecError(
        "\n".join(lines),
        hint="Nothing was run; correct the file and try again.",
        details={"file": name, "problems": details},
    )


def _written(path: KeyPath) -> str:
    """Return a key path as people write it: ``features.windows[2].lengths[0]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _nearest(given: object, allowed: Iterable[str]) -> str | None:
    by_lower = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(str(given).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def _annotation_at(path: KeyPath) -> Any:
    """Return the declared type of the value at ``path``, without its None; Any where the schema is open."""
    found: Any = PipelineSpec
    for part in path:
        arguments = typing.get_args(found)
        if isinstance(found, type) and issubclass(found, BaseModel):
            field = found.model_fields.get(str(part))
            found = field.annotation if field else Any
        elif typing.get_origin(found) is tuple:
            found = arguments[0]
        elif typing.get_origin(found) is dict:
            found = arguments[1]
        else:
            return Any
        while hasattr(found, "__metadata__"):  # Annotated
            found = typing.get_args(found)[0]
        members = [member for member in typing.get_args(found) if member is not type(None)]
        if type(None) in typing.get_args(found) and len(members) == 1:
            found = members[0]
    return found


def _fields_at(path: KeyPath) -> Mapping[str, FieldInfo]:
    found = _annotation_at(path)
    return found.model_fields if isinstance(found, type) and issubclass(found, BaseModel) else {}


def _value_at(path: KeyPath, document: Document) -> Any:
    value = document.values
    for part in path:
        value = value[part]
    return value


def _type_substitutes(document: Document) -> None:
    """Give a ``${TREES}`` that is 200 the type that 200 has, where the schema leaves the type open."""
    for path in document.substituted:
        if _annotation_at(path) is Any:
            holder = _value_at(path[:-1], document)
            holder[path[-1]] = plain_scalar(holder[path[-1]])


def _explain(item: Mapping[str, Any], document: Document) -> Problem:
    """Return one of pydantic's errors in the words and with the lines of the file."""
    kind, path = str(item["type"]), _path_of(item["loc"], document)
    if kind == "extra_forbidden":
        allowed = list(_fields_at(path[:-1]))
        return _unknown_key(path, allowed, document)
    if kind == "missing":
        field = _fields_at(path[:-1]).get(str(path[-1]))
        meaning = f": {field.description}" if field is not None and field.description else ""
        return Problem(
            path, document.key_lines.get(path[:-1], document.line_of(path[:-1])), f"the key is missing{meaning}"
        )
    if path and _value_at(path, document) is None:
        return Problem(path, document.line_of(path), "there is nothing after the key: fill it in, or leave the key out")
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(item["ctx"]["expected"]))
        if item["loc"][-1] == "[key]":
            return _unknown_key(path, allowed, document)
        # A near miss of a hidden value would tell what the value is.
        nearest = None if path in document.substituted else _nearest(_value_at(path, document), allowed)
        return Problem(path, document.line_of(path), f"not a known value; allowed: {', '.join(allowed)}", nearest)
    if kind in ("value_error", "assertion_error"):
        return _rule(str(item["ctx"]["error"]), path, document)
    if kind in _ALLOWED:
        return Problem(path, document.line_of(path), f"{_kind(_value_at(path, document))}; allowed: {_ALLOWED[kind]}")
    message = str(item["msg"]).replace("Input should", "it should")
    field = _fields_at(path[:-1]).get(str(path[-1])) if path else None
    meaning = f" ({field.description})" if field is not None and field.description else ""
    return Problem(path, document.line_of(path), document.redact(message) + meaning)


def _path_of(location: Iterable[str | int], document: Document) -> KeyPath:
    """Return the part of pydantic's location that is in the file: no ``[key]``, no name of a union's member."""
    path: list[str | int] = []
    value = document.values
    for part in location:
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            path.append(part)
            value = _value_at(tuple(path), document)
        elif isinstance(value, dict) and part in _fields_at(tuple(path)):
            path.append(part)
            break
    return tuple(path)


def _unknown_key(path: KeyPath, allowed: list[str], document: Document) -> Problem:
    line = document.key_lines[path]
    return Problem(path, line, f"unknown key; allowed: {', '.join(allowed)}", _nearest(path[-1], allowed))


def _kind(value: object) -> str:
    return f"this is {next((words for kind, words in _KINDS if isinstance(value, kind)), 'something else')}"


def _rule(message: str, path: KeyPath, document: Document) -> Problem:
    """Return what a rule of ``spec.py`` says, at the value it is about: the section it names, the word it quotes."""
    section = _SECTION.match(message)
    if section and (*path, *section[1].split(".")) in document.lines:
        path = (*path, *section[1].split("."))
        message = message[section.end() :]
    quoted = set(re.findall(r"'([^']*)'", message))
    within = [
        other
        for other in document.lines
        if other[: len(path)] == path and len(other) > len(path) and _value_at(other, document) in tuple(quoted)
    ]
    if within:
        path = within[1] if len(within) > 1 and "twice" in message else within[0]
    return Problem(path, document.line_of(path), document.redact(message))


def _coerced(valid: Any, given: Any, path: KeyPath, document: Document) -> Iterator[Problem]:
    """Yield what pydantic lets pass: true for 1, and numbers that are not finite."""
    if isinstance(given, dict) and isinstance(valid, dict):
        for key in given:
            yield from _coerced(valid[key], given[key], (*path, key), document)
    elif isinstance(given, list) and isinstance(valid, list | tuple):
        for index, pair in enumerate(zip(valid, given, strict=True)):
            yield from _coerced(*pair, (*path, index), document)
    elif isinstance(given, bool) and not isinstance(valid, bool):
        yield Problem(path, document.line_of(path), "this is true or false; allowed: a number")
    elif isinstance(valid, float) and not math.isfinite(valid):
        yield Problem(path, document.line_of(path), "not a finite number")
