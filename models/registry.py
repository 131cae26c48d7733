"""The one writer of MLflow: runs and what they record, versions of the registered model and their aliases."""

import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import httpx

from digits.data.datasets import Dataset
from digits.errors import first_line
from digits.settings import without_password
from models import flavors, saved_view
from models.provenance import environment, git_commit, inputs_hash
from models.registry_reader import EXPERIMENT_NAME, MODEL_NAME, RegistryUnreachable
from models.training import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("digits.registry")

# Without it MLflow's UI opens its pages for language models.
EXPERIMENT_KIND = ("mlflow.experimentKind", "custom_model_development")
CONTEXTS = ("training", "validation", "test")  # in which MLflow says that the parts of a data set are used
ENVIRONMENT = {
    # Its thread changes the environment while requests read it.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Otherwise every logged model records all packages of uv.lock as its requirements.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Its own 10 s leave short trainings without any.
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "2",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own 7 retry a server that is down for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Raise RegistryUnreachable for a connection that failed, status 429 or 5xx, and errors of MLflow without a code."""
    import mlflow
    import requests

    try:
        yield
    except (mlflow.exceptions.MlflowException, requests.RequestException) as error:
        status = error.get_http_status_code() if isinstance(error, mlflow.exceptions.MlflowException) else 503
        if status < 500 and status != 429:
            raise
        reason, fix = first_line(error), "start it with `digits up` or set MLFLOW_TRACKING_URI"
        server = mlflow.get_tracking_uri()
        raise RegistryUnreachable(f"MLflow at {server} failed or is unreachable: {reason}; {fix}") from error


class RegistryWriter:
    """A connection that writes to one MLflow server: runs, and versions of the registered model with their aliases.

    Every method but `log_epoch` raises RegistryUnreachable where the server failed or is unreachable, and can then be called
    again with the same arguments. If the server had done its work and only the response was lost, `run` and `open_run` create
    a second run, and `log_results` and `log_points` record the same values once more.
    """

    def __init__(self, uri: str) -> None:
        """Raises ValueError when MLflow refuses the experiment."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import mlflow  # 4 s, and the command line answers without it

        url, server = httpx.URL(uri), without_password(uri)
        if url.username:
            # MLflow's errors quote its URL, and Prefect logs them as the cause of ours.
            os.environ |= {"MLFLOW_TRACKING_USERNAME": url.username, "MLFLOW_TRACKING_PASSWORD": url.password}
        mlflow.set_tracking_uri(server)
        self.uri, self.mlflow, self.client = server, mlflow, mlflow.MlflowClient(server)
        self.run_id = ""
        self._results_at: int | None = None  # when the final metrics of the current run were logged, in ms since 1970
        self._queue: list[Any] = []  # mlflow.entities.Metric that were not sent yet
        self._sender = ThreadPoolExecutor(1, "mlflow-metrics")
        self._sending: Future[None] = self._sender.submit(lambda: None)
        try:
            with _translate_errors():
                experiment = mlflow.set_experiment(EXPERIMENT_NAME)
                if EXPERIMENT_KIND[0] not in experiment.tags:
                    self.client.set_experiment_tag(experiment.experiment_id, *EXPERIMENT_KIND)
                # A view that somebody changed in the UI stays as it is.
                if saved_view.TAG not in experiment.tags:
                    self.client.set_experiment_tag(experiment.experiment_id, saved_view.TAG, saved_view.content())
        except mlflow.exceptions.MlflowException as error:
            # The experiment was deleted, or access is denied.
            reason = first_line(error)
            raise ValueError(f"MLflow at {server} refuses the experiment {EXPERIMENT_NAME}: {reason}") from error
        self.experiment_id: str = experiment.experiment_id

    @contextmanager
    def run(self, recipe: Recipe, manifest: dict[str, Any], dataset: Dataset, tags: Mapping[str, str]) -> Iterator[str]:
        """Open an MLflow run around a training on the data set that is stored with the manifest, and yield its id.

        It is marked as failed when the block raises, and as killed on Ctrl-C.
        Recording its end never raises: a run left open because MLflow was unreachable is closed by the next retraining.
        """
        fingerprint = manifest["fingerprint"]
        tags = {"recipe": recipe.name, "dataset": fingerprint, **git_commit(), **tags}
        with _translate_errors():
            self.run_id = self.mlflow.start_run(run_name=recipe.name, tags=tags, log_system_metrics=True).info.run_id
            self._log_recipe(self.run_id, recipe)
            self.mlflow.log_dict(environment(), "environment.json")
            self.mlflow.log_dict(manifest, "dataset.json")
            self._log_datasets(manifest["location"], dataset)
        status = "FAILED"
        try:
            yield self.run_id
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            try:
                with _translate_errors():
                    try:
                        self._send_all()
                    finally:
                        # It also ends the thread that sends the system metrics.
                        self.mlflow.end_run(status)
            except RegistryUnreachable as error:
                log.warning("the end of run %s (%s) is not recorded: %s", self.run_id, status, error)

    def _log_datasets(self, location: str, dataset: Dataset) -> None:
        """Log the images of each part, as the recipe splits them, as an input of the current run; none of them are uploaded.

        The source is the file or URL that they were read from, or the copy in the bucket, which every machine reaches.
        """
        source = location if location.startswith("s3:") else dataset.origin or location
        tags = {"origin": dataset.origin or dataset.source, "stored_copy": location}
        with warnings.catch_warnings():
            # MLflow has two classes of the same name for files.
            warnings.filterwarnings("ignore", "The specified dataset source can be interpreted", UserWarning)
            inputs = [
                # MLflow takes inputs of one name and digest for the same one.
                self.mlflow.data.from_numpy(
                    split.images, source, split.labels, f"{dataset.source}-{part}", dataset.fingerprint
                )
                for part, split in dataset.splits().items()
            ]
        self.mlflow.log_inputs(inputs, list(CONTEXTS), [tags] * len(inputs))

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Queue one point on each learning curve for a background thread, without waiting for MLflow; raises nothing.

        Points that MLflow does not accept stay queued; the next epoch and `log_results` send them again.
        """
        self._queue += self._metrics([(epoch + 1, metrics)])
        if self._sending.done():
            self._sending = self._sender.submit(self._send_queue)

    @_translate_errors()
    def _send_queue(self) -> None:
        """Send what is queued; MLflow ignores a point that it already has."""
        while batch := self._queue[:]:
            self.client.log_batch(self.run_id, metrics=batch)
            del self._queue[: len(batch)]

    def _send_all(self) -> None:
        """Wait until the queue is sent, by the thread of the sender: two threads would send the same points."""
        self._sender.submit(self._send_queue).result()

    @_translate_errors()
    def log_results(
        self, metrics: Mapping[str, float], tags: Mapping[str, str], files: "Mapping[str, str | Figure]"
    ) -> None:
        """Log the final metrics, tags, texts and figures of the current run, after the points that are still queued."""
        self._send_all()
        self._results_at = _milliseconds()
        final = self._metrics([(0, metrics)], self._results_at)
        self.client.log_batch(self.run_id, metrics=final, tags=self._tags(tags))
        self.log_files(self.run_id, files)

    @_translate_errors()
    def log_files(self, run_id: str, files: "Mapping[str, str | Figure]") -> None:
        """Log texts and figures as artifacts of a run, also of one that has ended."""
        for name, content in files.items():
            log_file = self.client.log_text if isinstance(content, str) else self.client.log_figure
            log_file(run_id, content, name)

    @_translate_errors()
    def log_folder(self, folder: Path, name: str) -> None:
        """Log the files of a folder as artifacts of the current run, below this name."""
        self.client.log_artifacts(self.run_id, str(folder), name)

    def _metrics(
        self, points: Iterable[tuple[int, Mapping[str, float]]], at: int | None = None, model_id: str | None = None
    ) -> list[Any]:
        """`mlflow.entities.Metric`s of a run, or of one of its models too; those of the same time and value are the same point."""
        metric, at = self.mlflow.entities.Metric, at or _milliseconds()
        return [
            metric(name, value, at, step, model_id=model_id)
            for step, metrics in points
            for name, value in metrics.items()
        ]

    def _tags(self, tags: Mapping[str, str]) -> list[Any]:
        return [self.mlflow.entities.RunTag(name, value) for name, value in tags.items()]

    @_translate_errors()
    def open_run(self, name: str, tags: Mapping[str, str], recipe: Recipe | None = None, parent: str = "") -> str:
        """Open a run beside the current one, as several trials of a sweep are open at once. Returns its id."""
        nested = {"mlflow.parentRunId": parent} if parent else {}
        run_id: str = self.client.create_run(self.experiment_id, run_name=name, tags={**tags, **nested}).info.run_id
        if recipe is not None:
            self._log_recipe(run_id, recipe)
        return run_id

    def _log_recipe(self, run_id: str, recipe: Recipe) -> None:
        fields = recipe.model_dump(mode="json")
        params = [self.mlflow.entities.Param(name, str(value)) for name, value in flatten(fields).items()]
        self.client.log_batch(run_id, params=params)
        self.client.log_dict(run_id, fields, "recipe.json")

    @_translate_errors()
    def reopen_run(self, run_id: str) -> bool:
        """Open a run again, and end the runs nested in it. Returns False where it does not exist or was deleted."""
        if not self._runs(f"attributes.run_id = '{run_id}'"):
            return False
        self.client.update_run(run_id, status="RUNNING")
        for trial in self._runs(f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"):
            self.client.set_terminated(trial.info.run_id, "KILLED")
        return True

    def _runs(self, query: str) -> list[Any]:
        return list(self.client.search_runs([self.experiment_id], query, max_results=1000))

    @_translate_errors()
    def log_points(self, run_id: str, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Log points (step, metrics) on the curves of a run, also of one that has ended."""
        self.client.log_batch(run_id, metrics=self._metrics(points))

    @_translate_errors()
    def close_run(self, run_id: str, status: str, tags: Mapping[str, str]) -> None:
        """End an open run as FINISHED, FAILED or KILLED."""
        self.client.log_batch(run_id, tags=self._tags(tags))
        self.client.set_terminated(run_id, status)

    @_translate_errors()
    def register(self, card: dict[str, Any], files: Mapping[str, bytes]) -> str:
        """Register the current run as a new version: its files in MLflow's format, and a card that lists their checksums.

        Returns the version; called again for the same run, the one that exists.
        """
        existing = self.client.search_model_versions(f"name='{MODEL_NAME}' and run_id='{self.run_id}'")
        if existing:
            return str(existing[0].version)
        model = self._log_model(card, files)
        # The model exists from the second version on.
        with suppress(self.mlflow.exceptions.MlflowException):
            self.client.create_registered_model(MODEL_NAME, description="Handwritten-digit recognisers.")
        tags = {name: card[name] for name in ("dataset", "inputs")}
        tags |= {"recipe": card["recipe"]["name"], "test_accuracy": f"{card['metrics']['test_accuracy']:.4f}"}
        source, model_id = model.model_uri, model.model_id
        return str(self.client.create_model_version(MODEL_NAME, source, self.run_id, tags, model_id=model_id).version)

    def _log_model(self, card: dict[str, Any], files: Mapping[str, bytes]) -> Any:
        """Log the version in MLflow's own format, with its metrics, as an output of the current run. Returns an `mlflow.entities.LoggedModel`."""
        entities, params = self.mlflow.entities, {name: str(value) for name, value in flatten(card["recipe"]).items()}
        model = self.client.create_logged_model(self.experiment_id, "model", self.run_id, params=params)
        with TemporaryDirectory() as temporary:
            folder = Path(temporary, "model")
            described = self.mlflow.models.Model(run_id=self.run_id, model_id=model.model_id, model_uuid=model.model_id)
            flavors.save(folder, {**files, "card.json": card_content(card, files)}, described)
            self.client.log_model_artifacts(model.model_id, str(folder))
        metrics = self._metrics([(0, card["metrics"])], self._results_at, model.model_id)
        self.client.log_batch(self.run_id, metrics=metrics)
        self.client.log_outputs(self.run_id, [entities.LoggedModelOutput(model.model_id, step=0)])
        return self.client.finalize_logged_model(model.model_id, entities.LoggedModelStatus.READY)

    @_translate_errors()
    def set_alias(self, alias: str, version: str) -> None:
        """Move an alias; MLflow does this in one transaction."""
        self.client.set_registered_model_alias(MODEL_NAME, alias, version)

    @_translate_errors()
    def remove_alias(self, alias: str) -> None:
        """Remove an alias, if it exists."""
        self.client.delete_registered_model_alias(MODEL_NAME, alias)

    @_translate_errors()
    def tag_version(self, version: str, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self.client.set_model_version_tag(MODEL_NAME, version, name, value)

    @_translate_errors()
    def describe(self, version: str, markdown: str) -> None:
        """Replace the description of a version, which MLflow's UI renders."""
        self.client.update_model_version(MODEL_NAME, version, markdown)

    @_translate_errors()
    def version_tags(self, version: str) -> dict[str, str]:
        return dict(self.client.get_model_version(MODEL_NAME, version).tags)

    @_translate_errors()
    def tagged(self, name: str, value: str) -> dict[str, dict[str, str]]:
        """The tags of each version whose tag of this name has this value."""
        found = self.client.search_model_versions(f"name='{MODEL_NAME}' and tags.`{name}`='{value}'")
        return {str(version.version): dict(version.tags) for version in found}

    @_translate_errors()
    def active_runs(self) -> dict[str, dict[str, str]]:
        """The tags of each run that has not ended, by its id."""
        return {run.info.run_id: dict(run.data.tags) for run in self._runs("attributes.status = 'RUNNING'")}

    @_translate_errors()
    def trained_before(self, fingerprint: str, recipe: Recipe) -> str | None:
        """The newest version with the same data, recipe, code and libraries, whose weights would come out again."""
        inputs, versions = inputs_hash(fingerprint, recipe), self.client.search_model_versions(f"name='{MODEL_NAME}'")
        numbers = [str(version.version) for version in versions if version.tags.get("inputs") == inputs]
        version = max(numbers, key=int, default=None)
        if version:
            log.info("nothing new to learn: digits v%s has the same data, recipe, code and libraries", version)
        return version


def _milliseconds() -> int:
    return int(time.time() * 1000)


def card_content(card: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """The card as it is registered, with the checksums of the files."""
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return json.dumps({**card, "files": checksums}, indent=2).encode()


def flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields joined by a dot, as MLflow params have them."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
