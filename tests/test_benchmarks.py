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


def test_every_figure_of_the_table_was_printed_by_its_command() -> None:
    page = PAGE.read_text()
    sections = dict(re.findall(r"^## (python -m [^\n]+)\n\n[^\n]+\n\n```text\n(.*?)```", page, re.M | re.S))
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| `(python -m [^`]+)` \|$", page.split("\n## ")[0], re.M)
    assert len(rows) > 15
    for what, figures, command in rows:
        for figure in re.findall(r"\d[\d,]*(?:\.\d+)?", figures):
            assert re.search(rf"(?<![\d.])(?<!\d,){re.escape(figure)}(?!\d|,\d|\.\d)", sections[command]), (
                f"{what}: {figure}"
            )


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
