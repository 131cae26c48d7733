"""The progress of a training on the page of its flow run; a Prefect server that is slow or away costs the training nothing."""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from models.training import EpochMetrics, Recipe

log = logging.getLogger("digits.progress")

KEY = "training"
INTERVAL_SECONDS = 2.0  # between two updates, at least
IMPATIENT = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: 5.0}


class Progress:
    """A progress artifact, which a thread of its own brings up to date with the newest epoch."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.epochs = recipe, recipe.n_models * recipe.epochs
        self.percent, self.description = 0.0, f"{recipe.name}: epoch 0 of {self.epochs}"
        self._artifact: Any = None  # its id, typed by Prefect as if it might be a coroutine
        self._sender, self._sending, self._sent_at = ThreadPoolExecutor(1, "prefect-progress"), Future[None](), 0.0
        self._send()

    def report(self, epoch: int, metrics: EpochMetrics) -> None:
        """Show an epoch, counted from 0, unless an earlier one was shown just before; raises nothing."""
        reached = f"epoch {epoch + 1} of {self.epochs}, validation accuracy {metrics['val_accuracy']:.4f}"
        self.percent, self.description = 100 * (epoch + 1) / self.epochs, f"{self.recipe.name}: {reached}"
        if self._sending.done() and time.monotonic() - self._sent_at >= INTERVAL_SECONDS:
            self._send()

    def end(self, is_complete: bool) -> None:
        """Show the last epoch, as all of the training where it stopped early."""
        self.percent = 100.0 if is_complete else self.percent
        self._send()
        self._sender.shutdown()

    def _send(self) -> None:
        # The context says which flow run the artifact belongs to.
        self._sending, self._sent_at = self._sender.submit(copy_context().run, self._show), time.monotonic()

    def _show(self) -> None:
        try:
            with temporary_settings(IMPATIENT):
                if self._artifact is None:
                    self._artifact = create_progress_artifact(self.percent, KEY, self.description)
                else:
                    update_progress_artifact(self._artifact, self.percent, self.description)
        except httpx.HTTPError as error:
            log.debug("Prefect does not answer (%s); the next epoch is shown", error)


@contextmanager
def progress_of(recipe: Recipe) -> Iterator[Progress]:
    """Show the progress of the training in the block."""
    progress, is_complete = Progress(recipe), False
    try:
        yield progress
        is_complete = True
    finally:
        progress.end(is_complete)
