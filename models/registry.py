"""Everything said to MLflow: runs, what they carry, versions and their aliases."""

import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version as installed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from digits.data.datasets import Dataset
from digits.images import SIZE
from digits.settings import without_password
from models.recipes import Recipe, flatten
from models.registry_reader import NAME, RegistryUnreachable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPERIMENT_KIND = (
    "mlflow.experimentKind",
    "custom_model_development",
)  # else MLflow's UI opens its pages for language models
LIBRARIES = ("keras", "tensorflow", "numpy", "onnx", "onnxruntime", "tf2onnx", "scikit-learn", "mlflow")
ENVIRONMENT = {
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # else every logged model records all packages of uv.lock as its requirements
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's own 7 retry a server that is down for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class Registry:
    """One MLflow server, held open."""

    def __init__(self, uri: str) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import mlflow  # 4 s, and the command line answers without it

        mlflow.set_tracking_uri(uri)
        self.uri, self.mlflow, self.client = uri, mlflow, mlflow.MlflowClient(uri)
        try:
            experiment = mlflow.set_experiment(NAME)
        except mlflow.exceptions.MlflowException as error:
            # Any other code is an answer: the experiment was deleted, or is not ours to see.
            if error.error_code != "INTERNAL_ERROR":
                words = str(error).splitlines()[0]
                raise ValueError(f"MLflow at {without_password(uri)} refuses the experiment {NAME}: {words}") from error
            raise RegistryUnreachable(
                f"MLflow does not answer at {without_password(uri)}; start it with `digits up` or set MLFLOW_TRACKING_URI"
            ) from error
        self.experiment_id: str = experiment.experiment_id
        if EXPERIMENT_KIND[0] not in experiment.tags:
            self.client.set_experiment_tag(self.experiment_id, *EXPERIMENT_KIND)

    @contextmanager
    def run(self, recipe: Recipe, fingerprint: str, dataset: Dataset, tags: Mapping[str, str]) -> Iterator[str]:
        """An MLflow run around a training on the stored data set; it is marked failed when the block raises, killed on Ctrl-C."""
        tags = {"recipe": recipe.name, "dataset": fingerprint, **git_commit(), **tags}
        with self.mlflow.start_run(run_name=recipe.name, tags=tags) as run:
            self.mlflow.log_params(flat(recipe))
            self.mlflow.log_dict(recipe.model_dump(mode="json"), "recipe.json")
            self.mlflow.log_dict(environment(), "environment.json")
            self._log_dataset(fingerprint, dataset)
            try:
                yield run.info.run_id
            except KeyboardInterrupt:
                self.mlflow.end_run("KILLED")
                raise

    def _log_dataset(self, fingerprint: str, dataset: Dataset) -> None:
        """The data set as MLflow's UI shows it: a sample stands for the images, the digest is our fingerprint."""
        data = self.mlflow.data.from_numpy(
            dataset.train.images[:100],
            targets=dataset.train.labels[:100],
            name=dataset.source,
            digest=fingerprint,
        )
        self.mlflow.log_input(data, context="training")

    def log_epoch(self, epoch: int, figures: Mapping[str, float]) -> None:
        """One point on each learning curve; it is sent in the background."""
        self.mlflow.log_metrics(dict(figures), step=epoch + 1, synchronous=False)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """The final figures of the current run."""
        self.mlflow.log_metrics(dict(metrics))

    def tag_run(self, tags: Mapping[str, str]) -> None:
        """Tags of the current run."""
        self.mlflow.set_tags(dict(tags))

    def log_json(self, content: Mapping[str, Any], name: str) -> None:
        """A JSON file of the current run."""
        self.mlflow.log_dict(dict(content), name)

    def log_text(self, text: str, name: str) -> None:
        """A text file of the current run."""
        self.mlflow.log_text(text, name)

    def log_pictures(self, pictures: "Mapping[str, Figure]") -> None:
        """One PNG per picture, under `pictures/` of the current run."""
        for name, figure in pictures.items():
            self.mlflow.log_figure(figure, f"pictures/{name}.png")

    def open_run(self, name: str, tags: Mapping[str, str], recipe: Recipe | None = None, parent: str = "") -> str:
        """A run that stays open whatever else is logged, as the trials of a sweep do side by side; its id."""
        nested = {"mlflow.parentRunId": parent} if parent else {}
        run_id: str = self.client.create_run(self.experiment_id, run_name=name, tags={**tags, **nested}).info.run_id
        if recipe is not None:
            params = [self.mlflow.entities.Param(name, str(value)) for name, value in flat(recipe).items()]
            self.client.log_batch(run_id, params=params)
            self.client.log_dict(run_id, recipe.model_dump(mode="json"), "recipe.json")
        return run_id

    def reopen_run(self, run_id: str) -> bool:
        """Whether the run is still there; then it is open again, and what was left open below it is not."""
        try:
            run = self.client.get_run(run_id)
        except self.mlflow.exceptions.MlflowException:
            return False
        if run.info.lifecycle_stage != "active":
            return False
        self.client.update_run(run_id, status="RUNNING")
        below = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
        for left in self.client.search_runs([self.experiment_id], below, max_results=1000):
            self.client.set_terminated(left.info.run_id, "KILLED")
        return True

    def log_points(self, run_id: str, points: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Points (step, figures) on the curves of an open run, in as few calls as MLflow allows."""
        now = int(time.time() * 1000)
        metrics = [
            self.mlflow.entities.Metric(name, value, now, step)
            for step, figures in points
            for name, value in figures.items()
        ]
        for start in range(0, len(metrics), 1000):  # the most that one call takes
            self.client.log_batch(run_id, metrics=metrics[start : start + 1000])

    def close_run(self, run_id: str, status: str, tags: Mapping[str, str]) -> None:
        """End an open run as FINISHED, FAILED or KILLED."""
        self.client.log_batch(run_id, tags=[self.mlflow.entities.RunTag(*tag) for tag in tags.items()])
        self.client.set_terminated(run_id, status)

    def register(self, card: dict[str, Any], files: Mapping[str, bytes]) -> str:
        """A new version out of the current run: its ONNX model, the other files and a card that lists their checksums."""
        import onnx
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, SIZE, SIZE), "images")]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 10))]),
        )
        info = self.mlflow.onnx.log_model(
            onnx.load_model_from_string(files["model.onnx"]),
            name="model",
            signature=signature,
            pip_requirements=[f"{library}=={installed(library)}" for library in ("onnxruntime", "numpy")],
            save_as_external_data=False,
            onnx_execution_providers=["CPUExecutionProvider"],
        )
        checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        full_card = {**card, "files": checksums}
        with TemporaryDirectory() as folder:
            for name, content in {**files, "card.json": json.dumps(full_card, indent=2).encode()}.items():
                Path(folder, name).write_bytes(content)
            self.client.log_model_artifacts(info.model_id, folder)
        with suppress(self.mlflow.exceptions.MlflowException):  # it is there from the second version on
            self.client.create_registered_model(NAME, description="Handwritten-digit recognisers.")
        made = self.client.create_model_version(
            NAME, info.model_uri, run_id=card["run_id"], model_id=info.model_id, tags=_version_tags(card)
        )
        return str(made.version)

    def point(self, alias: str, version: str) -> None:
        """Move an alias; MLflow does this in one transaction."""
        self.client.set_registered_model_alias(NAME, alias, version)

    def tag_version(self, version: str, tags: Mapping[str, str]) -> None:
        """Facts kept beside a version."""
        for name, value in tags.items():
            self.client.set_model_version_tag(NAME, version, name, value)

    def version_tags(self, version: str) -> dict[str, str]:
        """What `tag_version` kept, and more."""
        return dict(self.client.get_model_version(NAME, version).tags)

    def open_runs(self) -> dict[str, dict[str, str]]:
        """The tags of each run that has not ended, by its id."""
        found = self.client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'", max_results=1000)
        return {run.info.run_id: dict(run.data.tags) for run in found}

    def trained_before(self, fingerprint: str, recipe: Recipe) -> str | None:
        """The newest version with the same data, recipe, code and libraries, whose weights would come out again."""
        wanted = inputs(fingerprint, recipe)
        found = [one for one in self.client.search_model_versions(f"name='{NAME}'") if one.tags.get("inputs") == wanted]
        return max((str(one.version) for one in found), key=int, default=None)


def flat(recipe: Recipe) -> dict[str, Any]:
    """The recipe as MLflow params: nested fields joined by a dot."""
    return flatten(recipe.model_dump(mode="json"))


def environment() -> dict[str, str]:
    """What besides recipe and data decides the weights: Python, processor and library versions."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        **{name: installed(name) for name in LIBRARIES},
    }


def _processor() -> str:
    """The model of the processor: compiled training loops differ by its instructions."""
    with suppress(OSError):
        models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if models:
            return str(models[0])
    return platform.processor()


def inputs(fingerprint: str, recipe: Recipe) -> str:
    """A SHA-256 of all that decides the weights: the data set, the recipe, our code and the libraries."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256(f"{fingerprint} {recipe.model_dump_json()} {json.dumps(environment())}".encode())
    for path in sorted([*(root / "digits").rglob("*.py"), *(root / "models").glob("*.py")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _version_tags(card: Mapping[str, Any]) -> dict[str, str]:
    return {
        "recipe": card["recipe"]["name"],
        "dataset": card["dataset"],
        "inputs": card["inputs"],
        "test_accuracy": f"{card['metrics']['test_accuracy']:.4f}",
    }


def git_commit() -> dict[str, str]:
    """The commit of the code, `+` where files differ from it; nothing outside a git checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_commit": commit + ("+" if changed else "")}


def _git(*words: str) -> str:
    root = Path(__file__).parent
    return subprocess.run(
        ["git", *words], cwd=root, check=True, capture_output=True, text=True, timeout=10
    ).stdout.strip()
