"""A log line is text for people or one JSON object for programs, of the service, the commands and the flows alike."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from digits import logs
from digits.settings import Settings

ROOT = Path(__file__).parent.parent


def record(message: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("digits.x", logging.WARNING, __file__, 1, message, values, None)


def test_a_json_line_has_the_time_in_utc_and_stays_one_line() -> None:
    entry = logs.formatter("json").format(record("two\nlines of %s", "Ünïcode"))
    assert len(entry.splitlines()) == 1 and entry.isascii()
    read = json.loads(entry)
    assert (read["level"], read["logger"], read["message"]) == ("WARNING", "digits.x", "two\nlines of Ünïcode")
    assert read["time"].endswith("+00:00") and read.keys() == {"time", "level", "logger", "message"}


def test_text_is_the_default_and_names_a_request_only_within_one() -> None:
    text = logs.formatter("text")
    assert text.format(record("plain")).endswith("WARNING digits.x: plain")
    token = logs.request_id.set("a-1")
    assert text.format(record("asked")).endswith("WARNING digits.x: asked (request a-1)")
    logs.request_id.reset(token)
    assert "request" not in text.format(record("plain"))


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_command_says_what_is_wrong_in_the_form_that_is_asked_for(tmp_path: Path, log_format: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DIGITS_LOG_FORMAT": log_format, "DIGITS_ALERT_URLS": "[]"}
    command = [sys.executable, "-m", "ops", "alert", "test"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    sentence = "DIGITS_ALERT_URLS names no channel"
    assert done.returncode == 1
    if log_format == "text":
        assert line.startswith(f"digits: {sentence}")
    else:
        entry = json.loads(line)
        assert entry["level"] == "ERROR" and entry["message"].startswith(sentence)


def test_an_unknown_form_is_refused_by_a_sentence(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DIGITS_LOG_FORMAT": "xml"}
    command = [sys.executable, "-m", "ops", "status"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("digits: DIGITS_LOG_FORMAT: ") and "xml" in done.stderr


def test_prefects_lines_have_the_same_form(tmp_path: Path) -> None:
    program = (
        "from prefect import flow\n"
        "from prefect.logging import get_logger\n"
        "log = get_logger('flow_runs').getChild('x')\n"
        "log.info('started %s', 'it', extra={'flow_run_name': 'brave-otter'})\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: log.exception('failed')\n"
    )
    given = {"PREFECT_HOME": str(tmp_path), "PREFECT_LOGGING_TO_API_ENABLED": "false", "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **given, **logs.prefect_variables("json")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in done.stderr.splitlines())
    assert (first["message"], first["flow_run_name"]) == ("started it", "brave-otter")
    assert second["level"] == "ERROR" and "ZeroDivisionError" in second["exception"]
    assert logs.prefect_variables("text") == {}


def test_flow_runs_get_it_wherever_the_pool_runs_them() -> None:
    from flows import deployments

    for kind in ("process", "docker"):
        wanted = Settings(_env_file=None, work_pool_type=kind, log_format="json")  # type: ignore[call-arg]
        assert logs.prefect_variables("json").items() <= deployments.job_variables(wanted)["env"].items()
