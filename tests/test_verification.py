"""A version is verified in a process of its own: what a hostile model does when it runs is done there, and ends there."""

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import hostile
import numpy as np
import psutil
import pytest
from conftest import Files

from models import onnx_model, verification
from models.onnx_model import InferenceFailed, InvalidArtifact


def verify(files: Files, is_wanted: Callable[[], bool] = lambda: True) -> None:
    verification.verify_in_subprocess(files["model.onnx"], files["reference.npz"], is_wanted)


def test_an_honest_version_passes(champion_files: Files) -> None:
    started = time.monotonic()
    verify(champion_files)
    assert time.monotonic() - started < verification.TIME_LIMIT_SECONDS / 2


def test_a_loop_without_an_end_ends_with_the_time_limit_of_a_run(champion_files: Files) -> None:
    started = time.monotonic()
    with pytest.raises(InvalidArtifact, match=r"in a batch of 1: the run did not end within 2\.02 s; look for a loop"):
        verify(hostile.endless(champion_files))
    assert time.monotonic() - started < 15


def test_a_verification_without_an_end_ends_with_its_time_limit(
    champion_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "TIME_LIMIT_SECONDS", 1)
    monkeypatch.setattr(verification, "COMMAND", [sys.executable, "-c", "import time; time.sleep(60)"])
    started = time.monotonic()
    with pytest.raises(InvalidArtifact, match="verification did not end within 1 s; look for a loop"):
        verify(champion_files)
    assert time.monotonic() - started < 15


def test_the_process_gets_no_secrets(champion_files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DIGITS_DATABASE_URL", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hush")
    monkeypatch.setattr(
        verification, "COMMAND", [sys.executable, "-c", "import os; print(dict(os.environ)); raise SystemExit(1)"]
    )
    with pytest.raises(InvalidArtifact, match="'OPENBLAS_NUM_THREADS': '1'") as refused:
        verify(champion_files)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("count", [2, 41, 200])
def test_a_model_that_fails_on_larger_batches_only_is_refused(count: int, champion_files: Files) -> None:
    failing = hostile.failing_from(count, champion_files)
    with pytest.raises(InvalidArtifact, match=r"the golden query fails in a batch of (2|41|1,000): .*Gather"):
        verify(failing)
    model = onnx_model.load(failing["model.onnx"])
    images = np.zeros((count, 28, 28), np.uint8)
    assert model.predict_proba(images[1:]).shape == (count - 1, 10)
    with pytest.raises(InferenceFailed, match="Gather"):
        model.predict_proba(images)


def test_a_model_that_fills_the_memory_is_refused(champion_files: Files) -> None:
    with pytest.raises(InvalidArtifact, match=r"in a batch of 1: .*while running ConstantOfShape node"):
        verify(hostile.huge(champion_files))


@pytest.mark.parametrize("location", ["bias.bin", "models/bias.bin", "../bias.bin", "{absolute}", "{etc}"])
def test_weights_in_files_of_this_machine_are_refused(
    location: str, champion_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    (folder / "models").mkdir(parents=True)
    for path in (folder / "bias.bin", folder / "models" / "bias.bin", tmp_path / "bias.bin"):
        path.write_bytes(bytes(40))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(verification, "ROOT", folder)
    monkeypatch.setenv("PYTHONPATH", str(Path(onnx_model.__file__).parent.parent))
    place = location.format(absolute=folder / "bias.bin", etc="/etc/passwd")
    files = hostile.external(place, champion_files)
    with pytest.raises(InvalidArtifact, match=r"model\.onnx does not load: .*[Ee]xternal data"):
        onnx_model.load(files["model.onnx"])
    with pytest.raises(InvalidArtifact, match=r"model\.onnx does not load: .*[Ee]xternal data"):
        verify(files)


def test_a_process_that_dies_is_a_refusal(champion_files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "COMMAND", [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"])
    with pytest.raises(InvalidArtifact, match=f"ended with signal {signal.SIGSEGV.value}; register the version again"):
        verify(champion_files)


def test_a_verification_that_is_no_longer_wanted_ends_and_leaves_no_process(champion_files: Files) -> None:
    moved = threading.Event()
    threading.Timer(1.0, moved.set).start()
    started = time.monotonic()
    with pytest.raises(verification.VerificationCancelled):
        verify(hostile.endless(champion_files), lambda: not moved.is_set())
    assert time.monotonic() - started < 15
    assert not [child for child in psutil.Process().children() if "models.verification" in " ".join(child.cmdline())]
