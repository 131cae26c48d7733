"""`digits score`: a file of images in, a file of answers out, straight from the champion."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from digits.settings import Settings, settings

if TYPE_CHECKING:
    from models.champion import Champion
    from models.scoring import Count

log = logging.getLogger("digits.score")


@flow(name="score")
def score(source: Path, target: Path) -> "Count":
    """Answer every row of a Kaggle `test.csv[.gz]` or of a Parquet file, set aside what is no image; the balance."""
    champion = load(settings())
    count = answer(source, target, champion)
    log.info("digits v%s: %s", champion.version, count.sentence)
    _publish(count, champion.version)
    return count


@task(cache_policy=NO_CACHE)
def load(where: Settings) -> "Champion":
    """The champion, verified."""
    from models import champion

    return champion.fetch(where.mlflow_tracking_uri, "champion", where.champions)


@task(cache_policy=NO_CACHE)
def answer(source: Path, target: Path, champion: "Champion") -> "Count":
    """The answers and the rejected rows, written."""
    from models import scoring  # with pyarrow 1 s

    return scoring.score(source, target, champion.answer)


def _publish(count: "Count", version: str) -> None:
    """The balance on the page of the Prefect run."""
    text = f"# digits v{version}\n\n{count.sentence}\n"
    create_markdown_artifact(text, key="score", description=f"digits v{version}: {count.answered:,} rows")
