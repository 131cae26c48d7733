"""Commands that run flows do not let the working directory decide what Prefect runs."""

from pathlib import Path

import pytest
from conftest import give_away

from ops import flow_runs


@pytest.mark.parametrize(
    ("name", "text"),
    [("prefect.toml", ""), ("pyproject.toml", "[tool.prefect.logging]"), ("pyproject.toml", "[tool.x]")],
)
def test_prefects_settings_of_another_user_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.terminal.prepare", lambda: None)  # it changes the logging of the process
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path / "home"))
    (tmp_path / name).write_text(text)
    flow_runs.prepare()
    give_away(tmp_path / name, monkeypatch)
    if text == "[tool.x]":
        flow_runs.prepare()
        return
    with pytest.raises(PermissionError, match=f"{tmp_path / name} belongs to .+, and Prefect would read its settings"):
        flow_runs.prepare()
