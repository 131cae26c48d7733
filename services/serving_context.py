"""What the requests of a worker share - the served champion, the prediction log, the API keys, the metrics - and what each does.

The operations return the content of the response and raise BentoML's exceptions, which carry a status: UnprocessableEntity (422) for
invalid input, and ServiceUnavailable (503) without a champion or database. Those on labels are in `services/label_operations.py`.
"""

import asyncio
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from bentoml.exceptions import ServiceUnavailable, UnprocessableEntity
from numpy.typing import NDArray
from sqlalchemy import Engine

from digits import images as pixels
from digits import logs
from digits.images import PIXELS, SIZE, Images
from digits.logs import LogFormat
from digits.pictures import pages, rectification
from digits.pictures.pages import Page
from digits.settings import Settings
from digits.storage import database, ledger
from digits.storage.predictions import Place, PredictionBatch, new_ids
from models import digit_score, reading
from models.model_store import VerifiedModel
from models.occlusion import occlusion_map
from models.onnx_model import InferenceFailed, Output
from models.reading import Patterns
from services import response_content
from services.access import Access
from services.batcher import Batcher, BatchResult
from services.label_operations import LabelOperations
from services.metrics import Metrics
from services.platform_state import PlatformPoller
from services.prediction_log import PredictionLog
from services.response_content import Content
from services.serving_state import AliasWatcher

T = TypeVar("T")

# In a Bento: the version that it was built with.
RELEASE = Path(__file__).parent / "release"
FIRST_POLL_SECONDS = 3.0
# A bulk request waits while the log is this full, for at most so long.
MAX_LOG_FILL = 0.5
LOG_WAIT_SECONDS, LOG_POLL_SECONDS = 3.0, 0.005
GAUGE_SECONDS = 1.0
# After Python's 5 ms, a request that needs the interpreter's lock a dozen times waits 180 ms beside a page that is read, not 50
# (`bench.attack`, crowded pages).
SWITCH_SECONDS = 0.0005
# The prediction set of each of the 1,024 combinations of ten digits, by its bits.
_DIGIT_BITS = 1 << np.arange(10)
# Of a version, shown at /about.
_CARD_FIELDS = ("recipe", "dataset", "metrics", "conformal", "digit_threshold", "created_at", "run_id")
_SETS = [[digit for digit in range(10) if bits >> digit & 1] for bits in range(1024)]


def set_up_logging(log_format: LogFormat) -> None:
    """Give our log lines their form also where Granian's configuration does not: under `bentoml serve`."""
    logger = logging.getLogger("digits")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logs.formatter(log_format))
        logger.addHandler(handler)
        logger.propagate = False


