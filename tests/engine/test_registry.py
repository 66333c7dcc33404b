"""The registry on a real MLflow: one version a key whatever dies, aliases that move, errors that say what to do, and no
word to the outside.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path

import pytest

from engine.errors import RegistryError
from engine.registry import ModelRegistry
from tests.engine.registry_driver import KEY, POINTS, register

ROOT = Path(__file__).parents[2]
FILES = {"model.txt": "trees", "encoders/carrier.json": "{}"}
WORDS = {"metrics": {"rows": 3.0}, "parameters": {"learner": "sgd"}, "tags": {"until": "2013"}}
pytestmark = pytest.mark.xdist_group("registry")


def _bundle(directory: Path) -> Path:
    for name, text in FILES.items():
        path = directory / "bundle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory / "bundle"


def _files(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def _python(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DO_NOT_TRACK"))}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=clean | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a database; tests take a registered model each."""
    directory = tmp_path_factory.mktemp("registry")
    _bundle(directory)
    ModelRegistry(directory, name="first").alias("champion")
    return directory


@pytest.fixture
def registry(workspace: Path, request: pytest.FixtureRequest) -> ModelRegistry:
    return ModelRegistry(workspace, name=request.node.name)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for each point at which a registration was killed."""
    directory = tmp_path_factory.mktemp("killed")
    for point in POINTS:
        _bundle(directory / point)
    with _python("-m", "tests.engine.registry_driver", str(directory), *POINTS) as process:
        out, said = process.communicate(timeout=120)
    assert out.splitlines() == [f"{point}: -9" for point in POINTS], said
    return directory


@pytest.mark.parametrize("point", POINTS)
def test_a_registration_killed_anywhere_is_completed_by_the_next_as_one_run_and_one_version(point, killed):
    from mlflow.tracking import MlflowClient

    directory = killed / point
    assert [register(directory), register(directory)] == [1, 1]

    assert _files(ModelRegistry(directory, name="flights").bundle_path(1)) == FILES
    client = MlflowClient(f"sqlite:///{directory / 'registry' / 'mlflow.db'}")
    (version,) = client.search_model_versions("name = 'flights'")
    (run,) = client.search_runs([client.get_experiment_by_name("flights").experiment_id])
    assert version.run_id == run.info.run_id
    assert version.tags == {"until": "2013", "headrace.key": KEY}
    assert (run.data.metrics, run.data.params) == ({"rows": 3.0}, {"learner": "sgd"})
    assert run.info.status == "FINISHED"
    assert not list((directory / "registry").glob(".mlflow.db*"))


def test_another_key_is_another_version_and_an_old_key_keeps_its_own(registry, workspace):
    keys = ["flights/1", "flights/2", "flights/1", "flights/3", "flights/2"]
    assert [registry.register(workspace / "bundle", key=key, **WORDS) for key in keys] == [1, 2, 1, 3, 2]


def test_an_alias_moves_and_goes_and_a_missing_one_is_none(registry, workspace):
    for key in ("flights/1", "flights/2"):
        registry.register(workspace / "bundle", key=key, **WORDS)
    assert registry.alias("champion") is None
    registry.set_alias("champion", 1)
    registry.set_alias("challenger", 2)
    registry.set_alias("champion", 2)
    assert (registry.alias("champion"), registry.alias("challenger")) == (2, 2)
    registry.clear_alias("challenger")
    registry.clear_alias("challenger")
    assert (registry.alias("champion"), registry.alias("challenger")) == (2, None)


def test_metrics_go_to_the_run_of_their_version_at_their_step(registry, workspace, request):
    from mlflow.tracking import MlflowClient

    for key in ("flights/1", "flights/2"):
        registry.register(workspace / "bundle", key=key, **WORDS)
    registry.log_metrics(1, {"precision": 0.25}, step=3)
    registry.log_metrics(1, {"precision": 0.5}, step=4)

    client = MlflowClient(f"sqlite:///{workspace / 'registry' / 'mlflow.db'}")
    runs = [client.get_model_version(request.node.name, version).run_id for version in ("1", "2")]
    assert [(one.step, one.value) for one in client.get_metric_history(runs[0], "precision")] == [(3, 0.25), (4, 0.5)]
    assert client.get_metric_history(runs[1], "precision") == []


def test_two_processes_that_open_a_new_registry_at_once_both_can(tmp_path):
    code = """
        import sys
        from pathlib import Path
        import mlflow.tracking
        from engine.registry import ModelRegistry

        print("ready", flush=True)
        sys.stdin.readline()
        print(ModelRegistry(Path(sys.argv[1]), name=sys.argv[2]).alias("champion"))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    started = [subprocess.Popen([*command, name], cwd=ROOT, text=True, **pipes) for name in ("one", "two")]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120) for process in started]
    assert [out for out, _ in said] == ["None\n", "None\n"], said


