"""`digits score`: a file of images in, a file of answers out, straight from the champion, on this machine or a Dask cluster."""

import logging
import operator
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow

from digits.settings import Settings
from flows import dask_cluster
from flows.tasks import publish, server_task, task
from models.connections import Platform

if TYPE_CHECKING:
    from distributed import Client, Future

    from models.model_store import VerifiedModel
    from models.scoring import Count

log = logging.getLogger("digits.score")


@flow(name="score")
def score(source: Path, target: Path) -> "Count":
    """Answer every row of a Kaggle `test.csv[.gz]` or of a Parquet file, set aside what is no image. Returns the counts."""
    platform = Platform()
    champion = server_task(platform.models.fetch)()
    count = task(write_answers)(source, target, champion, platform.settings)
    title = f"digits v{champion.version}"
    log.info("%s: %s", title, count.sentence)
    publish("score", f"{title}: {count.answered:,} rows", f"# {title}\n\n{count.sentence}\n")
    return count


def write_answers(source: Path, target: Path, champion: "VerifiedModel", settings: Settings) -> "Count":
    from models import scoring  # with pyarrow 1 s

    if settings.dask_address is None:
        return scoring.score(source, target, champion.predict_proba)
    with dask_cluster.connect(settings.dask_address) as client:
        return scoring.score(source, target, champion.predict_proba, partial(on_cluster, client))


def on_cluster(client: "Client", function: Callable[[Any], Any], chunks: Iterable[Any]) -> Iterator[Any]:
    """The results in the order of the chunks, with few chunks on their way; what a worker dies of, another one does.

    The function travels to each worker once, as the result of a task, which Dask does again when it is lost.
    """
    import dask

    from models import scoring

    # An ensemble has 40 MB.
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 GB"}):
        shared = client.submit(partial, function, pure=False)
        submit = partial(client.submit, operator.call, shared, pure=False)
        for future in scoring.in_order(submit, chunks, limit=lambda: 4 * sum(client.nthreads().values())):
            yield _result(client, future)


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
