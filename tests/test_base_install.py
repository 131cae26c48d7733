"""The serving image's environment: with the base dependencies alone the service answers, and no training library is there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import Files, Registry
from serving import ROOT, classify, serving

from digits.reference import from_bytes
from digits.storage import database

HEAVY = ("tensorflow", "keras", "prefect", "evidently", "mlflow", "sklearn", "pandas", "torch")
UV = shutil.which("uv") or shutil.which(str(ROOT / ".uv" / "bin" / "uv"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(UV is None, reason="uv is neither on the PATH nor in .uv"),
]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with what `uv sync` installs without any group."""
    folder = tmp_path_factory.mktemp("base") / "venv"
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(folder)}
    command = [str(UV), "sync", "--quiet", "--locked", "--no-default-groups", "--python", sys.executable]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return folder / "bin" / "python"


def test_no_training_library_is_installed(python: Path) -> None:
    code = f"import importlib.util as u; print([name for name in {HEAVY!r} if u.find_spec(name)])"
    assert subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_wheel_holds_the_migrations(tmp_path: Path) -> None:
    subprocess.run([str(UV), "build", "--quiet", "--wheel", "--out-dir", str(tmp_path)], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        held = {Path(name) for name in content.namelist()}
    migrations = {path.relative_to(ROOT) for path in database.MIGRATIONS.rglob("*.py")}
    assert len(migrations) > 1 and migrations <= held


def test_the_service_answers(
    python: Path, tmp_path: Path, registry: Registry, champion_files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    sample = from_bytes(champion_files["reference.npz"])
    monkeypatch.setattr(sys, "executable", str(python))
    with serving(tmp_path, registry) as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        for image, probabilities in zip(sample.images[:20], sample.probabilities[:20], strict=True):
            assert classify(service, image)["digit"] == probabilities.argmax()
