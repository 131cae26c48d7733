"""Runs in Prefect and MLflow that a dead process left open are closed here, so that both histories stay true."""

import logging
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

if TYPE_CHECKING:  # MLflow takes 4 s
    from models.registry import RegistryWriter

log = logging.getLogger("digits.crashed_runs")

OPEN = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.CANCELLING]))
STARTED = FlowRunFilterState(
    type=FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
)


def tag(reason: str) -> None:
    """Tag the current flow run with its reason, up to the first colon; the Prefect UI shows it."""
    if flow_run.id is None:
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), tags={*flow_run.tags, reason.split(":")[0]})


def mark_crashed(registry: "RegistryWriter", lease: timedelta) -> None:
    """Close the runs of crashed retrainings; called only by the holder of the retraining slot.

    Every other retraining is dead, except those that started within the lease and are about to be refused the slot. An
    MLflow run is dead when its Prefect run has ended.
    """
    with get_client(sync_client=True) as client:
        retrainings = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["retrain"])), flow_run_filter=FlowRunFilter(state=OPEN)
        )
        for run in retrainings:
            started = run.start_time or datetime.now(UTC)
            if str(run.id) != flow_run.id and datetime.now(UTC) - started > lease:
                _crash(client, run, "its process died")
        for run_id, tags in registry.active_runs().items():
            if _has_ended(client, tags.get("prefect_run", "")):
                registry.close_run(run_id, "FAILED", {"crashed": "its process died"})
                log.warning("the training %s died; its MLflow run is marked as failed", run_id[:8])


def mark_orphans(pool: str, worker: str) -> None:
    """Mark the runs of a process pool as crashed whose process died with its worker; called by a worker as it starts.

    While another worker of the pool is online the runs may be its own; then only missing heartbeats reveal a dead one.
    """
    with get_client(sync_client=True) as client:
        workers = client.read_workers_for_work_pool(pool)
        if any(other.status == WorkerStatus.ONLINE and other.name != worker for other in workers):
            return
        alive = _running_here()
        started = client.read_flow_runs(
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
            flow_run_filter=FlowRunFilter(state=STARTED),
        )
        dead = [run for run in started if str(run.id) not in alive]
        while dead:
            for run in dead:
                _crash(client, run, "its process died with its worker")
            parents = FlowRunFilterParentFlowRunId(any_=[run.id for run in dead])
            dead = client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=parents, state=OPEN))


def _crash(client: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
    log.warning("the flow run %s is marked as crashed: %s", run.name, reason)


def _running_here() -> set[str]:
    """Ids of the flow runs whose process runs on this machine, even if its worker died."""
    ids = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            ids.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
    return ids


def _has_ended(client: SyncPrefectClient, link: str) -> bool:
    """Whether the flow run that an MLflow run links to has ended; False without a link or on another Prefect server."""
    ids = re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", link)
    if not ids:
        return False
    try:
        state = client.read_flow_run(UUID(ids[-1])).state
    except ObjectNotFound:
        return False
    return state is not None and state.is_final()
