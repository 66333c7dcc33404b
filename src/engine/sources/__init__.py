"""Where rows and labels come from: one protocol, read incrementally."""

from engine.sources.opening import open_source
from engine.sources.protocol import Batch, Ending, Position, Rejected, Seen, SeenFile, Source, Window

__all__ = ["Batch", "Ending", "Position", "Rejected", "Seen", "SeenFile", "Source", "Window", "open_source"]
