"""Where the tables that several stages share lie, and what their common columns are called."""

from __future__ import annotations

from engine.batching import Table, Workspace

KEY, EVENT_TIME, BASELINE = "key", "event_time", "baseline"
"""Columns of ``prepared`` beside the features."""


def prepared_table(workspace: Workspace, feature_set: str) -> Table:
    """Return the prepared table of one feature set; an edited pipeline file has another, and this one stays."""
    return workspace.table(f"prepared/{feature_set}")


def label_events_table(workspace: Workspace, feature_set: str) -> Table:
    """Return the label events of one feature set: a side table of its prepared table."""
    return workspace.table(f"label_events/{feature_set}")


def predictions_table(workspace: Workspace) -> Table:
    """Return the champions' predictions."""
    return workspace.table("predictions")


def prepared_app(feature_set: str) -> str:
    """Return the application id of the prepared table's commits."""
    return f"prepare:{feature_set}"
