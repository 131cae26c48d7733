"""Connecting to a Dask cluster: the one in the settings, one on this machine, and sentences where there is none."""

import socket
import ssl
from contextlib import suppress

import pytest
from distributed import Client, LocalCluster
from distributed.security import Security

from flows import dask_cluster


def test_a_scheduler_that_does_not_answer_is_named(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "CONNECT_TIMEOUT_SECONDS", 0.5)
    connection = dask_cluster.connect(f"tcp://127.0.0.1:{free_port}")
    with pytest.raises(
        ConnectionError, match=f"no Dask scheduler with workers answers at tcp://127.0.0.1:{free_port}; start one with"
    ):
        connection.__enter__()


def test_a_cluster_without_workers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_cluster, "NO_WORKERS_TIMEOUT_SECONDS", 0.2)
    with LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as empty:
        connection = dask_cluster.connect(empty.scheduler_address)
        with pytest.raises(
            ConnectionError, match=r"no Dask scheduler with workers answers at .* its workers with `dask worker`"
        ):
            connection.__enter__()


def test_a_given_address_is_used_and_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(dask_cluster, "_local_cluster")
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        dask_cluster.connect(cluster.scheduler_address, workers=4) as client,
    ):
        assert client.scheduler_info()["address"] == cluster.scheduler_address
        assert len(client.nthreads()) == 1


def received(address: str) -> bytes:
    """The first byte that a server sends to a client without a certificate, empty where it refuses it."""
    host, port = address.removeprefix("tls://").removeprefix("tcp://").split(":")
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
    with (
        suppress(ssl.SSLError, ConnectionError),
        socket.create_connection((host, int(port)), 20) as plain,
        anonymous.wrap_socket(plain) as connection,
    ):
        return connection.recv(1)
    return b""


def test_the_local_cluster_requires_its_certificate() -> None:
    """Other users of the machine can connect to its ports, but do not have its certificate."""
    with dask_cluster.connect(None, 1) as client:
        assert client.submit(sum, (1, 2)).result(60) == 3
        (worker,), scheduler = client.scheduler_info()["workers"], client.scheduler_info()["address"]
        assert scheduler.startswith("tls://") and worker.startswith("tls://")
        assert received(scheduler) == received(worker) == b""
        for address, own in ((scheduler, Security.temporary()), (scheduler.replace("tls://", "tcp://"), None)):
            with pytest.raises(OSError), Client(address, security=own, timeout=2):
                pass
