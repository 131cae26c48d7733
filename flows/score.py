"""`digits score`: a file of images in, a file of answers out, straight from the champion, on this machine or a Dask cluster."""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from prefect import flow

from digits.images import Images
from digits.settings import Settings
from flows import dask_cluster
from flows.connections import Platform
from flows.tasks import publish, server_task, task

if TYPE_CHECKING:
    from distributed import Client, Future

    from models.model_store import VerifiedModel
    from models.onnx_model import OnnxModel
    from models.scoring import Count

log = logging.getLogger("digits.score")

AHEAD = 4  # chunks under way for each thread of a cluster


@flow(name="score")
def score(source: Path, target: Path) -> "Count":
    """Answer every row of a Kaggle `test.csv[.gz]` or of a Parquet file, set aside what is no image; the counts."""
    platform = Platform()
    champion = server_task(platform.models.fetch)()
    count = task(write_answers)(source, target, champion, platform.settings)
    log.info("digits v%s: %s", champion.version, count.sentence)
    title = f"digits v{champion.version}"
    publish("score", f"{title}: {count.answered:,} rows", f"# {title}\n\n{count.sentence}\n")
    return count


def write_answers(source: Path, target: Path, champion: "VerifiedModel", settings: Settings) -> "Count":
    """Write the answers and the rejected rows."""
    from models import scoring  # with pyarrow 1 s

    if settings.dask_address is None:
        return scoring.score(source, target, champion.predict_proba)
    carried = Carried(_model_file(champion, settings))
    with dask_cluster.connect(settings.dask_address) as client:
        return scoring.score(source, target, carried, partial(on_cluster, client))


def _model_file(champion: "VerifiedModel", settings: Settings) -> bytes:
    """The ONNX file of the champion; raises BadArtifact when the registry has another one now."""
    from models.onnx_model import InvalidArtifact
    from models.registry_reader import RegistryReader

    content = RegistryReader(settings.mlflow_tracking_uri).download(champion.version, "model.onnx")
    if hashlib.sha256(content).hexdigest() != champion.card["files"]["model.onnx"]:
        raise InvalidArtifact(f"digits v{champion.version} changed while it was read; call this again")
    return content


# On a cluster


@dataclass(frozen=True)
class Carried:
    """A model that can be sent to other machines; each process opens it once."""

    content: bytes = field(repr=False)  # of the ONNX file

    def __call__(self, images: Images) -> NDArray[np.float32]:
        return _opened(self.content).predict_proba(images)


@lru_cache(maxsize=1)
def _opened(content: bytes) -> "OnnxModel":
    from models import onnx_model

    return onnx_model.load(content)


def on_cluster(client: "Client", function: Callable[[Any], Any], chunks: Iterable[Any]) -> Iterator[Any]:
    """The results in the order of the chunks, with few chunks on their way; what a worker dies of, another one does.

    The function travels to each worker once, as the result of a task, which Dask does again when it is lost.
    """
    import dask

    waiting: deque[Future] = deque()
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 GB"}):  # a committee has 40 MB
        shared = client.submit(_itself, function, pure=False)
        for chunk in chunks:
            waiting.append(client.submit(_call, shared, chunk, pure=False))
            if len(waiting) > AHEAD * sum(client.nthreads().values()):
                yield _result(client, waiting.popleft())
        while waiting:
            yield _result(client, waiting.popleft())


def _itself(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return function


def _call(function: Callable[[Any], Any], chunk: Any) -> Any:
    return function(chunk)


def _result(client: "Client", future: "Future") -> Any:
    """What the function returned or raised; raises ConnectionError when there is nobody left to call it."""
    from distributed import KilledWorker

    while True:
        try:
            return future.result(timeout=dask_cluster.NO_WORKERS_TIMEOUT_SECONDS)
        except TimeoutError:
            if not client.nthreads():
                raise ConnectionError("all workers of the Dask cluster are gone; call this again") from None
        except (CancelledError, KilledWorker) as error:
            raise ConnectionError(f"the Dask cluster gave up: {error}") from error
