"""A registry of versions in memory, for what the platform writes to MLflow's one, and small versions to put into it."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from conftest import Files, linear_model
from conftest import Registry as Memory

from digits.data.datasets import Dataset, digests
from digits.images import Split
from digits.reference import Reference
from digits.settings import Settings
from models import onnx_model
from models.connections import Platform
from models.model_store import ModelStore


@dataclass
class VersionRegistry:
    """As `models.registry.RegistryWriter`, for aliases and tags of versions; what it writes, the served registry answers."""

    memory: Memory
    tags: dict[str, dict[str, str]] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)

    def store(self, cache: Path) -> ModelStore:
        return ModelStore(self.memory.uri, cache)

    def platform(self, home: Path, **changes: Any) -> Platform:
        """A platform that writes to this registry."""
        platform = Platform(Settings(_env_file=None, home=home, MLFLOW_TRACKING_URI=self.memory.uri, **changes))  # type: ignore[call-arg]
        vars(platform)["registry"] = self
        return platform

    def set_alias(self, alias: str, version: str) -> None:
        self.memory.aliases[alias] = version

    def remove_alias(self, alias: str) -> None:
        self.memory.aliases.pop(alias, None)

    def tag_version(self, version: str, tags: Mapping[str, str]) -> None:
        self.tags.setdefault(version, {}).update(tags)

    def describe(self, version: str, markdown: str) -> None:
        self.descriptions[version] = markdown

    def version_tags(self, version: str) -> dict[str, str]:
        return dict(self.tags.get(version, {}))

    def tagged(self, name: str, value: str) -> dict[str, dict[str, str]]:
        return {version: dict(tags) for version, tags in self.tags.items() if tags.get(name) == value}


def version_files(learned: Split, dataset: Dataset) -> Files:
    """A linear model that learned these images, as a version of the data set."""
    model, trained_on = linear_model(learned.images, learned.labels, 12), io.BytesIO()
    np.save(trained_on, digests(learned.images))
    few = dataset.test.images[:32]
    sample = Reference(few, dataset.test.labels[:32], onnx_model.load(model).predict_proba(few))
    files = {"model.onnx": model, "reference.npz": sample.to_bytes(), "trained_on.npy": trained_on.getvalue()}
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    card = {"recipe": {"name": "linear"}, "dataset": dataset.fingerprint, "files": checksums}
    return {**files, "card.json": json.dumps(card).encode()}
