"""The tutorial is true: every command of docs/tutorial.md is run in order against a platform of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import find_free_port, post, put_migrated_databases

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
PORTS = {"SERVICE": "3000", "MLFLOW": "5000", "PREFECT": "4200", "REPORTS": "8000"}

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


class Terminal:
    """A shell that keeps its variables between the blocks of the page."""

    def __init__(self, home: Path) -> None:
        outside = ("MLFLOW_", "PREFECT_", "DIGITS_", "BENTOML_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
        self.ports = {name: str(find_free_port()) for name in PORTS}
        self.environment |= {f"DIGITS_{name}_PORT": port for name, port in self.ports.items()}
        self.home = home
        self.variables = home.parent / "variables.sh"
        self.variables.write_text("")
        digits = home.parent / "bin" / "digits"
        digits.parent.mkdir()
        digits.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ops "$@"\n')
        digits.chmod(0o755)

    def run(self, block: str) -> str:
        """What the commands of a block print; raises AssertionError when one of them fails."""
        block = block.replace("var/tutorial", str(self.home)).replace("$PWD/.venv/bin", str(self.home.parent / "bin"))
        script = f'set -euo pipefail; . "{self.variables}"\n{block}\ndeclare -p > "{self.variables}.new"'
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        kept = r"^declare -[-x]+ (?:DIGITS_\w+|PATH|since)=.*$"
        lines = re.findall(kept, Path(f"{self.variables}.new").read_text(), re.MULTILINE)
        self.variables.write_text("\n".join(lines) + "\n")
        return done.stdout + done.stderr

    def start(self, command: str) -> "subprocess.Popen[bytes]":
        """A command that stays in the foreground of another terminal with the same variables."""
        script = f'. "{self.variables}"; exec {command}'
        log = (self.home.parent / "up.log").open("w")
        return subprocess.Popen(["bash", "-c", script], cwd=ROOT, env=self.environment, stdout=log, stderr=log)

    def retrained_by_event(self) -> bool:
        """Whether the retraining that the drift event started has ended."""
        url = f"http://127.0.0.1:{self.ports['PREFECT']}/api/flow_runs/filter"
        login = httpx.BasicAuth(*(self.home / "prefect" / "login").read_text().split(":"))
        runs = post(url, json={"flows": {"name": {"any_": ["retrain"]}}}, auth=login).json()
        started = [run for run in runs if run["parameters"].get("cooldown")]
        assert not [run for run in started if run["state_type"] in ("FAILED", "CRASHED")], started
        return bool(started) and all(run["end_time"] for run in started)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    put_migrated_databases(tmp_path / "tutorial")
    yield Terminal(tmp_path / "tutorial")


def wait(condition, seconds: float = 300) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def right(printed: str) -> float:
    """The share of right answers that `digits traffic` printed, in per cent."""
    (share,) = re.findall(r"\d+ answers, ([\d.]+)% right", printed)
    return float(share)


def test_every_command_of_the_tutorial_does_what_the_page_says(terminal: Terminal) -> None:
    demo, setup, settings, key, up, status, compared, plain, drift, healed, diff, rollback, down = BLOCKS
    # tests/test_demo.py runs it
    assert demo == "digits demo\n"
    assert setup == "make setup\n"
    assert up == "make up\n"
    assert re.search(r"^up: setup.*\n\t@?\.venv/bin/digits up$", (ROOT / "Makefile").read_text(), re.MULTILINE)

    terminal.run(settings)
    assert "bundled" in terminal.run(key)
    platform = terminal.start("digits up")
    try:
        log = terminal.home.parent / "up.log"
        wait(lambda: platform.poll() is not None or "Ctrl-C stops" in log.read_text())
        assert platform.poll() is None, log.read_text()
        assert "digits v1 is the champion" in log.read_text()
        assert "docs/seven.png: 7 (" in terminal.run(status)

        printed = terminal.run(compared)
        assert re.search(r"^classic .*\(v2\)", printed, re.MULTILINE)
        assert re.search(r"^compact .*\(v1\)", printed, re.MULTILINE)

        printed = terminal.run(plain)
        assert "No drift" in printed and "Accuracy is as expected" in printed
        assert right(printed) > 90

        printed = terminal.run(drift)
        assert "shifted 4" in printed.lower() and "Accuracy is worse than expected" in printed
        before = right(printed)
        wait(terminal.retrained_by_event)

        printed = terminal.run(healed)
        assert len(re.findall("promotion", printed)) == 2
        assert right(printed) > before + 20
        assert "digits v3" in terminal.run(diff)
        assert "rollback" in terminal.run(rollback)
        assert "stopped" in terminal.run(down)
        assert platform.wait(60) == 0
    finally:
        if platform.poll() is None:
            platform.send_signal(signal.SIGINT)
            platform.wait(120)
