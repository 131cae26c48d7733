"""The model behind `mlflow.pyfunc` and `mlflow models serve`; each version has a copy of this file, which needs NumPy and ONNX Runtime only."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

INPUT = "images"


class DigitsModel:
    """A model that answers images of 28 by 28 pixels from 0, paper, to 255, ink, as arrays, nested lists or rows of a data frame."""

    def __init__(self, path: str) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> dict[str, NDArray[np.float32]]:
        """The outputs of the model by name, one row for each image; a single image is a batch of one.

        Raises ValueError unless the data, or what it holds as `images`, are images of whole numbers from 0 to 255.
        """
        feed = {self._session.get_inputs()[0].name: as_images(data)}
        return dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))


def as_images(data: Any) -> NDArray[np.uint8]:
    """Images, (n, 28, 28), of data in the shape (28, 28), (n, 28, 28), (784,) or (n, 784); raises ValueError for anything else."""
    pixels = np.asarray(data[INPUT] if isinstance(data, Mapping) and INPUT in data else data)
    is_square, is_row = (
        pixels.ndim in (2, 3) and pixels.shape[-2:] == (28, 28),
        pixels.ndim in (1, 2) and pixels.shape[-1] == 784,
    )
    if pixels.size == 0 or not (is_square or is_row):
        raise ValueError(f"expected images of shape (n, 28, 28) or (28, 28), got {pixels.dtype} {pixels.shape}")
    if pixels.dtype.kind not in "uif":
        raise ValueError(f"expected whole numbers from 0 to 255, got {pixels.dtype}")
    with np.errstate(invalid="ignore"):
        whole = pixels.astype(np.uint8)
    if not np.array_equal(whole, pixels):
        raise ValueError(
            f"expected whole numbers from 0 to 255, got {pixels.dtype} from {pixels.min()} to {pixels.max()}"
        )
    return whole.reshape(-1, 28, 28)


def _load_pyfunc(path: str) -> DigitsModel:
    """What MLflow calls with the path of model.onnx."""
    return DigitsModel(path)
