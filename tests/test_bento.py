"""A release: what is in the Bento, and that it answers rightly in an environment of its own, without a registry."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Files, serve_registry
from serving import ROOT, Service, classify, png, serving

from digits.reference import from_bytes
from models import model_store
from models.onnx_model import InvalidArtifact
from services.serving_state import AliasWatcher

UV = shutil.which("uv") or shutil.which(str(ROOT / ".uv" / "bin" / "uv"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(UV is None, reason="uv is neither on the PATH nor in .uv"),
]


def uv(*arguments: str | Path, **environment: str) -> None:
    done = subprocess.run(
        [str(UV), *map(str, arguments)], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def bento(champion_files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `make bento` puts the release of a champion."""
    home = tmp_path_factory.mktemp("home")
    registry, server = serve_registry()
    registry.versions["7"] = champion_files
    registry.aliases["champion"] = "7"
    settings = {"DIGITS_HOME": str(home), "MLFLOW_TRACKING_URI": registry.uri, "BENTOML_DO_NOT_TRACK": "True"}
    done = subprocess.run(
        ["make", "--silent", "--old-file=setup", "bento"],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    assert path.is_relative_to(home)
    return path


def test_a_bento_holds_what_the_list_allows(bento: Path) -> None:
    source = bento / "src"
    held = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    tracked = subprocess.check_output(["git", "ls-files", "digits", "models", "services"], cwd=ROOT, text=True).split()
    baked = {f"services/release/7/{name}" for name in (*model_store.FILES, "card.json")}
    unknown = held - set(tracked) - baked - {"services/release/champion.txt", "bentofile.yaml"}
    # what an editor or another engineer has not committed yet may be there, as long as it is code
    assert all(name.endswith(".py") for name in unknown), unknown
    assert baked <= held and {"services/page/index.html", "digits/storage/migrations/script.py.mako"} <= held
    assert set(tracked) <= held | {name for name in tracked if not (ROOT / name).exists()}
    assert not {path.parts[0] for path in map(Path, held)} - {"digits", "models", "services", "bentofile.yaml"}
    pinned = (bento / "env" / "python" / "requirements.txt").read_text().lower()
    assert "onnxruntime==" in pinned and not any(name in pinned for name in ("tensorflow", "prefect", "evidently=="))


@pytest.fixture(scope="module")
def released(bento: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`bentoml serve` of the Bento with its own dependencies and nothing of this checkout."""
    folder = tmp_path_factory.mktemp("clean")
    uv("venv", "--quiet", "--python", sys.executable, folder / "venv")
    requirements = bento / "env" / "python" / "requirements.txt"
    uv("pip", "install", "--quiet", "-r", requirements, VIRTUAL_ENV=str(folder / "venv"))
    nowhere = serve_registry()
    nowhere[1].shutdown()
    nowhere[1].server_close()
    python = folder / "venv" / "bin" / "python"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        patch.delenv("PYTHONPATH", raising=False)
        with serving(folder / "home", nowhere[0], bentoml=bento) as service:
            service.wait_for(lambda: service.status("/readyz") == 200)
            yield service


def test_the_bento_answers_without_a_registry(released: Service, champion_files: Files) -> None:
    sample = from_bytes(champion_files["reference.npz"])
    for image, probabilities in zip(sample.images[:20], sample.probabilities[:20], strict=True):
        answer = classify(released, image)
        assert (answer["digit"], answer["model_version"]) == (int(probabilities.argmax()), "7")
    answer = released.client.post("/classify_file", content=png(sample.images[0])).json()
    assert answer["digit"] == int(sample.probabilities[0].argmax())
    about = released.client.get("/about").json()
    assert (about["warning"], about["run_url"], about["version_url"]) == (None, None, None)
    assert len(released.client.get("/samples").json()["samples"]) == 20
    released.wait_for(lambda: released.status(f"/predictions/{answer['id']}") == 200)  # its tables are made meanwhile
    assert released.status("/") == released.status("/docs") == released.status("/page/page.js") == 200
    assert released.registry.asked == []


def test_a_release_whose_model_was_changed_does_not_answer(bento: Path, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    shutil.copytree(bento / "src" / "services" / "release", folder)
    watcher = AliasWatcher("http://127.0.0.1:1", "champion", folder, 1, set)
    watcher.pin()
    assert watcher.state.champion and watcher.state.champion.version == "7"
    model = folder / "7" / "model.onnx"
    content = model.read_bytes()
    model.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(InvalidArtifact, match=r"digits v7: the checksum of model\.onnx"):
        watcher.pin()
