"""The champion as it answers: fetched from the registry over REST, verified, warmed and kept; needs neither MLflow nor Keras.

The registry speaks MLflow's REST API (https://mlflow.org/docs/latest/api_reference/rest-api.html). A version consists of
`model.onnx`, `card.json` with the checksums of its files, and `reference.npz`, whose images and answers are the golden query.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from digits import images as pixels
from digits import reference
from digits.images import Images
from digits.reference import Reference
from digits.settings import without_password
from models.conformal import UNCALIBRATED, Certainty

log = logging.getLogger("digits.champion")

NAME = "digits"  # of the registered model
FILES = ("model.onnx", "reference.npz")
GOLDEN_COUNT = 32
TOLERANCE = 1e-4  # between processors' float32; a wrong model differs by more than 0.1
AT_ONCE = 1024  # images per run of the session, so that a large batch does not need gigabytes
KEPT_VERSIONS = 5
TIMEOUT = httpx.Timeout(10, connect=3)  # seconds


class NoChampion(LookupError):
    """The registry has no such alias or version."""


class BadArtifact(ValueError):
    """A version whose files are missing, damaged, or do not answer as they did when it was registered."""


class Unreachable(ConnectionError):
    """The registry does not answer."""


@dataclass(frozen=True)
class Model:
    """An ONNX model that takes raw uint8 images."""

    session: onnxruntime.InferenceSession
    input_name: str
    output_name: str

    def answer(self, images: Images) -> NDArray[np.float32]:
        """Probabilities (n, 10) of uint8 images (n, 28, 28)."""
        if len(images) <= AT_ONCE:
            return self.session.run([self.output_name], {self.input_name: images})[0]
        return np.concatenate(
            [self.answer(images[start : start + AT_ONCE]) for start in range(0, len(images), AT_ONCE)]
        )


@dataclass(frozen=True)
class Champion:
    """A verified version, ready to answer."""

    version: str
    card: dict[str, Any]
    model: Model
    certainty: Certainty

    def answer(self, images: Images) -> NDArray[np.float32]:
        """Probabilities (n, 10) of uint8 images (n, 28, 28)."""
        return self.model.answer(images)


def open_session(content: bytes) -> Model:
    """A model out of the bytes of an ONNX file, on one thread: a service scales by its workers.

    Raises BadArtifact when it is no ONNX model of uint8 images.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common class but this
        raise BadArtifact(f"model.onnx does not load: {_first_line(error)}") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(uint8)" or inputs[0].shape[1:] != [pixels.SIZE, pixels.SIZE]:
        described = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs)
        raise BadArtifact(f"model.onnx takes {described}; expected tensor(uint8) of shape (n, 28, 28)")
    return Model(session, inputs[0].name, session.get_outputs()[0].name)


@dataclass(frozen=True)
class Pointed:
    """What an alias points to. Numbers begin anew in a new registry, so that only with its run a version is the same."""

    version: str
    run_id: str | None


def fetch(uri: str, alias: str, cache: Path) -> Champion:
    """The version an alias points to, verified; a copy stays in `cache/<version>/` as the last good one of that alias.

    Raises NoChampion, BadArtifact or Unreachable.
    """
    with _registry(uri) as registry:
        champion = _fetch_version(registry, look_up(registry, alias).version, cache)
    remember(champion, alias, cache)
    return champion


def fetch_version(uri: str, version: str, cache: Path) -> Champion:
    """A version by its number, verified. Raises NoChampion, BadArtifact or Unreachable."""
    with _registry(uri) as registry:
        return _fetch_version(registry, version, cache)


def download(uri: str, version: str, name: str) -> bytes:
    """One file of a version, as it is. Raises NoChampion, BadArtifact or Unreachable."""
    with _registry(uri) as registry:
        return _download(registry, version, name)


def version(uri: str, alias: str = "champion") -> str | None:
    """The version an alias points to, None when there is none; raises Unreachable."""
    with _registry(uri) as registry, suppress(NoChampion):
        return look_up(registry, alias).version
    return None


def look_up(registry: httpx.Client, alias: str) -> Pointed:
    """The version an alias points to; raises NoChampion or Unreachable."""
    response = _get(registry, "/api/2.0/mlflow/registered-models/alias", name=NAME, alias=alias)
    _check_answered(registry, response)
    try:
        fields = response.json()
        # MLflow answers 404 without the model, 400 without the alias
        if response.status_code in (400, 404) and "error_code" in fields:
            raise NoChampion(
                f"no version of {NAME} has the alias {alias} yet; train and promote one with `digits retrain`"
            )
        found = fields["model_version"]
        return Pointed(str(found["version"]), found.get("run_id"))
    except (ValueError, KeyError, TypeError) as error:
        raise Unreachable(
            f"{registry.base_url} answered {response.status_code}, and not as MLflow does; set MLFLOW_TRACKING_URI to its server"
        ) from error


