"""The whole loop on the bundled digits: drift, labels, retraining, promotion, recovery, a sabotaged candidate, rollback."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import put_migrated_databases

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_loop_closes_unattended(tmp_path: Path) -> None:
    """The script checks every step itself and ends with 1 at the first that goes wrong."""
    words = ["--data", "bundled", "--recipe", "sigmoid", "--requests", "350", "--audit", "1"]
    outside = ("MLFLOW_", "PREFECT_", "DIGITS_", "BENTOML_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
    command = [sys.executable, "-m", "bench.loop", *words]
    put_migrated_databases(tmp_path)
    done = subprocess.run(
        command, cwd=ROOT, env={**clean, "DIGITS_HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("rolled back: digits v1 answers again")
    assert re.search(r"was promoted by \S+: traffic: only the candidate is right on", done.stdout)
