"""The one tree of errors. A message says the limit, the actual value, what it was about, and what to do next.

HeadraceError                      exit code 1
 |-- SpecError                     2   the pipeline file: file, line, key path, what is allowed
 |-- RowError                      2   a row that features are asked of lacks a column, has another type, or is none
 |-- PlanRefused                   2   the plan does not fit the budget: worst term, smallest budget that would do
 |-- SourceError                   3   the source cannot be reached or read
 |    |-- SourceSchemaError        3   it was reached and does not have what the pipeline file names
 |    |-- SchemaChanged            3   its columns are not what they were: the difference, column by column
 |    |-- QuarantineExceeded       3   more rows do not fit than max_quarantine_share allows
 |    `-- KeyConflict              3   a key came again, and the pipeline file says on_conflict: fail
 |-- WorkspaceError                4   read-only, full disk, memory-backed scratch
 |    |-- WorkspaceLocked          4   another run of this pipeline is writing
 |    `-- TableError               4   a table or one of its chunks cannot be read
 |         `-- SchemaMismatch      4   a chunk's schema is not that of its table
 |-- LearningError                 5   nothing to learn from: no rows, no positives, one class
 |-- RegistryError                 6   the model registry refused or lacks a version
 `-- TaskError                     7   a caged child failed
      |-- MemoryBudgetExceeded     8   stopped at its budget: stage, task, allowed, measured, timeline
      `-- TaskCrashed              7   ended by a signal, or by an error that is not in this tree

Errors cross process borders as JSON (``to_json`` / ``from_json``) and pickle.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, ClassVar


class HeadraceError(Exception):
    """Base of all errors that a user is expected to see as one message.

    Parameters
    ----------
    message
        What happened, to what, with limit and actual value.
    hint
        What to do next; shown on its own line.
    details
        JSON-able facts for ``--json`` output and reports.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: dict[str, Any] = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self).__name__, self.message, self.hint, self.details))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able form that ``from_json`` turns back into the same error."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "hint": self.hint,
            "details": self.details,
        }


class SpecError(HeadraceError):
    """The pipeline file is wrong; nothing was run."""

    exit_code = 2


class RowError(HeadraceError):
    """A row that features are asked of lacks a column, has a value of another type, or is not there."""

    exit_code = 2


class PlanRefused(HeadraceError):
    """The plan passes the budget, so nothing was read.

    ``details`` holds stage, allowed_bytes, projected_bytes, worst_term and smallest_budget_bytes.
    """

    exit_code = 2


class SourceError(HeadraceError):
    """The source cannot be reached or read."""

    exit_code = 3


class SourceSchemaError(SourceError):
    """The source lacks a table or column that the pipeline file names, or has it with another type."""


class SchemaChanged(SourceError):
    """The source breaks its contract; ``details`` has ``differences`` (column, kind, was, found, where)."""


class QuarantineExceeded(SourceError):
    """Too many rows of a slice do not fit; nothing of it was committed. ``details`` has counts by reason."""


class KeyConflict(SourceError):
    """A key arrived again, which ``on_conflict: fail`` forbids; ``details`` has examples."""


class WorkspaceError(HeadraceError):
    """The workspace cannot be used as it is: read-only, full, or in memory."""

    exit_code = 4


class WorkspaceLocked(WorkspaceError):
    """Another run of the same pipeline holds the lock."""


class TableError(WorkspaceError):
    """A table or one of its chunks is missing or damaged; other committed data is intact."""


class SchemaMismatch(TableError):
    """A chunk's schema is not that of its table; the commit was not made."""


class LearningError(HeadraceError):
    """There is nothing to learn from or to compare with."""

    exit_code = 5


class RegistryError(HeadraceError):
    """The model registry refused a call or lacks a version."""

    exit_code = 6


class TaskError(HeadraceError):
    """A caged child did not return a result."""

    exit_code = 7


class MemoryBudgetExceeded(TaskError):
    """The child was stopped at its memory budget.

    ``details`` holds stage, task, allowed_bytes, measured_bytes, enforced_by and the last of the timeline
    (pairs of seconds and bytes).
    """

    exit_code = 8


class TaskCrashed(TaskError):
    """The child ended by a signal or by an error outside this tree."""


def disk_error(error: OSError, where: str) -> WorkspaceError:
    """Return the error of our tree that says what to do about an OSError met while writing to ``where``."""
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        hint = "make it writable, or set HEADRACE_HOME or the pipeline's 'workspace' to another directory"
        return WorkspaceError(f"workspace {where} cannot be written: {error.strerror}", hint=hint)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space and run again: what was committed is intact and the run goes on from there"
        return WorkspaceError(f"the disk of workspace {where} is full: {error.strerror}", hint=hint)
    return WorkspaceError(f"workspace {where}: {error}", hint="see the pipeline's 'workspace' key")


def _tree(root: type[HeadraceError]) -> dict[str, type[HeadraceError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


def _rebuild(name: str, message: str, hint: str, details: Mapping[str, Any]) -> HeadraceError:
    return _tree(HeadraceError).get(name, HeadraceError)(message, hint=hint, details=details)


def from_json(value: Mapping[str, Any]) -> HeadraceError:
    """Return the error that ``HeadraceError.to_json`` described."""
    return _rebuild(str(value["error"]), str(value["message"]), str(value.get("hint", "")), value.get("details") or {})
