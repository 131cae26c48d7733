"""Runs in Prefect and MLflow that a dead process left open are closed here, so that both histories stay true, or started again."""

import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import filters
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import AwaitingRetry, Crashed

if TYPE_CHECKING:  # MLflow takes 4 s
    from models.registry import RegistryWriter

log = logging.getLogger("digits.crashed_runs")

MAX_ATTEMPTS = 3


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
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        retrainings = filters.FlowFilter(name=filters.FlowFilterName(any_=["retrain"]))
        for run in _started_runs(client, flow_filter=retrainings):
            if str(run.id) != flow_run.id and now - (run.start_time or now) > lease:
                _crash(client, run, "its process died")
        for run_id, tags in registry.active_runs().items():
            # Without a link, or with one to another Prefect server, nothing is known about the process.
            with suppress(ValueError, ObjectNotFound):
                state = client.read_flow_run(UUID(tags.get("prefect_run", "")[-36:])).state
                if state is not None and state.is_final():
                    registry.close_run(run_id, "FAILED", {"crashed": "its process died"})
                    log.warning("the training %s died; its MLflow run is marked as failed", run_id[:8])


def mark_orphans(pool: str, worker: str) -> None:
    """Mark the runs of a process pool as crashed whose process died with its worker; called by a worker as it starts.

    While another worker of the pool is online the runs may be its own; then only missing heartbeats reveal a dead one. A
    process may live on though its worker died.
    """
    with get_client(sync_client=True) as client:
        workers = client.read_workers_for_work_pool(pool)
        if any(other.status == WorkerStatus.ONLINE and other.name != worker for other in workers):
            return
        environments = [process.info["environ"] or {} for process in psutil.process_iter(["environ"])]
        # Prefect sets this variable for each run's process, but only `prefect.runtime` reads it, for the current process.
        alive = {environment.get("PREFECT__FLOW_RUN_ID") for environment in environments}
        of_pool = filters.WorkPoolFilter(name=filters.WorkPoolFilterName(any_=[pool]))
        for run in _started_runs(client, work_pool_filter=of_pool):
            if str(run.id) not in alive:
                _crash(client, run, "its process died with its worker")


def start_again(flow_name: str) -> None:
    """Schedule the crashed runs of a deployed flow again, until each has run `MAX_ATTEMPTS` times; called by a worker as it starts."""
    named = filters.FlowFilter(name=filters.FlowFilterName(any_=[flow_name]))
    with get_client(sync_client=True) as client:
        for run in _runs_in(client, [StateType.CRASHED], flow_filter=named):
            if run.deployment_id and run.run_count < MAX_ATTEMPTS:
                client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
                log.info("the flow run %s crashed and is started again", run.name)


def _started_runs(client: SyncPrefectClient, **of: Any) -> list[FlowRun]:
    return _runs_in(client, [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING], **of)


def _runs_in(client: SyncPrefectClient, states: list[StateType], **of: Any) -> list[FlowRun]:
    state = filters.FlowRunFilterState(type=filters.FlowRunFilterStateType(any_=states))
    return client.read_flow_runs(flow_run_filter=filters.FlowRunFilter(state=state), **of)


def _crash(client: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
    log.warning("the flow run %s is marked as crashed: %s", run.name, reason)
