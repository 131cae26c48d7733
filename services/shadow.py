"""The challenger in the shadow of the champion: it answers the same images in the background, for the log alone."""

import logging
import threading
from collections import deque

import numpy as np

from digits.storage.predictions import Answers, shadow_id
from models.champion import Release, Standing, Watcher
from services.prediction_log import PredictionLog

log = logging.getLogger("digits.shadow")

MOST_WAITING = 5_000  # images; more are dropped and counted
CROWDED = 5_000  # answers waiting to be logged from which on the challenger's give way
AT_ONCE = (
    256  # images: the thread that answers requests waits while Python works on so many here, less than a millisecond
)
INTERVAL_SECONDS = 0.1


class Shadow:
    """Takes what the champion answered and lets the challenger answer it, from a thread of its own."""

    def __init__(self, watcher: Watcher | Release, log: PredictionLog) -> None:
        self.answered = self.dropped = 0  # images
        self._watcher, self._log = watcher, log
        self._lock = threading.Lock()
        self._tasks: deque[Answers] = deque()
        self._waiting = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    @property
    def standing(self) -> Standing:
        """Who is the challenger, if there is one."""
        return self._watcher.standing

    def start(self) -> None:
        self._watcher.start()
        self._thread.start()

    def stop(self) -> None:
        """Stop at once; what waits is dropped."""
        self._stop.set()
        self._watcher.stop()
        self._thread.join(5)

    def take(self, answers: Answers) -> None:
        """Costs the champion's request an append, and nothing where there is no challenger."""
        challenger = self.standing.champion
        if challenger is None or challenger.version == answers.version:
            return
        with self._lock:
            if self._waiting + len(answers.ids) > MOST_WAITING or self._log.depth > CROWDED:
                self.dropped += len(answers.ids)
                return
            self._waiting += len(answers.ids)
            self._tasks.append(answers)

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            while (tasks := self._next()) and not self._stop.is_set():
                self._answer(tasks)

    def _next(self) -> list[Answers]:
        """The oldest that wait."""
        tasks: list[Answers] = []
        count = 0
        with self._lock:
            while self._tasks and count < AT_ONCE:
                tasks.append(self._tasks.popleft())
                count += len(tasks[-1].ids)
            self._waiting -= count
        return tasks

    def _answer(self, tasks: list[Answers]) -> None:
        challenger = self.standing.champion
        if challenger is None:
            return
        count = sum(len(answers.ids) for answers in tasks)
        try:
            probabilities = challenger.answer(np.concatenate([answers.images for answers in tasks]))
        except Exception:  # whatever is wrong with the challenger, the champion has answered
            self.dropped += count
            log.exception("the challenger v%s fails on %d images", challenger.version, count)
            return
        begin = 0
        for answers in tasks:
            end = begin + len(answers.ids)
            self._log.append(
                answers._replace(
                    ids=[shadow_id(id) for id in answers.ids],
                    version=challenger.version,
                    probabilities=probabilities[begin:end],
                    role="challenger",
                )
            )
            begin = end
        self.answered += count
