"""`python -m services`: its port is its own, and its files are for its user only."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from serving import Service

ROOT = Path(__file__).parent.parent


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = {**os.environ, "DIGITS_HOME": str(tmp_path), "DIGITS_SERVICE_PORT": str(port)}
        command = [sys.executable, "-m", "services"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    said = f"digits: cannot listen on 127.0.0.1:{port} (Address already in use); "
    assert (done.returncode, done.stderr) == (1, f"{said}stop what listens there or set DIGITS_SERVICE_PORT\n")


def test_its_files_are_for_its_user_only(service: Service) -> None:
    service.wait_for(lambda: service.status("/readyz") == 200)
    written = [path for path in (service.home / "metrics").rglob("*") if path.is_file()]
    assert written and {path.stat().st_mode & 0o077 for path in written} == {0}
