"""Data sets and versions on S3: a second machine gets at them, and only as they were stored."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import Files, find_free_port, wait_until_healthy
from serving import classify, serving

from digits import reference
from digits.data import bucket, datasets, sources
from digits.data.datasets import BadData, Dataset
from digits.settings import Bucket, Settings
from flows import sweep
from models.model_store import ModelStore
from models.recipes import COMPACT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

URL = "s3://digits/some/prefix"


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return sources.read("bundled", mnist=None, cache=tmp_path_factory.mktemp("downloads"))


@pytest.fixture
def here(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path / "here", URL)


@pytest.fixture
def there(tmp_path: Path) -> Bucket:
    """Another machine with the same bucket."""
    return Bucket(tmp_path / "there", URL)


def keys(s3: Any) -> list[str]:
    return [one["Key"] for one in s3.list_objects_v2(Bucket="digits").get("Contents", [])]


def test_another_machine_gets_the_same_data_set_and_starts_from_it(
    s3: Any, bundled: Dataset, here: Bucket, there: Bucket
) -> None:
    assert datasets.current(there) is None
    fingerprint = datasets.save(bundled, here).name
    datasets.set_current(here, fingerprint)
    assert keys(s3) == [
        "some/prefix/current",
        f"some/prefix/{fingerprint}/arrays.npz",
        f"some/prefix/{fingerprint}/manifest.json",
    ]
    assert datasets.current(there) == fingerprint
    assert datasets.manifest(there, fingerprint) == datasets.manifest(here, fingerprint)
    fetched = datasets.load(there, fingerprint)
    assert fetched.fingerprint == fingerprint and np.array_equal(fetched.train.images, bundled.train.images)
    for key in keys(s3):
        s3.delete_object(Bucket="digits", Key=key)
    assert datasets.load(there, fingerprint).fingerprint == fingerprint  # it has its own copy now


def test_what_was_changed_in_the_bucket_is_refused_and_not_kept(
    s3: Any, bundled: Dataset, here: Bucket, there: Bucket
) -> None:
    path = datasets.save(bundled, here)
    arrays = bundled.arrays()
    labels = arrays["train_labels"].copy()
    labels[0] = (labels[0] + 1) % 10
    changed = io.BytesIO()
    np.savez(changed, **{**arrays, "train_labels": labels})  # type: ignore[arg-type]  # as in digits.data.datasets
    key = f"some/prefix/{path.name}/arrays.npz"
    for content in (changed.getvalue(), changed.getvalue()[:1000]):
        s3.put_object(Bucket="digits", Key=key, Body=content)
        with pytest.raises(BadData, match=f"the data set {path.name} in {URL} is not what was stored there: "):
            datasets.load(there, path.name)
        assert [one.name for one in there.folder.iterdir()] == [".lock"]


def test_an_upload_that_was_cut_off_is_not_there_and_is_done_again(
    s3: Any, bundled: Dataset, here: Bucket, there: Bucket
) -> None:
    path = datasets.save(bundled, here)
    s3.delete_object(Bucket="digits", Key=f"some/prefix/{path.name}/manifest.json")
    with pytest.raises(BadData, match=f"there is no data set {path.name} in {there.folder} or {URL}; ingest it again"):
        datasets.load(there, path.name)
    datasets.save(bundled, here)
    assert datasets.load(there, path.name).fingerprint == path.name


def test_a_machine_that_worked_alone_brings_its_current_data_set(
    s3: Any, bundled: Dataset, here: Bucket, there: Bucket
) -> None:
    fingerprint = datasets.save(bundled, here.folder).name
    datasets.set_current(here.folder, fingerprint)
    assert datasets.current(here) == fingerprint
    assert datasets.current(there) == fingerprint
    assert sweep.load_once(there, fingerprint).fingerprint == fingerprint  # as the worker of a sweep does


def test_a_bucket_that_is_missing_or_does_not_answer_is_named(
    s3: Any, bundled: Dataset, here: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConnectionError, match=r"the data sets in s3://nowhere are unreachable .*NoSuchBucket"):
        datasets.save(bundled, Bucket(here.folder, "s3://nowhere"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{find_free_port()}")
    bucket._client.cache_clear()
    with pytest.raises(ConnectionError, match="Could not connect to the endpoint URL"):
        datasets.current(here)


def test_the_setting_puts_the_bucket_behind_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path))
    monkeypatch.setenv("DIGITS_DATASETS_URL", f"{URL}/")
    assert Settings().datasets == Bucket(tmp_path / "datasets", URL)
    monkeypatch.setenv("DIGITS_DATASETS_URL", "https://digits/datasets")
    with pytest.raises(ValueError, match="expected a bucket like s3://digits/datasets, got 'https://digits/datasets'"):
        Settings()


def test_a_version_on_s3_reaches_the_service_through_mlflow_alone(
    s3: Any,
    bundled: Dataset,
    here: Bucket,
    champion_files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MLflow's server has the credentials; who registers and who serves talks to MLflow and nothing else."""
    from models.registry import RegistryWriter
    from ops.process_environment import ENVIRONMENT

    datasets.save(bundled, here)
    port = find_free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", "s3://digits/artifacts"),
    ]
    uri = f"http://127.0.0.1:{port}"
    with (tmp_path / "server.log").open("wb") as output:
        server = subprocess.Popen(
            command, env={**os.environ, **ENVIRONMENT}, cwd=tmp_path, stdout=output, stderr=output
        )
    try:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        wait_until_healthy(f"{uri}/health", server, tmp_path / "server.log")
        registry = RegistryWriter(uri)
        card = json.loads(champion_files["card.json"])
        with registry.run(COMPACT, datasets.manifest(here, bundled.fingerprint), bundled, {}) as run_id:
            facts = {"run_id": run_id, "experiment_id": registry.experiment_id, "inputs": "none"}
            files = {name: content for name, content in champion_files.items() if name != "card.json"}
            version = registry.register({**card, **facts}, files)
        registry.set_alias("champion", version)
        inputs = [given.dataset for given in registry.client.get_run(run_id).inputs.dataset_inputs]
        assert {given.source_type for given in inputs} == {"s3"}
        assert {json.loads(given.source)["uri"] for given in inputs} == {f"{URL}/{bundled.fingerprint}/arrays.npz"}
        stored = [key for key in keys(s3) if key.startswith("artifacts/")]
        assert {"model.onnx", "reference.npz", "card.json"} <= {key.rsplit("/", 1)[1] for key in stored}
        fetched = ModelStore(uri, tmp_path / "champions").fetch()
        sample = reference.from_bytes(champion_files["reference.npz"])
        assert np.allclose(fetched.predict_proba(sample.images), sample.probabilities, atol=1e-5)
        with serving(tmp_path / "service", cast(Any, SimpleNamespace(uri=uri))) as service:
            service.wait_for(lambda: service.status("/readyz") == 200, seconds=60)
            assert classify(service, sample.images[0])["digit"] == sample.probabilities[0].argmax()
            assert service.version() == version
    finally:
        server.terminate()
        server.wait(30)
