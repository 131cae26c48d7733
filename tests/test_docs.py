"""The pages in docs/ name what exists: commands, settings, and everything that can alert."""

import re
from pathlib import Path

import pytest

from digits.settings import Settings
from ops.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE = (ROOT / ".env.example").read_text()


def commands() -> set[str]:
    found = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    return found | {group.name for group in app.registered_groups if group.name}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_setting_that_is_named_exists(page: Path) -> None:
    text = page.read_text()
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S))
    called = re.findall(r"`digits ([a-z]+)", text) + re.findall(r"(?:^|[ /])digits ([a-z]+)", blocks, re.M)
    assert set(called) <= commands()
    for name in set(re.findall(r"\b((?:DIGITS|MLFLOW|PREFECT)_[A-Z_]+[A-Z])\b", text)):
        assert not name.startswith("DIGITS_") or f"#{name}=" in EXAMPLE, f"{page.name}: {name}"


def test_every_setting_is_described_in_the_example() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description in EXAMPLE, name


def test_every_alert_is_explained() -> None:
    events = set()
    for path in (ROOT / "flows").glob("*.py"):
        events |= set(re.findall(r'Alert\(\s*"([a-z ]+)"', path.read_text()))
    page = (ROOT / "docs" / "operating.md").read_text()
    assert events
    for event in events:
        assert f"| `{event}` |" in page, event
