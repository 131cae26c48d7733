"""What goes wrong for a user ends in one sentence that says what to do, a non-zero exit and no traceback."""

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Registry, find_free_port

from bench import faults
from ops import cli

HERE = "http://127.0.0.1"
NOBODY = f"{HERE}:9"  # the discard port: nobody listens

CASES: dict[str, tuple[str, dict[str, str], str]] = {  # the command, settings, the sentence
    "promote, no MLflow": ("promote 1", {}, rf"the registry at {HERE}:\d+ does not answer .*start it with `digits up`"),
    "rollback, no MLflow": ("rollback", {}, r"does not answer .*start it with `digits up` or set MLFLOW_TRACKING_URI"),
    "leaderboard, no MLflow": ("leaderboard", {}, "start it with `digits up` or set MLFLOW_TRACKING_URI"),
    "another server": ("promote 1", {"MLFLOW_TRACKING_URI": "{registry}/nothing"}, "MLFLOW_TRACKING_URI"),
    "no champion": (
        "predict --direct docs/seven.png",
        {"MLFLOW_TRACKING_URI": "{registry}"},
        "no version of digits has the alias champion yet; train and promote one with `digits retrain`",
    ),
    "a wrong MLflow URL": (
        "promote 1",
        {"MLFLOW_TRACKING_URI": "foo"},
        r"^digits: MLFLOW_TRACKING_URI: expected an address like \S+, got 'foo'$",
    ),
    "train, no Prefect": (
        "train",
        {"PREFECT_API_URL": f"{NOBODY}/api"},
        f"Prefect does not answer at {NOBODY}/api; start it with",
    ),
    "predict, no service": (
        "predict docs/seven.png",
        {},
        "the endpoint does not answer at .*; start it with `digits up`",
    ),
    "a port that is none": ("status", {"DIGITS_SERVICE_PORT": "99999"}, "DIGITS_SERVICE_PORT: .*65535, got '99999'"),
    "a setting that is no JSON": (
        "status",
        {"DIGITS_GATE": '{{"margin"'},
        """DIGITS_GATE: expected JSON, got '{"margin"'""",
    ),
    "a port that is taken": (
        "up",
        {"DIGITS_MLFLOW_PORT": "{taken}"},
        r"port \d+ for mlflow is in use; stop what listens there or set DIGITS_MLFLOW_PORT",
    ),
    "no MNIST where it should be": (
        "up",
        {"DIGITS_MNIST": "/nowhere/mnist.npz"},
        "DIGITS_MNIST names /nowhere/mnist.npz, which does not exist; correct it or unset it",
    ),
    "no such source": ("ingest --data nowhere.csv", {}, "the source 'nowhere.csv' does not exist; give"),
    "no such recipe": ("train --recipe nope", {}, "there is no recipe 'nope'; choose one of"),
    "no such amount": (
        "traffic --data bundled --perturbation shift --amount 9999",
        {},
        "--amount is 9999; expected -27 to 27 px for 'shift'",
    ),
    "no such perturbation": (
        "traffic --data bundled --perturbation melt",
        {},
        "there is no perturbation 'melt'; choose one of plain,",
    ),
    "score, no file": ("score nowhere.csv out.csv", {}, "there is no file nowhere.csv; give a Kaggle test.csv"),
    "score, no folder": (
        "score README.md nowhere/out.csv",
        {},
        "there is no folder .*nowhere to write out.csv into; make it first",
    ),
    "a database of no kind": ("ledger", {"DIGITS_DATABASE_URL": "nonsense"}, "expected a database like postgresql://"),
    "PostgreSQL unreachable": (
        "ledger",
        {"DIGITS_DATABASE_URL": "postgresql://me@127.0.0.1:9/digits"},
        "is unreachable.*Connection refused",
    ),
    "a home that is a file": (
        "up",
        {"DIGITS_HOME": "/etc/hosts"},
        "Not a directory; set DIGITS_HOME to a folder that can be written",
    ),
    "a home with a strange name": (
        "up",
        {"DIGITS_HOME": "/tmp/a;b"},
        "DIGITS_HOME is '/tmp/a;b'; choose a path without %, ; and # for Supervisor",
    ),
    "nothing to back up": (
        "backup {home}-backup",
        {},
        "there is nothing to back up in .*; start the platform with `digits up`",
    ),
    "no such backup": ("restore nowhere.tar", {}, r"there is no backup /\S*/nowhere.tar; give a folder or a .tar"),
    "a full disk": (
        "up",
        {"DIGITS_HOME": "{full}"},
        "less than 200 MB free; make room there and run the command again",
    ),
    "a full disk, ingesting": (
        "ingest --data bundled",
        {"DIGITS_HOME": "{full}"},
        "No space left on device; make room there and run the command again",
    ),
}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path | None]:
    """A disk with little room, None where none can be mounted."""
    folder = tmp_path_factory.mktemp("full")
    with faults.small_disk(folder, 128 << 10) as is_small:
        yield folder if is_small else None


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings from outside, and the loggers as they were."""
    for name in os.environ:
        if name.startswith(("DIGITS_", "MLFLOW_", "PREFECT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # which commands set for good
    log = logging.getLogger("digits")
    handlers, level = list(log.handlers), log.level
    yield
    log.handlers[:], log.level = handlers, level


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("name", CASES)
def test_one_sentence_and_what_to_do(
    name: str,
    registry: Registry,
    full: Path | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, settings, sentence = CASES[name]
    if "{full}" in settings.values() and full is None:
        pytest.skip("only root can mount a small disk, and only on Linux")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = {"registry": registry.uri, "taken": taken.getsockname()[1], "full": full, "home": tmp_path / "home"}
        ports = {f"DIGITS_{name}_PORT": str(find_free_port()) for name in ("SERVICE", "MLFLOW", "PREFECT", "REPORTS")}
        for variable, value in {"DIGITS_HOME": "{home}", **ports, **settings}.items():
            monkeypatch.setenv(variable, value.format(**words))
        monkeypatch.setattr(sys, "argv", ["digits", *command.format(**words).split()])
        with pytest.raises(SystemExit) as end:
            cli.main()
    printed = capsys.readouterr()
    assert end.value.code == 1
    last = printed.err.splitlines()[-1]
    assert last.startswith("digits: ") and re.search(sentence, last), last
    assert "Traceback" not in printed.err + printed.out
