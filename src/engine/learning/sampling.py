"""Which negatives training keeps, and what that does to the probability.

All positives stay; a negative stays by a hash of its row key, so the same row is always in or out. Pure functions.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import PlanRefused
from engine.units import format_bytes

_WORDS = 32
"""Keys of more than 32 words of 8 bytes are hashed one by one, or one long key would cost every row a turn."""
_NULL = np.uint64(0x9E6C63D0876A9A47)


def row_uniform(keys: pa.Array | pa.ChunkedArray | npt.NDArray[Any], *, seed: int) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for each key, the same on every platform, run and batch size.

    Integers of any width, dates, times and booleans hash by their integer value, text and binary by their bytes, floats
    by their bits as float64, anything else by its text. A null is a key of its own.

    Parameters
    ----------
    keys
        (rows,); the row keys.
    seed
        Any integer; another seed is another, independent hash.

    Returns
    -------
    float64 (rows,)
        53 random-looking bits each: SplitMix64's finaliser (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195)
        over the words of the key.
    """
    start = _mix(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))[0]
    array = keys if isinstance(keys, pa.Array | pa.ChunkedArray) else pa.array(keys)
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    hashed = [_hash(chunk, start=start) for chunk in chunks]
    whole = np.concatenate(hashed) if hashed else np.empty(0, dtype=np.uint64)
    return (whole >> np.uint64(11)).astype(np.float64) * 2.0**-53


def keep(
    keys: pa.Array | pa.ChunkedArray | npt.NDArray[Any], labels: npt.NDArray[Any], *, rate: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Return which rows training keeps: every positive, and about ``rate`` of the negatives.

    A larger rate keeps all that a smaller one keeps.

    Parameters
    ----------
    keys, labels
        (rows,); row keys, and labels 0 and 1.
    rate
        The sampling rate, in (0, 1].
    """
    _check_rate(rate)
    positive = np.asarray(labels).astype(bool)
    if rate == 1.0:
        return np.ones(len(positive), dtype=bool)
    return positive | (row_uniform(keys, seed=seed) < rate)


def sampling_rate_for(*, rows: int, positives: int, available_bytes: int, bytes_per_row: float) -> float:
    """Return the largest sampling rate whose training fits.

    Four standard deviations are left for the luck of the draw, and the rate is cut to six digits so that it
    can be read and repeated.

    Parameters
    ----------
    rows, positives
        Of the training span.
    available_bytes
        What the budget leaves for rows, after all that does not grow with them.
    bytes_per_row
        The learner's, from its projection; 0 where rows cost none (``sgd``).

    Raises
    ------
    PlanRefused
        When the positives and as many negatives do not fit: a smaller sample would teach mostly the sampling.
    """
    if rows * bytes_per_row <= available_bytes:
        return 1.0
    negatives = rows - positives
    left = max(0, available_bytes) / bytes_per_row - positives
    # With n*b expected and sqrt(n*b) its deviation at most, n*b + 4*sqrt(n*b) = left.
    expected = ((-4.0 + math.sqrt(16.0 + 4.0 * left)) / 2.0) ** 2 if left > 0 else 0.0
    needed = min(positives, negatives)
    if expected < max(1, needed):
        smallest = math.ceil((positives + needed + 4.0 * math.sqrt(max(1, needed)) + 1) * bytes_per_row)
        raise PlanRefused(
            f"training: the {positives:,} positives and as many negatives need {format_bytes(smallest)} "
            f"at {bytes_per_row:.0f} bytes a row; the budget leaves {format_bytes(available_bytes)}",
            hint="Raise resources.memory, shorten split.history, or use learner.kind sgd: constant memory.",
            details={
                "stage": "train",
                "worst_term": "training rows",
                "projected_bytes": smallest,
                "available_bytes": available_bytes,
            },
        )
    rate = expected / negatives
    digits = 5 - math.floor(math.log10(rate))
    return min(1.0, math.floor(rate * 10.0**digits) / 10.0**digits)


def correct_prior(raw: npt.NDArray[np.float64], *, rate: float) -> npt.NDArray[np.float64]:
    """Return probabilities with the sampling of negatives undone: ``b*q / (b*q + 1 - q)``.

    A model trained where negatives are ``b`` of their true share sees odds 1/b times the true ones. Only for models
    trained without class weights.

    Parameters
    ----------
    raw
        Scores q in [0, 1], as the learner gives them.
    rate
        The sampling rate b, in (0, 1].

    References
    ----------
    Dal Pozzolo et al. 2015, "Calibrating Probability with Undersampling for Unbalanced Classification".
    """
    _check_rate(rate)
    kept = rate * raw
    return np.asarray(kept / (kept + (1.0 - raw)), dtype=np.float64)


def _check_rate(rate: float) -> None:
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"a sampling rate lies above 0 and at most at 1, got {rate}")


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _hash(array: pa.Array, *, start: np.uint64) -> npt.NDArray[np.uint64]:
    kind = array.type
    if pa.types.is_dictionary(kind):
        array, kind = array.dictionary_decode(), kind.value_type
    missing = np.asarray(array.is_null())
    if len(array) and missing.all():
        hashed = np.zeros(len(array), dtype=np.uint64)
    elif pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
        hashed = _mix(_as_words(array) ^ start)
    elif pa.types.is_floating(kind):
        numbers = array.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False) + 0.0  # -0.0 is 0.0
        hashed = _mix(numbers.view(np.uint64) ^ start)
    elif pa.types.is_fixed_size_binary(kind) or _is_text(kind):
        hashed = _hash_bytes(array.cast(pa.large_binary()), start=start)
    else:
        hashed = _hash_bytes(array.cast(pa.large_string()).cast(pa.large_binary()), start=start)
    hashed[missing] = _mix(np.array([_NULL ^ start]))[0]
    return hashed


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    views = (pa.types.is_string_view, pa.types.is_binary_view)
    return any(test(kind) for test in (*tests, *views))


def _as_words(array: pa.Array) -> npt.NDArray[np.uint64]:
    """Return integers, whatever their width, as 64 bits in two's complement."""
    if pa.types.is_temporal(array.type):
        array = array.cast(pa.int32()) if array.type.bit_width == 32 else array.cast(pa.int64())
    if pa.types.is_uint64(array.type):
        return np.asarray(pc.fill_null(array, 0).to_numpy(zero_copy_only=False), dtype=np.uint64)
    return np.ascontiguousarray(array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)).view(np.uint64)


