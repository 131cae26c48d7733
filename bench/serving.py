"""How fast the service answers, beside the same model in other servers, how soon it is ready and how much memory it takes.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.serving

One run on the loopback interface, every server with one worker, the load from one thread of wrk (Debian: `apt-get install wrk`). Our
service polls MLflow, logs to SQLite and counts its metrics. All servers run at the same time and are measured in turn for several
rounds; each ratio is the median over the rounds, so that a busy machine slows all of them. The model is `compact` after two
epochs: 784-128-64-10.
"""

import argparse
import io
import json
import os
import shutil
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import psutil
from PIL import Image

from bench import harness
from bench.harness import Load
from digits.images import Images
from digits.pictures import rectification
from digits.settings import Settings
from models.recipes import COMPACT
from ops import process_environment

CONNECTIONS = 8
BULK_IMAGES = 1_000
SOAK_REQUESTS = 100_000
# Bulk: by the share of the answers that is logged.
MIN_RATIOS = {"bare": 0.65, "mlflow": 5.0, "1": 0.25, "0.01": 0.5}
MAX_READY_SECONDS, MAX_MEGABYTES = 5.0, 300


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    arguments = parser.parse_args()
    dataset = harness.data()
    images = dataset.test.images
    with harness.home() as settings, harness.mlflow(settings):
        version = harness.register(settings, COMPACT.model_copy(update={"epochs": 2}), dataset)
        files = fetch(settings, version)
        print(f"{psutil.cpu_count()} cores, load before {psutil.getloadavg()[0]:.1f}", flush=True)
        single_image(settings, files, images, arguments.rounds, arguments.seconds)
        files_and_bulk(settings, files, images, arguments.rounds, arguments.seconds)
        readiness(settings)
        memory(settings, images)


def fetch(settings: Settings, version: str) -> Path:
    """A folder with model.onnx and model.keras of the version."""
    for name in ("model.onnx", "model.keras"):
        parameters = {"name": "digits", "version": version, "path": name}
        answer = httpx.get(f"{settings.registry_uri}/model-versions/get-artifact", params=parameters, timeout=30)
        (settings.home / name).write_bytes(answer.raise_for_status().content)
    return settings.home


def single_image(settings: Settings, files: Path, images: Images, rounds: int, seconds: int) -> None:
    """One image as JSON, 8 connections: ours, bare, `mlflow models serve`, FastAPI with `model.predict`."""
    ours = harness.script(files, "ours", json.dumps({"images": images[0].tolist()}).encode(), "application/json")
    theirs = harness.script(files, "mlflow", json.dumps({"inputs": [images[0].tolist()]}).encode(), "application/json")
    with ExitStack() as servers:
        urls = {
            "ours": (f"{settings.service_url}/classify", ours),
            "bare": (servers.enter_context(peer("bare", files / "model.onnx")), ours),
            "mlflow": (servers.enter_context(mlflow_models_serve(files)), theirs),
            "keras": (servers.enter_context(peer("keras", files / "model.keras")), ours),
        }
        servers.enter_context(harness.service(settings))
        agree(urls)
        loads: dict[str, list[Load]] = {name: [] for name in urls}
        for url, script in urls.values():
            harness.wrk(url, script, 1, CONNECTIONS)
        for _ in range(rounds):
            for name, (url, script) in urls.items():
                loads[name].append(harness.wrk(url, script, seconds, CONNECTIONS))
    print(f"one image as JSON, {CONNECTIONS} connections, median of {rounds} rounds of {seconds:g} s")
    titles = {
        "ours": "digits: log and metrics on",
        "bare": "bare Starlette + ONNX Runtime",
        "mlflow": "mlflow models serve",
        "keras": "FastAPI + model.predict",
    }
    for name, title in titles.items():
        ratio = statistics.median(
            our.requests_per_second / their.requests_per_second
            for our, their in zip(loads["ours"], loads[name], strict=True)
        )
        wanted = f" (at least {MIN_RATIOS[name]:g})" if name in MIN_RATIOS else ""
        print(
            f"  {title:31}{median_load(loads[name])}" + (f"   ours is {ratio:.2f} ×{wanted}" if name != "ours" else "")
        )
    sys.stdout.flush()


