"""What the gate hears of a version: only what is whole, and nothing judged on what it trained on."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Files, Registry

from digits import reference
from digits.data.datasets import digests
from digits.images import Split
from models import gate
from models.candidate_comparison import fetch, fresh, judge
from models.evaluation_sets import EvaluationSet
from models.model_store import ModelStore
from models.onnx_model import InvalidArtifact

POLICY = gate.GatePolicy()


def publish(registry: Registry, version: str, files: Files, trained_on: np.ndarray) -> None:
    """A version with the digests of its training images, as a training registers it."""
    buffer = io.BytesIO()
    np.save(buffer, trained_on)
    card = json.loads(files["card.json"])
    card["files"]["trained_on.npy"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    registry.versions[version] = {
        **files,
        "trained_on.npy": buffer.getvalue(),
        "card.json": json.dumps(card).encode(),
    }


@pytest.fixture
def sample(champion_files: Files) -> reference.Reference:
    return reference.from_bytes(champion_files["reference.npz"])


def evaluation_set(name: str, sample: reference.Reference, rows: slice) -> EvaluationSet:
    return EvaluationSet(name, Split(sample.images[rows], sample.labels[rows]), "a test")


def test_images_that_one_of_the_two_trained_on_are_left_out_of_every_set(
    registry: Registry, champion_files: Files, sample: reference.Reference, tmp_path: Path
) -> None:
    publish(registry, "1", champion_files, digests(sample.images[100:140]))
    publish(registry, "2", champion_files, digests(sample.images[130:190]))
    store = ModelStore(registry.uri, tmp_path)
    sets = [evaluation_set("anchor", sample, slice(0, 150)), evaluation_set("traffic", sample, slice(100, 300))]
    evidence = judge(store, "2", "1", sets, 0.0, POLICY, 0.01).evidence
    assert (evidence["anchor: images"], evidence["anchor: left out"]) == (100, 50)
    assert (evidence["traffic: images"], evidence["traffic: left out"]) == (110, 90)
    # Traffic waits for more of it; a stored set that has become too small holds.
    few = judge(store, "2", "1", sets, 0.0, gate.GatePolicy(min_sample=105), 0.01)
    assert few.decision == "hold" and "100 images remain, at least 105 are required; 50 were left out" in few.sentence
    assert "traffic: images" in few.evidence
    assert "traffic: images" not in judge(store, "2", "1", sets, 0.0, gate.GatePolicy(min_sample=111), 0.01).evidence


def test_a_set_without_any_image_left_is_held_too(
    registry: Registry, champion_files: Files, sample: reference.Reference, tmp_path: Path
) -> None:
    for version in "12":
        publish(registry, version, champion_files, digests(sample.images[:100]))
    sets = [evaluation_set("anchor", sample, slice(0, 100)), evaluation_set("candidate", sample, slice(100, 300))]
    found = judge(ModelStore(registry.uri, tmp_path), "2", "1", sets, 0.0, POLICY, 0.01)
    assert found.decision == "hold" and found.reasons[0].startswith("anchor: 0 images remain")


def test_where_the_champion_knows_what_the_candidate_is_tested_on_the_other_sets_decide(
    registry: Registry, champion_files: Files, sample: reference.Reference, tmp_path: Path
) -> None:
    publish(registry, "1", champion_files, digests(sample.images[:100]))
    publish(registry, "2", champion_files, digests(sample.images[400:500]))
    store = ModelStore(registry.uri, tmp_path)
    sets = [evaluation_set("anchor", sample, slice(100, 300)), evaluation_set("candidate", sample, slice(0, 100))]
    found = judge(store, "2", "1", sets, 0.0, POLICY, 0.01)
    assert found.decision == "not enough evidence" and found.reasons[0].startswith("anchor: ")
    assert "anchor: images" in found.evidence and "candidate: images" not in found.evidence
    alone = judge(store, "2", "1", sets[1:], 0.0, POLICY, 0.01)
    assert alone.sentence.startswith("not enough evidence: every evaluation set is retired or too small")


def test_the_same_images_under_two_names_are_judged_once_and_retired_ones_not_at_all(
    registry: Registry, champion_files: Files, sample: reference.Reference, tmp_path: Path
) -> None:
    for version in "12":
        publish(registry, version, champion_files, digests(sample.images[500:]))
    store, names = ModelStore(registry.uri, tmp_path), ("anchor", "champion", "candidate")
    sets = [evaluation_set(name, sample, slice(0, 300)) for name in names]
    retired = {"anchor digit 7", "corruption inverted"}
    evidence = judge(store, "2", "1", sets, 0.0, POLICY, 0.01, retired).evidence
    assert evidence["anchor: images"] == (sample.labels[:300] != 7).sum()
    assert "champion: images" not in evidence and "candidate: images" not in evidence
    corruptions = {name.split(":")[0] for name in evidence if name.startswith("corruption ")}
    assert len(corruptions) == 10 and "corruption inverted" not in corruptions
    first, second = (fetch(store, version) for version in "12")
    assert fresh(sets[0], first, second, retired).left_out == 0  # retired, not trained on


def test_a_first_version_is_judged_on_its_own_test_images(
    registry: Registry, champion_files: Files, sample: reference.Reference, tmp_path: Path
) -> None:
    publish(registry, "1", champion_files, np.arange(10, dtype=np.uint64))
    own = [evaluation_set("candidate", sample, slice(0, 300))]
    store = ModelStore(registry.uri, tmp_path)
    assert judge(store, "1", None, own, 0.5, POLICY, 0.01).decision == "promote"
    assert judge(store, "1", None, own, 1.0, POLICY, 0.01).decision == "hold"


def test_a_changed_list_of_training_images_is_noticed(
    registry: Registry, champion_files: Files, tmp_path: Path
) -> None:
    publish(registry, "1", champion_files, np.arange(10, dtype=np.uint64))
    content = bytearray(registry.versions["1"]["trained_on.npy"])
    content[-1] ^= 1
    registry.versions["1"]["trained_on.npy"] = bytes(content)
    with pytest.raises(InvalidArtifact, match=r"v1: the checksum of trained_on.npy is not the one on its card"):
        fetch(ModelStore(registry.uri, tmp_path), "1")
