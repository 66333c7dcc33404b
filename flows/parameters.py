"""What a run may be asked: shown by the Prefect UI as a form."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RunParameters(BaseModel):
    """What every flow takes."""

    model_config = ConfigDict(extra="forbid")

    pipeline: str = Field(description="Path of the pipeline file, from the directory that the worker runs in.")
    as_of: datetime | None = Field(
        default=None, description="The run's clock: what is known later does not exist. Empty: now."
    )
    memory: str | None = Field(
        default=None, description="Memory budget of this run, such as 512MiB. Empty: that of the pipeline file."
    )
    profile: bool = Field(
        default=False, description="Record memory: run each stage under memray and link the report as an artifact."
    )


class ExtractParameters(RunParameters):
    """What comes in: what is new, or, with a beginning or an end, a stretch of the cursor again."""

    since: datetime | None = Field(
        default=None, description="Backfill: read again from this time of the cursor on. Empty: only what is new."
    )
    until: datetime | None = Field(default=None, description="Backfill: up to this time. Empty: the run's clock.")
    what: Literal["all", "raw", "labels"] = Field(default="all", description="The rows, their labels, or both.")


class ReplayParameters(RunParameters):
    """Another look at what is in quarantine."""

    what: Literal["all", "raw", "labels"] = Field(default="all", description="The rows, their labels, or both.")


class LoopParameters(RunParameters):
    """The whole loop."""

    retrain: Literal["auto", "always", "never"] = Field(
        default="auto", description="auto: where a trigger of the pipeline file holds."
    )


class RollbackParameters(RunParameters):
    """The way back."""

    version: int | None = Field(default=None, description="Empty: the champion before today's.")
    reason: str = Field(default="", description="Kept in the ledger.")
