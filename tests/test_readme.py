"""The README cannot lie: its commands exist and run, its first screen works, and no command of the platform is missing from it."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ops.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


def test_the_first_screen_has_the_first_command() -> None:
    lines = README.splitlines()
    assert "make up" in "\n".join(lines[:35])
    assert 100 <= len(lines) <= 250


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme_and_answers_help(command: str) -> None:
    assert re.search(rf"`(digits )?{command}\b", README)
    done = subprocess.run([sys.executable, "-m", "ops", command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_help_answers_in_under_a_second() -> None:
    """Of processor time, because the machine has other things to do too; the best of three."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "ops", "--help"], cwd=ROOT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 1


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_link_to_a_file_leads_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_recipe_is_in_the_readme() -> None:
    from models.recipes import RECIPES

    assert set(RECIPES) == set(re.findall(r"^\| `([a-z-]+)` \|", README, re.MULTILINE))


def test_every_room_of_the_tree_exists() -> None:
    for room in re.findall(r"^([a-z]+)/  ", README, re.MULTILINE):
        assert room == "var" or (ROOT / room).is_dir(), room
