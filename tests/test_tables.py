"""Tables print what users wrote as it is, and a pipe gets every row on one line."""

from datetime import UTC, datetime

import pytest

from ops.tables import format_time, print_table


def test_brackets_and_colons_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("by", "why"), [("[/]", "[red]worse[/red] :smile: " + "because " * 40), ("ops", "–")])
    header, row, last = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert header.split() == ["by", "why"]
    assert row == "[/]  [red]worse[/red] :smile: " + ("because " * 40).strip()
    assert last.split() == ["ops", "–"]


def test_without_columns_there_is_no_header(capsys: pytest.CaptureFixture[str]) -> None:
    print_table((), [("mlflow", "up")])
    assert capsys.readouterr().out.split() == ["mlflow", "up"]


def test_a_time_has_seconds_and_a_missing_one_is_a_dash() -> None:
    assert format_time(datetime(2026, 1, 5, 12, 0, 1, tzinfo=UTC)) == "2026-01-05 12:00:01"
    assert format_time(None) == "–"
