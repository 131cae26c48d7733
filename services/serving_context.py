"""What the requests of a worker share: the served champion, the prediction log, the API keys, the metrics."""

import asyncio
import logging
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from bentoml.exceptions import ServiceUnavailable
from numpy.typing import NDArray

from digits.images import Images
from digits.settings import Settings
from digits.storage import database
from digits.storage.predictions import PredictionBatch, new_ids
from models.model_store import VerifiedModel, reference_of
from models.onnx_model import InvalidArtifact
from services import samples
from services.access import Access
from services.batcher import Batcher, BatchResult
from services.metrics import Metrics
from services.prediction_log import PredictionLog
from services.serving_state import AliasWatcher, ServingState

log = logging.getLogger("digits.service")

# In a Bento: the version that it was built with.
RELEASE = Path(__file__).parent / "release"
FIRST_POLL_SECONDS = 3.0
# A bulk request waits while the log is this full, for at most so long.
MAX_LOG_FILL = 0.5
LOG_WAIT_SECONDS = 3.0
GAUGE_SECONDS = 1.0


class ServingContext:
    """Created when the service starts and closed when it stops."""

    def __init__(self, settings: Settings) -> None:
        logging.getLogger("digits").setLevel(logging.INFO)
        self.settings = settings
        # checked here, because the threads that use the database survive every error
        database.checked(settings.database_url)
        url, retention = settings.database_url, timedelta(days=settings.retention_days)
        self.log = PredictionLog(url, settings.spool, settings.audit_sample_rate, retention, settings.log_limit)
        self.access = Access(url, settings.auth, settings.rate_per_minute, settings.service_workers)
        self.metrics = Metrics()
        self.batcher = Batcher(lambda images: self.predict(images, "/classify"))
        self._random = np.random.default_rng()
        self._samples: tuple[str, list[dict[str, Any]]] = ("", [])
        self._is_release = RELEASE.is_dir()
        self._cache, poll_seconds = RELEASE if self._is_release else settings.champions, settings.registry_poll_seconds
        self._watcher = AliasWatcher(settings.mlflow_tracking_uri, "champion", self._cache, poll_seconds)
        self._closing = threading.Event()
        self.access.start()
        if self._is_release:
            self._watcher.pin()
        else:
            # a worker that replaces a dead one begins to answer when it has its champion
            self._watcher.start(FIRST_POLL_SECONDS)
        threading.Thread(target=self._report, name="gauges", daemon=True).start()

    @property
    def state(self) -> ServingState:
        """The served version, and what is wrong with following the registry."""
        return self._watcher.state

    @property
    def champion(self) -> VerifiedModel | None:
        """The served version, None before the first."""
        return self.state.champion

    def _required_champion(self) -> VerifiedModel:
        if self.champion is None:
            raise ServiceUnavailable(f"there is no champion to answer: {self.state.warning}")
        return self.champion

    def predict(self, images: Images, route: str, sample_rate: float = 1.0) -> BatchResult:
        """Predictions of the champion for images (n, 28, 28); this share of them is logged under ids.

        Raises ServiceUnavailable before the first champion.
        """
        champion = self._required_champion()
        probabilities = champion.predict_proba(images)
        digits = probabilities.argmax(1).astype(np.uint8)
        sets, uncertain = champion.conformal.predict(probabilities, images)
        self.metrics.count_answers(champion.version, digits, uncertain)
        ids = self._log(champion.version, images, probabilities, route, sample_rate)
        return BatchResult(champion.version, digits, probabilities, sets, uncertain, ids)

    def _log(
        self, version: str, images: Images, probabilities: NDArray[np.float32], route: str, sample_rate: float
    ) -> list[str | None]:
        """Log a random sample of the predictions; the ids of all, None for one that is not logged."""
        ids: list[str | None] = [None] * len(images)
        chosen: Iterable[int] = range(len(images))
        if sample_rate < 1:
            chosen = np.flatnonzero(self._random.random(len(images)) < sample_rate)
            images, probabilities = images[chosen], probabilities[chosen]
        drawn = new_ids(len(images))
        batch = PredictionBatch(drawn, datetime.now(UTC), version, images, probabilities, route)
        if drawn and self.log.append(batch):
            for index, id in zip(chosen, drawn, strict=True):
                ids[index] = id
        return ids

    async def wait_for_log(self) -> None:
        """Let a prediction log that is filling up catch up before a bulk request; single images never wait."""
        waited = 0.0
        while self.log.depth > MAX_LOG_FILL * self.settings.log_limit and waited < LOG_WAIT_SECONDS:
            await asyncio.sleep(0.05)
            waited += 0.05

    def about(self) -> dict[str, Any]:
        """The served version, where it comes from, and what is wrong if anything is."""
        state = self.state
        card = state.champion.card if state.champion else {}
        return {
            "model_version": state.champion and state.champion.version,
            "since": state.since,
            "warning": state.warning,
            **{name: card.get(name) for name in ("recipe", "dataset", "metrics", "conformal", "created_at", "run_id")},
            "run_url": self._run_url(card),
            "log": self._log_state(),
        }

    def _run_url(self, card: dict[str, Any]) -> str | None:
        """The run in MLflow's UI; None in a release, which has no MLflow."""
        if self._is_release or not {"run_id", "experiment_id"} <= card.keys():
            return None
        return self.settings.run_url(card["experiment_id"], card["run_id"])

    def samples(self) -> dict[str, Any]:
        """Held-out digits to try the champion on; none if the disk has no copy of them."""
        champion = self._required_champion()
        version, chosen = self._samples
        if version != champion.version:
            try:
                chosen = samples.choose(reference_of(champion, self._cache))
            except InvalidArtifact as error:
                log.warning("%s", error)
                chosen = []
            self._samples = champion.version, chosen
        return {"model_version": champion.version, "samples": chosen}

    def update_gauges(self) -> None:
        """Set the metrics that are states rather than events."""
        version = self.champion.version if self.champion else "0"
        self.metrics.set_gauges(
            champion_version=int(version) if version.isdigit() else 0,
            **{f"log_{name}": value for name, value in self._log_state().items()},
        )

    def _log_state(self) -> dict[str, int]:
        return {"waiting": self.log.depth, "spooled_batches": self.log.spooled, "lost": self.log.lost}

    def _report(self) -> None:
        """Share this worker's gauges with the one that answers /metrics."""
        while not self._closing.wait(GAUGE_SECONDS):
            self.update_gauges()

    def close(self) -> None:
        """Stop the threads and write what waits in the log."""
        self._closing.set()
        self.access.stop()
        self._watcher.stop()
        self.log.close()
