"""The version that a worker serves: it follows the alias `champion`, or it is the one that a release was built with."""

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from models.model_store import ModelStore, VerifiedModel, last_good, remember
from models.onnx_model import InvalidArtifact
from models.registry_reader import MODEL_NAME, TIMEOUT, AliasTarget, RegistryUnreachable, VersionNotFound

log = logging.getLogger("digits.champion")

RETRY_REFUSED_SECONDS = 60


@dataclass(frozen=True)
class ServingState:
    """The version that is served, and what keeps the service from following the registry."""

    champion: VerifiedModel | None = None
    since: datetime | None = None  # UTC
    warning: str | None = None  # one sentence


class AliasWatcher:
    """Follows an alias from its own thread: fetches, verifies and warms the new version, then swaps it in by one assignment."""

    def __init__(self, uri: str, alias: str, cache: Path, interval_seconds: float) -> None:
        self.state = ServingState(warning=f"the service has just started and looks for the {alias}")
        self._alias, self._store, self._interval_seconds = alias, ModelStore(uri, cache), interval_seconds
        self._served: AliasTarget | None = None
        # The target that failed verification, and when it may be tried again.
        self._refused: tuple[AliasTarget | None, float] = (None, 0.0)
        self._polled, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{alias}", daemon=True)

    def start(self, wait_seconds: float = 0) -> None:
        """Start polling; returns after the first poll, or after `wait_seconds`."""
        self._thread.start()
        self._polled.wait(wait_seconds)

    def pin(self) -> None:
        """Serve the last good copy without polling, as a release does; raises VersionNotFound or InvalidArtifact."""
        self.state = ServingState(last_good(self._alias, self._store.cache), datetime.now(UTC))

    def stop(self) -> None:
        """Stop polling; the version in place stays."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(TIMEOUT.read)
        self._store.registry.close()

    def poll(self) -> None:
        """Look at the alias once: swap when it points to another version, and set the warning when that fails."""
        try:
            target = self._store.registry.alias_target(self._alias)
            if target != self._served:
                self._swap(target)
            else:
                self._warn(None)
        except VersionNotFound as error:
            self._warn(str(error))
        except InvalidArtifact as error:
            self._refused = (target, time.monotonic() + RETRY_REFUSED_SECONDS)
            self._fall_back(str(error))
        except RegistryUnreachable as error:
            self._fall_back(str(error))

    def _run(self) -> None:
        while True:
            try:
                self.poll()
            # Whatever it is, the version in place goes on answering, and the next poll may succeed.
            except Exception:
                log.exception("polling the alias %s failed", self._alias)
            self._polled.set()
            if self._stop.wait(self._interval_seconds):
                return

    def _swap(self, target: AliasTarget) -> None:
        refused, retry_at = self._refused
        if target == refused and time.monotonic() < retry_at:
            return
        model = self._store.fetch_version(target.version)
        before = self.state.champion
        self.state = ServingState(model, datetime.now(UTC))
        self._served = target
        remember(model, self._alias, self._store.cache)
        log.info("serving %s v%s (before: %s)", MODEL_NAME, target.version, before and f"v{before.version}")

    def _fall_back(self, warning: str) -> None:
        """Keep the version in place; without one, serve the last good copy."""
        if self.state.champion is None:
            with suppress(VersionNotFound, InvalidArtifact):
                model = last_good(self._alias, self._store.cache)
                self.state = ServingState(model, datetime.now(UTC), self.state.warning)
                log.warning("serving %s v%s from its copy in %s", MODEL_NAME, model.version, self._store.cache)
        self._warn(warning)

    def _warn(self, warning: str | None) -> None:
        """Set the warning, and log it if it changed."""
        state = self.state
        if warning != state.warning:
            self.state = ServingState(state.champion, state.since, warning)
            if warning:
                log.warning("%s", warning)
