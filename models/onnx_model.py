"""An ONNX model that answers raw uint8 images; needs neither MLflow nor Keras."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from digits.errors import first_line
from digits.images import Images

BATCH_SIZE = 256  # images per run of the session: what lies between its layers stays in the cache of a core
# A folder that cannot exist, so that a model cannot read its weights from files of this machine. Without it, ONNX Runtime reads those
# below the working directory, and refuses absolute paths and those with `..` only.
EXTERNAL_DATA = ("session.model_external_initializers_file_folder_path", "/dev/null/none")
# An ONNX graph can loop without an end for some images only. A single image in a loop delays `/livez`, whose probes wait 5 s, twice at most.
RUN_LIMIT_SECONDS = 2.0
RUN_LIMIT_SECONDS_PER_IMAGE = 0.02  # the gate's longest time for one image
WATCHDOG_SECONDS = 0.1
PROBABILITIES, DIGIT_SCORE = "probabilities", "digit_score"  # names of the outputs
MIN_SUM, MAX_SUM = 0.999, 1.001  # of the ten probabilities of an image
_ONES = np.ones(10, np.float32)


class InvalidArtifact(ValueError):
    """A version whose files are missing, damaged, or do not answer as they did when it was registered."""


class InferenceFailed(RuntimeError):
    """The session failed, took too long, or its output is not ten probabilities for each image."""


class _Watchdog:
    """Ends the runs that exceed their limit, from one thread for all sessions of the process.

    ONNX Runtime looks for this between two operators of a model, such as those in a loop: an operator that runs long is not ended.
    """

    def __init__(self) -> None:
        self._deadlines: dict[onnxruntime.RunOptions, float] = {}
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def start(self, seconds: float) -> onnxruntime.RunOptions:
        """Options for a run that is ended at the first operator after so many seconds; `stop` follows it."""
        # A forked process has no threads but the one that forked it.
        if self._thread is None or not self._thread.is_alive():
            self._start_thread()
        options = onnxruntime.RunOptions()
        self._deadlines[options] = time.monotonic() + seconds
        return options

    def stop(self, options: onnxruntime.RunOptions) -> None:
        """The run with these options has ended."""
        del self._deadlines[options]

    def _start_thread(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="inference-watchdog", daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        while True:
            time.sleep(WATCHDOG_SECONDS)
            now = time.monotonic()
            # A copy, which the interpreter makes in one step: other threads add and delete meanwhile.
            for options, deadline in list(self._deadlines.items()):
                if now > deadline:
                    options.terminate = True


_watchdog = _Watchdog()


class Output(NamedTuple):
    """What a model says of n images."""

    probabilities: NDArray[np.float32]  # (n, 10)
    digit_scores: NDArray[
        np.float32
    ]  # (n,), the higher the more an image is like a digit; NaN where the model has no score


@dataclass(frozen=True)
class OnnxModel:
    """An open session; it can be pickled and sent to another process."""

    content: bytes = field(repr=False)  # of the ONNX file, which the session holds, too
    session: onnxruntime.InferenceSession
    input_name: str
    outputs: tuple[str, ...]  # names of the probabilities and, unless the model has none, of the digit scores

    def __reduce__(self) -> "tuple[Callable[[bytes], OnnxModel], tuple[bytes]]":
        return load, (self.content,)

    def predict_proba(self, images: Images) -> NDArray[np.float32]:
        """Probabilities (n, 10) of uint8 images (n, 28, 28); raises InferenceFailed."""
        return self.predict(images).probabilities

    def predict(self, images: Images) -> Output:
        """Probabilities and digit scores of uint8 images (n, 28, 28); raises InferenceFailed."""
        if len(images) <= BATCH_SIZE:
            return self._run(images)
        batches = (images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE))
        return Output(*map(np.concatenate, zip(*map(self._run, batches), strict=True)))

    def _run(self, images: Images) -> Output:
        limit = RUN_LIMIT_SECONDS + RUN_LIMIT_SECONDS_PER_IMAGE * len(images)
        started = time.monotonic()
        options = _watchdog.start(limit)
        try:
            probabilities, *scores = self.session.run(self.outputs, {self.input_name: images}, options)
            found = probabilities.dtype, probabilities.shape
            score = scores[0] if scores else np.full(len(images), np.nan, np.float32)
            found_score = score.dtype, score.shape
        # ONNX Runtime's exceptions have no other common class.
        except Exception as error:
            ended = time.monotonic() - started > limit
            reason = f"the run did not end within {limit:g} s; look for a loop in model.onnx"
            raise InferenceFailed(reason if ended else first_line(error)) from error
        finally:
            _watchdog.stop(options)
        if found != (np.dtype(np.float32), (len(images), 10)):
            raise InferenceFailed(
                f"expected float32 probabilities of shape ({len(images)}, 10), got {found[0]} {found[1]}"
            )
        if found_score != (np.dtype(np.float32), (len(images),)):
            raise InferenceFailed(
                f"expected float32 digit scores of shape ({len(images)},), got {found_score[0]} {found_score[1]}"
            )
        # On Python floats, which takes a single image 3 us instead of 20; also false where one is NaN.
        sums = probabilities.dot(_ONES).tolist()
        if not (probabilities.min() >= 0 and all(MIN_SUM <= total <= MAX_SUM for total in sums)):
            raise InferenceFailed(
                "expected probabilities of at least 0 that sum to 1 for each image; export the model with its softmax"
            )
        return Output(probabilities, score)


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
    names = [output.name for output in session.get_outputs()]
    # Models of other tools have one output with any name.
    outputs = (PROBABILITIES, DIGIT_SCORE) if {PROBABILITIES, DIGIT_SCORE} <= set(names) else (names[0],)
    return OnnxModel(content, session, session.get_inputs()[0].name, outputs)