def _hash_bytes(array: pa.Array, *, start: np.uint64) -> npt.NDArray[np.uint64]:
    """Return the hash of each value's length and bytes, eight at a time over all rows at once."""
    rows = len(array)
    offsets = np.frombuffer(array.buffers()[1], dtype="<i8", count=array.offset + rows + 1)[array.offset :]
    begins, lengths = offsets[:-1], np.diff(offsets)
    last = int(offsets[-1]) if rows else 0
    first = int(offsets[0]) if rows else 0
    data = np.zeros(last - first + 8, dtype=np.uint8)
    if last > first:
        data[:-8] = np.frombuffer(array.buffers()[2], dtype=np.uint8, count=last)[first:]
    # One unaligned 8-byte word at every byte of the data: a view, no copy.
    words: npt.NDArray[np.uint64] = np.ndarray(shape=(len(data) - 7,), dtype="<u8", buffer=data, strides=(1,))
    hashed = _mix(lengths.astype(np.uint64) ^ start)
    active = np.flatnonzero((lengths > 0) & (lengths <= 8 * _WORDS))
    position = 0
    while len(active):
        left = lengths[active] - position
        word = words[begins[active] - first + position]
        unused = (8 - np.minimum(left, 8)).astype(np.uint64) * np.uint64(8)
        word = (word << unused) >> unused  # little-endian: the bytes beyond the value are the high ones
        hashed[active] = _mix(hashed[active] ^ word) + np.uint64(0x9E3779B97F4A7C15)
        position += 8
        active = active[left > 8]
    for row in np.flatnonzero(lengths > 8 * _WORDS):
        begin = int(begins[row]) - first
        digest = hashlib.blake2b(data[begin : begin + int(lengths[row])].data, digest_size=8, key=start.tobytes())
        hashed[row] = int.from_bytes(digest.digest(), "little")
    return _mix(hashed)
