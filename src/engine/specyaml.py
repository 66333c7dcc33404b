"""From YAML text to plain values, with ``${VAR}`` put in and the line of each value kept.

It knows nothing of what a pipeline file may hold: that is ``spec.py``, and what a person is told
``specfile.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from engine.errors import SpecError

Secrets = Callable[[str], str]
"""Returns the secret of a name; raises ``SpecError``, without the value, where there is none."""

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top of the file to a value."""

# More values than any pipeline needs; a few lines of nested YAML aliases can stand for billions.
_MAX_VALUES = 20_000
# A variable has no hyphen, and a default begins with one: `${secret:name}` cannot mean anything else.
_VARIABLE = re.compile(r"\$\$|\$\{secret:([a-z0-9][a-z0-9-]*)\}|\$\{([A-Za-z_]\w*)(?::-([^}]*))?\}|\$\{")
# YAML 1.1, hence PyYAML, takes 1e-3 for text: it wants a dot and a sign.
_EXPONENT = re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+")
_TAG = "tag:yaml.org,2002:"
_CONSTRUCTED = frozenset(_TAG + name for name in ("int", "float", "bool", "null"))
_HOLDERS = frozenset(_TAG + name for name in ("map", "seq"))
_TEXT = frozenset(_TAG + name for name in ("str", "timestamp", "value"))


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file."""

    path: KeyPath
    line: int  # counted from 1
    message: str
    nearest: str | None = None  # the valid name that is most like the one given


@dataclass
class Document:
    """A file's values, where each stands, and what is wrong with it as YAML."""

    values: Any = None  # None when there is no mapping to look at
    lines: dict[KeyPath, int] = field(default_factory=dict)  # of each value, counted from 1
    key_lines: dict[KeyPath, int] = field(default_factory=dict)  # of each key
    hidden: dict[str, str] = field(default_factory=dict)  # what must not show -> what shows in its place
    substituted: set[KeyPath] = field(default_factory=set)  # where the environment was asked, and answered
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, path: KeyPath) -> int:
        """Return the line of the value at ``path``, or of the nearest one around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def redact(self, text: str) -> str:
        """Return ``text`` with each secret as the file writes it (``${NAME}``), or as asterisks."""
        if not self.hidden:
            return text
        # A short value ("2") is hidden only where it stands alone, or it would cut other words apart.
        forms = (
            re.escape(secret) if len(secret) > 3 else rf"(?<!\w){re.escape(secret)}(?!\w)"
            for secret in sorted(self.hidden, key=len, reverse=True)
        )
        # One pass, so that nothing is replaced inside what was put in.
        return re.sub("|".join(forms), lambda match: self.hidden[match[0]], text)


def plain_scalar(text: str) -> Any:
    """Return what unquoted text stands for in YAML: a number, true or false, nothing, or itself."""
    if _EXPONENT.fullmatch(text):
        return float(text)
    tag = yaml.resolver.Resolver().resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return _construct(tag, text) if tag in _CONSTRUCTED else text


def _construct(tag: str, text: str) -> Any:
    constructor = yaml.constructor.SafeConstructor()
    return constructor.construct_object(yaml.ScalarNode(tag, text))


def read_document(text: str, *, environ: Mapping[str, str], secrets: Secrets | None = None) -> Document:
    """Return the values of a YAML text whose top is a mapping.

    Parameters
    ----------
    text
        YAML: one document. ``${NAME}`` in a value comes from ``environ``; ``${NAME:-default}`` is the default where
        the variable is unset or empty; ``$$`` is a dollar.
    environ
        The environment.
    secrets
        Where ``${secret:name}`` comes from; None where there is no such place.

    Returns
    -------
    Document
        Never raises for what is wrong with the text: that is in ``problems``.
    """
    document = Document()

    def refuse(line: int, message: str) -> Document:
        document.problems.append(Problem((), line, message))
        return document

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        # Its own words only: the excerpt that PyYAML shows may hold a password.
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        what = ", ".join(part for part in (error.context, error.problem) if part)
        # `{memory: ${SIZE}}`: YAML takes the inner brace for one of its own.
        quote = (
            "; put quotes around ${...} inside { } or [ ]"
            if "${" in "".join(text.splitlines()[line - 1 : line])
            else ""
        )
        return refuse(line, f"not YAML: {what}{quote}")
    except yaml.reader.ReaderError as error:
        return refuse(text.count("\n", 0, int(error.position)) + 1, f"not YAML: {error.reason}")
    except RecursionError:
        return refuse(1, "values are nested too deep")
    if root is None:
        return refuse(1, "the file is empty")
    if not isinstance(root, yaml.MappingNode):
        return refuse(root.start_mark.line + 1, "a pipeline file is a mapping of keys, such as 'pipeline: flights'")
    document.values = _Walk(document, environ, secrets).value(root, ())
    return document


class _Walk:
    def __init__(self, document: Document, environ: Mapping[str, str], secrets: Secrets | None) -> None:
        self._document = document
        self._environ = environ
        self._secrets = secrets
        self._above: list[yaml.Node] = []  # the nodes that hold the one being read

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        lines = self._document.lines
        if len(lines) >= _MAX_VALUES:
            if len(lines) == _MAX_VALUES:
                self._wrong(path, f"the file has more than {_MAX_VALUES} values", line=node.start_mark.line + 1)
                lines[path] = node.start_mark.line + 1
            return None
        lines[path] = node.start_mark.line + 1
        if any(node is other for other in self._above):
            return self._wrong(path, "an alias inside the value that it stands for")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in _HOLDERS:
            return self._wrong(path, f"the tag {node.tag} is not used here")
        self._above.append(node)
        value: Any
        if isinstance(node, yaml.MappingNode):
            value = self._mapping(node, path)
        else:
            value = [self.value(child, (*path, index)) for index, child in enumerate(node.value)]
        self._above.pop()
        return value

    def _wrong(self, path: KeyPath, message: str, *, line: int | None = None) -> None:
        self._document.problems.append(Problem(path, line or self._document.line_of(path), message))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _TAG + "merge":
                self._wrong(path, "a key is a plain word; write the keys out", line=line)
                continue
            key = str(key_node.value)  # as written: a column called `on` or `2013` keeps its name
            below = (*path, key)
            if key in values:
                first = self._document.key_lines[below]
                self._wrong(below, f"the key is here twice, first on line {first}", line=line)
                continue
            self._document.key_lines[below] = line
            values[key] = self.value(value_node, below)
        return values

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text = str(node.value)
        if node.tag in _CONSTRUCTED:
            try:
                return _construct(node.tag, text)
            except (ValueError, KeyError):  # `!!int abc`, a number of 5,000 digits
                return self._wrong(path, f"not of the type {node.tag.removeprefix(_TAG)}")
        if node.tag not in _TEXT:
            return self._wrong(path, f"the tag {node.tag} is not used here")
        value, taken = self._substitute(text, path)
        hidden = self._document.hidden
        if taken:
            self._document.substituted.add(path)
        for secret, shown in ({**taken, value: text} if taken else {}).items():
            # Messages quote a value either as it is or as Python writes it.
            hidden |= {form: shown for form in (secret, repr(secret)[1:-1]) if form.strip()}
        if path[-1:] == ("uri",) and value:
            hidden[value] = "****"
        return plain_scalar(value) if node.style is None and not taken else value

    def _substitute(self, text: str, path: KeyPath) -> tuple[str, dict[str, str]]:
        """Return the text with variables put in, and the environment's values with the form to show them in."""
        taken: dict[str, str] = {}

        def replace(match: re.Match[str]) -> str:
            name, default = match[2], match[3]
            if match[0] == "$$":
                return "$"
            if match[1] is not None:
                secret = self._secret(match[1], path)
                if secret is None:
                    return match[0]
                taken[secret] = match[0]
                return secret
            if name is None:
                self._wrong(path, "'${' begins no variable; write ${NAME} or ${NAME:-default}, or $$ for a dollar")
                return match[0]
            value = self._environ.get(name)
            if default is not None and not value:
                return default
            if value is None:
                self._wrong(path, f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}")
                return match[0]
            taken[value] = match[0]
            return value

        return _VARIABLE.sub(replace, text), taken

    def _secret(self, name: str, path: KeyPath) -> str | None:
        if self._secrets is None:
            self._wrong(path, f"the secret {name!r} cannot be looked up here; use ${{NAME}} of the environment")
            return None
        try:
            return self._secrets(name)
        except SpecError as error:
            self._wrong(path, f"{error.message}; {error.hint}")
            return None
