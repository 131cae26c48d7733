"""The README is true: its first screen works, its commands, links and packages exist, and its figures are those of the benchmarks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from ops.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = list(get_command(app).commands)  # type: ignore[attr-defined]


def test_the_first_screen_has_the_picture_and_the_two_commands() -> None:
    lines = README.splitlines()
    first_screen = "\n".join(lines[:35])
    assert "make up" in first_screen and "make test" in first_screen and "docs/loop.svg" in first_screen
    assert len(lines) <= 130


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_help(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", "ops", command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_help_answers_before_any_large_library_is_imported() -> None:
    """Seconds would measure the machine: the same import took 0.4 s of processor time on one, 1.0 s on another."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ops", "--help"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"typer", "pydantic"} <= imported
    slow = {
        "numpy",
        "scipy",
        "sqlalchemy",
        "httpx",
        "mlflow",
        "prefect",
        "keras",
        "tensorflow",
        "onnxruntime",
        "evidently",
    }
    assert not imported & slow


def test_every_make_target_that_a_page_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


def test_every_link_of_the_root_pages_leads_somewhere() -> None:
    """`mkdocs build --strict` checks those of the site."""
    for page in ROOT.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name}: {target}"


def test_every_page_of_the_site_is_linked() -> None:
    generated = {"docs/reference/command-line.md", "docs/reference/settings.md"}
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")}
    assert pages - set(re.findall(r"\]\(([^)]+)\)", README)) - generated == {"docs/index.md"}


def test_every_figure_of_the_bullets_is_one_of_the_benchmarks() -> None:
    bullets = "\n".join(re.findall(r"^- \*\*.*\n(?:  .*\n)*", README, re.MULTILINE))
    assert bullets.count("- **") == 5
    printed = (ROOT / "docs" / "benchmarks.md").read_text()
    figures = re.findall(r"\d[\d,]*\.\d+|\d+,\d{3}", bullets)
    assert len(figures) > 8
    for figure in figures:
        assert figure in printed, figure


def test_every_package_of_the_tree_exists() -> None:
    rooms = re.findall(r"^( *)([a-z]+)/  ", README, re.MULTILINE)
    assert len(rooms) > 10
    parent = ROOT
    for indent, room in rooms:
        folder = parent / room if indent else ROOT / room
        parent = parent if indent else folder
        assert room == "var" or folder.is_dir(), room
