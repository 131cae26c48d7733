"""Keras and TensorFlow, imported on first use (11 s) and without the lines their C++ parts print on every machine."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Decided by TensorFlow per processor otherwise; the bits of a training depend on it.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "1"}


def load() -> tuple[Any, Any]:
    """The modules (keras, tensorflow)."""
    if "tensorflow" not in sys.modules:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        with _silent_stderr():
            import tensorflow

            tensorflow.config.list_logical_devices()  # looks for CUDA here, where stderr is silent
            tensorflow.get_logger().setLevel("ERROR")  # the models of an ensemble look like retracing to it
    import keras
    import tensorflow

    return keras, tensorflow


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what C++ writes to file descriptor 2: Abseil logs there before any level can be set."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
