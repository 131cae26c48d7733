"""Tasks are repeated for a server that does not answer, long enough for one that restarts, and for nothing else."""

from typing import Any, cast

import httpx
import pytest
from prefect.states import Failed
from prefect.tasks import exponential_backoff

from digits.storage.database import DatabaseUnavailable
from flows import tasks
from models.registry_reader import RegistryUnreachable


def test_the_attempts_bridge_an_outage_of_five_minutes() -> None:
    delays = exponential_backoff(tasks.BACKOFF_SECONDS)(tasks.RETRIES)
    assert sum(delays) >= 300


@pytest.mark.parametrize(
    ("error", "repeated"),
    [
        (RegistryUnreachable("MLflow at http://127.0.0.1:5000 is unreachable"), True),
        (DatabaseUnavailable("the database does not answer"), True),
        (TimeoutError("too slow"), True),
        (ValueError("DIGITS_GATE: minimum_gian"), False),
        (OSError(28, "No space left on device"), False),
        (LookupError("no version of digits has the alias champion"), False),
    ],
)
def test_only_a_server_that_does_not_answer_is_asked_again(
    error: Exception, repeated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run: Any = None
    task = cast(Any, tasks.server_task(test_the_attempts_bridge_an_outage_of_five_minutes))
    assert tasks.is_unreachable(task, run, Failed(data=error)) is repeated
    assert (str(error) in caplog.text) is repeated


def test_a_page_that_cannot_be_written_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("Connection refused")

    monkeypatch.setattr(tasks, "create_markdown_artifact", refused)
    tasks.publish("candidate", "digits v7", "# digits v7")
    assert "Prefect does not answer (Connection refused); digits v7 is not on its page" in caplog.text
