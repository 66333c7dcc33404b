"""The model registry: MLflow on SQLite in the workspace. The only code that imports mlflow.

The ledger says which model is champion (``ledger.py``); versions, metrics and aliases here follow it, for MLflow's
own users.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

from engine.batching.atomic import replace_synced
from engine.errors import RegistryError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

Alias = Literal["champion", "challenger"]

_KEY = "headrace.key"


class ModelRegistry:
    """The versions of one pipeline's model.

    Parameters
    ----------
    workspace
        Holds ``registry/mlflow.db`` and ``registry/artifacts``, unless ``MLFLOW_TRACKING_URI`` names another server.
    name
        The registered model: the pipeline's name.
    """

    def __init__(self, workspace: Path, *, name: str) -> None:
        self._directory = workspace / "registry"
        self._name = name
        self._client: MlflowClient | None = None

    def register(
        self,
        bundle: Path,
        *,
        key: str,
        metrics: Mapping[str, float],
        parameters: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> int:
        """Log a bundle as a run's artifacts and register it; return its version, the same for the same ``key``.

        A registration that was cut off anywhere is completed by the next call: one run and one version remain.

        Raises
        ------
        RegistryError
            There is no such bundle, or MLflow refused: nothing that a later call could take for done is left behind.
        """
        if not bundle.is_dir():  # MLflow would log nothing, and register that
            raise RegistryError(f"there is no bundle {bundle} to register", hint="train again")
        with self._calls() as client:
            for version in client.search_model_versions(f"name = '{self._name}'"):
                if version.tags.get(_KEY) == key:
                    return int(version.version)
            run_id = self._finished_run(client, key) or ""
            if not run_id:
                run = client.create_run(self._experiment(client), run_name=key, tags={**tags, _KEY: key})
                run_id = str(run.info.run_id)
                for name, value in metrics.items():
                    client.log_metric(run_id, name, value)
                for name, text in parameters.items():
                    client.log_param(run_id, name, text)
                client.log_artifacts(run_id, str(bundle), "bundle")
                client.set_terminated(run_id, "FINISHED")
            source = f"{client.get_run(run_id).info.artifact_uri}/bundle"
            created = client.create_model_version(self._name, source, run_id, tags={**tags, _KEY: key})
            return int(created.version)

    def log_metrics(self, version: int, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log metrics with the run of a version."""
        with self._calls() as client:
            run_id = str(client.get_model_version(self._name, str(version)).run_id)
            for name, value in metrics.items():
                client.log_metric(run_id, name, value, step=step)

    def set_alias(self, alias: Alias, version: int) -> None:
        """Point an alias at a version."""
        with self._calls() as client:
            client.set_registered_model_alias(self._name, alias, str(version))

    def clear_alias(self, alias: Alias) -> None:
        """Remove an alias; one that is not there is fine."""
        with self._calls() as client:
            client.delete_registered_model_alias(self._name, alias)

    def alias(self, alias: Alias) -> int | None:
        """Return the version that an alias points at, or None."""
        with self._calls() as client:
            model = client.get_registered_model(self._name)
            found = model.aliases.get(alias)
            return None if found is None else int(found)

    def bundle_path(self, version: int) -> Path:
        """Return a local directory with the bundle of a version, downloaded where the artifacts are remote."""
        with self._calls() as client:
            import mlflow.artifacts  # not before _calls has turned the telemetry off

            source = client.get_model_version(self._name, str(version)).source
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=self._uri()))

    def _finished_run(self, client: MlflowClient, key: str) -> str | None:
        found = client.search_runs([self._experiment(client)], f"tags.`{_KEY}` = '{key}'")
        for run in found:
            if run.info.status == "FINISHED":
                return str(run.info.run_id)
            client.delete_run(run.info.run_id)  # it was cut off while its artifacts were copied
        return None

    def _experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self._name)
        if found is not None:
            return str(found.experiment_id)
        location = None if self._remote() else (self._directory / "artifacts").as_uri()
        return str(client.create_experiment(self._name, artifact_location=location))

    def _remote(self) -> bool:
        return bool(os.environ.get("MLFLOW_TRACKING_URI"))

    def _uri(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self._directory / 'mlflow.db'}"

    @contextlib.contextmanager
    def _calls(self) -> Iterator[MlflowClient]:
        """Yield the client; what MLflow raises becomes a RegistryError with what to do."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of MLflow's own imports and queries
            from mlflow.exceptions import MlflowException
            from sqlalchemy.exc import SQLAlchemyError

            try:
                yield self._connected()
            except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
                # Not "from error": with a password in MLFLOW_TRACKING_URI, MLflow's own message would show it.
                raise RegistryError(
                    f"the model registry of {self._name!r} failed: {_said(error)}",
                    hint=f"check that {self._directory} can be written, or MLFLOW_TRACKING_URI; then run again",
                ) from (None if _secrets() else error)

    def _connected(self) -> MlflowClient:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        if self._client is None:
            for name in ("mlflow", "alembic"):
                logging.getLogger(name).setLevel(logging.ERROR)
            self._directory.mkdir(parents=True, exist_ok=True)
            if not self._remote():
                self._make_database()
            client = MlflowClient(tracking_uri=self._uri(), registry_uri=self._uri())
            try:
                client.get_registered_model(self._name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                client.create_registered_model(self._name)
            self._client = client
        return self._client

    def _make_database(self) -> None:
        """Make the database under another name and rename it, whole: it is there in full or not at all.

        MLflow makes its tables in some seconds of migrations that are no transaction. A process killed among them
        left a database that no later one could open ("table _alembic_tmp_jobs already exists"), and two that made one
        at once met in the same way.
        """
        database = self._directory / "mlflow.db"
        with open(self._directory / ".making.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees it, however this process ends
            if database.exists():
                return
            making = self._directory / ".mlflow.db.tmp"
            for left in self._directory.glob(f"{making.name}*"):  # with the journal of one that was killed
                left.unlink()
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            store = SqlAlchemyStore(f"sqlite:///{making}", (self._directory / "artifacts").as_uri())  # type: ignore[no-untyped-call]
            store.engine.dispose()
            replace_synced(making, database)


def _secrets() -> tuple[str, ...]:
    """Return what no message may show, the longest first: user and password of the tracking server, whole and alone."""
    login = os.environ.get("MLFLOW_TRACKING_URI", "").partition("://")[2].rpartition("@")[0]
    password = login.partition(":")[2]
    return (login, password, unquote(password)) if password else ()


def _said(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    for secret in _secrets():
        text = text.replace(secret, "****")
    return text
