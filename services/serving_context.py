"""What the routes share in a worker: the champion and its watcher, the prediction log, the metrics."""

import asyncio
import logging
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits.images import Images
from digits.settings import Settings
from digits.storage import database
from digits.storage.predictions import PredictionBatch, new_ids
from models.model_store import VerifiedModel, reference_of
from models.onnx_model import InvalidArtifact
from services import samples
from services.access import Access
from services.batcher import Batcher
from services.metrics import Metrics
from services.prediction_log import PredictionLog
from services.responses import Reply
from services.serving_state import AliasWatcher, FixedVersion, ServingState

log = logging.getLogger("digits.service")

RELEASE = Path(__file__).parent / "release"  # in a Bento: the version that it was built with

CROWDED = 0.5  # of the answers that may wait to be logged, from which on a bulk request waits
PATIENCE_SECONDS = 3.0


class ServingContext:
    """Held open by the service from its start to its end."""

    def __init__(self, settings: Settings) -> None:
        logging.getLogger("digits").setLevel(logging.INFO)
        self.settings = settings
        database.checked(settings.database_url)  # here, because the threads that use it go on whatever happens
        self.log = PredictionLog(
            settings.database_url,
            settings.spool,
            settings.audit_sample_rate,
            timedelta(days=settings.retention_days),
            settings.log_limit,
            interval_seconds=0.2,
        )
        self.access = Access(settings.database_url, settings.home / "rates", settings.auth, settings.rate_per_minute)
        self.metrics = Metrics()
        self._samples: tuple[str, list[dict[str, Any]]] = ("", [])  # of a version
        self._is_release = RELEASE.is_dir()
        self._watcher: AliasWatcher | FixedVersion = (
            FixedVersion(RELEASE)
            if self._is_release
            else AliasWatcher(
                settings.mlflow_tracking_uri, "champion", settings.champions, settings.registry_poll_seconds
            )
        )
        self.batcher = Batcher(self._classify)
        self.access.start()
        # Requests that wait for a worker that replaces a dead one get an answer.
        self._watcher.start(PATIENCE_SECONDS)

    @property
    def state(self) -> ServingState:
        """Who answers, and what is wrong."""
        return self._watcher.state

    @property
    def champion(self) -> VerifiedModel | None:
        """Who answers, None before the first."""
        return self._watcher.state.champion

    def answer(self, champion: VerifiedModel, images: Images, route: str, share: float = 1.0) -> Reply:
        """The champion's answers on images (n, 28, 28), a share of them logged under ids."""
        probabilities = champion.predict_proba(images)
        digits = probabilities.argmax(1).astype(np.uint8)
        sets, uncertain = champion.conformal.predict(probabilities, images)
        self.metrics.count_answers(champion.version, digits, uncertain)
        ids = self._log(champion, images, probabilities, route, share)
        return Reply(champion.version, digits, probabilities, sets, uncertain, ids)

    def _classify(self, images: Images) -> Reply:
        """The answers on a batch, from whoever is champion when it runs."""
        champion = self.champion
        assert champion is not None  # the routes let no request in before there is one
        return self.answer(champion, images, "/classify")

    def _log(
        self, champion: VerifiedModel, images: Images, probabilities: NDArray[np.float32], route: str, share: float
    ) -> list[str | None]:
        """Log a share of the answers; the ids, None where not logged or the log is full."""
        logged: list[str | None] = [None] * len(images)
        chosen: Sequence[int] = range(len(images))
        if share < 1:
            chosen = [index for index in chosen if random.random() < share]
            images, probabilities = images[chosen], probabilities[chosen]
        if chosen:
            ids = new_ids(len(chosen))
            answers = PredictionBatch(ids, datetime.now(UTC), champion.version, images, probabilities, route)
            if not self.log.append(answers):
                return logged
            for index, id in zip(chosen, ids, strict=True):
                logged[index] = id
        return logged

    async def room(self) -> None:
        """Let a crowded prediction log catch up before a bulk request adds to it; single answers never wait."""
        waited = 0.0
        while self.log.depth > CROWDED * self.settings.log_limit and waited < PATIENCE_SECONDS:
            await asyncio.sleep(0.05)
            waited += 0.05

    def about(self) -> dict[str, Any]:
        """Which version answers, since when, where it comes from, and what is wrong if anything is."""
        state = self.state
        card = state.champion.card if state.champion else {}
        return {
            "model_version": state.champion and state.champion.version,
            "since": state.since,
            "warning": state.warning,
            **{name: card.get(name) for name in ("recipe", "dataset", "metrics", "conformal", "created_at", "run_id")},
            "run_url": self._run_url(card),
            "log": {"waiting": self.log.depth, "spooled_batches": self.log.spooled, "lost": self.log.lost},
        }

    def samples(self, champion: VerifiedModel) -> list[dict[str, Any]]:
        """Held-out digits to try this champion on; none where the disk would not take its copy."""
        version, chosen = self._samples
        if version != champion.version:
            try:
                chosen = samples.choose(
                    reference_of(champion, RELEASE if self._is_release else self.settings.champions)
                )
            except InvalidArtifact as error:
                log.warning("%s", error)
                chosen = []
            self._samples = champion.version, chosen
        return chosen

    def _run_url(self, card: dict[str, Any]) -> str | None:
        """The run in MLflow's UI; a release knows of no MLflow."""
        if self._is_release or not {"run_id", "experiment_id"} <= card.keys():
            return None
        return self.settings.run_url(card["experiment_id"], card["run_id"])

    def update_gauges(self) -> None:
        """Bring the metrics that are states rather than events up to date."""
        champion = self.champion
        self.metrics.set_state(
            version=champion.version if champion else "0",
            waiting=self.log.depth,
            spooled=self.log.spooled,
            lost=self.log.lost,
        )

    def close(self) -> None:
        """Stop following the champion and write what waits."""
        self.access.stop()
        self._watcher.stop()
        self.log.close()
