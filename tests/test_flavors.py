"""A registered version opens with MLflow's own tools: as a Keras and an ONNX model, as a Python function, and behind `mlflow models serve`."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from conftest import Runs, find_free_port, post, wait_until_healthy
from numpy.typing import NDArray

from digits.images import Images
from models import digits_pyfunc
from models.model_store import ModelStore
from models.onnx_model import Output
from models.registry import ENVIRONMENT, RegistryWriter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CHAMPION = "models:/digits@champion"


@pytest.fixture(scope="module")
def writer(trained_runs: Runs) -> Iterator[RegistryWriter]:
    """A registry whose champion is the first version."""
    writer = RegistryWriter(trained_runs.uri)
    writer.set_alias("champion", trained_runs.first)
    yield writer
    writer.remove_alias("champion")


@pytest.fixture(autouse=True)
def tracking_uri(writer: RegistryWriter) -> None:
    mlflow.set_tracking_uri(writer.uri)


@pytest.fixture(scope="module")
def images(bundled: Any) -> Images:
    """Raw images as the service gets them."""
    return bundled.test.images[:5]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def served(trained_runs: Runs, images: Images) -> Output:
    """What the service answers to the images."""
    return ModelStore(trained_runs.uri, trained_runs.champions).fetch_version(trained_runs.first).model.predict(images)


def test_keras_loads_the_model(images: Images, served: Output) -> None:
    answered = mlflow.keras.load_model(CHAMPION).predict(images, verbose=0)
    np.testing.assert_allclose(answered["probabilities"], served.probabilities, atol=1e-5)
    np.testing.assert_allclose(answered["digit_score"], served.digit_scores, rtol=1e-4, atol=1e-4)


def test_onnx_loads_the_file_that_is_served(trained_runs: Runs) -> None:
    model = mlflow.onnx.load_model(CHAMPION)
    assert {output.name for output in model.graph.output} == {"probabilities", "digit_score"}
    served = ModelStore(trained_runs.uri, trained_runs.champions).fetch_version(trained_runs.first).model.content
    assert model.SerializeToString() == served


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(lambda images: images, id="uint8"),
        pytest.param(lambda images: images.tolist(), id="nested list"),
        pytest.param(lambda images: images[0], id="single image"),
        pytest.param(lambda images: images[0].tolist(), id="single list"),
        pytest.param(lambda images: {"images": images}, id="named"),
        pytest.param(lambda images: images.reshape(-1, 784).astype(np.float64), id="rows of numbers"),
    ],
)
def test_pyfunc_answers(given: Any, images: Images, served: Output) -> None:
    answered = mlflow.pyfunc.load_model(CHAMPION).predict(given(images))
    expected = served.probabilities[: len(answered["probabilities"])]
    np.testing.assert_allclose(answered["probabilities"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((2, 28, 27), np.uint8), r"expected images of shape .*, got uint8 \(2, 28, 27\)"),
        (np.zeros((2, 3, 784), np.uint8), r"expected images of shape .*, got uint8 \(2, 3, 784\)"),
        (np.zeros((0, 28, 28), np.uint8), r"got uint8 \(0, 28, 28\)"),
        (np.full((1, 28, 28), 0.5), r"expected whole numbers from 0 to 255, got float64 from 0.5 to 0.5"),
        (np.full((28, 28), 256), r"got int64 from 256 to 256"),
        (np.full((28, 28), np.nan), r"got float64 from nan"),
        ([[["0"] * 28] * 28], r"expected whole numbers from 0 to 255"),
    ],
)
def test_pyfunc_refuses(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digits_pyfunc.as_images(wrong)


def test_signature_and_example_name_what_goes_in_and_comes_out(images: Images) -> None:
    model = mlflow.pyfunc.load_model(CHAMPION)
    (taken,), (probabilities, digit_score) = model.metadata.signature.inputs.inputs, model.metadata.signature.outputs
    assert (taken.name, taken.type, taken.shape) == ("images", np.dtype("uint8"), (-1, 28, 28))
    assert (probabilities.name, probabilities.type, probabilities.shape) == ("probabilities", "float32", (-1, 10))
    assert (digit_score.name, digit_score.shape) == ("digit_score", (-1,))
    example = model.input_example["images"]
    assert example.shape == (2, 28, 28) and example.any()
    assert set(model.predict(model.input_example)) == {"probabilities", "digit_score"}


def test_the_logged_model_has_the_metrics_and_params_of_its_run(writer: RegistryWriter, trained_runs: Runs) -> None:
    version = writer.client.get_model_version("digits", trained_runs.first)
    (output,) = writer.client.get_run(version.run_id).outputs.model_outputs
    model = writer.client.get_logged_model(output.model_id)
    accuracy = writer.client.get_metric_history(version.run_id, "test_accuracy")
    assert {metric.key: metric.value for metric in model.metrics}["test_accuracy"] == accuracy[0].value
    assert len(accuracy) == 1 and model.params["epochs"] == "2" and version.source == f"models:/{output.model_id}"


def test_mlflow_serves_the_champion(
    trained_runs: Runs, writer: RegistryWriter, images: Images, served: Output, tmp_path: Path
) -> None:
    port = find_free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["models", "serve", "-m", CHAMPION, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    # MLflow starts `uvicorn`, which an environment that is not activated has on no path.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, **ENVIRONMENT, "MLFLOW_TRACKING_URI": writer.uri, "PATH": path}
    with (tmp_path / "server.log").open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until_healthy(f"{url}/ping", server, tmp_path / "server.log")

            def ask(inputs: Any) -> NDArray[np.float64]:
                answer = post(f"{url}/invocations", json={"inputs": inputs}).raise_for_status()
                return np.array(answer.json()["predictions"]["probabilities"])

            for inputs in (images.tolist(), {"images": images.tolist()}):
                np.testing.assert_allclose(ask(inputs), served.probabilities, atol=1e-5)
            np.testing.assert_allclose(ask(images[0].tolist()), served.probabilities[:1], atol=1e-5)
            refused = post(f"{url}/invocations", json={"inputs": [[300] * 28] * 28})
            assert refused.status_code == 400 and "from 300 to 300" in refused.text
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)
