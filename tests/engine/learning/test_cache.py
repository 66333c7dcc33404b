import json

import numpy as np
import pytest

from engine.errors import LearningError, TableError
from engine.learning import CacheWriter, TrainingCache


def _rows(count, *, features=3, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, features)).astype(np.float32), random.integers(0, 2, size=count)


def test_holds_what_was_appended_in_order(tmp_path):
    matrix, labels = _rows(100)
    writer = CacheWriter(tmp_path, features=3)
    for start in range(0, 100, 7):
        writer.append(matrix[start : start + 7], labels[start : start + 7])
    cache = writer.close()
    np.testing.assert_array_equal(cache.matrix, matrix)
    np.testing.assert_array_equal(cache.labels, labels)
    assert (cache.rows, cache.positives, cache.negatives) == (100, labels.sum(), 100 - labels.sum())
    assert not cache.weighted
    assert np.all(cache.weights == 1)
    assert cache.bytes_on_disk == sum(path.stat().st_size for path in tmp_path.iterdir() if path.suffix != ".json")


@pytest.mark.parametrize("size", [1, 13, 100, 1000])
def test_slices_cover_all_rows_once(tmp_path, size):
    matrix, labels = _rows(100)
    with CacheWriter(tmp_path, features=3) as writer:
        writer.append(matrix, labels, np.arange(1, 101))
        cache = writer.close()
    parts = list(cache.slices(size))
    assert max(len(part[1]) for part in parts) <= size
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), matrix)
    np.testing.assert_array_equal(np.concatenate([part[2] for part in parts]), np.arange(1, 101))
    assert cache.weighted


def test_is_mapped_read_only(tmp_path):
    writer = CacheWriter(tmp_path, features=3)
    writer.append(*_rows(5))
    with pytest.raises(ValueError, match="read-only"):
        writer.close().matrix[0, 0] = 1


def test_directory_without_a_header_is_no_cache(tmp_path, request):
    writer = CacheWriter(tmp_path, features=3)
    writer.append(*_rows(5))
    request.addfinalizer(writer.abandon)
    with pytest.raises(TableError, match="not a finished training cache"):
        TrainingCache(tmp_path)


def test_writing_again_ends_the_earlier_cache_before_its_first_byte_changes(tmp_path, request):
    writer = CacheWriter(tmp_path, features=3)
    writer.append(*_rows(5))
    writer.close()
    request.addfinalizer(CacheWriter(tmp_path, features=3).abandon)
    with pytest.raises(TableError):
        TrainingCache(tmp_path)


def test_truncated_file_is_refused(tmp_path):
    writer = CacheWriter(tmp_path, features=3)
    writer.append(*_rows(5))
    writer.close()
    path = tmp_path / "features.f32"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TableError, match="59 bytes, its header says 60"):
        TrainingCache(tmp_path)


def test_header_of_another_format_is_refused(tmp_path):
    writer = CacheWriter(tmp_path, features=3)
    writer.close()
    header = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps({**header, "format": 999}))
    with pytest.raises(TableError):
        TrainingCache(tmp_path)


def test_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(LearningError), CacheWriter(tmp_path, features=3) as writer:
        writer.append(_rows(5)[0], np.full(5, 2))
    assert list(tmp_path.iterdir()) == []


def test_refused_batch_writes_nothing(tmp_path):
    matrix, labels = _rows(5)
    writer = CacheWriter(tmp_path, features=3)
    writer.append(matrix, labels)
    with pytest.raises(LearningError, match="a label is"):
        writer.append(matrix, np.full(5, 2))
    with pytest.raises(LearningError, match="a label is"):
        writer.append(matrix, np.full(5, np.nan))
    with pytest.raises(ValueError, match="the matrix is"):
        writer.append(matrix[:, :2], labels)
    with pytest.raises(ValueError, match="weights"):
        writer.append(matrix, labels, np.array([1, 1, 0, 1, 1]))
    assert writer.close().rows == 5


def test_no_rows_and_one_class_are_nothing_to_learn_from(tmp_path):
    empty = CacheWriter(tmp_path / "empty", features=3).close()
    assert empty.matrix.shape == (0, 3)
    assert list(empty.slices(10)) == []
    with pytest.raises(LearningError, match="0 training rows"):
        empty.require_both_classes()
    writer = CacheWriter(tmp_path / "one", features=3)
    writer.append(_rows(5)[0], np.zeros(5))
    with pytest.raises(LearningError, match="no positives"):
        writer.close().require_both_classes()
