"""The program that becomes a server after it has ended what an earlier one left behind."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_it_ends_what_an_earlier_server_left_and_nothing_else(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/supervisor.sock"
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]

    def started(name: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            sleep, env={**os.environ, "SUPERVISOR_SERVER_URL": url, "SUPERVISOR_PROCESS_NAME": name}
        )

    orphan, other = started("mlflow"), started("prefect")
    try:
        server = [sys.executable, "-c", "import os; print(os.getpid())"]
        launcher = subprocess.Popen(
            [sys.executable, "-m", "ops.launcher", url, "mlflow", *server], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        output, _ = launcher.communicate(timeout=60)
        assert int(output) == launcher.pid  # it has become the server
        assert orphan.wait(10) < 0
        assert other.poll() is None
    finally:
        for process in (orphan, other):
            process.kill()
            process.wait()


def test_a_server_does_not_get_the_addresses_of_alerts(tmp_path: Path) -> None:
    server = [sys.executable, "-c", "import os; print(os.environ['DIGITS_ALERT_URLS'])"]
    command = [sys.executable, "-m", "ops.launcher", f"unix://{tmp_path}/supervisor.sock", "mlflow", *server]
    environment = {**os.environ, "DIGITS_ALERT_URLS": '["jsons://hush@example.org"]'}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_it_imports_no_large_library() -> None:
    command = "import sys, ops.launcher; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"psutil", "ops"} <= set(done.stdout.split())
    assert not {"pydantic", "httpx", "numpy", "supervisor", "digits"} & set(done.stdout.split())