def last_good(alias: str, cache: Path) -> Champion:
    """The verified copy of the version that the alias pointed to last; raises NoChampion when there is none, or BadArtifact."""
    try:
        version = (cache / f"{alias}.txt").read_text().strip()
        card = (cache / version / "card.json").read_bytes()
        files = {name: (cache / version / name).read_bytes() for name in FILES}
    except OSError as error:
        raise NoChampion(f"there is no copy of a {alias} in {cache}") from error
    return verify(version, card, files)


def reference_of(champion: Champion, cache: Path) -> Reference:
    """The reference sample of a version that was fetched into this cache; raises BadArtifact when it is not as registered."""
    try:
        content = (cache / champion.version / "reference.npz").read_bytes()
    except OSError as error:
        raise BadArtifact(
            f"{NAME} v{champion.version}: no copy of reference.npz in {cache} ({error.strerror})"
        ) from error
    if hashlib.sha256(content).hexdigest() != champion.card["files"]["reference.npz"]:
        raise BadArtifact(
            f"{NAME} v{champion.version}: the copy of reference.npz in {cache} is damaged; remove {cache}"
        )
    return reference.from_bytes(content)


def verify(version: str, card: bytes, files: dict[str, bytes]) -> Champion:
    """The version made of these files, its checksums compared, its golden query answered; raises BadArtifact."""
    try:
        facts = json.loads(card)
        checksums = dict(facts["files"])
        certainty = Certainty(**facts["certainty"]) if "certainty" in facts else UNCALIBRATED
    except (ValueError, KeyError, TypeError) as error:
        raise BadArtifact(
            f"{NAME} v{version}: card.json holds no checksums of its files or no readable certainty"
        ) from error
    for name in FILES:
        if hashlib.sha256(files[name]).hexdigest() != checksums.get(name):
            raise BadArtifact(
                f"{NAME} v{version}: the checksum of {name} is not the one on its card; register it again"
            )
    try:
        champion = Champion(version, facts, open_session(files["model.onnx"]), certainty)
        golden = reference.from_bytes(files["reference.npz"])
    except ValueError as error:
        raise BadArtifact(f"{NAME} v{version}: {error}") from error
    _ask_golden(champion, golden.images[:GOLDEN_COUNT], golden.probabilities[:GOLDEN_COUNT])
    return champion


