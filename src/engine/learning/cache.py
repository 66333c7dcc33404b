"""The training cache: row-major float32 features, labels and weights as raw files that learners map.

One pass writes it, any number of learners read it. Which rows go in is in ``sampling.py``; encoding in ``features/``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from engine.batching.atomic import read_json, write_json
from engine.errors import LearningError, TableError

_HEADER = "cache.json"
_FEATURES = "features.f32"
_LABELS = "labels.u8"
_WEIGHTS = "weights.f32"
_FORMAT = 1


def cache_bytes(rows: int, *, features: int) -> int:
    """Return the bytes on disk of a cache: 4 a feature, 1 for the label, 4 for the weight."""
    return rows * (4 * features + 5)


class CacheWriter:
    """Writes a cache batch by batch; until ``close`` returns, the directory holds none.

    What an error or a kill leaves behind has no header, so it is not taken for a cache, and the next writer
    overwrites it. As a context manager, an error removes the files.

    Parameters
    ----------
    directory
        Where the files go; made when missing. An earlier cache there ends with this call.
    features
        Columns of every matrix.
    """

    def __init__(self, directory: Path, *, features: int) -> None:
        if features < 1:
            raise ValueError(f"a cache has at least one feature, got {features}")
        self._directory = Path(directory)
        self._features = features
        self._rows = 0
        self._positives = 0
        self._weighted = False
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / _HEADER).unlink(missing_ok=True)
        self._files: dict[str, BinaryIO] = {
            name: open(self._directory / name, "wb")  # noqa: SIM115 - open as long as the writer
            for name in (_FEATURES, _LABELS, _WEIGHTS)
        }

    def append(
        self,
        matrix: npt.NDArray[np.floating[Any]],
        labels: npt.NDArray[Any],
        weights: npt.NDArray[Any] | None = None,
    ) -> None:
        """Write one batch.

        Parameters
        ----------
        matrix
            (rows, features); kept as float32, NaN for missing.
        labels
            (rows,); 0 and 1, or boolean.
        weights
            (rows,); kept as float32, positive and finite. Default: 1 for each row.

        Raises
        ------
        ValueError
            When the shapes do not fit or a weight is not positive; nothing of the batch was written.
        LearningError
            When a label is neither 0 nor 1; nothing of the batch was written.
        """
        rows = len(labels)
        if matrix.shape != (rows, self._features):
            raise ValueError(f"the matrix is {matrix.shape}; with {rows} labels it must be {(rows, self._features)}")
        truth = as_labels(labels)
        if weights is None:
            heft = np.ones(rows, dtype="<f4")
        else:
            heft = np.ascontiguousarray(weights, dtype="<f4")
            if heft.shape != (rows,) or not np.all(np.isfinite(heft) & (heft > 0)):
                raise ValueError(f"weights must be {rows} positive finite numbers")
            self._weighted = True
        self._files[_FEATURES].write(np.ascontiguousarray(matrix, dtype="<f4").data)
        self._files[_LABELS].write(truth.data)
        self._files[_WEIGHTS].write(heft.data)
        self._rows += rows
        self._positives += int(truth.sum())

    def close(self) -> TrainingCache:
        """Sync the files, write the header last, and return the cache."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        header = {
            "format": _FORMAT,
            "rows": self._rows,
            "positives": self._positives,
            "features": self._features,
            "weighted": self._weighted,
        }
        write_json(self._directory / _HEADER, header)
        return TrainingCache(self._directory)

    def abandon(self) -> None:
        """Remove what was written."""
        for name, file in self._files.items():
            with contextlib.suppress(OSError):  # on a full disk: what could not be flushed is being given up
                file.close()
            (self._directory / name).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abandon()


class TrainingCache:
    """A finished cache, mapped read-only: its pages are the kernel's to take back, so they cost no budget.

    Attributes
    ----------
    rows, positives, features : int
        Counts.
    weighted : bool
        Whether any weight was given; else all are 1.
    matrix : float32 (rows, features)
    labels : uint8 (rows,)
    weights : float32 (rows,)

    Raises
    ------
    TableError
        When the directory has no header, or a file is not as long as the header says.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        header = read_json(self.directory / _HEADER)
        if header is None or header.get("format") != _FORMAT:
            raise TableError(
                f"{self.directory} is not a finished training cache",
                hint="Run the training stage again; it is rebuilt.",
            )
        self.rows = int(header["rows"])
        self.positives = int(header["positives"])
        self.features = int(header["features"])
        self.weighted = bool(header["weighted"])
        self.matrix: npt.NDArray[np.float32] = self._map(_FEATURES, "<f4", (self.rows, self.features))
        self.labels: npt.NDArray[np.uint8] = self._map(_LABELS, "u1", (self.rows,))
        self.weights: npt.NDArray[np.float32] = self._map(_WEIGHTS, "<f4", (self.rows,))

    @property
    def negatives(self) -> int:
        """Rows whose label is 0."""
        return self.rows - self.positives

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of the three files."""
        return cache_bytes(self.rows, features=self.features)

    def slices(
        self, rows: int
    ) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], npt.NDArray[np.float32]]]:
        """Yield (matrix, labels, weights) of at most ``rows`` rows each, as views in the order written."""
        if rows < 1:
            raise ValueError(f"a slice has at least one row, got {rows}")
        for start in range(0, self.rows, rows):
            part = slice(start, start + rows)
            yield self.matrix[part], self.labels[part], self.weights[part]

    def require_both_classes(self) -> None:
        """Raise ``LearningError`` unless there are positives and negatives."""
        if self.positives and self.negatives:
            return
        missing = "rows" if not self.rows else "positives" if not self.positives else "negatives"
        raise LearningError(
            f"there is nothing to learn from: {self.rows:,} training rows, {self.positives:,} of them positive",
            hint=f"Training needs both classes; there are no {missing}. Check labels, labels.absent and split.history.",
            details={"rows": self.rows, "positives": self.positives},
        )

    def _map(self, name: str, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        path = self.directory / name
        expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
        actual = path.stat().st_size if path.exists() else 0
        if actual != expected:
            raise TableError(
                f"{path} has {actual:,} bytes, its header says {expected:,}",
                hint="The training cache is damaged; run the training stage again.",
            )
        if not expected:
            return np.empty(shape, dtype=dtype)
        # A plain array over the map: indexing a np.memmap costs a subclass instance each time.
        return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=shape))


def as_labels(labels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return labels as uint8, 0 and 1.

    Raises
    ------
    LearningError
        When one is something else, such as 2, -1 or NaN.
    """
    given = np.asarray(labels)
    wrong = ~((given == 0) | (given == 1))
    if wrong.any():
        raise LearningError(
            f"a label is {given[wrong][0]!r}; labels are 0 and 1, or false and true",
            hint="Rows without a label are left out, or made negative by labels.absent, before learning.",
        )
    return np.ascontiguousarray(given, dtype=np.uint8)
