"""`digits monitor` beside Evidently's own `DataDriftPreset` on the raw pixels: time, peak memory and size of the report.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.monitor

A champion is trained and answers MNIST's training images, shifted by two pixels so that the drift is also explained. Each report is
written in a process of its own. Of more than 10,000 answers `digits monitor` reads a random sample of 10,000; Evidently gets all.
"""

import argparse
import importlib
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from bench import harness
from digits.data import perturbations
from digits.data.datasets import Dataset
from digits.settings import Settings, load_settings
from digits.storage import database, predictions
from digits.storage.predictions import PredictionBatch, new_ids
from models.connections import Platform
from ops import process_environment

COUNTS = (1_000, 10_000, 100_000)
PER_BATCH = 4  # answers in a row of the log

# What the monitor and Evidently import while they work; `time after imports` is without it.
MONITOR_IMPORTS = (
    *("flows.monitor", "flows.version_history", "evidently.metrics", "evidently.ui.workspace", "pandas", "onnxruntime"),
    *("scipy.stats", "scipy.linalg", "sklearn.isotonic", "sklearn.covariance", "matplotlib.figure"),
    "matplotlib.backends.backend_agg",
)
EVIDENTLY_IMPORTS = ("evidently", "evidently.presets", "pandas", "scipy.stats")


def main() -> None:
    """Print a line for each report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--timeout", type=float, default=900, help="seconds that Evidently may take for a report")
    parser.add_argument("--child", choices=["report", "command", "evidently"], help=argparse.SUPPRESS)
    parser.add_argument("--arrays", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child == "report":
        report()
    elif arguments.child == "command":
        command()
    elif arguments.child == "evidently":
        data_drift_preset(arguments.arrays)
    else:
        measure(arguments.counts, arguments.timeout)


def measure(counts: list[int], timeout: float) -> None:
    from models import recipes

    dataset = harness.data()
    print(f"{'':<44}{'after imports':>14}{'command':>10}{'memory':>10}{'report':>10}")
    with harness.home() as settings, harness.mlflow(settings), harness.prefect(settings):
        harness.register(settings, recipes.find("compact"), dataset)
        for count in counts:
            url = f"sqlite:///{settings.home}/{count}.db"
            environment = {**process_environment.of_clients(settings), "DIGITS_DATABASE_URL": url}
            arrays = fill(settings, dataset, count, url)
            seconds = float(child("report", environment, arrays)[0])
            command, memory = map(float, child("command", environment, arrays))
            newest = max((settings.home / "reports").glob("*/report.html"), key=lambda path: path.stat().st_mtime)
            size = newest.stat().st_size
            line(f"digits monitor, {count:,} answers", f"{seconds:.1f} s", f"{command:.1f} s", memory, size)
            try:
                seconds, memory, size = map(float, child("evidently", environment, arrays, timeout))
            except subprocess.TimeoutExpired:
                print(
                    f"DataDriftPreset, 784 columns, {count:,} answers: not finished after {timeout:g} s",
                    flush=True,
                )
                continue
            line(f"DataDriftPreset, 784 columns, {count:,} answers", f"{seconds:.1f} s", "", memory, size)
    print("Of more than 10,000 answers `digits monitor` reads a random sample of 10,000.")


def line(name: str, seconds: str, command: str, memory_kib: float, size: float) -> None:
    print(f"{name:<44}{seconds:>14}{command:>10}{memory_kib / 1024:>7,.0f} MB{size / 1e6:>7.1f} MB", flush=True)


def fill(settings: Settings, dataset: Dataset, count: int, url: str) -> Path:
    """Log the champion's answers to shifted images since it was made, and return the file of these images and its reference."""
    model = Platform(settings).models.fetch()
    random = np.random.default_rng(0)
    rows = random.choice(len(dataset.train), count, replace=count > len(dataset.train))
    images = perturbations.shift(dataset.train.images[rows], 2)
    probabilities, scores = model.model.predict(images)
    start, engine = datetime.fromisoformat(model.card["created_at"]) + timedelta(seconds=1), database.connect(url)
    step = (datetime.now(UTC) - start) / (count / PER_BATCH)
    batches = (
        PredictionBatch(
            new_ids(len(images[n : n + PER_BATCH])),
            start + n // PER_BATCH * step,
            model.version,
            images[n : n + PER_BATCH],
            probabilities[n : n + PER_BATCH],
            "/classify",
            [f"client {client}" for client in random.integers(0, 200, len(images[n : n + PER_BATCH]))],
            None if scores is None else np.asarray(scores[n : n + PER_BATCH], np.float32),
        )
        for n in range(0, count, PER_BATCH)
    )
    predictions.append(engine, batches, audit_sample_rate=0.02)
    path = settings.home / "arrays.npz"
    np.savez(path, reference=model.reference.images, current=images)
    return path


def child(name: str, environment: dict[str, str], arrays: Path, timeout: float | None = None) -> list[str]:
    """The numbers that this module prints in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "bench.monitor", "--child", name, "--arrays", str(arrays)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=timeout)
    return done.stdout.split()


def command() -> None:
    """Print the seconds of `digits monitor` and its peak memory in KiB, which is not that of this process: the kernel would count it."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "ops", "monitor"], check=True, stderr=subprocess.DEVNULL)
    print(time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def report() -> None:
    """Print the seconds that the steps of the flow take without Prefect and after imports."""
    _import(MONITOR_IMPORTS)
    from flows import monitor, version_history

    started = time.perf_counter()
    platform, until = Platform(load_settings()), datetime.now(UTC)
    model = monitor.load(platform)
    window, notes = monitor.choose_window(platform, model, "24h", until)
    counted = version_history.count_traffic(platform, model.version, monitor.created_at(model), until)
    monitor.report(platform, model, window, notes, counted)
    print(time.perf_counter() - started)


def data_drift_preset(arrays: Path) -> None:
    """Print the seconds that Evidently's preset takes after imports, its peak memory in KiB and the bytes of its report."""
    _import(EVIDENTLY_IMPORTS)
    import pandas as pd
    from evidently import DataDefinition, Report
    from evidently import Dataset as Table
    from evidently.presets import DataDriftPreset

    with np.load(arrays) as file:
        pixels = [file[name].reshape(-1, 784) for name in ("current", "reference")]
    started = time.perf_counter()
    names = [f"pixel_{n}" for n in range(784)]
    definition = DataDefinition(numerical_columns=names)
    current, reference = (Table.from_pandas(pd.DataFrame(values, columns=names), definition) for values in pixels)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        Report([DataDriftPreset()], include_tests=True).run(current, reference).save_html(str(path))
        print(time.perf_counter() - started, _peak_kib(), path.stat().st_size)


def _peak_kib() -> int:
    """Of this program; `getrusage` includes that of the process that started it."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def _import(names: tuple[str, ...]) -> None:
    with warnings.catch_warnings(action="ignore"):
        for name in names:
            importlib.import_module(name)


if __name__ == "__main__":
    main()
