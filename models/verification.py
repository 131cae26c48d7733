"""Verifies a version in a process of its own, with limits of time and memory, before any other process opens its model.

An ONNX graph can loop without an end, fill the memory, or fail on some batches only. `python -m models.verification` reads the content of
model.onnx and reference.npz from standard input; where the version is to be refused, it prints why and exits with 1.
"""

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn

import numpy as np

from digits import reference
from digits.errors import first_line
from digits.reference import Reference
from models import onnx_model
from models.onnx_model import InferenceFailed, InvalidArtifact, OnnxModel

COMMAND = [sys.executable, "-m", "models.verification"]
ROOT = Path(__file__).parent.parent
# What Python and its libraries are found by; no passwords, keys or addresses of the platform.
ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
TIME_LIMIT_SECONDS = 30
# Half of a service container's 2 GiB; dense models take 70 MB, convolutional ones 110.
MEMORY_LIMIT_MB = 1_024
LOOK_SECONDS = 0.5
BATCH_SIZES = (1, 2, 41, 1_000)  # images
GOLDEN_COUNT = 32
TOLERANCE = 1e-4  # between processors' float32; a wrong model differs by more than 0.1
_LENGTH_BYTES = 8


class VerificationCancelled(Exception):
    """The verification was stopped, because its result is no longer wanted."""


def verify_in_subprocess(onnx: bytes, sample: bytes, is_wanted: Callable[[], bool] = lambda: True) -> None:
    """Verify the content of model.onnx and reference.npz; raises InvalidArtifact, VerificationCancelled or what `is_wanted` raises."""
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    environment, pipe = {**environment, "OPENBLAS_NUM_THREADS": "1"}, subprocess.PIPE
    request = len(onnx).to_bytes(_LENGTH_BYTES) + onnx + sample
    with subprocess.Popen(
        COMMAND, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment
    ) as child:
        # Not `communicate`: after a timeout, Python 3.11 does not go on sending.
        sender = threading.Thread(target=_send, args=(child.stdin, request))
        sender.start()
        try:
            _wait_for(child, is_wanted)
        finally:
            child.kill()
            sender.join()
        printed = child.stdout.read() if child.stdout else b""
    if child.returncode:
        end = f"exit code {child.returncode}" if child.returncode > 0 else f"signal {-child.returncode}"
        reason = printed.decode(errors="replace").strip()
        raise InvalidArtifact(reason or f"verification ended with {end}; register the version again")


def _send(pipe: IO[bytes], content: bytes) -> None:
    with suppress(BrokenPipeError), pipe:
        pipe.write(content)


def _wait_for(child: "subprocess.Popen[bytes]", is_wanted: Callable[[], bool]) -> None:
    """Wait for the end of the process; raises as `verify_in_subprocess` does."""
    deadline = time.monotonic() + TIME_LIMIT_SECONDS
    while time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            child.wait(LOOK_SECONDS)
            return
        if not is_wanted():
            raise VerificationCancelled
    raise InvalidArtifact(f"verification did not end within {TIME_LIMIT_SECONDS} s; look for a loop in model.onnx")


def run_golden_query(model: OnnxModel, sample: Reference, batch_sizes: Iterable[int]) -> None:
    """Raise ValueError unless the model answers the first images of its reference as registered, in batches of these sizes."""
    for size in batch_sizes:
        rows = np.arange(size) % min(len(sample), GOLDEN_COUNT)
        try:
            answered = model.predict_proba(sample.images[rows])
        except InferenceFailed as error:
            raise ValueError(f"the golden query fails in a batch of {size:,}: {error}") from error
        difference = float(np.abs(answered - sample.probabilities[rows]).max())
        if not difference <= TOLERANCE:
            found = f"the golden query is answered {difference:.2g} off in a batch of {size:,}"
            raise ValueError(f"{found}, expected at most {TOLERANCE:g}; export the model again")


def main() -> None:
    """The process that verifies a version."""
    # The limit of processor time ends a process whose parent was killed.
    for kind, limit in ((resource.RLIMIT_DATA, MEMORY_LIMIT_MB * 2**20), (resource.RLIMIT_CPU, TIME_LIMIT_SECONDS)):
        resource.setrlimit(kind, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)  # requests come first
    content = sys.stdin.buffer.read()
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES])
    try:
        model = onnx_model.load(content[_LENGTH_BYTES:end])
        run_golden_query(model, reference.from_bytes(content[end:]), BATCH_SIZES)
    except MemoryError:
        _refuse(f"it needs more than {MEMORY_LIMIT_MB:,} MB of memory")
    except ValueError as error:
        _refuse(first_line(error))


def _refuse(reason: str) -> NoReturn:
    print(reason)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
