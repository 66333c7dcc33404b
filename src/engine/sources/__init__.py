"""Where rows and labels come from: one protocol, read incrementally by (cursor, key)."""

from engine.sources.opening import open_source
from engine.sources.protocol import Position, Source

__all__ = ["Position", "Source", "open_source"]