def test_nothing_is_reached_or_printed_and_telemetry_is_off_before_mlflow_is_imported(workspace):
    version = ModelRegistry(workspace, name="quiet").register(workspace / "bundle", key="quiet/1", **WORDS)
    code = """
        import os, sys
        from pathlib import Path

        def watch(event, args):
            if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
                print(event, args[1:])
            if event == "import" and args[0] == "mlflow":
                print("telemetry off:", os.environ.get("MLFLOW_DISABLE_TELEMETRY"), os.environ.get("DO_NOT_TRACK"))

        sys.addaudithook(watch)
        from engine.registry import ModelRegistry

        registry = ModelRegistry(Path(sys.argv[1]), name="quiet")
        registry.bundle_path(int(sys.argv[2]))
        registry.register(Path(sys.argv[1]) / "bundle", key="quiet/2", metrics={"rows": 1.0}, parameters={}, tags={})
        ModelRegistry(Path(sys.argv[1]) / "new", name="quiet").alias("champion")
    """
    with _python("-c", textwrap.dedent(code), str(workspace), str(version)) as process:
        out, said = process.communicate(timeout=120)
    assert (out, said, process.returncode) == ("telemetry off: true 1\n", "", 0)


def test_a_bundle_that_is_not_there_is_refused_and_leaves_no_version(registry, workspace):
    with pytest.raises(RegistryError, match="there is no bundle"):
        registry.register(workspace / "nowhere", key="flights/1", **WORDS)
    assert registry.register(workspace / "bundle", key="flights/1", **WORDS) == 1
    assert _files(registry.bundle_path(1)) == FILES


@pytest.mark.parametrize("call", ["set_alias", "log_metrics", "bundle_path"])
def test_a_version_that_is_not_there_is_an_error_that_names_it(call, registry):
    arguments = {"set_alias": ("champion", 9), "log_metrics": (9, {"precision": 0.5}), "bundle_path": (9,)}[call]
    with pytest.raises(RegistryError, match=r"version=9\) not found"):
        getattr(registry, call)(*arguments)


def test_a_directory_that_cannot_be_made_and_a_database_that_is_none_say_where_to_look(tmp_path):
    (tmp_path / "file").touch()
    damaged = tmp_path / "damaged" / "registry"
    damaged.mkdir(parents=True)
    (damaged / "mlflow.db").write_text("not a database\n" * 1000)
    for directory, reason in (("file", "Not a directory"), ("damaged", "file is not a database")):
        with pytest.raises(RegistryError, match=reason) as caught:
            ModelRegistry(tmp_path / directory, name="flights").alias("champion")
        assert str(tmp_path / directory / "registry") in caught.value.hint


@pytest.mark.parametrize(
    "uri",
    ["http://desk:s%40fe-word@127.0.0.1:9", "postgresql://desk:s%40fe-word@127.0.0.1:9/x", "what://desk:s%40fe-word@h"],
)
def test_a_tracking_server_that_fails_is_one_error_without_its_password(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError, match="MLFLOW_TRACKING_URI") as caught:
        ModelRegistry(tmp_path, name="flights").alias("champion")
    shown = "".join(traceback.format_exception(caught.value))
    assert "s%40fe-word" not in shown
    assert "s@fe-word" not in shown
    assert not (tmp_path / "registry" / "mlflow.db").exists()
