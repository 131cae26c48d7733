"""Keras and TensorFlow, imported on first use (11 s) and without the lines their C++ parts print on every machine."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger("digits.backend")

# Set before TensorFlow starts, unless the environment has others. TensorFlow decides oneDNN by the processor and the number
# of threads by the cores, and the bits of a training depend on both: a matrix product is summed in as many parts as there
# are threads. Two threads train a small network as fast as more do.
DEFAULTS = {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "TF_NUM_INTRAOP_THREADS": "2",
    "TF_NUM_INTEROP_THREADS": "2",
}
DETERMINANTS = (
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_DETERMINISTIC_OPS",
    "TF_XLA_FLAGS",
    "XLA_FLAGS",
)
"""The variables of TensorFlow and XLA that the bits of a training depend on."""
# Device files of NVIDIA's drivers, of Tegra, AMD, Windows's subsystem, and Intel. Without one of them Linux has no GPU.
GPU_FILES = ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg", "dri/renderD*")


def load() -> tuple[Any, Any]:
    """The modules (keras, tensorflow)."""
    _set_defaults()
    if "tensorflow" not in sys.modules:
        with _silent_stderr():
            import tensorflow

            tensorflow.config.list_logical_devices()  # looks for CUDA here, where stderr is silent
            tensorflow.get_logger().setLevel("ERROR")  # the models of an ensemble look like retracing to it
        present = sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))
        if problem := unusable_gpu(present, gpus()):
            log.warning("%s", problem)
    import keras
    import tensorflow

    return keras, tensorflow


def _set_defaults() -> None:
    # Also where another library has imported TensorFlow: it reads most of them when it is first used.
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def determinants() -> dict[str, str]:
    """The devices that this process trains on and the variables that its arithmetic depends on; unset ones are empty.

    Loads TensorFlow, which knows the devices, only where there may be another one than the CPU.
    """
    _set_defaults()
    devices = "CPU"
    if may_have_gpu(Path("/dev")):
        load()
        devices = ", ".join(gpus()) or "CPU"
    return {"device": devices, **{name: os.environ.get(name, "") for name in DETERMINANTS}}


def may_have_gpu(devices: Path) -> bool:
    """Whether TensorFlow may find a GPU; never false on systems other than Linux, whose drivers have no such files."""
    return sys.platform != "linux" or any(next(devices.glob(pattern), None) for pattern in GPU_FILES)


def gpus() -> list[str]:
    """The names of the GPUs that TensorFlow can use."""
    import tensorflow

    details = tensorflow.config.experimental.get_device_details
    found = tensorflow.config.list_physical_devices("GPU")
    return [str(details(gpu).get("device_name", gpu.name)) for gpu in found]


def unusable_gpu(device_files: Sequence[str], usable: Sequence[str]) -> str | None:
    """A sentence for the log where the driver has GPUs (`/dev/nvidia0`) and TensorFlow can use none; otherwise nothing."""
    if not device_files or usable:
        return None
    return (
        f"TensorFlow trains on the CPU although this machine has {', '.join(device_files)}; "
        "compare `nvidia-smi` with the CUDA version that TensorFlow needs, and look at CUDA_VISIBLE_DEVICES"
    )


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
