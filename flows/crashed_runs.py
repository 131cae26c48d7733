"""Runs in Prefect and MLflow that a dead process left open: they are marked as what they are, so that histories stay true."""

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
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.filters import FlowRunFilterStateType as StateTypes
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

if TYPE_CHECKING:  # MLflow takes 4 s
    from models.registry import RegistryWriter

log = logging.getLogger("digits.reap")

OPEN = [StateType.RUNNING, StateType.CANCELLING]


def tag(reason: str) -> None:
    """Why the current flow run was started, as a tag that the Prefect UI shows: the words before the first colon."""
    if flow_run.id is None:
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), tags={*flow_run.tags, reason.split(":")[0]})


def mark_crashed(registry: "RegistryWriter", lease: timedelta) -> None:
    """Close what other retrainings left open; to be called by the one that holds the only slot.

    Whoever holds the slot knows that every older retraining is dead, though one that is just about to be refused the slot
    is not: it started within the lease. An MLflow run is dead when its Prefect run has ended.
    """
    with get_client(sync_client=True) as client:
        for run in _open_retrainings(client):
            started = run.start_time or datetime.now(UTC)
            if str(run.id) != flow_run.id and datetime.now(UTC) - started > lease:
                client.set_flow_run_state(run.id, Crashed(message="its process died"), force=True)
                log.warning(
                    "the retraining %s of %s died; it is marked as crashed", run.name, f"{started:%Y-%m-%d %H:%M}"
                )
        for run_id, tags in registry.active_runs().items():
            if _is_over(client, tags.get("prefect_run", "")):
                registry.close_run(run_id, "FAILED", {"reaped": "its process died"})
                log.warning("the training %s died; its MLflow run is marked as failed", run_id[:8])


def mark_orphans(pool: str, worker: str) -> None:
    """Mark the runs of a process pool as crashed whose process died with its worker; called by a worker before it works.

    While another worker of the pool is online the runs may be its own: then only their heartbeats tell.
    """
    with get_client(sync_client=True) as client:
        known = client.read_workers_for_work_pool(pool)
        if any(other.status == WorkerStatus.ONLINE and other.name != worker for other in known):
            return
        alive = _running_here()
        started = [*OPEN, StateType.PENDING]
        runs = client.read_flow_runs(
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=StateTypes(any_=started))),
        )
        dead = [run for run in runs if str(run.id) not in alive]
        while dead:
            for run in dead:
                client.set_flow_run_state(run.id, Crashed(message="its process died with its worker"), force=True)
                log.warning("%s died with its worker; it is marked as crashed", run.name)
            children = FlowRunFilterParentFlowRunId(any_=[run.id for run in dead])
            dead = client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    parent_flow_run_id=children, state=FlowRunFilterState(type=StateTypes(any_=OPEN))
                )
            )


def _running_here() -> set[str]:
    """Ids of the flow runs that a process of this machine is at, though its worker may be dead."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            found.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
    return found


def _open_retrainings(client: SyncPrefectClient) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=["retrain"])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=StateTypes(any_=OPEN))),
    )


def _is_over(client: SyncPrefectClient, link: str) -> bool:
    """Whether the flow run that an MLflow run points to has ended; one that points nowhere may be anybody's."""
    ids = re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", link)
    if not ids:
        return False
    try:
        state = client.read_flow_run(UUID(ids[-1])).state
    except ObjectNotFound:
        return False  # another Prefect server's
    return state is not None and state.is_final()
