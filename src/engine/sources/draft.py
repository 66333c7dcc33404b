"""Writes a first pipeline file from a table's schema, with a comment wherever a person has to decide.

It guesses by names and types and reads no rows; ``check.py`` then looks at the rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import pyarrow as pa
from pydantic import SecretStr

from engine.errors import SourceSchemaError, SpecError
from engine.sources.contracts import stored_type
from engine.sources.dialects import Column, nearest
from engine.sources.opening import ALLOWED, open_dialect
from engine.sources.scrubbing import masked
from engine.spec import DATABASES, FILE, FILE_KEY, READ_AT

_EVENT_WORDS = ("event", "scheduled", "occurred", "happened", "created", "ordered", "time", "date", "timestamp", "at")
_CURSOR_WORDS = ("updated", "modified", "changed", "inserted", "ingested", "loaded", "created")
_LABEL_TABLES = ("label", "outcome", "verdict", "review", "annotation", "feedback", "result", "target")
_MADE = (FILE, READ_AT, FILE_KEY)
_MOST_TABLES = 100  # looked at for labels: each is a query
_LATE = re.compile(r"(?i)actual|closed|completed|resolved|settled|final|outcome|result|verdict|delay|refund")
_MANY_VALUES = re.compile(r"(?i)(^|_)(id|uuid|hash|token|name|email|phone|address|url|ip|text|comment|description)s?$")
_LABEL_VALUES = ("label", "is_", "target", "positive", "fraud", "outcome", "verdict", "value")
_LABEL_TIMES = ("labelled", "labeled", "reviewed", "decided", "closed", "updated", "created", "at")


def draft_from(source: str) -> str:
    """Return a first pipeline file for ``URI::table``, such as ``sqlite:///shop.db::orders``, or for files.

    Raises
    ------
    SpecError
        It is not of that form.
    SourceError
        The source cannot be reached, or has no such table.
    """
    if not source.startswith(DATABASES):
        return draft_files(SecretStr(source))
    uri, separator, table = source.rpartition("::")
    if not separator:
        dialect = open_dialect(SecretStr(source))  # raises what fits better, when it is a file or an unknown scheme
        try:
            names = dialect.tables()
        finally:
            dialect.close()
        raise SpecError(
            f"name a table: URI::TABLE, one of {', '.join(sorted(names)) or 'none'}", hint=f"allowed: {ALLOWED}"
        )
    if not table:
        raise SpecError("there is no table after '::'", hint="for example sqlite:///shop.db::orders")
    return draft_pipeline(SecretStr(uri), table)


def draft_files(uri: SecretStr) -> str:
    """Return a first pipeline file for files: a path, a directory, a glob, an object store, a Delta table.

    Raises
    ------
    SpecError
        There is no source of this scheme.
    SourceError
        There are no such files, or they cannot be read.
    """
    from engine.sources.files import FileSource

    with FileSource(uri) as source:
        columns = [Column(f.name, str(f.type), stored_type(f.type)) for f in source.schema() if f.name not in _MADE]
    parts = [part for part in re.split(r"[/\\]", uri.get_secret_value()) if part and not re.search(r"[*?\[]", part)]
    name = parts[-1].split(".")[0] if parts else "files"
    return _Draft(uri, name, columns, [], {}, is_files=True).text()


def draft_pipeline(uri: SecretStr, table: str) -> str:
    """Return a first pipeline file for a table, as YAML; a password in ``uri`` becomes a variable.

    Raises
    ------
    SpecError
        There is no source of this scheme.
    SourceError
        The source cannot be reached, or has no such table.
    """
    dialect = open_dialect(uri)
    try:
        columns = dialect.columns(table, key=None, times=())
        tables = dialect.tables()
        if not columns:
            raise SourceSchemaError(
                f"there is no table {table!r} in the source", hint=nearest(table, tables, what="tables")
            )
        others = [name for name in sorted(tables, key=lambda name: _rank(name, _LABEL_TABLES)) if name != table]
        known = {name: dialect.columns(name, key=None, times=()) for name in others[:_MOST_TABLES]}
    finally:
        dialect.close()
    candidates = _label_tables(known, key=_key(columns, near=table), table=table)
    return _Draft(uri, table, columns, candidates, known).text()


def _label_tables(known: Mapping[str, Sequence[Column]], *, key: str | None, table: str) -> list[str]:
    """Return the tables that may hold the labels, the likeliest first: those with the key, or else with such a name."""

    def named_so(name: str) -> bool:
        return _rank(name, _LABEL_TABLES) < len(_LABEL_TABLES)

    def is_likely(name: str) -> bool:
        kinds = [column.type for column in known[name]]
        return named_so(name) or (any(map(pa.types.is_boolean, kinds)) and any(map(pa.types.is_timestamp, kinds)))

    keys = _foreign_keys(table) if key is None or key.lower() == "id" else {key.lower()}
    having = [name for name, columns in known.items() if any(column.name.lower() in keys for column in columns)]
    ranked = sorted(having, key=lambda name: (not is_likely(name), _rank(name, _LABEL_TABLES)))
    return ranked or [name for name in known if named_so(name)]


class _Draft:
    """The guesses, and the file that they make."""

    def __init__(
        self,
        uri: SecretStr,
        table: str,
        columns: list[Column],
        label_tables: list[str],
        known: Mapping[str, list[Column]],
        *,
        is_files: bool = False,
    ) -> None:
        self._is_files = is_files
        self._name = re.sub(r"[^A-Za-z0-9_]+", "_", table.rpartition(".")[2]).strip("_") or "pipeline"
        if not re.match(r"[A-Za-z_]", self._name):
            self._name = f"p_{self._name}"
        self._name = self._name[:64]
        self._variable = f"{self._name.upper()}_PASSWORD"
        self._uri, self._has_secret = masked(uri, variable=self._variable)
        self._table = table
        self._columns = columns
        self._label_table = label_tables[0] if label_tables else None
        self._other_label_tables = label_tables[1:]
        label_columns = known[label_tables[0]] if label_tables else columns if is_files else []
        times = [column.name for column in columns if pa.types.is_timestamp(column.type)]
        self._key = _key(columns, near=table)
        self._cursor = _best(times, _CURSOR_WORDS)
        self._event_time = _best([name for name in times if name != self._cursor] or times, _EVENT_WORDS)
        self._label_key = next((c.name for c in label_columns if c.name == self._key), _key(label_columns, near=table))
        flags = [c.name for c in label_columns if pa.types.is_boolean(c.type)]
        whole = [c.name for c in label_columns if pa.types.is_integer(c.type) and c.name != self._label_key]
        self._label_value = _best(flags or whole, _LABEL_VALUES)
        label_times = [c.name for c in label_columns if pa.types.is_timestamp(c.type)]
        self._labelled_at = _best(label_times, _LABEL_TIMES)

    def text(self) -> str:
        # Of files a key or a cursor is only proposed, so it may as well be a feature; the label of course may not.
        taken = {self._label_value, self._event_time} if self._is_files else {self._key, self._cursor, self._event_time}
        free = [column for column in self._columns if column.name not in taken and "\0" not in column.name]
        numeric = [c.name for c in free if _is_number(c.type) or pa.types.is_boolean(c.type)]
        categorical = [c.name for c in free if pa.types.is_string(c.type)]
        left = [c.name for c in self._columns if c.name not in {*taken, *numeric, *categorical}]
        after = [c.name for c in free if _LATE.search(c.name)] or ["name_of_column"]
        texts = [name for name in categorical if _MANY_VALUES.search(name)]
        other = f"; or {_names(self._other_label_tables)}" if self._other_label_tables else ""
        secret = f"  # set {self._variable} in the environment" if self._has_secret else ""
        lines = [
            f"# A first draft from the schema of {_scalar(self._table)}: it guesses.",
            "# Read each DECIDE, then run headrace check.",
            f"pipeline: {self._name}",
            f"workspace: ${{HEADRACE_HOME:-.headrace}}/{self._name}",
            "",
            "source:",
            f"  uri: {_scalar(self._uri, keep_dollar=True)}{secret}",
            *self._place(),
            "",
            _line("event_time", self._event_time, "DECIDE: when the thing that is predicted happens; never changes"),
            "",
            "labels:",
            *self._label_place(other),
            _line("  value", self._label_value, "DECIDE: boolean, or 0 and 1"),
            "  delay: 0h            # DECIDE: a label counts from event time + delay at the earliest",
            "  absent: unknown      # DECIDE: negative, if only positives are ever written",
            "",
            "# DECIDE: what is written with the outcome, or after it, is not known when the prediction is due.",
            "# List it here:",
            "# columns:",
            *(f"#   {_scalar(name)}: {{known: after}}" for name in after),
            "",
            "features:",
            "  gap: 0h              # DECIDE: how long before the event the prediction is due; windows end there",
            _list("  numeric", numeric),
            _list("  categorical", categorical),
        ]
        if texts:
            lines.append(f"  # DECIDE: nearly every row may have a value of its own; then leave out: {_names(texts)}")
        if left:
            lines.append(f"  # neither number nor text: {_names(left)}")
        keys = _scalar(categorical[0]) if categorical else "COLUMN"
        lines += [
            "  # Rates and counts of earlier labels with the same key are often the best features:",
            "  # windows:",
            f"  #   - {{over: labels, keys: [{keys}], lengths: [1d, 7d], statistics: [rate, count]}}",
            "",
            "learner: {kind: lightgbm}",
            "split: {validation: 30d, calibration: 14d}",
            "operating_point: {alert_rate: 0.02}   # DECIDE: the share of rows that people can look at",
            "resources: {memory: auto, disk: 20GiB, threads: 2}",
            "triggers: {every: 30d}",
            "",
        ]
        return "\n".join(lines)

    def _place(self) -> list[str]:
        """Return the lines that say which rows there are."""
        if not self._is_files:
            return [
                f"  table: {_scalar(self._table)}",
                _line("  key", self._key, "DECIDE: what identifies a row; unique"),
                _line("  cursor", self._cursor, "DECIDE: a time that grows with every insert and update of a row"),
            ]
        key = f"  # key: {_scalar(self._key or 'COLUMN')}"
        cursor = f"  # cursor: {_scalar(self._cursor or 'COLUMN')}"
        return [
            f"{key}   # DECIDE: what identifies a row, unique; without it file and row number do",
            f"{cursor}   # DECIDE: a time that grows with every update of a row; without it the newest file counts",
        ]

    def _label_place(self, other: str) -> list[str]:
        """Return the lines that say where the labels are."""
        if not self._is_files:
            return [
                _line("  table", self._label_table, f"DECIDE: where the outcomes are written{other}"),
                _line("  key", self._label_key, "DECIDE: the key of the row that a label is of"),
                _line("  labelled_at", self._labelled_at, "DECIDE: when the record was written"),
            ]
        return [
            "  # uri: ...   # DECIDE: where the outcomes are written; without it in the same files",
            "  key: _key   # DECIDE: the key of the row that a label is of; _key: file and row number",
            "  labelled_at: _read_at   # DECIDE: when the record was written; _read_at: with its file",
        ]


def _line(key: str, value: str | None, comment: str) -> str:
    return f"{key}: {'FILL_IN' if value is None else _scalar(value)}   # {comment}"


def _list(key: str, names: Sequence[str]) -> str:
    return f"{key}: [{_names(names)}]"


def _names(names: Sequence[str]) -> str:
    return ", ".join(_scalar(name) for name in names)


def _scalar(text: str, *, keep_dollar: bool = False) -> str:
    """Return a value that YAML, and then the file's ``${VAR}``, reads back as ``text``."""
    if not keep_dollar:
        text = text.replace("$", "$$")
    plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*|[a-z]+:/{2,}[A-Za-z0-9_@./${}:\-]*[A-Za-z0-9_/}]", text)
    reserved = text.lower() in ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    return text if plain and not reserved else json.dumps(text, ensure_ascii=False)


def _rank(name: str, words: Sequence[str]) -> int:
    """Return the place of the first of ``words`` that is in a name; their number when there is none."""
    return next((at for at, word in enumerate(words) if word in name.lower()), len(words))


def _best(names: Sequence[str], words: Sequence[str]) -> str | None:
    return min(names, key=lambda name: _rank(name, words), default=None)


def _key(columns: Sequence[Column], *, near: str) -> str | None:
    primary = [column.name for column in columns if column.primary]
    if len(primary) == 1:
        return primary[0]
    names = [column.name for column in columns]
    wanted = {"id", "key", *_foreign_keys(near)}
    return next((name for name in names if name.lower() in wanted), next((n for n in names if n.endswith("_id")), None))


def _foreign_keys(table: str) -> set[str]:
    """Return what other tables may call the key of this one."""
    name = table.rpartition(".")[2].lower()
    return {f"{name}_id", f"{name.removesuffix('s')}_id"}


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
