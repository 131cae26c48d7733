"""Approval of promotions: the flow `approve` waits for a person's answer in the Prefect UI, and `digits approve` decides in a terminal.

Its run is suspended rather than paused: without a process and a worker's slot, the wait outlives workers and restarts, and retrainings go on.
"""

import logging
from typing import Any, Literal, cast

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import State, StateType
from prefect.context import get_run_context
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.states import Completed
from prefect.utilities.urls import url_for
from pydantic import Field

from flows import alerts, promote, verdict_page
from flows.alerts import Alert
from flows.tasks import publish, server_task
from models.connections import Platform
from monitoring import baseline

log = logging.getLogger("digits.approve")

DEPLOYMENT, EXPIRY = "Approve a promotion", "Hold unapproved"


class Approval(RunInput):
    """The form of a run that waits."""

    decision: Literal["approve", "decline"] = Field(
        description="approve: the version becomes the champion. decline: nothing changes."
    )
    name: str = Field(min_length=1, max_length=100, description="Who decides; for the ledger.")
    reason: str = Field(min_length=1, max_length=1000, description="Why; for the ledger.")


@flow(name="approve")
def approve(version: str) -> State[None]:
    """Ask a person whether a version that the gate would promote becomes the champion, and do so; the state says what happened.

    The run is suspended until somebody resumes it with an answer, or `hold` completes it.
    """
    platform = Platform()
    page = server_task(question)(platform, version)
    if page is None:
        return Completed(message=server_task(outcome)(platform, version))
    if not cast(Any, get_run_context()).flow_run.empirical_policy.pause_keys:
        publish("approval", f"digits v{version}: approve or decline", page)
    # Prefect ends the run here and, once it is resumed, starts it again and returns the answer.
    answer = suspend_flow_run(wait_for_input=Approval.with_initial_data(description=page), timeout=None, key="answer")
    return Completed(message=server_task(act_on)(platform, version, answer))


@flow(name="hold")
def hold() -> None:
    """Hold the versions that waited too long for approval."""
    server_task(review)(Platform())


def question(platform: Platform, version: str) -> str | None:
    """What the person is asked, as Markdown; None for a version that waits for no approval."""
    from models import approvals

    close_ended(platform)
    waiting, found = dict(approvals.queue(platform.registry)), approvals.judgement(platform, version)
    if version not in waiting or found is None:
        return None
    until = approvals.deadline(platform.settings, waiting[version])
    asked = f"Shall digits v{version} replace v{found.champion} as the champion? Without an answer until {until:%Y-%m-%d %H:%M} UTC it is held."
    links = f"[digits v{version} in MLflow]({platform.settings.version_url(version)})"
    return f"{asked}\n\n{verdict_page.summary(found.reasons, found.evidence, verdict_page.NARROW)}{links}\n"


def waiting(platform: Platform) -> list[tuple[str, ...]]:
    """Of each version that waits: itself, the champion, since and until when, UTC, and the reasons of the gate."""
    from models import approvals

    close_ended(platform)
    rows: list[tuple[str, ...]] = []
    for version, since in approvals.queue(platform.registry):
        if found := approvals.judgement(platform, version):
            times = (f"{at:%Y-%m-%d %H:%M}" for at in (since, approvals.deadline(platform.settings, since)))
            rows.append((version, f"v{found.champion}", *times, "; ".join(found.reasons)))
    return rows


def decide(platform: Platform, version: str, is_approved: bool, by: str, reason: str) -> str:
    """Do as this person decided about a version that waits. Returns what happened in a sentence.

    Raises NotWaiting, or as `promotion.replace_champion` does.
    """
    from models import approvals

    close_ended(platform)
    try:
        answer = approvals.approve if is_approved else approvals.decline
        answer(platform, version, by, reason)
    except approvals.NotWaiting:
        # An earlier attempt may have died after it promoted the version.
        if baseline.current(platform.engine, version) is None:
            _settle(platform, version)
        raise
    if is_approved:
        _settle(platform, version)
    end_runs(platform)
    return f"digits v{version}: {'approved' if is_approved else 'declined'} by {by}: {reason}"


def _settle(platform: Platform, version: str) -> None:
    from models import promotion

    entry = promotion.last_champion(platform.engine)
    if entry and entry.after == version == platform.models.registry.version():
        promote.settle(platform, version, entry.before)


