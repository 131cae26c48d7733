"""The version that a worker serves: it follows the alias `champion`, or it is the one that a release was built with."""

import logging
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from models import model_store
from models.model_store import ModelStore, VerifiedModel, last_good, remember
from models.onnx_model import InvalidArtifact
from models.registry_reader import MODEL_NAME, TIMEOUT, AliasTarget, VersionNotFound
from models.verification import VerificationCancelled

log = logging.getLogger("digits.champion")

RETRY_REFUSED_SECONDS = 60


@dataclass(frozen=True)
class ServingState:
    """The version that is served, and what keeps the service from following the registry."""

    champion: VerifiedModel | None = None
    since: datetime | None = None  # UTC
    warning: str | None = None  # one sentence


class NotServed(LookupError):
    """A version that the alias points to and that the service does not follow."""


class AliasWatcher:
    """Follows an alias from its own thread: fetches, verifies and warms the new version, then swaps it in by one assignment.

    It follows only versions whose promotion is recorded in the ledger: write access to the registry alone is not enough to change
    the champion. `promoted_digests` reads their digests from the ledger and raises ConnectionError where that is unreachable.
    """

    def __init__(
        self,
        uri: str,
        alias: str,
        cache: Path,
        interval_seconds: float,
        promoted_digests: Callable[[], Collection[str]],
    ) -> None:
        self.state = ServingState(warning=f"the service has just started and looks for the {alias}")
        self._alias, self._store, self._interval_seconds = alias, ModelStore(uri, cache), interval_seconds
        self._promoted_digests = promoted_digests
        self._served: AliasTarget | None = None
        # Kept loaded, because requests that need it run on the event loop.
        self._former: VerifiedModel | None = None
        # The warning that applies while this version is served.
        self._standing_warning: str | None = None
        # The target that failed verification, when it may be tried again, and why.
        self._refused: tuple[AliasTarget | None, float, str] = (None, 0.0, "")
        # Why the versions with these digests are not served again: their sessions failed.
        self._failed: dict[str, str] = {}
        # Held where the state is replaced: the watcher and requests whose session fails do it.
        self._lock = threading.RLock()
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
        target = None
        try:
            target = self._store.registry.alias_target(self._alias)
            if target != self._served or self._standing_warning:
                self._follow(target)
            with self._lock:
                self._warn(self._standing_warning)
        except InvalidArtifact as error:
            self._refused = (target, time.monotonic() + RETRY_REFUSED_SECONDS, str(error))
            self._fall_back(str(error))
        except VerificationCancelled:
            log.info("the verification of %s was stopped, because the alias has moved on", target)
        # The registry or the database is unreachable, or there is no version to follow.
        except (OSError, VersionNotFound, NotServed) as error:
            self._fall_back(str(error))

    def replace_failed(self, failed: VerifiedModel, problem: str) -> VerifiedModel | None:
        """The version to answer instead of one whose session fails: the last good one before it; None where there is none.

        It stays until the alias points to a version that has not failed.
        """
        with self._lock:
            if self.state.champion is not failed:
                return self.state.champion
            reason = f"{MODEL_NAME} v{failed.version} fails while it answers: {problem}; promote another version"
            self._failed[failed.digest] = self._standing_warning = reason
            former, self._former = self._former, None
            if former is not None and former.digest not in self._failed:
                self.state, self._served = ServingState(former, datetime.now(UTC)), None
                remember(former, self._alias, self._store.cache)
            self._warn(reason)
            return None if self.state.champion is failed else self.state.champion

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

    def _follow(self, target: AliasTarget) -> None:
        """Serve what the alias points to; raises NotServed, or what keeps it from being verified."""
        refused, retry_at, reason = self._refused
        if target == refused and time.monotonic() < retry_at:
            raise NotServed(reason)
        card = self._store.card(target.version)
        digest = model_store.digest(card)
        if reason := self._failed.get(digest, ""):
            raise NotServed(reason)
        warning = self._check_ledger(target.version, digest)
        if target != self._served:
            model = self._store.fetch_version(target.version, card, lambda: self._is_wanted(target))
            self._swap(model, target, warning)
            return
        with self._lock:
            # its session may have failed meanwhile
            self._standing_warning = self._failed.get(digest, warning)

    def _check_ledger(self, version: str, digest: str) -> str | None:
        """The warning for a version while the ledger has no digest of a promotion; None for a recorded one.

        Raises NotServed where other versions were promoted, but not this one.
        """
        promoted, fix = self._promoted_digests(), f"`digits promote {version}` verifies and records it"
        if not promoted:
            return f"the ledger has no digest of a promoted version, so {MODEL_NAME} v{version} cannot be checked against it; {fix}"
        if digest not in promoted:
            problem = f"the alias {self._alias} points to {MODEL_NAME} v{version}, which is not recorded in the ledger"
            raise NotServed(f"{problem}; {fix}, or move the alias back in MLflow")
        return None

    def _is_wanted(self, target: AliasTarget) -> bool:
        """Whether the verification of a version may go on."""
        return not self._stop.is_set() and self._store.registry.alias_target(self._alias) == target

    def _swap(self, model: VerifiedModel, target: AliasTarget, warning: str | None) -> None:
        with self._lock:
            before = self.state.champion
            self.state, self._standing_warning = ServingState(model, datetime.now(UTC)), warning
            if before is None or before.digest != model.digest:
                self._former = before
            self._served = target
        remember(model, self._alias, self._store.cache)
        if before is None:
            self._former = self._copy(f"{self._alias}-former")
        log.info("serving %s v%s (before: %s)", MODEL_NAME, target.version, before and f"v{before.version}")

    def _fall_back(self, warning: str) -> None:
        """Keep the version in place; without one, serve the last good copy."""
        with self._lock:
            if self.state.champion is None and (model := self._copy(self._alias)):
                self.state = ServingState(model, datetime.now(UTC), self.state.warning)
                self._former = self._copy(f"{self._alias}-former")
                log.warning("serving %s v%s from its copy in %s", MODEL_NAME, model.version, self._store.cache)
            self._warn(warning)

    def _copy(self, alias: str) -> VerifiedModel | None:
        with suppress(VersionNotFound, InvalidArtifact):
            return last_good(alias, self._store.cache)
        return None

    def _warn(self, warning: str | None) -> None:
        """Set the warning, and log it if it changed."""
        with self._lock:
            state = self.state
            if warning != state.warning:
                self.state = ServingState(state.champion, state.since, warning)
                if warning:
                    log.warning("%s", warning)
