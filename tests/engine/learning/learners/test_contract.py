"""What every learner must do: the suite runs against each of them."""

import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from engine.errors import LearningError, SpecError
from engine.learning import CacheWriter, learner
from engine.learning.learners import LEARNERS

ROWS = 6_000
PARAMETERS = {"lightgbm": {"num_trees": 30, "min_data_in_leaf": 5, "learning_rate": 0.1}, "sgd": {"epochs": 8}}


def _toy(rows=ROWS, *, seed=0):
    """Return rows that a number, a category and the absence of a number each tell something about."""
    random = np.random.default_rng(seed)
    number = random.normal(1_000, 50, rows)
    code = random.integers(0, 5, rows).astype(float)
    noise = random.normal(size=rows)
    labels = (number - 1_000) / 50 + 2.0 * (code == 3) + 0.3 * random.normal(size=rows) > 1.5
    gone = random.random(rows) < 0.05
    labels |= gone
    number[gone] = np.nan
    code[random.random(rows) < 0.05] = np.nan
    return np.column_stack([number, code, noise]).astype(np.float32), labels


def _cache(directory, matrix, labels, *, batch=ROWS, weights=None):
    with CacheWriter(directory, features=matrix.shape[1]) as writer:
        for start in range(0, len(labels), batch):
            part = slice(start, start + batch)
            writer.append(matrix[part], labels[part], None if weights is None else weights[part])
        return writer.close()


def _fit(kind, cache, **changes):
    arguments = {
        "categorical": [1],
        "cardinalities": [5],
        "numeric_stats": {0: (1_000.0, 50.0), 2: (0.0, 1.0)},
        "parameters": PARAMETERS[kind],
        "seed": 7,
        "threads": 1,
    }
    return learner(kind).fit(cache, **{**arguments, **changes})


def _bytes(model, directory):
    model.save(directory)
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(params=sorted(LEARNERS))
def kind(request):
    return request.param


@pytest.fixture
def cache(tmp_path):
    return _cache(tmp_path / "cache", *_toy())


def test_learns_what_can_be_told_apart(kind, cache):
    model = _fit(kind, cache)
    matrix, labels = _toy(seed=1)
    scores = model.predict(matrix)
    assert (scores.dtype, scores.shape) == (np.float64, (ROWS,))
    assert ((scores >= 0) & (scores <= 1)).all()
    assert roc_auc_score(labels, scores) > 0.97
    assert scores.mean() == pytest.approx(labels.mean(), abs=0.03)


def test_missing_values_are_learned_from(kind, cache):
    scores = _fit(kind, cache).predict(np.array([[np.nan, 1, 0], [1_000, 1, 0], [1_000, np.nan, 0]], dtype=np.float32))
    assert scores[0] > 0.8
    assert (scores[1:] < 0.2).all()


def test_unseen_and_extreme_values_have_a_score(kind, cache):
    strange = np.array([[np.inf, 99, -np.inf], [1e38, -1, np.nan], [np.nan, np.nan, np.nan]], dtype=np.float32)
    scores = _fit(kind, cache).predict(strange)
    assert np.isfinite(scores).all()
    assert _fit(kind, cache).predict(strange[:0]).shape == (0,)


