"""How fast `digits score` reads and answers a Kaggle `test.csv` of 28,000 rows, beside pandas and bare ONNX Runtime.

    python -m bench.scoring

The digits are MNIST's (DIGITS_MNIST) or the bundled ones, repeated to 28,000; the model is `compact` after one epoch. Every
figure is the best of five rounds in which all are measured in turn.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from digits.data import kaggle_csv, sources
from digits.images import PIXELS, Images, PredictProba
from digits.settings import load_settings
from models import export, recipes, scoring, training

ROWS = 28_000
ROUNDS = 5
# Relative to ONNX Runtime, once the CSV is read.
MIN_PREDICTING_RATIO = 0.4
# Relative to pandas.
MIN_READING_RATIO = 1.0


def main() -> None:
    """Measure and print the two ratios."""
    from models import onnx_model

    settings = load_settings()
    dataset = sources.read("mnist" if settings.mnist else "bundled", mnist=settings.mnist, cache=settings.downloads)
    model = training.fit(recipes.COMPACT.model_copy(update={"epochs": 1}), dataset).model
    # Keras cannot export a model that was never called.
    training.predict_proba(model, dataset.test.images[:1])
    onnx = export.to_onnx(model)
    images = np.resize(dataset.train.images, (ROWS, *dataset.train.images.shape[1:]))
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "test.csv"), Path(folder, "submission.csv")
        _write_kaggle(source, images)
        rows = _read(source)
        assert (np.concatenate([chunk[0] for chunk in rows]) == images).all()
        answer = onnx_model.load(onnx).predict_proba
        seconds = _race(
            {
                "pandas": lambda: _pandas(source),
                "reading": lambda: _read(source),
                "onnxruntime": _bare(onnx, images, threads=0),
                "onnxruntime, one thread": _bare(onnx, images, threads=1),
                "answering": lambda: _answer(rows, answer, source, target),
                "score": lambda: scoring.score(source, target, answer),
            }
        )
    _print(seconds)


def _print(seconds: dict[str, float]) -> None:
    bare = min(seconds["onnxruntime"], seconds["onnxruntime, one thread"])
    reading, answering = seconds["pandas"] / seconds["reading"], bare / seconds["answering"]
    print(f"{ROWS:,} rows, 784-128-64-10, best of {ROUNDS}")
    print(f"pandas.read_csv, engine pyarrow     {seconds['pandas']:7.3f} s")
    print(
        f"digits score: reading the CSV       {seconds['reading']:7.3f} s   {reading:.2f} × pandas (at least {MIN_READING_RATIO})"
    )
    print(f"ONNX Runtime alone, images in memory {bare:6.3f} s")
    ratio = f"{answering:.2f} × ONNX Runtime (at least {MIN_PREDICTING_RATIO})"
    print(f"digits score: predicting and writing {seconds['answering']:7.3f} s   {ratio}")
    print(f"digits score, the whole             {seconds['score']:7.3f} s   {ROWS / seconds['score']:,.0f} images/s")


def _write_kaggle(path: Path, images: Images) -> None:
    with path.open("w") as file:
        file.write(",".join(kaggle_csv.PIXEL_NAMES) + "\n")
        np.savetxt(file, images.reshape(ROWS, PIXELS), "%d", ",")


def _read(source: Path) -> list[scoring.Rows]:
    """Read as `digits score` reads, on all cores."""
    return list(scoring.in_threads(scoring.read, scoring.chunks(source)))


def _answer(rows: list[scoring.Rows], answer: PredictProba, source: Path, target: Path) -> None:
    """All that `digits score` does once the CSV is read."""

    def predict(chunk: scoring.Rows) -> scoring.Rows:
        return answer(chunk[0]).argmax(axis=1).astype(np.uint8), *chunk[1:]

    scoring.write(scoring.in_threads(predict, rows), source, target)


def _pandas(source: Path) -> None:
    import pandas as pd

    assert pd.read_csv(source, engine="pyarrow").shape == (ROWS, PIXELS)


def _bare(onnx: bytes, images: Images, threads: int) -> Callable[[], object]:
    """ONNX Runtime on so many threads (0: all cores), a thousand images at a time, which is faster than all at once."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: [session.run(None, {name: images[i : i + 1000]}) for i in range(0, ROWS, 1000)]


def _race(entries: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The best time of each, in seconds; taken in turn, so that a busy machine is busy for all."""
    best = dict.fromkeys(entries, float("inf"))
    for _ in range(ROUNDS):
        for name, run in entries.items():
            started = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


if __name__ == "__main__":
    main()
