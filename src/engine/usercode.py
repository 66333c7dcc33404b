"""Where the module of a pipeline's own transform lies, and a hash of what it does. Nothing of it is imported here."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from engine.refs import content_hash

TRANSFORM = "features.transform"
"""What its code is called among the types of columns that rows were made of."""


def own_file(name: str, *, directory: Path) -> Path:
    """Return the file that a module has where it lies under the pipeline file's directory."""
    return directory.joinpath(*name.split(".")).with_suffix(".py")


def module_file(name: str, *, directory: Path) -> Path | None:
    """Return a module's file: under ``directory``, else where it is installed; None where there is none."""
    own = own_file(name, directory=directory)
    for file in (own, own.with_suffix("") / "__init__.py"):
        if file.is_file():
            return file
    first, *rest = name.split(".")
    found = importlib.util.find_spec(first)  # looking for a module in a package imports the package
    if found is None:
        return None
    if not rest:
        return Path(found.origin) if found.has_location and found.origin else None
    paths = [Path(place, *rest) for place in found.submodule_search_locations or ()]
    files = [file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


def transform_code(reference: str | None, *, directory: Path) -> str:
    """Return a hash of the module of ``module:function``, the same whatever its comments and layout.

    What that module imports is not looked at. Empty where the code is not known: without a reference, where this
    process finds no module, and where Python cannot read it (who loads it says what is wrong).
    """
    file = None if reference is None else module_file(reference.partition(":")[0], directory=directory)
    if file is None:
        return ""
    try:
        return content_hash(ast.unparse(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError, OSError):
        return ""