class ServingContext:
    """Created when the service starts and closed when it stops."""

    def __init__(self, settings: Settings) -> None:
        set_up_logging(settings.log_format)
        # about damaged metadata: Python would remember each different text for ever, and a picture of 64 kB can cause 5,000
        warnings.filterwarnings("ignore", module=r"PIL\.")
        rectification.use_one_thread()
        sys.setswitchinterval(SWITCH_SECONDS)
        self.settings = settings
        # checked here, because the threads that use the database survive every error
        database.checked(settings.database_url)
        url, max_age = settings.database_url, timedelta(days=settings.retention_days)
        self.prediction_log = PredictionLog(
            url, settings.spool, settings.audit_sample_rate, max_age, settings.log_limit
        )
        self.access = Access(url, settings.auth, settings.rate_per_minute, settings.service_workers)
        self.metrics = Metrics(lambda: self._platform.state)
        self.labels = LabelOperations(
            self.prediction_log, settings.retrain_labels, lambda: self._watcher.state.champion
        )
        self.batcher = Batcher(lambda images, clients: self.predict(images, "/classify", clients))
        self._picture_batcher = Batcher(lambda images, clients: self.predict(images, "/classify_file", clients))
        self._decoding = asyncio.Lock()
        self._random = np.random.default_rng()
        self._samples: tuple[str, list[Content]] = ("", [])
        self._is_release = RELEASE.is_dir()
        cache, poll_seconds = RELEASE if self._is_release else settings.champions, settings.registry_poll_seconds
        self._ledger_engine: Engine | None = None
        self._watcher = AliasWatcher(settings.registry_uri, "champion", cache, poll_seconds, self._promoted_digests)
        self._closing = threading.Event()
        if self._is_release:
            self._watcher.pin()
        else:
            # a worker that replaces a dead one begins to answer when it has its champion
            self._watcher.start(FIRST_POLL_SECONDS)
        self._platform = PlatformPoller(url, self._served_version)
        threading.Thread(target=self._update_gauges, name="gauges", daemon=True).start()

    @property
    def is_ready(self) -> bool:
        """Whether there is a champion, and predictions are logged."""
        return self._watcher.state.champion is not None and self.prediction_log.problem is None

    @property
    def _champion(self) -> VerifiedModel:
        state = self._watcher.state
        if state.champion is None:
            raise ServiceUnavailable(f"there is no champion to answer: {state.warning}")
        return state.champion

    def _served_version(self) -> str | None:
        champion = self._watcher.state.champion
        return None if champion is None else champion.version

    def _promoted_digests(self) -> set[str]:
        if self._ledger_engine is None:
            self._ledger_engine = database.connect(self.settings.database_url, busy_seconds=2)
        return ledger.promoted_digests(self._ledger_engine)

    def classify(self, value: Any, client: str = "") -> Content:
        """Predictions for one image or a list of images, as nested lists."""
        images, is_single = self.read_images(value)
        return response_content.predictions(self.predict(images, "/classify", [client] * len(images)), is_single)

    def read_images(self, value: Any) -> tuple[Images, bool]:
        """The images (n, 28, 28) in nested lists, and whether the lists are one image rather than a list of images."""
        try:
            return pixels.from_json(value, self.settings.batch_limit), pixels.is_single(value)
        except ValueError as error:
            raise UnprocessableEntity(str(error)) from error

    def classify_file(self, picture: bytes, preview: bool, client: str = "") -> Content:
        """The prediction for a picture file and the 28 x 28 image made of it; a preview is not logged."""
        images = self._decode(picture)
        return response_content.picture_prediction(
            self.predict(images, "/classify_file", [client], is_preview=preview), images
        )

    async def classify_tiny_file(self, picture: bytes, preview: bool, client: str) -> Content:
        """As `classify_file`, on the event loop; shares the model's call with others that are waiting."""
        async with self._decoding:
            images = self._decode(picture)
            # Between two pictures other requests have their turn: 128 at once would delay them by a second.
            await asyncio.sleep(0)
        if preview:
            result = self.predict(images, "/classify_file", [client], is_preview=True)
        else:
            result = await self._picture_batcher.predict(images, client)
        return response_content.picture_prediction(result, images)

    def _decode(self, picture: bytes) -> Images:
        """The (1, 28, 28) image of a picture file."""
        try:
            return rectification.decode(picture, self.settings.picture_limit_pixels)[None]
        except ValueError as error:
            raise UnprocessableEntity(str(error)) from error

    def read(self, picture: bytes, preview: bool, pattern: str | None, length: int | None, client: str = "") -> Content:
        """The numbers in a picture file, line by line, each digit with its place; a preview is not logged."""
        try:
            patterns = reading.patterns(pattern, length)
            page = pages.decode(picture, self.settings.picture_limit_pixels)
        except ValueError as error:
            raise UnprocessableEntity(str(error)) from error
        return self._with_champion(lambda champion: self._read(champion, page, patterns, preview, client))

    def _read(self, champion: VerifiedModel, page: Page, patterns: Patterns, preview: bool, client: str) -> Content:
        """The numbers on a page, all read by one version; raises InferenceFailed before anything is logged."""
        try:
            read = [(line, reading.read(line.ink, champion.model.predict, patterns)) for line in page.lines]
        except ValueError as error:
            raise UnprocessableEntity(str(error)) from error
        left_out = sum(one.left_out for _, one in read)
        lines = [one for one in read if one[1].digits]
        if not lines:
            raise UnprocessableEntity(
                "the picture shows no digit; write digits in it, or send a picture that is sharper"
            )
        places = [
            Place(number, *page.box(line, *digit.bounds))
            for number, (line, one) in enumerate(lines)
            for digit in one.digits
        ]
        images = np.stack([digit.image for _, one in lines for digit in one.digits])
        output = Output(
            np.stack([digit.probabilities for _, one in lines for digit in one.digits]),
            np.array([digit.digit_score for _, one in lines for digit in one.digits], np.float32),
        )
        result = self._record(
            champion, images, output, "/read", [client] * len(images), is_preview=preview, places=places
        )
        return response_content.reading([one for _, one in lines], left_out, result, images, places)

    def explain(self, value: Any) -> Content:
        """The most probable digit of an image, as nested lists, and how much its probability falls where paper covers each pixel."""
        images, is_single = self.read_images(value)
        if not is_single:
            raise UnprocessableEntity("image is a list of images; send one image")
        champion, (probabilities, _) = self._predict(images)
        digit = int(probabilities[0].argmax())
        probability = float(probabilities[0, digit])
        try:
            falls = occlusion_map(images[0], digit, probability, champion.model.predict_proba)
        except InferenceFailed as error:
            raise ServiceUnavailable(f"the champion cannot explain its answer: {error}") from error
        return {"digit": digit, "probability": probability, "falls": falls, "model_version": champion.version}

    def classify_bulk(self, body: bytes, client: str = "") -> Content:
        """Predictions for raw uint8 pixels, 784 bytes for each image."""
        if not body or len(body) % PIXELS:
            raise UnprocessableEntity(f"the body has {len(body):,} bytes; expected {PIXELS} for each image")
        images = np.frombuffer(body, np.uint8).reshape(-1, SIZE, SIZE)
        result = self.predict(images, "/classify_bulk", [client] * len(images), self.settings.bulk_log_sample_rate)
        return {
            "model_version": result.version,
            "digits": result.digits,
            "probabilities": np.maximum.reduce(result.probabilities, axis=1),
            "uncertain": result.uncertain,
            "is_digit": result.is_digit,
            "prediction_sets": result.prediction_sets,
            "ids": result.ids,
        }

    def predict(
        self,
        images: Images,
        route: str,
        clients: Sequence[str],
        sample_rate: float = 1.0,
        is_preview: bool = False,
    ) -> BatchResult:
        """Predictions of the champion for images (n, 28, 28) of n clients; this share of them is logged under ids.

        A preview is neither logged nor counted.
        """
        champion, output = self._predict(images)
        return self._record(champion, images, output, route, clients, sample_rate, is_preview)

    def _record(
        self,
        champion: VerifiedModel,
        images: Images,
        output: Output,
        route: str,
        clients: Sequence[str],
        sample_rate: float = 1.0,
        is_preview: bool = False,
        places: Sequence[Place] = (),
    ) -> BatchResult:
        """What the champion's output means, counted and logged unless it is a preview."""
        probabilities, digit_scores = output
        digits = probabilities.argmax(1).astype(np.uint8)
        sets, uncertain = champion.conformal.predict(probabilities, images)
        shown = digit_score.is_digit(digit_scores, champion.digit_threshold)
        uncertain |= ~shown
        ids: list[str | None] = [None] * len(images)
        if not is_preview:
            self.metrics.count_answers(champion.version, digits, uncertain, shown)
            n_uncertain = int(np.count_nonzero(uncertain))
            self.prediction_log.counter.count(route, 200, images=len(images), uncertain=n_uncertain)
            ids = self._log(champion.version, images, probabilities, digit_scores, route, clients, sample_rate, places)
        prediction_sets = [_SETS[bits] for bits in (sets @ _DIGIT_BITS).tolist()]
        return BatchResult(
            champion.version, digits, probabilities, prediction_sets, uncertain, shown, digit_scores, ids
        )

    def _predict(self, images: Images) -> tuple[VerifiedModel, Output]:
        """The champion and its output."""
        return self._with_champion(lambda champion: (champion, champion.model.predict(images)))

    def _with_champion(self, operation: Callable[[VerifiedModel], T]) -> T:
        """The result of an operation of the champion; where its session fails twice, of the last good version before it."""
        champion = self._champion
        while True:
            try:
                # The second time, a failure is not one of a moment, such as of memory that others had taken.
                with suppress(InferenceFailed):
                    return operation(champion)
                return operation(champion)
            except InferenceFailed as error:
                replacement = self._watcher.replace_failed(champion, str(error))
                if replacement is None:
                    warning = self._watcher.state.warning
                    raise ServiceUnavailable(f"there is no other version to answer: {warning}") from error
                champion = replacement

    def _log(
        self,
        version: str,
        images: Images,
        probabilities: NDArray[np.float32],
        digit_scores: NDArray[np.float32],
        route: str,
        clients: Sequence[str],
        sample_rate: float,
        places: Sequence[Place],
    ) -> list[str | None]:
        """Log a random sample of the predictions; returns the ids of all, None for one that is not logged."""
        ids: list[str | None] = [None] * len(images)
        chosen: Iterable[int] = range(len(images))
        if sample_rate < 1:
            chosen = np.flatnonzero(self._random.random(len(images)) < sample_rate).tolist()
            images, probabilities, digit_scores = images[chosen], probabilities[chosen], digit_scores[chosen]
            clients = [clients[i] for i in chosen]
            places = [places[i] for i in chosen] if places else ()
        drawn = new_ids(len(images))
        now = datetime.now(UTC)
        batch = PredictionBatch(drawn, now, version, images, probabilities, route, clients, digit_scores, places)
        if drawn and self.prediction_log.append(batch):
            for index, id in zip(chosen, drawn, strict=True):
                ids[index] = id
        else:
            self.metrics.count_lost(len(drawn))
        return ids

    async def wait_for_log(self) -> None:
        """Let a prediction log that is filling up catch up before a bulk request; single images never wait."""
        deadline = time.monotonic() + LOG_WAIT_SECONDS
        while self.prediction_log.depth > MAX_LOG_FILL * self.settings.log_limit and time.monotonic() < deadline:
            await asyncio.sleep(LOG_POLL_SECONDS)

    def about(self) -> Content:
        """The served version, where it comes from, and what is wrong if anything is."""
        state, log = self._watcher.state, self.prediction_log
        card, served = (state.champion.card, state.champion.version) if state.champion else ({}, None)
        # a release has no MLflow
        has_run = not self._is_release and {"run_id", "experiment_id"} <= card.keys()
        return {
            "model_version": served,
            "since": state.since,
            "warning": state.warning or log.problem,
            **{name: card.get(name) for name in _CARD_FIELDS},
            "version_url": self.settings.version_url(str(served)) if has_run else None,
            "run_url": self.settings.run_url(card["experiment_id"], card["run_id"]) if has_run else None,
            "log": {
                "waiting": log.depth,
                "sealed_segments": log.sealed_segments,
                "damaged_segments": log.damaged_segments,
                "lost": log.lost,
            },
        }

    def samples(self) -> Content:
        """Held-out digits to try the champion on."""
        champion = self._champion
        if self._samples[0] != champion.version:
            self._samples = champion.version, response_content.samples(champion.reference)
        return {"model_version": champion.version, "samples": self._samples[1]}

    def _update_gauges(self) -> None:
        """Share the metrics that are states rather than events with the worker that answers /metrics."""
        while True:
            champion, log = self._watcher.state.champion, self.prediction_log
            number = int(champion.version) if champion and champion.version.isdigit() else 0
            self.metrics.set_gauges(number, log.depth, log.sealed_segments, log.damaged_segments)
            if self._closing.wait(GAUGE_SECONDS):
                return

    def close(self) -> None:
        """Stop the threads and write what waits in the log."""
        self._closing.set()
        self.access.stop()
        self._watcher.stop()
        self._platform.stop()
        if self._ledger_engine is not None:
            self._ledger_engine.dispose()
        self.prediction_log.close()
