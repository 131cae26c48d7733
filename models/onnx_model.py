"""An ONNX model that answers raw uint8 images; needs neither MLflow nor Keras."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from digits.errors import first_line
from digits.images import Images

BATCH_SIZE = 256  # images per run of the session: what lies between its layers stays in the cache of a core
# A folder that cannot exist, so that a model cannot read its weights from files of this machine. Without it, ONNX Runtime reads those
# below the working directory, and refuses absolute paths and those with `..` only.
EXTERNAL_DATA = ("session.model_external_initializers_file_folder_path", "/dev/null/none")


class InvalidArtifact(ValueError):
    """A version whose files are missing, damaged, or do not answer as they did when it was registered."""


class InferenceFailed(RuntimeError):
    """The session failed, or its output is not ten probabilities for each image."""


@dataclass(frozen=True)
class OnnxModel:
    """An open session; it can be pickled and sent to another process."""

    content: bytes = field(repr=False)  # of the ONNX file, which the session holds, too
    session: onnxruntime.InferenceSession
    input_name: str

    def __reduce__(self) -> "tuple[Callable[[bytes], OnnxModel], tuple[bytes]]":
        return load, (self.content,)

    def predict_proba(self, images: Images) -> NDArray[np.float32]:
        """Probabilities (n, 10) of uint8 images (n, 28, 28); raises InferenceFailed."""
        if len(images) <= BATCH_SIZE:
            return self._run(images)
        batches = (images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE))
        return np.concatenate([self._run(batch) for batch in batches])

    def _run(self, images: Images) -> NDArray[np.float32]:
        try:
            probabilities: NDArray[np.float32] = self.session.run(None, {self.input_name: images})[0]
            shape = probabilities.shape
        # ONNX Runtime's exceptions have no other common class.
        except Exception as error:
            raise InferenceFailed(first_line(error)) from error
        if shape != (len(images), 10):
            raise InferenceFailed(f"expected probabilities of shape ({len(images)}, 10), got {shape}")
        return probabilities


def load(content: bytes) -> OnnxModel:
    """A model from the bytes of an ONNX file, on one thread: a service scales by its workers.

    Raises InvalidArtifact unless it is an ONNX model that holds all its weights.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry(*EXTERNAL_DATA)
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's exceptions have no other common class.
    except Exception as error:
        raise InvalidArtifact(f"model.onnx does not load: {first_line(error)}") from error
    return OnnxModel(content, session, session.get_inputs()[0].name)