def agree(urls: dict[str, tuple[str, Path]]) -> None:
    """Raises AssertionError when two servers give different answers."""
    probabilities = {}
    for name, (url, script) in urls.items():
        body = script.with_suffix(".body").read_bytes()
        answer = httpx.post(url, content=body, headers={"Content-Type": "application/json"}, timeout=60).json()
        # MLflow names the model's output and returns a list of images.
        if name == "mlflow":
            answer = {"probabilities": answer["predictions"]["probabilities"][0]}
        probabilities[name] = answer["probabilities"]
    for name, values in probabilities.items():
        if not np.allclose(values, probabilities["ours"], atol=1e-4):
            raise AssertionError(f"{name} answers {values}, and digits {probabilities['ours']}")


@contextmanager
def peer(kind: str, model: Path) -> Iterator[str]:
    """A running server of bench/peers.py; gives its address."""
    port = harness.free_port()
    command = [sys.executable, "-m", "bench.peers", kind, str(model), str(port)]
    with harness.running(command, model.parent / f"{kind}.log", lambda: listens(port)):
        yield f"http://127.0.0.1:{port}/classify"


@contextmanager
def mlflow_models_serve(files: Path) -> Iterator[str]:
    """`mlflow models serve` of the same ONNX model; gives its address."""
    import mlflow
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, 28, 28))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 10))]),
    )
    mlflow.onnx.save_model(
        onnx.load(files / "model.onnx"),
        files / "served",
        signature=signature,
        pip_requirements=["onnxruntime"],
        save_as_external_data=False,
        onnx_execution_providers=["CPUExecutionProvider"],
    )
    port = harness.free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "models", "serve", "-m", str(files / "served"), "-p", str(port)),
        *("--env-manager", "local", "--workers", "1"),
    ]
    # It looks for uvicorn on the PATH.
    environment = {
        **os.environ,
        **process_environment.ENVIRONMENT,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    url = f"http://127.0.0.1:{port}"
    with harness.running(command, files / "served.log", lambda: harness.answers(f"{url}/ping"), environment):
        yield f"{url}/invocations"


def listens(port: int) -> bool:
    """Whether a server accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def files_and_bulk(settings: Settings, files: Path, images: Images, rounds: int, seconds: int) -> None:
    """Uploaded pictures, and raw bytes beside ONNX Runtime alone, whose images are in memory already."""
    url = settings.service_url
    small = harness.script(files, "small", png(images[0]), "image/png")
    large = harness.script(files, "large", drawing(images[0]), "image/png")
    many = np.resize(images, (BULK_IMAGES, *images.shape[1:]))
    bulk = harness.script(files, "bulk", many.tobytes(), "application/octet-stream")
    with harness.service(settings):
        print(f"  /classify_file, 28 x 28 PNG    {harness.wrk(f'{url}/classify_file', small, seconds, CONNECTIONS)}")
        print(f"  /classify_file, 400 x 400 PNG  {harness.wrk(f'{url}/classify_file', large, seconds, CONNECTIONS)}")
    decoding(drawing(images[0]), rounds)
    alone: list[float] = []
    print(f"/classify_bulk, {BULK_IMAGES:,} images a request, 2 connections, beside ONNX Runtime alone")
    for share in ("1", "0.01"):
        ratios, loads = [], []
        with harness.service(settings, DIGITS_BULK_LOG_SAMPLE_RATE=share):
            for _ in range(rounds):
                loads.append(harness.wrk(f"{url}/classify_bulk", bulk, seconds, 2))
                alone.append(max(onnxruntime_alone(files, many, threads) for threads in (0, 1)))
                ratios.append(loads[-1].requests_per_second * BULK_IMAGES / alone[-1])
        speed = statistics.median(load.requests_per_second for load in loads) * BULK_IMAGES
        failed = sum(load.failed for load in loads)
        print(
            f"  {float(share):4.0%} of the answers logged   {speed:9,.0f} images/s, {failed} failed"
            f"   {statistics.median(ratios):.2f} × ONNX Runtime alone (at least {MIN_RATIOS[share]:g})"
        )
    print(f"  ONNX Runtime alone          {statistics.median(alone):9,.0f} images/s", flush=True)


def decoding(picture: bytes, rounds: int) -> None:
    """Processor time of making the 28 x 28 image of a picture, in turn with opening it as grey pixels."""
    rectification.use_one_thread()
    opened, decoded = [], []
    for _ in range(rounds):
        opened.append(cpu_seconds(lambda: np.asarray(Image.open(io.BytesIO(picture)).convert("L"))))
        decoded.append(cpu_seconds(lambda: rectification.decode(picture)))
    ratio = statistics.median(one / other for one, other in zip(decoded, opened, strict=True))
    print(
        f"  400 x 400 PNG to 28 x 28 alone {1 / statistics.median(decoded):8,.0f} pictures/s of a core"
        f"   {ratio:.1f} × the time of Pillow's open and convert",
        flush=True,
    )


def cpu_seconds(operation: Callable[[], object], count: int = 50) -> float:
    """Processor time of a call, mean of so many."""
    operation()
    started = time.process_time()
    for _ in range(count):
        operation()
    return (time.process_time() - started) / count


def onnxruntime_alone(files: Path, images: Images, threads: int, seconds: float = 1) -> float:
    """Images per second of the session in a loop; 0 threads: all cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(files / "model.onnx", options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    session.run(None, {name: images})
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        session.run(None, {name: images})
        count += len(images)
    return count / (time.perf_counter() - started)


def png(image: Images) -> bytes:
    """A file of this picture."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def drawing(image: Images) -> bytes:
    """The digit large, dark on light and off-centre, as a drawing."""
    paper = np.full((400, 400), 255, np.uint8)
    paper[90:370, 40:320] = 255 - np.asarray(Image.fromarray(image).resize((280, 280), Image.Resampling.BICUBIC))
    return png(paper)


def readiness(settings: Settings) -> None:
    """From starting the process to the first 200 of /readyz, with a champion that has to be fetched."""
    seconds = []
    for _ in range(3):
        shutil.rmtree(settings.champions, ignore_errors=True)
        started = time.perf_counter()
        with harness.service(settings):
            seconds.append(time.perf_counter() - started)
    print(f"ready after {statistics.median(seconds):.1f} s, median of 3 (at most {MAX_READY_SECONDS:g})", flush=True)


def memory(settings: Settings, images: Images) -> None:
    """Resident memory of the worker while it answers many single images."""
    script = harness.script(
        settings.home, "soak", json.dumps({"images": images[0].tolist()}).encode(), "application/json"
    )
    with harness.service(settings) as parent:
        done = 0.0
        print(f"resident memory of the worker (at most {MAX_MEGABYTES} MB), and of the process that started it")
        print(f"  before the first request     {resident(parent)}")
        counts = [SOAK_REQUESTS / 10, SOAK_REQUESTS / 2, SOAK_REQUESTS]
        while counts:
            done += harness.wrk(f"{settings.service_url}/classify", script, 3, CONNECTIONS).requests_per_second * 3
            if done >= counts[0]:
                counts.pop(0)
                print(f"  after {done:9,.0f} requests     {resident(parent)}", flush=True)


def resident(parent: psutil.Process) -> str:
    worker = max(process.memory_info().rss for process in parent.children(recursive=True))
    return f"{worker / 1e6:4.0f} MB and {parent.memory_info().rss / 1e6:.0f} MB"


def median_load(loads: list[Load]) -> Load:
    """The round in the middle by requests per second."""
    return sorted(loads, key=lambda load: load.requests_per_second)[len(loads) // 2]


if __name__ == "__main__":
    main()
