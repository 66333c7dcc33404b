import subprocess
import sys

import numpy as np
import pytest

from engine.learning import CacheWriter, learner

MEASURE = """
import sys, threading, time, pathlib
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
one.fit(cache, categorical=[0], cardinalities=[int(sys.argv[2])], numeric_stats={}, parameters={"num_trees": 3},
        seed=0, threads=2)
ended.set()
watcher.join()
print(max(peak[0] - before, status("VmHWM") - resident - (status("RssFile") - mapped)))
"""


def _cache(directory, *, rows, features, codes=5):
    random = np.random.default_rng(0)
    with CacheWriter(directory, features=features) as writer:
        matrix = random.normal(size=(rows, features)).astype(np.float32)
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


@pytest.mark.slow
def test_training_stays_within_its_projection(tmp_path):
    for features, codes, rows in ((15, 400, 500_000), (40, 50, 500_000), (15, 50, 40_000)):
        directory = tmp_path / f"{features}-{codes}-{rows}"
        cache = _cache(directory, rows=rows, features=features, codes=codes)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(directory), str(codes)], capture_output=True, text=True, check=True
        )
        terms = learner("lightgbm").project(cache.rows, features=features, parameters={"num_trees": 3}, max_codes=codes)
        used, projected = int(done.stdout.split()[-1]), sum(terms.values())
        assert 0.5 * projected <= used <= projected, (features, codes, rows, used / projected, terms)
