"""What the routes share in a worker: the champion and its watcher, the prediction log, the metrics."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digits.images import Images
from digits.settings import Settings
from digits.storage import database
from digits.storage.predictions import Answers, new_ids
from models.champion import BadArtifact, Champion, Release, Standing, Watcher, reference_of
from services import samples
from services.access import Access
from services.batcher import Batcher
from services.metrics import Metrics
from services.prediction_log import PredictionLog
from services.responses import Reply
from services.shadow import Shadow

log = logging.getLogger("digits.service")

RELEASE = Path(__file__).parent / "release"  # in a Bento: the version that it was built with

CROWDED = 0.5  # of the answers that may wait to be logged, from which on a bulk request waits
PATIENCE_SECONDS = 3.0


class Desk:
    """Held open by the service from its start to its end."""

    def __init__(self, where: Settings) -> None:
        logging.getLogger("digits").setLevel(logging.INFO)
        self.where = where
        database.checked(where.database_url)  # here, because the threads that use it go on whatever happens
        self.log = PredictionLog(
            where.database_url,
            where.spool,
            where.audit_share,
            timedelta(days=where.keep_days),
            where.log_limit,
            interval_seconds=0.2,
        )
        self.access = Access(where.database_url, where.home / "rates", where.open, where.rate_per_minute)
        self.metrics = Metrics()
        self._samples: tuple[str, list[dict[str, Any]]] = ("", [])  # of a version
        self._is_release = RELEASE.is_dir()
        follow: Callable[..., Watcher | Release] = partial(
            Watcher, where.mlflow_tracking_uri, cache=where.champions, interval_seconds=where.watch_seconds
        )
        if self._is_release:
            follow = partial(Release, RELEASE)
        self._watcher = follow("champion")
        self.shadow = Shadow(follow("challenger", optional=True), self.log)
        self.batcher = Batcher(self._classify)
        self.access.start()
        self._watcher.start(
            PATIENCE_SECONDS
        )  # requests that wait for a worker in the place of a dead one get an answer
        self.shadow.start()

    @property
    def standing(self) -> Standing:
        """Who answers, and what is wrong."""
        return self._watcher.standing

    @property
    def champion(self) -> Champion | None:
        """Who answers, None before the first."""
        return self._watcher.standing.champion

    def answer(self, champion: Champion, images: Images, route: str, share: float = 1.0) -> Reply:
        """The champion's answers on images (n, 28, 28), a share of them logged under ids."""
        probabilities = champion.answer(images)
        digits = probabilities.argmax(1).astype(np.uint8)
        sets, unsure = champion.certainty.judge(probabilities, images)
        self.metrics.count_answers(champion.version, digits, unsure)
        ids = self._log(champion, images, probabilities, route, share)
        return Reply(champion.version, digits, probabilities, sets, unsure, ids)

    def _classify(self, images: Images) -> Reply:
        """The answers on a batch, from whoever is champion when it runs."""
        champion = self.champion
        assert champion is not None  # the routes let no request in before there is one
        return self.answer(champion, images, "/classify")

    def _log(
        self, champion: Champion, images: Images, probabilities: NDArray[np.float32], route: str, share: float
    ) -> list[str | None]:
        """Log a share of the answers, and let the challenger answer those too; the ids, None where not logged or the log is full."""
        logged: list[str | None] = [None] * len(images)
        chosen: Sequence[int] = range(len(images))
        if share < 1:
            chosen = [index for index in chosen if random.random() < share]
            images, probabilities = images[chosen], probabilities[chosen]
        if chosen:
            ids = new_ids(len(chosen))
            answers = Answers(ids, datetime.now(UTC), champion.version, images, probabilities, route)
            if not self.log.append(answers):
                return logged
            self.shadow.take(answers)
            for index, id in zip(chosen, ids, strict=True):
                logged[index] = id
        return logged

    async def room(self) -> None:
        """Let a crowded prediction log catch up before a bulk request adds to it; single answers never wait."""
        waited = 0.0
        while self.log.depth > CROWDED * self.where.log_limit and waited < PATIENCE_SECONDS:
            await asyncio.sleep(0.05)
            waited += 0.05

    def about(self) -> dict[str, Any]:
        """Which version answers, since when, where it comes from, and what is wrong if anything is."""
        standing = self.standing
        card = standing.champion.card if standing.champion else {}
        return {
            "model_version": standing.champion and standing.champion.version,
            "since": standing.since,
            "trouble": standing.trouble,
            **{name: card.get(name) for name in ("recipe", "dataset", "metrics", "certainty", "created_at", "run_id")},
            "run_link": self._run_link(card),
            "log": {"waiting": self.log.depth, "spooled_batches": self.log.spooled, "lost": self.log.lost},
            "challenger": self._challenger(),
        }

    def samples(self, champion: Champion) -> list[dict[str, Any]]:
        """Held-out digits to try this champion on; none where the disk would not take its copy."""
        version, chosen = self._samples
        if version != champion.version:
            try:
                chosen = samples.choose(reference_of(champion, RELEASE if self._is_release else self.where.champions))
            except BadArtifact as error:
                log.warning("%s", error)
                chosen = []
            self._samples = champion.version, chosen
        return chosen

    def _challenger(self) -> dict[str, Any] | None:
        """Who answers in the champion's shadow, None where there is nobody and nothing is wrong."""
        standing = self.shadow.standing
        if standing.champion is None and standing.trouble is None:
            return None
        return {
            "model_version": standing.champion and standing.champion.version,
            "since": standing.since,
            "trouble": standing.trouble,
            "answered": self.shadow.answered,
            "dropped": self.shadow.dropped,
        }

    def _run_link(self, card: dict[str, Any]) -> str | None:
        """The run in MLflow's UI; a release knows of no MLflow."""
        if self._is_release or not {"run_id", "experiment_id"} <= card.keys():
            return None
        return self.where.run_link(card["experiment_id"], card["run_id"])

    def update_gauges(self) -> None:
        """Bring the metrics that are states rather than events up to date."""
        champion = self.champion
        self.metrics.set_state(
            version=champion.version if champion else "0",
            waiting=self.log.depth,
            spooled=self.log.spooled,
            lost=self.log.lost,
            shadowed=self.shadow.answered,
            shadow_dropped=self.shadow.dropped,
        )

    def close(self) -> None:
        """Stop following the champion and write what waits."""
        self.access.stop()
        self.shadow.stop()
        self._watcher.stop()
        self.log.close()
