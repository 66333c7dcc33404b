"""Checks a learner's parameters before any work: name, type and range, with the nearest name for a misspelt one."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import SpecError


@dataclass(frozen=True)
class Parameter:
    """One parameter that the pipeline file may give."""

    default: Any  # its type is the parameter's: int, float or bool
    low: float = -math.inf  # inclusive
    high: float = math.inf  # inclusive


def checked(
    given: Mapping[str, Any],
    *,
    kind: str,
    allowed: Mapping[str, Parameter],
    other_names: Mapping[str, str] | None = None,
    refused: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return every allowed parameter: the given value, or its default.

    Parameters
    ----------
    given
        As in the pipeline file.
    kind
        The learner's, for messages.
    allowed
        By name.
    other_names
        Names that libraries also use, and ours for each.
    refused
        Names that are known and not allowed, and why.

    Raises
    ------
    SpecError
        Naming the parameter, what is allowed, and the nearest valid name.
    """
    values = {name: parameter.default for name, parameter in allowed.items()}
    for name, value in given.items():
        where = f"learner.parameters.{name}"
        if name in (refused or {}):
            raise SpecError(f"{where} is not allowed for {kind}", hint=(refused or {})[name])
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
            meant = (other_names or {}).get(name) or (near[0] if near else None)
            raise SpecError(
                f"{where}: {kind} has no such parameter",
                hint=(f"Did you mean {meant}? " if meant else "") + f"Allowed: {', '.join(sorted(allowed))}.",
                details={"parameter": name, "nearest": meant},
            )
        values[name] = _value(where, value, parameter=allowed[name])
    return values


def _value(where: str, value: Any, *, parameter: Parameter) -> Any:
    wanted = type(parameter.default)
    if wanted is bool:
        if not isinstance(value, bool):
            raise SpecError(f"{where} is {value!r}", hint="It is true or false.")
        return value
    number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if not number or (wanted is int and value != int(value)):
        raise SpecError(f"{where} is {value!r}", hint=f"It is a {'whole ' if wanted is int else ''}number.")
    if not parameter.low <= value <= parameter.high:
        low = f"at least {parameter.low:g}" if parameter.low > -math.inf else ""
        high = f"at most {parameter.high:g}" if parameter.high < math.inf else ""
        raise SpecError(f"{where} is {value!r}", hint=f"It is {' and '.join(filter(None, (low, high)))}.")
    return wanted(value)
