"""The page of benchmarks: one table first, then a section per command, replaced by the next run, and only of benches that exist."""

import re
from pathlib import Path

import numpy as np

from bench.faults import Load, Outcome
from bench.page import PAGE, replaced

ROOT = Path(__file__).parent.parent


def test_a_section_is_added_then_replaced_and_the_others_stay() -> None:
    page = replaced("# Benchmarks\n", "bench.one", "1\n")
    page = replaced(page, "bench.two --fast", "2\n")
    page = replaced(page, "bench.one", "a better one\n")
    assert re.findall(r"^## python -m (.+)$", page, re.M) == ["bench.one", "bench.two --fast"]
    assert "```text\na better one\n```" in page and "\n1\n" not in page and "```text\n2\n```" in page
    assert page == replaced(page, "bench.one", "a better one\n")


def test_every_section_names_a_bench_that_is_there() -> None:
    names = re.findall(r"^## python -m bench\.(\w+)", PAGE.read_text(), re.M)
    assert names
    assert all(
        (ROOT / "bench" / f"{name}.py").is_file() or (ROOT / "bench" / name / "__main__.py").is_file() for name in names
    )


def sections(page: str) -> dict[str, str]:
    """What each command printed."""
    return dict(re.findall(r"^## (python -m [^\n]+)\n\n[^\n]+\n\n```text\n(.*?)```", page, re.M | re.S))


def missing(text: str, output: str) -> list[str]:
    """The figures of a text that the output does not have."""
    figures = re.findall(r"\d[\d,]*(?:\.\d+)?", text)
    return [
        figure for figure in figures if not re.search(rf"(?<![\d.])(?<!\d,){re.escape(figure)}(?!\d|,\d|\.\d)", output)
    ]


def test_every_figure_of_the_table_was_printed_by_its_command() -> None:
    page = PAGE.read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `(python -m [^`]+)` \|$", page.split("\n## ")[0], re.M)
    assert len(rows) > 15
    for what, figures, command in rows:
        assert not missing(figures, sections(page)[command]), what


def test_every_figure_of_why_not_was_printed_by_its_command_and_a_row_without_one_says_why() -> None:
    outputs = sections(PAGE.read_text())
    page = (ROOT / "docs/explanation/why-not.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \| ([^|]+) \|$", page, re.M)
    cells = {what: figure for what, figure in rows if what != "ours" and not what.startswith("---")}
    assert len(cells) > 15
    for what, cell in cells.items():
        measured = re.findall(r"(.*?)\(`(bench\.[^`]+)`\)", cell)
        assert measured or cell.startswith(("none: ", "[the decision]")), what
        for text, command in measured:
            assert re.search(r"\d", text) and not missing(text, outputs[f"python -m {command}"]), (what, text)
        rest = re.sub(r".*\(`bench\.[^`]+`\)|\]\([^)]+\)", "", cell)
        assert not re.search(r"\d", rest), (what, rest)


def test_the_table_stays_when_a_section_is_replaced() -> None:
    page = PAGE.read_text()
    assert replaced(page, "bench.training", "1\n").split("\n## ")[0] == page.split("\n## ")[0]


def test_a_recovery_is_compared_with_the_bare_start_of_the_same_run() -> None:
    def passed(seconds: float, start_seconds: float | None) -> bool:
        load = Load("", np.zeros((1, 28, 28), np.uint8))
        return Outcome("mlflow", load, 0, seconds, 0, 0, start_seconds).passed

    assert passed(9.9, None) and not passed(10.1, None)
    assert passed(9.9, 9.5) and not passed(10.1, 9.5)
    assert passed(25, 20) and not passed(27, 20)
