"""Whether a version was trained before depends on what decides the weights, and on nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models import backend, provenance, training
from models.provenance import ROOT, code_hash
from models.recipes import COMPACT


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Our sources, to be edited."""
    for room in ("digits", "models", "services"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def hash_after(root: Path, path: str, old: str, new: str) -> str:
    content = (root / path).read_text()
    assert old in content
    (root / path).write_text(content.replace(old, new, 1))
    code_hash.cache_clear()
    return code_hash(root / "models" / "training.py", root)


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("models/training.py", '"""The training loop', '"""Another sentence about the training loop'),
        ("models/training.py", '    """SHA-256 over all weights', '    """The SHA-256 of all weights'),
        ("models/training.py", 'description="Images per step."', 'description="How many images a step takes."'),
        ("models/training.py", "import hashlib", "# A comment.\n\nimport hashlib"),
        ("models/recipes.py", "97.72 %", "97.73 %"),
        ("models/gate.py", "0.125", "0.25"),
        ("services/page/docs.html", "<title>", "<title>New "),
    ],
)
def test_what_does_not_decide_the_weights_does_not_change_the_hash(copy: Path, path: str, old: str, new: str) -> None:
    before = code_hash(copy / "models" / "training.py", copy)
    assert hash_after(copy, path, old, new) == before == code_hash(Path(training.__file__), ROOT)


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("models/training.py", "/ 255", "/ 256"),
        ("models/architectures.py", "GlorotUniform", "HeUniform"),
        ("models/augmentation.py", "0.2, ge=0", "0.3, ge=0"),
        ("digits/data/perturbations.py", "np.rint", "np.floor"),
        ("digits/images.py", "SIZE = 28", "SIZE = 27"),
    ],
)
def test_the_code_that_training_imports_changes_the_hash(copy: Path, path: str, old: str, new: str) -> None:
    before = code_hash(copy / "models" / "training.py", copy)
    assert hash_after(copy, path, old, new) != before


def test_data_and_recipe_change_the_inputs() -> None:
    seeded = COMPACT.model_copy(update={"seed": 1})
    assert len({provenance.inputs_hash(*facts) for facts in (("a", COMPACT), ("b", COMPACT), ("a", seeded))}) == 3
    assert provenance.inputs_hash("a", COMPACT) == provenance.inputs_hash("a", COMPACT.model_copy())


PROGRAM = """
import json, os, sys
from pathlib import Path
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[: int(sys.argv[1])])
from digits.data import sources
from models import provenance, training
from models.recipes import COMPACT
dataset = sources.read("bundled", mnist=None, cache=Path("."))
trained = training.fit(COMPACT.model_copy(update={"epochs": 1}), dataset)
print(json.dumps([provenance.environment(), trained.weights_hash]))
"""
CAN_RESTRICT = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1


@pytest.mark.skipif(not CAN_RESTRICT, reason="this process cannot be restricted to fewer cores")
def test_the_number_of_cores_does_not_change_the_weights() -> None:
    """Without a fixed number of threads it does: TensorFlow starts as many as there are cores."""
    unset = {name: value for name, value in os.environ.items() if name not in backend.DETERMINANTS}
    command = [sys.executable, "-c", PROGRAM]
    processes = [
        subprocess.Popen([*command, cores], cwd=ROOT, env=unset, stdout=subprocess.PIPE, text=True) for cores in "12"
    ]
    (one, weights), (two, others) = (json.loads(process.communicate()[0].splitlines()[-1]) for process in processes)
    assert weights == others
    assert one == {**two, "cores": "1"} and two["cores"] == "2"


@pytest.mark.parametrize("name", ["TF_DETERMINISTIC_OPS", "XLA_FLAGS", "TF_NUM_INTRAOP_THREADS"])
def test_the_flags_of_tensorflow_are_inputs(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = provenance.environment(), provenance.inputs_hash("a", COMPACT)
    monkeypatch.setenv(name, "7")
    assert provenance.environment() == {**before[0], name: "7"}
    assert provenance.inputs_hash("a", COMPACT) != before[1]


WITHOUT_TENSORFLOW = """
import sys
from models import backend, provenance
device = provenance.environment()["device"]
assert backend.may_have_gpu(backend.Path("/dev")) or "tensorflow" not in sys.modules
backend.load()
assert device == (", ".join(backend.gpus()) or "CPU"), device
"""


def test_the_device_is_known_without_tensorflow_where_there_is_no_gpu() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TENSORFLOW], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", ["nvidia0", "nvhost-gpu", "kfd", "dxg", "dri/renderD128"])
def test_the_file_of_a_gpu_is_a_reason_to_ask_tensorflow(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for other in ("null", "nvme0n1", "nvram", "dri/card0"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).touch()
    assert not backend.may_have_gpu(tmp_path)
    (tmp_path / name).touch()
    assert backend.may_have_gpu(tmp_path)


@pytest.mark.parametrize(("platform", "expected"), [("linux", "CPU"), ("darwin", "Apple M4")])
def test_tensorflow_names_the_device_where_there_may_be_a_gpu(
    platform: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(backend, "GPU_FILES", ())
    monkeypatch.setattr(backend, "load", lambda: None)
    monkeypatch.setattr(backend, "gpus", lambda: ["Apple M4"])
    assert backend.determinants()["device"] == expected


def test_a_gpu_that_tensorflow_cannot_use_is_told() -> None:
    assert backend.unusable_gpu([], []) is None
    assert backend.unusable_gpu(["/dev/nvidia0"], ["NVIDIA L4"]) is None
    problem = backend.unusable_gpu(["/dev/nvidia0", "/dev/nvidia1"], [])
    assert problem is not None and "trains on the CPU although this machine has /dev/nvidia0, /dev/nvidia1" in problem