def remember(champion: Champion, alias: str, cache: Path) -> None:
    """Note the version as the last good one of its alias, and drop the oldest copies."""
    with suppress(OSError):  # a full disk must not keep a verified champion from answering
        note = cache / f".{alias}.{uuid4().hex}.tmp"
        note.write_text(champion.version)
        note.replace(cache / f"{alias}.txt")
        kept = {note.read_text() for note in cache.glob("*.txt")}
        copies = sorted(cache.glob("*/card.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in copies[KEPT_VERSIONS:]:
            if path.parent.name not in kept:
                shutil.rmtree(path.parent, ignore_errors=True)


def _registry(uri: str) -> httpx.Client:
    url = httpx.URL(uri)
    return httpx.Client(
        base_url=without_password(uri), auth=(url.username, url.password) if url.username else None, timeout=TIMEOUT
    )


def _get(registry: httpx.Client, route: str, **parameters: str) -> httpx.Response:
    try:
        return registry.get(route, params=parameters)
    except httpx.HTTPError as error:
        raise Unreachable(
            f"the registry at {registry.base_url} does not answer ({_first_line(error) or type(error).__name__}); "
            "start it with `digits up` or set MLFLOW_TRACKING_URI"
        ) from error


def _check_answered(registry: httpx.Client, response: httpx.Response) -> None:
    """Raise Unreachable for an answer that says nothing about the version: the server fails, or does not let us in."""
    if response.status_code in (401, 403) or response.is_server_error:
        raise Unreachable(
            f"the registry at {registry.base_url} answered {response.status_code} {response.reason_phrase}; "
            "see to the MLflow server or to the name and password in MLFLOW_TRACKING_URI"
        )


def _fetch_version(registry: httpx.Client, version: str, cache: Path) -> Champion:
    """From the cache where its card is the registry's, else downloaded, verified and put there."""
    card = _download(registry, version, "card.json")
    with suppress(OSError, BadArtifact):
        if (cache / version / "card.json").read_bytes() == card:
            return verify(version, card, {name: (cache / version / name).read_bytes() for name in FILES})
    files = {name: _download(registry, version, name) for name in FILES}
    champion = verify(version, card, files)
    with suppress(OSError):  # a full disk must not keep a verified champion from answering
        _store(cache, version, {**files, "card.json": card})
    return champion


def _download(registry: httpx.Client, version: str, path: str) -> bytes:
    response = _get(registry, "/model-versions/get-artifact", name=NAME, version=version, path=path)
    if response.status_code == 404 and "RESOURCE_DOES_NOT_EXIST" in response.text and "Model Version" in response.text:
        raise NoChampion(f"there is no {NAME} v{version} in the registry; see the versions with `digits leaderboard`")
    _check_answered(registry, response)
    if response.is_error:
        raise BadArtifact(
            f"{NAME} v{version}: the registry answered {response.status_code} for {path}; register it again"
        )
    return response.content


def _store(cache: Path, version: str, files: dict[str, bytes]) -> None:
    """Complete under its name, or not there."""
    temporary = cache / f".{version}.{uuid4().hex}.tmp"
    temporary.mkdir(parents=True)
    try:
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        shutil.rmtree(cache / version, ignore_errors=True)
        os.replace(temporary, cache / version)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _ask_golden(champion: Champion, images: Images, expected: NDArray[np.float32]) -> None:
    """Also warms the session: the first request after a swap is as fast as the others."""
    try:
        answers = champion.answer(images)
        single = champion.answer(images[:1])
    except Exception as error:  # ONNX Runtime's exceptions have no common class but this
        raise BadArtifact(f"{NAME} v{champion.version}: the golden query fails: {_first_line(error)}") from error
    if answers.shape != expected.shape:
        raise BadArtifact(f"{NAME} v{champion.version}: answers have shape {answers.shape}; expected {expected.shape}")
    difference = float(np.abs(answers - expected).max())
    if not (difference <= TOLERANCE and np.abs(single - expected[:1]).max() <= TOLERANCE):
        raise BadArtifact(
            f"{NAME} v{champion.version}: the golden query is answered {difference:.2g} off; at most {TOLERANCE:g} is allowed"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


@dataclass(frozen=True)
class Standing:
    """Who answers, and what stands in the way of the one who should."""

    champion: Champion | None = None
    since: datetime | None = None  # UTC
    trouble: str | None = None  # one sentence


class Watcher:
    """Follows an alias from a thread of its own: fetches aside, verifies, warms, then swaps by one assignment.

    An optional alias may be missing: then nobody answers, without a word, and also nobody does from a copy.
    """

    def __init__(
        self,
        uri: str,
        alias: str,
        cache: Path,
        interval_seconds: float,
        refused_seconds: float = 60,
        optional: bool = False,
    ) -> None:
        self.standing = Standing(trouble=f"the service has just started and looks for the {alias}")
        self._alias, self._cache, self._optional = alias, cache, optional
        self._interval_seconds, self._refused_seconds = interval_seconds, refused_seconds
        self._registry = _registry(uri)
        self._answering: Pointed | None = None  # once it was fetched
        self._refused: tuple[Pointed | None, float] = (None, 0.0)  # and when to look at it again
        self._looked, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{alias}", daemon=True)

    def start(self, patience_seconds: float = 0) -> None:
        """Begin to look; back after the first look, unless that takes longer."""
        self._thread.start()
        self._looked.wait(patience_seconds)

    def stop(self) -> None:
        """Stop looking; the champion goes on answering."""
        self._stop.set()
        self._thread.join(TIMEOUT.read)
        self._registry.close()

    def look(self) -> None:
        """Look once: swap when the alias points to another version, and say what is wrong when that cannot be."""
        try:
            pointed = look_up(self._registry, self._alias)
            if pointed != self._answering:
                self._swap(pointed)
            else:
                self._say(None)
        except NoChampion as error:
            if self._optional:
                self.standing, self._answering = Standing(), None
            else:
                self._say(str(error))
        except BadArtifact as error:
            self._refused = (pointed, time.monotonic() + self._refused_seconds)
            self._fall_back(str(error))
        except Unreachable as error:
            self._fall_back(str(error))

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception:  # whatever went wrong, the champion at hand answers and the next look may do better
                log.exception("looking for the %s failed", self._alias)
            self._looked.set()
            if self._stop.wait(self._interval_seconds):
                return

    def _swap(self, pointed: Pointed) -> None:
        refused, again = self._refused
        if pointed == refused and time.monotonic() < again:
            return
        champion = _fetch_version(self._registry, pointed.version, self._cache)
        before = self.standing.champion
        self.standing = Standing(champion, datetime.now(UTC))
        self._answering = pointed
        remember(champion, self._alias, self._cache)
        log.info(
            "%s v%s answers as %s (before: %s)", NAME, pointed.version, self._alias, before and f"v{before.version}"
        )

    def _fall_back(self, trouble: str) -> None:
        """Keep who answers; at the start, that is the last good copy."""
        if self.standing.champion is None and not self._optional:
            with suppress(NoChampion, BadArtifact):
                champion = last_good(self._alias, self._cache)
                self.standing = Standing(champion, datetime.now(UTC), self.standing.trouble)
                log.warning("%s v%s answers from its copy in %s", NAME, champion.version, self._cache)
        self._say(trouble)

    def _say(self, trouble: str | None) -> None:
        """Once in the log, however often it is seen."""
        standing = self.standing
        if trouble != standing.trouble:
            self.standing = Standing(standing.champion, standing.since, trouble)
            if trouble:
                log.warning("%s", trouble)


class Release:
    """In the place of a Watcher: the version that a release was built with, for ever, without a registry.

    Raises NoChampion or BadArtifact where the folder does not hold it as it was; an optional one is never there.
    """

    def __init__(self, folder: Path, alias: str, optional: bool = False) -> None:
        self.standing = Standing() if optional else Standing(last_good(alias, folder), datetime.now(UTC))

    def start(self, patience_seconds: float = 0) -> None:
        """There is nothing to follow."""

    def stop(self) -> None:
        """There is nothing to stop."""
