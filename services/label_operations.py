"""What a worker does with labels: it records and withdraws them, and shows what to label next.

The operations return the content of the response and raise BentoML's exceptions, which carry a status: UnprocessableEntity (422) for
invalid input, NotFound (404), Conflict (409), and ServiceUnavailable (503) without a database.
"""

from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from itertools import islice
from typing import Any

from bentoml.exceptions import BentoMLException, UnprocessableEntity
from sqlalchemy import Engine

from digits.errors import quote
from digits.images import NO_DIGIT
from digits.storage import audit, feedback, label_queue
from digits.storage.label_queue import Queue
from models.model_store import VerifiedModel
from services import response_content
from services.prediction_log import PredictionLog
from services.response_content import Content

MAX_AGE = timedelta(days=30)  # of the answers in the label queue


class Conflict(BentoMLException):  # type: ignore[misc]  # BentoML's exceptions have no types
    """The state of the platform does not allow this any more."""

    error_code = HTTPStatus.CONFLICT


class LabelOperations:
    """The operations on the labels of logged answers."""

    def __init__(self, log: PredictionLog, retrain_labels: int, champion: Callable[[], VerifiedModel | None]) -> None:
        self._log, self._retrain_labels, self._champion = log, retrain_labels, champion

    def feedback(self, id: Any, digit: Any, source: Any, is_digit: Any = True) -> Content:
        """Record the true digit of an earlier prediction, or that its image shows none; the most recent label wins."""
        _check_label_of(id, source)
        if not isinstance(is_digit, bool):
            raise UnprocessableEntity(f"is_digit is {quote(is_digit)}; expected true or false")
        if not is_digit and digit is not None:
            raise UnprocessableEntity(f"digit is {quote(digit)} and is_digit is false; send one of them")
        if is_digit and (not isinstance(digit, int) or isinstance(digit, bool) or not 0 <= digit <= 9):
            raise UnprocessableEntity(f"digit is {quote(digit)}; expected a whole number from 0 to 9")
        number = self._log.label(id, digit if is_digit else NO_DIGIT, source)
        return {"id": id, "digit": digit, "is_digit": is_digit, "source": source, "label_number": number}

    def withdraw(self, id: Any, source: Any, number: Any = None) -> Content:
        """Take back this source's label with this number, or its most recent one; raises Conflict if a retraining has it."""
        _check_label_of(id, source)
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or not 0 < number < 2**31):
            raise UnprocessableEntity(f"label_number is {quote(number)}; expected that of a response of /feedback")
        if not self._log.query(label_queue.withdraw, id, source, number):
            problem = f"a retraining has ingested the label of {quote(id)}"
            raise Conflict(f"{problem}; send the right digit to /feedback instead")
        return {"id": id, "source": source}

    def label_queue(self, limit: int, queue: Queue | None, exclude: Collection[str], client: str | None) -> Content:
        """Images to label next, how many wait, and what labels are still missing for; `client` as in `label_queue.waiting`."""
        return self._log.query(self._label_queue, limit, queue, exclude, client)

    def _label_queue(
        self, engine: Engine, limit: int, queue: Queue | None, exclude: Collection[str], client: str | None
    ) -> Content:
        champion, since = self._champion(), datetime.now(UTC) - MAX_AGE
        version = champion.version if champion else ""
        uncertain_below = champion.conformal.uncertain_below if champion else 0.0
        waiting = label_queue.waiting(engine, version, since, uncertain_below, client)
        chosen: dict[str, Queue] = {}
        for name, ids in waiting.items():
            if queue in (None, name):
                chosen |= dict.fromkeys(label_queue.draw(name, [id for id in ids if id not in exclude], limit), name)
        images = label_queue.images(engine, dict(islice(chosen.items(), limit)))
        return {
            "model_version": version or None,
            "is_auditor": client is None,
            "images": [{"id": id, "queue": chosen[id], "image": image} for id, image in images.items()],
            "waiting": {name: len(ids) for name, ids in waiting.items()},
            "audit_labels": audit.count(engine, version),
            "min_audit_labels": audit.MIN_LABELS,
            "new_labels": feedback.waiting(engine),
            "retrain_labels": self._retrain_labels,
        }

    def stored_prediction(self, id: str) -> Content:
        """A prediction from the log."""
        found = self._log.find(id)
        return {
            "id": id,
            **response_content.version_output(found.versions[0], found.digits[0], found.probabilities[0]),
            "at": found.at[0],
            "route": found.routes[0],
            "label": found.labels[0] if 0 <= found.labels[0] < NO_DIGIT else None,
            "label_is_digit": None if found.labels[0] < 0 else bool(found.labels[0] < NO_DIGIT),
            "image": found.images[0],
        }


def _check_label_of(id: Any, source: Any) -> None:
    """Raises UnprocessableEntity unless they can be the id of a prediction and the name of who labels it."""
    if not isinstance(id, str):
        raise UnprocessableEntity(f"id is {quote(id)}; expected the id of a prediction")
    if not isinstance(source, str) or not 0 < len(source) <= 64 or not source.isprintable():
        raise UnprocessableEntity(f"source is {quote(source)}; expected 1 to 64 printable characters")
