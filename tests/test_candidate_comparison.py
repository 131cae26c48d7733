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
from models.candidate_comparison import fetch, samples
from models.model_store import ModelStore
from models.onnx_model import InvalidArtifact


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


def test_traffic_that_one_of_the_two_trained_on_judges_neither(
    registry: Registry, champion_files: Files, tmp_path: Path
) -> None:
    sample = reference.from_bytes(champion_files["reference.npz"])
    test, traffic = (Split(sample.images[part], sample.labels[part]) for part in (slice(0, 100), slice(100, 300)))
    publish(registry, "1", champion_files, digests(traffic.images[:40]))
    publish(registry, "2", champion_files, digests(traffic.images[30:90]))
    first, second = (fetch(ModelStore(registry.uri, tmp_path), version) for version in "12")
    found = samples(test, traffic, second, first, gate.GatePolicy())
    assert [(one.name, len(one.labels)) for one in found] == [("test images", 100), ("new traffic", 110)]
    assert first.facts(test).images_trained_on == 0 and second.facts(traffic).images_trained_on == 60
    assert len(samples(test, traffic, second, first, gate.GatePolicy(min_sample=111))) == 1


def test_a_changed_list_of_training_images_is_noticed(
    registry: Registry, champion_files: Files, tmp_path: Path
) -> None:
    publish(registry, "1", champion_files, np.arange(10, dtype=np.uint64))
    content = bytearray(registry.versions["1"]["trained_on.npy"])
    content[-1] ^= 1
    registry.versions["1"]["trained_on.npy"] = bytes(content)
    with pytest.raises(InvalidArtifact, match=r"v1: the checksum of trained_on.npy is not the one on its card"):
        fetch(ModelStore(registry.uri, tmp_path), "1")
