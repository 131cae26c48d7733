"""MLflow runs read back, found by version or id, with their tags, params, metrics and JSON files."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from models.registry import RegistryWriter
from models.registry_reader import MODEL_NAME


@dataclass(frozen=True)
class Run:
    """An MLflow run of one training."""

    id: str
    version: str | None  # registered from it
    status: str  # FINISHED, FAILED, RUNNING, …
    started_at: datetime  # UTC
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]

    @property
    def title(self) -> str:
        """Such as `digits v3 (run 1a2b3c4d)`, or without a version `run 1a2b3c4d`."""
        return f"digits v{self.version} (run {self.id[:8]})" if self.version else f"run {self.id[:8]}"


def find(registry: RegistryWriter, text: str) -> Run:
    """The run behind a version (`3`, `v3`) or under an id or the beginning of one; raises LookupError."""
    versions = _versions(registry)
    number = re.fullmatch(r"v?(\d+)", text)
    ids = [run_id for run_id, version in versions.items() if number and version == number[1]]
    if not ids and re.fullmatch("[0-9a-f]{1,32}", text):
        ids = [run.id for run in _all(registry, versions) if run.id.startswith(text)]
    if not ids:
        newest = max(versions.values(), key=int, default=None)
        known = f"the newest version is v{newest}" if newest else "there is no version yet"
        raise LookupError(f"there is no version and no run {text!r} in {registry.uri}; {known}")
    if len(ids) > 1:
        raise LookupError(f"{len(ids)} runs begin with {text!r}: {', '.join(sorted(ids)[:3])}; give more of the id")
    return _run(registry.client.get_run(ids[0]), versions)


def finished(registry: RegistryWriter) -> list[Run]:
    """All evaluated runs, newest first; of those nested in another run, only those with a version."""
    return [
        run
        for run in _all(registry, _versions(registry))
        if run.status == "FINISHED"
        and "test_accuracy" in run.metrics
        and (run.version or "mlflow.parentRunId" not in run.tags)
    ]


def read_json(registry: RegistryWriter, run: Run, name: str) -> dict[str, Any]:
    """A JSON file of the run; raises LookupError when it has none of that name."""
    with TemporaryDirectory() as folder:
        try:
            path = registry.client.download_artifacts(run.id, name, folder)
        except (registry.mlflow.exceptions.MlflowException, OSError) as error:
            raise LookupError(f"{run.title} has no {name}; it ended as {run.status}") from error
        content: dict[str, Any] = json.loads(Path(path).read_bytes())
        return content


def _all(registry: RegistryWriter, versions: Mapping[str, str]) -> list[Run]:
    """Every run of the experiment, newest first."""
    runs: list[Run] = []
    token = None
    while True:
        page = registry.client.search_runs([registry.experiment_id], max_results=1000, page_token=token)
        runs += [_run(run, versions) for run in page]
        token = page.token
        if not token:
            return runs


def _versions(registry: RegistryWriter) -> dict[str, str]:
    """The version registered from each run, by run id."""
    found: Sequence[Any] = registry.client.search_model_versions(f"name='{MODEL_NAME}'", max_results=10_000)
    return {str(version.run_id): str(version.version) for version in found}


def _run(run: Any, versions: Mapping[str, str]) -> Run:
    return Run(
        id=run.info.run_id,
        version=versions.get(run.info.run_id),
        status=run.info.status,
        started_at=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        tags=run.data.tags,
        params=run.data.params,
        metrics=run.data.metrics,
    )
