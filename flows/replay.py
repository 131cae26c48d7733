"""`digits replay`: a recorded training done again; nothing is registered."""

import logging
from typing import TYPE_CHECKING

from prefect import flow

from flows.tasks import publish, server_task, task
from models.connections import Platform

if TYPE_CHECKING:  # TensorFlow takes 11 s to import, MLflow 4 s
    from models.replay import Replay

log = logging.getLogger("digits.replay")


@flow(name="replay")
def replay(run: str) -> "Replay":
    """Train a run again from its recipe, data and seed and compare the weights."""
    from models import replay

    platform = Platform()
    recorded = server_task(replay.look_up)(platform.registry, run)
    outcome = task(replay.train_again)(recorded, platform.datasets)
    log.log(logging.INFO if outcome.identical else logging.WARNING, "%s", outcome.sentence)
    publish("replay", outcome.title, f"# Replay\n\n{outcome.sentence}\n")
    return outcome
