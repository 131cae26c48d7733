"""Artifacts cannot run code and cannot be changed unnoticed: no pickle from training to serving, and one flipped byte is refused."""

import ast
from pathlib import Path

import numpy as np
import pytest
from conftest import Files, Registry

from digits.data import datasets, sources
from digits.data.datasets import BadData, Dataset
from models import model_store
from models.model_store import ModelStore
from models.onnx_model import InvalidArtifact
from services.serving_state import AliasWatcher

ROOT = Path(__file__).parent.parent
ROOMS = ("digits", "models", "services", "monitoring", "flows", "ops")
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
READERS = {"read_pickle", "to_pickle", "load_pickle", "unsafe_load"}


def calls() -> list[tuple[str, ast.Call]]:
    """Every call in the rooms: where it stands, and itself."""
    return [
        (f"{room}/{path.name}:{node.lineno}", node)
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(word.value) for word in call.keywords if word.arg == name), None)


def test_nothing_imports_a_pickler() -> None:
    users = {
        (path.name, name)
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if name.split(".")[0] in PICKLES
    }
    assert not users


def test_arrays_are_read_without_pickles_and_models_in_safe_mode() -> None:
    loads = [(place, call) for place, call in calls() if ast.unparse(call.func) in ("np.load", "numpy.load")]
    assert len(loads) >= 3  # it has looked
    assert not [place for place, call in loads if keyword(call, "allow_pickle") is not False]
    unsafe = [
        place
        for place, call in calls()
        if (name := ast.unparse(call.func)).split(".")[-1] in READERS
        or name in ("torch.load", "yaml.load", "pickle.load")
        or keyword(call, "safe_mode") is False
    ]
    assert not unsafe


def test_no_artifact_of_a_version_can_hold_code(champion_files: Files) -> None:
    """An ONNX graph, JSON, and an npz whose arrays are numbers."""
    assert {Path(name).suffix for name in champion_files} == {".onnx", ".json", ".npz"}
    assert not any(b"cpickle" in content.lower() or b"c__builtin__" in content for content in champion_files.values())


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.9, 0.999999])
@pytest.mark.parametrize("name", model_store.FILES)
def test_a_flipped_byte_of_the_model_or_the_reference_is_refused_and_the_champion_goes_on(
    name: str, place: float, registry: Registry, champion_files: Files, other_files: Files, tmp_path: Path
) -> None:
    registry.promote("1", champion_files)
    watcher = AliasWatcher(registry.uri, "champion", tmp_path, 1, lambda: registry.promoted)
    watcher.poll()
    content = other_files[name]
    registry.promote("2", {**other_files, name: flipped(content, int(place * len(content)))})
    with pytest.raises(InvalidArtifact, match=rf"digits v2: the checksum of {name} is not the one on its card"):
        ModelStore(registry.uri, tmp_path).fetch()
    watcher.poll()
    assert watcher.state.champion and watcher.state.champion.version == "1"
    assert f"the checksum of {name}" in (watcher.state.warning or "")


@pytest.mark.parametrize("name", model_store.FILES)
def test_a_flipped_byte_of_the_copy_is_noticed(
    name: str, registry: Registry, champion_files: Files, tmp_path: Path
) -> None:
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    model_store.remember(ModelStore(registry.uri, tmp_path).fetch(), "champion", tmp_path)
    copy = tmp_path / "1" / name
    copy.write_bytes(flipped(copy.read_bytes(), copy.stat().st_size // 2))
    with pytest.raises(InvalidArtifact, match=f"the checksum of {name}"):
        model_store.last_good("champion", tmp_path)
    ModelStore(registry.uri, tmp_path).fetch()  # takes the registry's again
    assert copy.read_bytes() == champion_files[name]


def test_an_empty_note_keeps_no_version_from_being_fetched(
    registry: Registry, champion_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And old copies are still removed, except those that another note names."""
    monkeypatch.setattr(model_store, "KEPT_VERSIONS", 1)
    (tmp_path / "challenger.txt").write_text("")
    (tmp_path / "champion.txt").write_text("1 digest")
    for version in "123":
        registry.promote(version, champion_files)
        assert ModelStore(registry.uri, tmp_path).fetch().version == version
    assert sorted(path.parent.name for path in tmp_path.glob("*/card.json")) == ["1", "3"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    folder = tmp_path_factory.mktemp("datasets")
    dataset = sources.read("bundled", mnist=None, cache=folder)
    datasets.save(dataset, folder)
    return folder, dataset


def test_a_flipped_byte_of_a_data_set_is_refused(stored: tuple[Path, Dataset]) -> None:
    folder, dataset = stored
    path = folder / dataset.fingerprint / "arrays.npz"
    content = path.read_bytes()
    # where pixels and labels stand, each array begins and ends, and a few hundred places besides
    inside = [content.index(array.tobytes()) for array in dataset.arrays().values()]
    ends = [
        start + array.nbytes - 1
        for start, array in zip(inside, map(np.asarray, dataset.arrays().values()), strict=True)
    ]
    try:
        for position in (*inside, *ends):
            path.write_bytes(flipped(content, position))
            with pytest.raises(BadData, match=r"arrays\.npz cannot be read|was changed after it was stored"):
                datasets.load(folder, dataset.fingerprint)
        for position in np.random.default_rng(0).integers(0, len(content), 40).tolist():
            path.write_bytes(flipped(content, position))
            try:  # the archive also holds times and attributes that say nothing of the images
                assert datasets.load(folder, dataset.fingerprint).fingerprint == dataset.fingerprint
            except BadData as error:
                assert "\n" not in str(error)
    finally:
        path.write_bytes(content)
    assert datasets.load(folder, dataset.fingerprint).fingerprint == dataset.fingerprint
