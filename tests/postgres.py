"""A real PostgreSQL server of its own for the tests, where its programs are installed."""

import getpass
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psycopg
from conftest import find_free_port

QUICK = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=100")


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`: on the PATH, else where Debian keeps the newest."""
    found = shutil.which("initdb")
    if found and shutil.which("postgres"):
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    return folders[-1] if folders and (folders[-1] / "initdb").exists() else None


@dataclass
class Postgres:
    """A server on a port of 127.0.0.1 that can be stopped and started again."""

    bin: Path
    folder: Path
    port: int
    user: str | None  # that it runs as; PostgreSQL refuses to run as root
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        settings = [word for setting in QUICK for word in ("-c", setting)]
        command = [self.bin / "postgres", "-D", self.folder / "data", "-h", "127.0.0.1", "-p", str(self.port), "-k", ""]
        with (self.folder / "server.log").open("ab") as output:
            self.process = subprocess.Popen(
                [*command, *settings], user=self.user, cwd=self.folder, stdout=output, stderr=output
            )
        deadline = time.monotonic() + 60
        while True:
            with suppress(psycopg.OperationalError), psycopg.connect(self.url("postgres"), connect_timeout=5):
                return
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop without waiting for clients to disconnect; https://www.postgresql.org/docs/15/server-shutdown.html."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    def url(self, database: str) -> str:
        """As users write it."""
        return f"postgresql://digits@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty one."""
        name = f"digits_{uuid4().hex}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]  # a name of our own
        return self.url(name)


@contextmanager
def running(bin: Path) -> Iterator[Postgres]:
    """A new server in a folder that the user it runs as may enter: pytest's own folders are closed to others."""
    user = "nobody" if os.getuid() == 0 else None
    if user and "postgres" in {one.pw_name for one in pwd.getpwall()}:
        user = "postgres"
    folder = Path(tempfile.mkdtemp(prefix="digits-postgres-"))
    shutil.chown(folder, user or getpass.getuser())
    initdb = [bin / "initdb", "-D", folder / "data", "-U", "digits", "--auth", "trust", "--no-sync", "-E", "UTF8"]
    server = Postgres(bin, folder, find_free_port(), user)
    try:
        subprocess.run([*initdb, "--no-locale"], user=user, cwd=folder, check=True, capture_output=True)
        server.start()
        yield server
    finally:
        server.stop(signal.SIGQUIT)  # without a checkpoint of what is removed anyway
        shutil.rmtree(folder)
