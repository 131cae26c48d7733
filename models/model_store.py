"""Registered versions on this machine: fetched from the registry, verified, warmed and cached.

A version has `model.onnx`, `reference.npz` and `card.json` with the checksums of all its files; `model.keras` and `trained_on.npy`
are not cached. The first images and probabilities of the reference are the golden query: a fetched model must answer it as it did
when it was registered.
"""

import hashlib
import io
import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits import reference
from digits.errors import first_line
from digits.files import replacing, write_atomically
from digits.images import Images
from digits.reference import Reference
from models import onnx_model
from models.conformal import UNCALIBRATED, ConformalPredictor
from models.onnx_model import InvalidArtifact, OnnxModel
from models.registry_reader import MODEL_NAME, RegistryReader, VersionNotFound

FILES = ("model.onnx", "reference.npz")
GOLDEN_COUNT = 32
TOLERANCE = 1e-4  # between processors' float32; a wrong model differs by more than 0.1
KEPT_VERSIONS = 5


@dataclass(frozen=True)
class VerifiedModel:
    """A verified version, ready to answer."""

    version: str
    card: dict[str, Any]
    model: OnnxModel
    conformal: ConformalPredictor
    reference: Reference

    def predict_proba(self, images: Images) -> NDArray[np.float32]:
        """Probabilities (n, 10) of uint8 images (n, 28, 28)."""
        return self.model.predict_proba(images)


class ModelStore:
    """Versions of one registry, each cached in `cache/<version>/`; `cache/<alias>.txt` names the last one of an alias."""

    def __init__(self, uri: str, cache: Path) -> None:
        self.registry = RegistryReader(uri)
        self.cache = cache

    def fetch(self, alias: str = "champion") -> VerifiedModel:
        """The version an alias points to, remembered as its last good one.

        Raises VersionNotFound, InvalidArtifact or RegistryUnreachable.
        """
        model = self.fetch_version(self.registry.alias_target(alias).version)
        remember(model, alias, self.cache)
        return model

    def fetch_version(self, version: str) -> VerifiedModel:
        """A version by its number, from the cache where its card is the registry's; raises as `fetch` does."""
        card = self.registry.download(version, "card.json")
        with suppress(OSError, InvalidArtifact):
            if (self.cache / version / "card.json").read_bytes() == card:
                return verify(version, card, _read(self.cache / version))
        files = {name: self.registry.download(version, name) for name in FILES}
        model = verify(version, card, files)
        # A full disk must not keep a verified model from answering.
        with suppress(OSError), replacing(self.cache / version) as folder:
            folder.mkdir(parents=True)
            for name, content in {**files, "card.json": card}.items():
                (folder / name).write_bytes(content)
        return model

    def download(self, model: VerifiedModel, name: str) -> bytes:
        """Another file of a version, its checksum compared; raises InvalidArtifact or RegistryUnreachable."""
        content = self.registry.download(model.version, name)
        _check(content, name, model.card, model.version)
        return content

    def training_digests(self, model: VerifiedModel) -> NDArray[np.uint64]:
        """`datasets.digests` of the training images of a version, (n,); raises as `download` does."""
        digests: NDArray[np.uint64] = np.load(io.BytesIO(self.download(model, "trained_on.npy")), allow_pickle=False)
        return digests


def last_good(alias: str, cache: Path) -> VerifiedModel:
    """The cached version that the alias pointed to last; raises VersionNotFound when there is none, or InvalidArtifact."""
    try:
        version = (cache / f"{alias}.txt").read_text().strip()
        card = (cache / version / "card.json").read_bytes()
        files = _read(cache / version)
    except OSError as error:
        raise VersionNotFound(f"there is no copy of a {alias} in {cache}") from error
    return verify(version, card, files)


def verify(version: str, card: bytes, files: dict[str, bytes]) -> VerifiedModel:
    """The version made of these files, its checksums compared, its golden query answered; raises InvalidArtifact."""
    title = f"{MODEL_NAME} v{version}"
    try:
        facts = json.loads(card)
        conformal = ConformalPredictor(**facts["conformal"]) if "conformal" in facts else UNCALIBRATED
        dict(facts["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArtifact(f"{title}: card.json has no checksums or no readable conformal predictor") from error
    for name in FILES:
        _check(files[name], name, facts, version)
    try:
        model, sample = onnx_model.load(files["model.onnx"]), reference.from_bytes(files["reference.npz"])
        _run_golden_query(model, sample.images[:GOLDEN_COUNT], sample.probabilities[:GOLDEN_COUNT])
    except ValueError as error:
        raise InvalidArtifact(f"{title}: {error}") from error
    return VerifiedModel(version, facts, model, conformal, sample)


def remember(model: VerifiedModel, alias: str, cache: Path) -> None:
    """Record the version as the last good one of its alias, and delete the oldest copies that no alias needs."""
    # A full disk must not keep a verified model from answering.
    with suppress(OSError):
        write_atomically(cache / f"{alias}.txt", model.version.encode())
        kept = {note.read_text() for note in cache.glob("*.txt")}
        copies = sorted(cache.glob("*/card.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in copies[KEPT_VERSIONS:]:
            if path.parent.name not in kept:
                shutil.rmtree(path.parent, ignore_errors=True)


def _read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def _check(content: bytes, name: str, card: dict[str, Any], version: str) -> None:
    if hashlib.sha256(content).hexdigest() != card["files"].get(name):
        problem = f"the checksum of {name} is not the one on its card"
        raise InvalidArtifact(f"{MODEL_NAME} v{version}: {problem}; register it again")


def _run_golden_query(model: OnnxModel, images: Images, expected: NDArray[np.float32]) -> None:
    """Raise ValueError unless the model answers as registered. The query also prepares the session for the first request."""
    try:
        answered = model.predict_proba(images)
        single = model.predict_proba(images[:1])
    # ONNX Runtime's exceptions have no other common class.
    except Exception as error:
        raise ValueError(f"the golden query fails: {first_line(error)}") from error
    difference = float(np.abs(answered - expected).max())
    if not (difference <= TOLERANCE and np.abs(single - expected[:1]).max() <= TOLERANCE):
        raise ValueError(f"golden query is answered {difference:.2g} off, allowed is {TOLERANCE:g}")
