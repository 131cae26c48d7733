"""Registered versions on this machine: fetched from the registry, verified, warmed and cached.

A version has `model.onnx`, `reference.npz` and `card.json` with the checksums of all its files; `model.keras` and `trained_on.npy`
are not cached. The first images and probabilities of the reference are the golden query: a fetched model must answer it as it did
when it was registered, first in a process of its own (`models.verification`). Copies in the cache have passed that.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits import reference
from digits.files import replacing, write_atomically
from digits.images import Images
from digits.reference import Reference
from models import digit_score, onnx_model, verification
from models.conformal import UNCALIBRATED, ConformalPredictor
from models.onnx_model import InvalidArtifact, OnnxModel
from models.registry_reader import MODEL_NAME, RegistryReader, VersionNotFound

FILES = ("model.onnx", "reference.npz")
KEPT_VERSIONS = 5


@dataclass(frozen=True)
class VerifiedModel:
    """A verified version, ready to answer."""

    version: str
    digest: str  # of card.json, and so of all files; the ledger records it with a promotion
    card: dict[str, Any]
    model: OnnxModel
    conformal: ConformalPredictor
    reference: Reference

    def predict_proba(self, images: Images) -> NDArray[np.float32]:
        """Probabilities (n, 10) of uint8 images (n, 28, 28); raises InferenceFailed."""
        return self.model.predict_proba(images)

    def predict_with_rejection(self, images: Images) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        """Probabilities (n, 10), and which images show no digit, (n,): None without a threshold; raises InferenceFailed."""
        probabilities, digit_scores = self.model.predict(images)
        if self.digit_threshold is None:
            return probabilities, None
        return probabilities, ~digit_score.is_digit(digit_scores, self.digit_threshold)

    @property
    def digit_threshold(self) -> float | None:
        """The digit score below which an image is no digit; None where every image counts as one."""
        return self.card.get("digit_threshold")


class ModelStore:
    """Versions of one registry, each cached in `cache/<version>/`; `cache/<alias>.txt` names the last good one of an alias."""

    def __init__(self, uri: str, cache: Path) -> None:
        self.registry = RegistryReader(uri)
        self.cache = cache

    def fetch(self, alias: str = "champion") -> VerifiedModel:
        """The version that an alias points to; raises VersionNotFound, InvalidArtifact or RegistryUnreachable."""
        return self.fetch_version(self.registry.alias_target(alias).version)

    def fetch_version(
        self, version: str, card: bytes | None = None, is_wanted: Callable[[], bool] = lambda: True
    ) -> VerifiedModel:
        """A version by its number and card, which is the registry's unless given; from the cache where there is a copy of it.

        Raises as `fetch` does, and VerificationCancelled once it is no longer wanted.
        """
        card = card or self.card(version)
        with suppress(OSError, InvalidArtifact):
            if (self.cache / version / "card.json").read_bytes() == card:
                return verify(version, card, _read(self.cache / version))
        files = {name: self.registry.download(version, name) for name in FILES}
        _check_files(version, card, files)
        try:
            verification.verify_in_subprocess(files["model.onnx"], files["reference.npz"], is_wanted)
        except InvalidArtifact as error:
            raise InvalidArtifact(f"{MODEL_NAME} v{version}: {error}") from error
        model = verify(version, card, files)
        # A full disk must not keep a verified model from answering.
        with suppress(OSError), replacing(self.cache / version) as folder:
            folder.mkdir(parents=True)
            for name, content in {**files, "card.json": card}.items():
                (folder / name).write_bytes(content)
        _remove_oldest(self.cache, keep=version)
        return model

    def card(self, version: str) -> bytes:
        """The card of a version as the registry has it now; raises as `fetch` does."""
        return self.registry.download(version, "card.json")

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
        version, remembered = (cache / f"{alias}.txt").read_text().split()
        card = (cache / version / "card.json").read_bytes()
        files = _read(cache / version)
    except (OSError, ValueError) as error:
        raise VersionNotFound(f"there is no copy of a {alias} in {cache}") from error
    if digest(card) != remembered:
        problem = f"the copy in {cache / version} does not match the recorded digest; remove that folder"
        raise InvalidArtifact(f"{MODEL_NAME} v{version}: {problem}")
    return verify(version, card, files)


def verify(version: str, card: bytes, files: dict[str, bytes]) -> VerifiedModel:
    """The version made of these files, which passed `verify_in_subprocess`: checksums compared, golden query answered; raises InvalidArtifact."""
    facts = _check_files(version, card, files)
    try:
        conformal = ConformalPredictor(**facts["conformal"]) if "conformal" in facts else UNCALIBRATED
        model, sample = onnx_model.load(files["model.onnx"]), reference.from_bytes(files["reference.npz"])
        conformal.predict(sample.probabilities[:2], sample.images[:2])
        # This also prepares the session for the first request.
        verification.run_golden_query(model, sample, (verification.GOLDEN_COUNT, 1))
    except TypeError as error:
        raise InvalidArtifact(f"{MODEL_NAME} v{version}: card.json has no readable conformal predictor") from error
    except ValueError as error:
        raise InvalidArtifact(f"{MODEL_NAME} v{version}: {error}") from error
    return VerifiedModel(version, digest(card), facts, model, conformal, sample)


def digest(card: bytes) -> str:
    """SHA-256 of a card in hex, which stands for the files whose checksums it has."""
    return hashlib.sha256(card).hexdigest()


def remember(model: VerifiedModel, alias: str, cache: Path) -> None:
    """Record the version as the last good one of its alias, and the one before it as that of `<alias>-former`."""
    note, path = f"{model.version} {model.digest}", cache / f"{alias}.txt"
    # A full disk must not keep a verified model from answering.
    with suppress(OSError):
        before = path.read_text() if path.exists() else note
        if before != note:
            write_atomically(cache / f"{alias}-former.txt", before.encode())
        write_atomically(path, note.encode())


def _remove_oldest(cache: Path, keep: str) -> None:
    """Delete the oldest copies that no alias needs."""
    with suppress(OSError):
        kept = {keep}.union(*(note.read_text().split()[:1] for note in cache.glob("*.txt")))
        copies = sorted(cache.glob("*/card.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in copies[KEPT_VERSIONS:]:
            if path.parent.name not in kept:
                shutil.rmtree(path.parent, ignore_errors=True)


def _read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def _check_files(version: str, card: bytes, files: dict[str, bytes]) -> dict[str, Any]:
    """The content of the card; raises InvalidArtifact unless the files have its checksums."""
    try:
        facts: dict[str, Any] = json.loads(card)
        dict(facts["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArtifact(f"{MODEL_NAME} v{version}: card.json has no checksums") from error
    for name, content in files.items():
        _check(content, name, facts, version)
    return facts


def _check(content: bytes, name: str, card: dict[str, Any], version: str) -> None:
    if hashlib.sha256(content).hexdigest() != card["files"].get(name):
        problem = f"the checksum of {name} is not the one on its card"
        raise InvalidArtifact(f"{MODEL_NAME} v{version}: {problem}; register it again")
