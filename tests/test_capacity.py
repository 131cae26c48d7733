"""The capacity plan is arithmetic on its own measured figures, and the commands beside them exist."""

import re
from math import ceil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "explanation" / "capacity.md").read_text()
DAY = 86_400


def figure(pattern: str) -> float:
    """The number that the page gives as measured."""
    found = re.search(pattern, PAGE)
    assert found, pattern
    return float(found.group(1).replace(",", ""))


JSON = figure(r"\| ([\d,]+) requests/s, p99")
PICTURES = figure(r"\| [\d,]+, ([\d,]+) requests/s \|")
BYTES = figure(r"PostgreSQL 15, indexes included \| ([\d,]+) bytes")
FORGOTTEN = figure(r"retention removes: PostgreSQL, SQLite \| ([\d,]+),")
TRAINED = figure(r"`compact` at batch 32 \| ([\d,]+) images/s")
UNITS = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15, "": 1}


def number(text: str) -> float:
    """`8.6 million` as a number."""
    found = re.search(r"([\d.,]+) ?(thousand|million|billion|MB|GB|TB|PB)?", text)
    assert found, text
    return float(found.group(1).replace(",", "")) * UNITS[found.group(2) or ""]


def row(section: str, name: str) -> list[str]:
    part = PAGE.split(f"## {section}")[1].split("\n## ")[0]
    found = re.search(rf"^\| {name} \| (.+) \|$", part, re.MULTILINE)
    assert found, (section, name)
    return found.group(1).split(" | ")


SCALES = {"1×": 10, "10×": 100, "1,000×": 10_000, "internet": 1_000_000}


@pytest.mark.parametrize(("name", "rate"), SCALES.items())
def test_the_pods_follow_from_the_requests(name: str, rate: int) -> None:
    requests, for_json, for_pictures = row("Requests", name)
    assert number(requests) == rate
    for said, each in ((for_json, JSON), (for_pictures, PICTURES)):
        assert number(said) == pytest.approx(ceil(rate / (0.6 * each)), rel=0.02)


@pytest.mark.parametrize(("name", "rate"), SCALES.items())
def test_the_log_grows_as_said(name: str, rate: int) -> None:
    rows, a_day, kept = row("The log", name)
    assert number(rows) == pytest.approx(rate * DAY, rel=0.05)
    assert number(a_day) == pytest.approx(rate * DAY * BYTES, rel=0.05)
    assert number(kept.split(", ")[-1]) == pytest.approx(90 * rate * DAY * BYTES, rel=0.05)


@pytest.mark.parametrize(("name", "unit"), [("1×", 1), ("10×", 60), ("1,000×", 3600), ("internet", DAY)])
def test_training_takes_as_long_as_said(name: str, unit: int) -> None:
    labels, seconds = row("Training", name)
    assert number(labels) == pytest.approx(SCALES[name] * DAY * 90 / 1000, rel=0.02)
    assert number(seconds) * unit == pytest.approx(30 * (number(labels) + 50_000) / TRAINED, rel=0.05)


def test_removing_rows_takes_as_long_as_said() -> None:
    assert figure(r"takes (\d+) minutes a day at 10×") == pytest.approx(100 * DAY / FORGOTTEN / 60, rel=0.1)
    assert figure(r"and (\d+) hours at 1,000×") == pytest.approx(10_000 * DAY / FORGOTTEN / 3600, rel=0.1)


def test_every_command_beside_a_figure_exists() -> None:
    commands = set(re.findall(r"`python -m bench\.(\w+)", PAGE))
    assert len(commands) >= 5
    assert {name for name in commands if not (ROOT / "bench" / f"{name}.py").exists()} == set()
