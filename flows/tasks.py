"""What all flows share of Prefect: tasks with the project's defaults, and the page of a flow run."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast

import httpx
import prefect
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff
from prefect.utilities.urls import url_for

log = logging.getLogger("digits.flows")
# The process of a deployed run begins in Prefect, which sets no level: its page would show our warnings only.
logging.getLogger("digits").setLevel(logging.INFO)

P = ParamSpec("P")
R = TypeVar("R")

RETRIES = 7
BACKOFF_SECONDS = 5  # doubled after each attempt: 635 s, about ten minutes, in all


def is_unreachable(task: prefect.Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether the task failed because a server did not answer, so that another attempt makes sense."""
    if not isinstance(state.data, ConnectionError | TimeoutError):
        return False
    log.warning("%s; the step %r is tried again", state.data, task.name)
    return True


def task(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    """The function as a Prefect task. Nothing is cached: Prefect would pickle and hash models and images."""
    return cast(Callable[P, R], prefect.task(cache_policy=NO_CACHE, **options)(function))


def server_task(function: Callable[P, R]) -> Callable[P, R]:
    """The function as a task that is repeated, with growing delays, while a server does not answer."""
    delays = exponential_backoff(BACKOFF_SECONDS)
    return task(function, retries=RETRIES, retry_delay_seconds=delays, retry_condition_fn=is_unreachable)


def run_url() -> str | None:
    """The address of the current flow run in Prefect's UI; None outside of a flow."""
    # `flow_run.ui_url` has a path of earlier versions, which today's UI only redirects.
    return url_for("flow-run", flow_run.id) if flow_run.id else None


def publish(
    key: str,
    description: str,
    markdown: str,
    png: str | None = None,
    table: Sequence[Mapping[str, str]] = (),
    links: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """Show a text, an image given as a data URL, the rows of a table, and links on the page of the flow run.

    The links are text and address by the end of their key. Without Prefect the results stand.
    """
    try:
        create_markdown_artifact(markdown, key=key, description=description)
        if png is not None:
            create_image_artifact(png, key=f"{key}-pictures", description=description)
        if table:
            create_table_artifact([dict(row) for row in table], key=f"{key}-table", description=description)
        for name, (text, url) in (links or {}).items():
            create_link_artifact(url, text, key=f"{key}-{name}", description=description)
    except httpx.HTTPError as error:
        log.warning("Prefect does not answer (%s); %s is not on its page", error, description)
