"""`digits predict`: which digits pictures from disk show, asked of the endpoint or of the champion itself."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from digits.data import rectification
from digits.settings import Settings
from ops.endpoint import read


@dataclass(frozen=True)
class Answer:
    """What one picture shows."""

    digit: int
    probability: float
    version: str

    def __str__(self) -> str:
        return f"{self.digit} ({self.probability:.1%}, digits v{self.version})"


Ask = Callable[[bytes], Answer]  # of a file's content; raises ValueError where it shows no digit


@contextmanager
def endpoint(settings: Settings) -> Iterator[Ask]:
    """Ask the running service, which logs the answers."""
    with httpx.Client(base_url=settings.service_url, headers=settings.credentials, timeout=30) as client:

        def ask(body: bytes) -> Answer:
            try:
                response = client.post("/classify_file", files={"file": body})
            except httpx.TransportError as error:
                raise ConnectionError(
                    f"the endpoint does not answer at {settings.service_url}; start it with `digits up`, or use --direct"
                ) from error
            answer = read(response)
            return Answer(answer["digit"], answer["probability"], answer["model_version"])

        yield ask


@contextmanager
def champion(settings: Settings) -> Iterator[Ask]:
    """Load the champion into this process; nothing is logged."""
    from models.model_store import ModelStore  # ONNX Runtime

    model = ModelStore(settings.mlflow_tracking_uri, settings.champions).fetch()

    def ask(body: bytes) -> Answer:
        (probabilities,) = model.predict_proba(rectification.decode(body)[None])
        digit = int(probabilities.argmax())
        return Answer(digit, float(probabilities[digit]), model.version)

    yield ask
