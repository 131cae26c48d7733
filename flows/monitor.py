"""`digits monitor`: the latest answers of the champion against what it was tested on; a report and a verdict."""

import logging
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from digits import database, predictions
from digits.predictions import Window
from digits.reference import Reference
from digits.settings import Settings, settings

if TYPE_CHECKING:  # Evidently takes 7 s to import
    from monitoring.reports import Verdict, Written

log = logging.getLogger("digits.monitor")

UNITS = {"m": "minutes", "h": "hours", "d": "days"}
MOST = 10_000  # answers in one report, the newest


@flow(name="monitor")
def monitor(since: str = "24h") -> str:
    """Report drift and accuracy of the champion's answers in the last 30m, 24h or 7d; the verdict in words."""
    where = settings()
    version, reference = load(where)
    window = read(version, since, where)
    verdict = judge(reference, window)
    written = write(reference, window, verdict, where)
    publish(version, verdict, written, where)
    return verdict.words


def duration(text: str) -> timedelta:
    """The time that `30m`, `24h` or `7d` stands for; raises ValueError."""
    match = re.fullmatch(r"(\d{1,5})([mhd])", text)
    if not match:
        raise ValueError(f"cannot read {text!r} as a time; write it like 30m, 24h or 7d")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


@task(cache_policy=NO_CACHE)
def load(where: Settings) -> tuple[str, Reference]:
    """The champion's version and its own reference sample, verified."""
    from models import champion  # ONNX Runtime

    current = champion.fetch(where.mlflow_tracking_uri, "champion", where.champions)
    return current.version, champion.reference_of(current, where.champions)


@task(cache_policy=NO_CACHE)
def read(version: str, since: str, where: Settings) -> Window:
    """What the version answered in that time."""
    engine = database.connect(where.database_url)
    return predictions.read_window(engine, datetime.now(UTC) - duration(since), limit=MOST, version=version)


@task(cache_policy=NO_CACHE)
def judge(reference: Reference, window: Window) -> "Verdict":
    """Drift and accuracy of the window."""
    from monitoring import reports

    return reports.judge(reference, window)


@task(cache_policy=NO_CACHE)
def write(reference: Reference, window: Window, verdict: "Verdict", where: Settings) -> "Written":
    """`verdict.json` and Evidently's HTML in a folder of their own, and a point in the history of the Evidently UI."""
    from monitoring import reports

    folder = where.reports / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}"
    return reports.write(folder, where.workspace, reference, window, verdict)


@task(cache_policy=NO_CACHE)
def publish(version: str, verdict: "Verdict", written: "Written", where: Settings) -> None:
    """The verdict in the log and on the page of the Prefect run."""
    log.info("digits v%s, %d answers: %s", version, verdict.count, verdict.words)
    for advice in verdict.advice:
        log.info("%s", advice)
    log.info("report: %s", written.html or written.verdict)
    columns = "\n".join(
        f"| {column.name} | {column.before:.3g} | {column.now:.3g} | {column.unit} | {column.score:.3f} | {column.threshold:.3f} |"
        for column in verdict.drift.columns
        if column.drifted
    )
    table = (
        f"| column | before | now | unit | distance | threshold |\n|---|---|---|---|---|---|\n{columns}\n"
        if columns
        else ""
    )
    advice = "\n".join(f"- {sentence}" for sentence in verdict.advice)
    link = f"[history in the Evidently UI](http://{where.host}:{where.reports_port})"
    text = f"# {verdict.drift.verdict}\n\n{verdict.words}\n\n{advice}\n\n{table}\n{link}, `{written.html or written.verdict}`\n"
    create_markdown_artifact(text, key="drift", description=f"digits v{version}: {verdict.drift.verdict}")
