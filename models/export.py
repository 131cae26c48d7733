"""Export of a Keras model to ONNX, the file that is served, with a check that both predict the same."""

import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits.images import Images

OPSET = 17  # newest that tf2onnx 1.17 and every ONNX Runtime since 1.12 know
TOLERANCE = 1e-5  # of probabilities; float32 kernels differ by about 1e-6


def to_onnx(model: Any) -> bytes:
    """The ONNX file of a Keras model that takes (n, 28, 28) `uint8` images, for any n."""
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "In the future `np.object`", FutureWarning)  # Keras 3.15 asks numpy for it
        path = Path(folder) / "model.onnx"
        model.export(path, format="onnx", verbose=False, opset_version=OPSET)
        return path.read_bytes()


def to_keras(model: Any) -> bytes:
    """The `.keras` file of a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.read_bytes()


def to_npy(array: NDArray[Any]) -> bytes:
    """The content of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def check_equal(exported: NDArray[np.float32], expected: NDArray[np.float32], images: Images) -> float:
    """The largest difference of two models' probabilities on the same images; raises ValueError above the tolerance."""
    difference = float(np.abs(exported - expected).max())
    if not difference < TOLERANCE:
        found = f"{difference:.2g} on {len(images)} images"
        raise ValueError(f"the ONNX export differs from the Keras model by {found}, allowed is {TOLERANCE:g}")
    return difference