def test_threads_and_repeats_change_nothing(kind, cache):
    matrix, _ = _toy(seed=1)
    first, second, third = (_fit(kind, cache, threads=threads).predict(matrix) for threads in (1, 2, 2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)


def test_batches_of_the_cache_change_nothing(kind, cache, tmp_path):
    matrix, labels = _toy()
    other = _cache(tmp_path / "other", matrix, labels, batch=11)
    np.testing.assert_array_equal(_fit(kind, cache).predict(matrix), _fit(kind, other).predict(matrix))


def test_a_score_does_not_depend_on_the_other_rows(kind, cache):
    model = _fit(kind, cache)
    matrix, _ = _toy(seed=1)
    one_by_one = np.concatenate([model.predict(matrix[row : row + 1]) for row in range(50)])
    np.testing.assert_array_equal(model.predict(matrix, threads=2)[:50], one_by_one)


def test_saved_and_loaded_is_the_same_model(kind, cache, tmp_path):
    model = _fit(kind, cache)
    model.save(tmp_path / "model")
    loaded = learner(kind).load(tmp_path / "model")
    matrix, _ = _toy(seed=1)
    np.testing.assert_array_equal(loaded.predict(matrix), model.predict(matrix))
    np.testing.assert_array_equal(loaded.importance(), model.importance())
    assert loaded.kind == model.kind == kind


def test_no_pickle_is_written(kind, cache, tmp_path):
    files = _bytes(_fit(kind, cache), tmp_path / "model")
    assert files
    for name, content in files.items():
        assert not content.startswith(b"\x80"), name


def test_missing_or_damaged_files_are_a_clear_error(kind, cache, tmp_path):
    with pytest.raises(LearningError, match="is missing"):
        learner(kind).load(tmp_path)
    _fit(kind, cache).save(tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(LearningError):
            learner(kind).load(tmp_path / "model")
        path.write_bytes(whole)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_nothing_to_learn_from(kind, tmp_path, label):
    cache = _cache(tmp_path, _toy()[0], np.full(ROWS, label))
    with pytest.raises(LearningError, match="nothing to learn from"):
        _fit(kind, cache)


def test_no_rows_are_nothing_to_learn_from(kind, tmp_path):
    with pytest.raises(LearningError, match="0 training rows"):
        _fit(kind, CacheWriter(tmp_path, features=3).close())


def test_importance_names_what_matters(kind, cache):
    share = _fit(kind, cache).importance()
    assert share.shape == (3,)
    assert share.sum() == pytest.approx(1)
    assert share[2] < 0.1
    assert share[:2].min() > 0.1


def test_weights_are_used(kind, tmp_path):
    matrix, labels = _toy()
    weights = np.where(labels, 20.0, 1.0)
    plain = _fit(kind, _cache(tmp_path / "plain", matrix, labels)).predict(matrix)
    heavy = _fit(kind, _cache(tmp_path / "heavy", matrix, labels, weights=weights)).predict(matrix)
    assert heavy.mean() > plain.mean() + 0.02


def test_progress_rises_to_its_total(kind, cache):
    seen = []
    _fit(kind, cache, progress=lambda done, total, what: seen.append((done, total, what)))
    assert len(seen) > 3
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    assert len({(total, what) for _, total, what in seen}) == 1


def test_projection_grows_with_rows_and_features(kind):
    one = learner(kind)

    def total(rows, features):
        return sum(one.project(rows, features=features, parameters={}).values())

    sizes = [total(rows, 20) for rows in (0, 10**3, 10**5, 10**7, 10**9)]
    assert sizes == sorted(sizes)
    assert total(10**6, 5) < total(10**6, 50) < total(10**6, 500)
    assert (
        one.project(2 * 10**6, features=7, parameters={})["rows"]
        == 2 * one.project(10**6, features=7, parameters={})["rows"]
    )


def test_unknown_parameter_names_the_nearest(kind):
    one = learner(kind)
    known = next(iter(PARAMETERS[kind]))
    with pytest.raises(SpecError, match=rf"learner.parameters.{known}x: {kind} has no such parameter") as error:
        one.check({known + "x": 3})
    assert f"Did you mean {known}?" in error.value.hint
    with pytest.raises(SpecError, match="whole number"):
        one.check({known: 2.5})
    with pytest.raises(SpecError, match="at least 1"):
        one.check({known: 0})
    assert one.check({known: 3})[known] == 3


def test_class_weights_are_refused_because_of_the_correction():
    for kind, name in (("lightgbm", "scale_pos_weight"), ("lightgbm", "is_unbalance"), ("sgd", "class_weight")):
        with pytest.raises(SpecError, match="corrected for the sampling"):
            learner(kind).check({name: 2})


def test_unknown_kind_names_the_nearest():
    with pytest.raises(SpecError, match="Did you mean lightgbm"):
        learner("lightgmb")


def test_heavy_libraries_are_not_imported_before_they_are_needed():
    code = (
        "import sys, engine.learning as l; l.learner('lightgbm').check({}); l.learner('sgd').check({});"
        "l.learner('lightgbm').project(1, features=1, parameters={});"
        "print([m for m in ('lightgbm', 'sklearn', 'scipy', 'skops', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, check=True)
    assert done.stdout.strip() == "[]"
