import json
import subprocess
import sys

import numpy as np
import pytest

from engine.learning import CacheWriter, learner

MEASURE = """
import json, sys, threading, time, pathlib
import lightgbm
from engine.learning import TrainingCache, learner
cache = TrainingCache(pathlib.Path(sys.argv[1]))
def status(name):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(text.split(name + ":")[1].split()[0]) * 1024
def anonymous():
    return status("RssAnon")
# A short peak escapes a thread that looks every 5 ms on a busy host; the kernel's own high-water mark does not.
pathlib.Path("/proc/self/clear_refs").write_text("5")
resident, mapped = status("VmRSS"), status("RssFile")
before, peak, ended = anonymous(), [0], threading.Event()
def watch():
    while not ended.wait(0.005):
        peak[0] = max(peak[0], anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
one = learner("lightgbm")
one.fit(cache, categorical=[0], cardinalities=[int(sys.argv[2])], numeric_stats={}, parameters=json.loads(sys.argv[3]),
        seed=0, threads=2)
ended.set()
watcher.join()
print(max(peak[0] - before, status("VmHWM") - resident - (status("RssFile") - mapped)))
"""


def _cache(directory, *, rows, features, codes=5, zeros=0.0):
    random = np.random.default_rng(0)
    with CacheWriter(directory, features=features) as writer:
        matrix = random.normal(size=(rows, features)).astype(np.float32)
        matrix[random.random(matrix.shape) < zeros] = 0.0
        matrix[:, 0] = random.integers(0, codes, rows)
        writer.append(matrix, random.random(rows) < 0.1 + 0.2 * (matrix[:, 1] > 1))
        return writer.close()


def test_file_is_the_same_for_any_number_of_threads(tmp_path):
    cache = _cache(tmp_path / "cache", rows=20_000, features=4)
    texts = []
    for threads in (1, 2):
        model = learner("lightgbm").fit(
            cache,
            categorical=[0],
            cardinalities=[5],
            numeric_stats={},
            parameters={"num_trees": 20},
            seed=3,
            threads=threads,
        )
        model.save(tmp_path / str(threads))
        texts.append((tmp_path / str(threads) / "model.txt").read_bytes())
    assert texts[0] == texts[1]


def test_projection_names_what_rows_bins_and_bags_take():
    def project(**parameters):
        given = {"num_trees": 7, "num_leaves": 11, "max_bin": 101, **parameters}
        return learner("lightgbm").project(1_000_003, features=29, parameters=given, codes=[13, 257, 1_001])

    terms = project()
    assert terms["rows"] == 1_000_003 * (29 + 2 + 54)
    assert terms["histograms"] == (11 + 8) * (26 * 102 + 14 + 258 + 1_002) * 16
    assert terms["trees"] == 7 * 11 * 200
    assert project(bagging_freq=1)["rows"] == terms["rows"]
    assert project(bagging_freq=3, bagging_fraction=0.7)["rows"] == terms["rows"] + 1_000_003 * 8
    assert project(bagging_freq=3, bagging_fraction=0.5)["rows"] == terms["rows"] + 1_000_003 * (8 + 28)


@pytest.mark.slow
def test_training_stays_within_its_projection(tmp_path):
    bags = {"bagging_freq": 1, "bagging_fraction": 0.5}
    for features, codes, rows, zeros, more in (
        (15, 400, 500_000, 0.0, {}),
        (40, 50, 500_000, 0.0, {}),
        (15, 50, 40_000, 0.0, {}),
        (26, 50, 500_000, 0.3, {"feature_fraction": 0.5}),  # by row, LightGBM would take twice as much
        (26, 50, 500_000, 0.9, {}),
        (26, 50, 500_000, 0.0, bags),
    ):
        directory = tmp_path / f"{features}-{codes}-{rows}-{zeros}-{len(more)}"
        cache = _cache(directory, rows=rows, features=features, codes=codes, zeros=zeros)
        parameters = {"num_trees": 3, **more}
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(directory), str(codes), json.dumps(parameters)],
            capture_output=True,
            text=True,
            check=True,
        )
        terms = learner("lightgbm").project(cache.rows, features=features, parameters=parameters, codes=[codes])
        used, projected = int(done.stdout.split()[-1]), sum(terms.values())
        assert 0.5 * projected <= used <= projected, (features, codes, rows, zeros, more, used / projected, terms)
