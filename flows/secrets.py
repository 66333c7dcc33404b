"""``${secret:name}`` of a pipeline file: the value of a Prefect Secret block. Errors name the block, never its value.

Where such a reference may stand is ``engine/specyaml.py``.
"""

from __future__ import annotations

import httpx
from prefect.blocks.system import Secret
from prefect.exceptions import PrefectException

from engine.errors import SpecError


def secret(name: str) -> str:
    """Return the text that the Secret block of this name holds.

    Raises
    ------
    SpecError
        There is no such block, it holds no text, or no server answers.
    """
    try:
        value = Secret.load(name).get()  # type: ignore[union-attr]  # a block; awaitable only inside async code
    except ValueError:  # what Prefect makes of a block that is not found
        raise SpecError(
            f"there is no Prefect Secret block {name!r}",
            hint=f"make it on the server of PREFECT_API_URL: in the UI, or by Secret(value=...).save({name!r})",
        ) from None
    except (httpx.HTTPError, PrefectException, RuntimeError, OSError) as error:
        raise SpecError(
            f"the Prefect Secret block {name!r} cannot be read: {type(error).__name__}",
            hint="is the server of PREFECT_API_URL up, and are its credentials set?",
        ) from None
    if not isinstance(value, str) or not value:
        raise SpecError(
            f"the Prefect Secret block {name!r} holds no text",
            hint="store the connection string, or its password, as text",
        )
    return value
