"""Keeps pyarrow from importing pandas for nothing, and tells it when somebody else does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import pyarrow as pa


def import_pandas_late() -> None:
    """Leave pandas out of this process until somebody imports it.

    Where pandas is installed, pyarrow imports it at the first value of any kind, to know one of its own when it meets
    it: 0.1 to 0.3 s and 24 MiB of every process. It looks once, and here finds nothing. Whoever imports pandas later
    gets it, and from then on pyarrow knows it, as if it had looked then.
    """
    if "pandas" in sys.modules or any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        pa.scalar(0)  # it looks now
    finally:
        finder.absent = False


class _Finder(MetaPathFinder):
    """Finds pandas absent at first, then where it is, with a loader that tells pyarrow."""

    absent = True

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "pandas":
            return None
        if self.absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Telling(spec.loader, self)
        return spec


class _Telling(Loader):
    """Loads as another loader does, and has pyarrow look again when that is done."""

    def __init__(self, loader: Loader, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        sys.meta_path.remove(self._finder)
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader  # as everybody else expects it
        self._loader.exec_module(module)
        pa.array([0]).to_pandas()  # what cannot do without pandas looks for it whether it was there before or not
