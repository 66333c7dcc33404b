"""Finds a learner by its name in the pipeline file."""

from __future__ import annotations

import difflib

from engine.errors import SpecError
from engine.learning.learners.lightgbm import LightGBM
from engine.learning.learners.protocol import Learner
from engine.learning.learners.sgd import SGD

LEARNERS: dict[str, Learner] = {"lightgbm": LightGBM(), "sgd": SGD()}


LIBRARIES: dict[str, tuple[str, ...]] = {"lightgbm": ("lightgbm",), "sgd": ("sklearn.linear_model", "skops.io")}
"""What a process imports to fit or load each kind: part of what it takes before any data."""


def learner(kind: str) -> Learner:
    """Return the learner of that kind.

    Raises
    ------
    SpecError
        When there is none.
    """
    if kind not in LEARNERS:
        near = difflib.get_close_matches(kind, LEARNERS, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise SpecError(f"learner.kind: there is no {kind!r}", hint=f"{meant}Allowed: {', '.join(LEARNERS)}.")
    return LEARNERS[kind]
