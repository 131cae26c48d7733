"""Clients of a Dask cluster: the one in the settings, or worker processes on this machine."""

import logging
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.resource_tracker import ensure_running

from dask.system import CPU_COUNT
from distributed import Client, LocalCluster
from distributed.system import MEMORY_LIMIT

# 0.9 GB of TensorFlow, MNIST and its augmented copies, and 20 to 30 MB for each trial before.
WORKER_BYTES = 2_500_000_000
CONNECT_TIMEOUT_SECONDS = 20
# How long the cluster may be without workers; one that died is replaced within 5 s.
NO_WORKERS_TIMEOUT_SECONDS = 60


@contextmanager
def connect(address: str | None, workers: int | None = None) -> Iterator[Client]:
    """A client of the scheduler at `address`, or else of `workers` new processes, by default as many as fit.

    Raises ConnectionError if no scheduler answers or it has no workers.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # callers report failures in one sentence
    with ExitStack() as stack:
        scheduler = address or stack.enter_context(_local_cluster(workers))
        try:
            client = stack.enter_context(Client(scheduler, timeout=CONNECT_TIMEOUT_SECONDS, set_as_default=False))
            client.wait_for_workers(1, timeout=NO_WORKERS_TIMEOUT_SECONDS)
        except (OSError, ValueError) as error:
            missing = "start one with `dask scheduler` and its workers with `dask worker`, or unset DIGITS_DASK_ADDRESS"
            raise ConnectionError(
                f"no Dask scheduler with workers answers at {address or '127.0.0.1'}; {missing}"
            ) from error
        yield client


def _local_cluster(workers: int | None) -> LocalCluster:
    """Worker processes of one thread each, by default as many as cores and memory allow; they never receive Ctrl-C.

    A terminal sends it to the whole process group, and only the coordinating process handles it.
    """
    ensure_running()  # multiprocessing's resource tracker unblocks SIGINT in the thread that happens to start it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by new threads and processes
    try:
        return LocalCluster(
            n_workers=workers or max(1, min(CPU_COUNT, MEMORY_LIMIT // WORKER_BYTES)),
            threads_per_worker=1,
            # A connection to a scheduler or a worker can run commands, so both require the cluster's own, temporary certificate.
            security=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
