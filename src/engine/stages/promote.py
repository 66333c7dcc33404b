"""Promote: a challenger becomes champion, or the champion is kept, with the reason; and the way back, rollback.

Touches no rows, so it runs in the parent. The verdict it follows is ``validate.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.batching import Table
from engine.errors import RegistryError
from engine.ledger import Entry, Ledger, champion_of, trained
from engine.memory.projection import Projection
from engine.refs import Task, TaskResult
from engine.registry import ModelRegistry
from engine.stage import Outcome, Plan, StageContext
from engine.units import format_time


@dataclass(frozen=True)
class PromoteStage:
    """What follows from the newest verdict, or, with ``rollback_to``, the return to an earlier champion."""

    rollback_to: int | None = None
    reason: str = ""
    name: str = "promote"

    def app(self, context: StageContext) -> str:
        """Return the application id of the ledger's moves."""
        del context
        return "promote"

    def primary(self, context: StageContext) -> Table:
        """Return the ledger."""
        return context.workspace.table("ledger")

    def next_plan(self, context: StageContext) -> Mapping[str, Any] | None:
        """Return the move to make, or None when every verdict has been followed.

        Raises
        ------
        RegistryError
            A rollback to a version that never was champion, or is now.
        """
        history = Ledger(context.workspace).history()
        champion = champion_of(history)
        previous = champion.version if champion else 0
        if self.rollback_to is not None:
            if previous == self.rollback_to and champion is not None and champion.action == "rolled back":
                return None  # done in this run
            _check_rollback(history, self.rollback_to, previous)
            reasons = [self.reason or "asked for"]
            return {"action": "rolled back", "version": self.rollback_to, "previous": previous, "reasons": reasons}
        verdicts = [entry for entry in history if entry.action in ("passed", "failed")]
        moved = {entry.version for entry in history if entry.action in ("promoted", "kept")}
        waiting = [entry for entry in verdicts if entry.version not in moved]
        if not waiting:
            return None
        verdict = max(waiting, key=lambda e: e.n)
        action = "promoted" if verdict.action == "passed" else "kept"
        return {"action": action, "version": verdict.version, "previous": previous, "reasons": list(verdict.reasons)}

    def phase(
        self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
    ) -> Sequence[tuple[Task, Projection]]:
        """Return no task: nothing here reads rows."""
        del context, plan, done
        return ()

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        """Move the aliases, then enter the move in the ledger, which is what counts."""
        del done
        move = plan.bounds

        def publish() -> None:
            if move["action"] != "kept":
                registry = ModelRegistry(context.workspace.root, name=context.spec.pipeline)
                registry.set_alias("champion", int(move["version"]))
                if registry.alias("challenger") == int(move["version"]):
                    registry.clear_alias("challenger")
            Ledger(context.workspace).enter(
                Entry(
                    app=plan.app,
                    n=plan.n,
                    as_of=format_time(plan.as_of),
                    action=move["action"],
                    version=int(move["version"]),
                    previous=int(move["previous"]),
                    reasons=tuple(move["reasons"]),
                )
            )

        return Outcome(outputs=dict(move), record={}, publish=publish)


def _check_rollback(history: Sequence[Entry], version: int, champion: int) -> None:
    once = sorted({entry.version for entry in history if entry.action == "promoted"} - {champion})
    if version == champion:
        raise RegistryError(f"version {version} is the champion already", hint="headrace history shows the versions")
    if version not in once or trained(history, version) is None:
        shown = ", ".join(str(number) for number in once) or "none"
        raise RegistryError(
            f"version {version} never was champion", hint=f"versions to roll back to: {shown}; see headrace history"
        )


def previous_champion(context: StageContext) -> int:
    """Return the version that was champion before today's.

    Raises
    ------
    RegistryError
        There is none.
    """
    champion = Ledger(context.workspace).champion()
    if champion is None or not champion.previous:
        raise RegistryError("there is no earlier champion to roll back to", hint="headrace history shows the versions")
    return champion.previous