def act_on(platform: Platform, version: str, answer: Approval) -> str:
    """Do as the form says; returns what happened in a sentence, also where the version no longer waits."""
    from models import approvals

    try:
        # The form takes any name; a terminal knows its user.
        return decide(platform, version, answer.decision == "approve", f"{answer.name} (in Prefect)", answer.reason)
    except approvals.NotWaiting as error:
        return str(error)


def outcome(platform: Platform, version: str) -> str:
    """What became of a version that waits no longer."""
    from models import approvals

    tags = platform.registry.version_tags(version)
    by = f" by {tags[approvals.BY]}" if tags.get(approvals.BY) else ""
    return f"digits v{version}: {tags.get(approvals.TAG, 'nobody asked')}{by}: {tags.get(approvals.REASON, '')}"


def ask(platform: Platform, version: str) -> None:
    """Let a version wait for approval, open a run that asks for it, and send an alert."""
    from models import approvals

    approvals.request(platform, version)
    open_runs(platform)


def review(platform: Platform) -> None:
    """Close what no longer waits for approval, here and in Prefect, and open the runs that Prefect lacks since an outage."""
    close_ended(platform)
    end_runs(platform)
    open_runs(platform)


def close_ended(platform: Platform) -> None:
    """Close what no longer waits for approval, and do what follows a promotion that this finished."""
    from models import approvals

    if finished := approvals.review(platform):
        promote.settle(platform, str(finished.after), finished.before)


def open_runs(platform: Platform) -> None:
    """Open a run for each version that waits, unless it has one, as far as Prefect answers, and send an alert about the version.

    A run that failed or crashed is replaced by a new one, one that somebody cancelled is not. The cooldown of alerts holds back those
    that were sent before.
    """
    from models import approvals

    for version, since in approvals.queue(platform.registry):
        found, page = approvals.judgement(platform, version), ""
        if found is None:
            continue
        try:
            page = _open_run(version, f"digits v{version} {since.isoformat()}")
        except (httpx.HTTPError, ObjectNotFound) as error:
            log.warning("Prefect opens no run to ask for approval of digits v%s: %s", version, error)
        message = f"digits v{version} waits for approval: `digits approve {version}`" + (f", or {page}" if page else "")
        log.info("%s", message)
        details = {"reasons": found.reasons, "page": page}
        alerts.send(platform.settings, Alert("approval", f"digits v{version}", message, details))


def _open_run(version: str, key: str) -> str:
    """Create the run with this key, or find it. Returns the address of its page."""
    tags = ["approval", f"digits v{version}"]
    dead = filters.FlowRunFilter(
        tags=filters.FlowRunFilterTags(all_=tags),
        state=filters.FlowRunFilterState(
            type=filters.FlowRunFilterStateType(any_=[StateType.CRASHED, StateType.FAILED])
        ),
    )
    with get_client(sync_client=True) as client:
        count = len(client.read_flow_runs(flow_run_filter=dead))
    run: Any = run_deployment(
        f"approve/{DEPLOYMENT}",
        parameters={"version": version},
        flow_run_name=f"Promote digits v{version}?",
        tags=tags,
        idempotency_key=f"{key} {count}",
        timeout=0,
        as_subflow=False,
    )
    return url_for("flow-run", obj_id=run.id) or ""


def end_runs(platform: Platform) -> None:
    """Complete the runs about versions that wait no longer; while Prefect does not answer, they stay.

    One that a worker executes ends by itself, with what became of an answer in Prefect; where it only begins to ask, it is ended by the
    next `hold`.
    """
    from models import approvals

    try:
        with get_client(sync_client=True) as client:
            state = filters.FlowRunFilterState(
                type=filters.FlowRunFilterStateType(any_=[StateType.PAUSED, StateType.SCHEDULED])
            )
            runs = client.read_flow_runs(
                flow_filter=filters.FlowFilter(name=filters.FlowFilterName(any_=[approve.name])),
                flow_run_filter=filters.FlowRunFilter(state=state),
            )
            # Read last, so that a version that begins to wait meanwhile keeps its run.
            waiting = {version for version, _ in approvals.queue(platform.registry)}
            for run in runs:
                version = str(run.parameters["version"])
                if version not in waiting:
                    client.set_flow_run_state(run.id, Completed(message=outcome(platform, version)), force=True)
    except httpx.HTTPError as error:
        log.warning("Prefect does not answer (%s); its runs that ask for approval stay open", error)
