"""The documentation is complete and true: its site builds strictly, and it names every command, setting, recipe and alert that exists."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from digit_data import made_up
from typer.main import get_command

from digits.settings import Settings
from digits.storage.feedback import FeedbackPolicy
from models.gate import GatePolicy
from monitoring import traffic
from ops.cli import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *sorted(DOCS.rglob("*.md"))]
EXAMPLE = (ROOT / ".env.example").read_text()
CODE = "".join(
    path.read_text()
    for room in ("digits", "models", "services", "monitoring", "flows", "ops")
    for path in (ROOT / room).rglob("*.py")
)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    """The pages that the site's hook generates from the code."""
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec and spec.loader
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    pages: dict[str, str] = hooks.pages()
    return pages


def commands() -> set[str]:
    """Every command, those of a group with the group's name in front."""
    found = set()
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        found |= {f"{name} {verb}" for verb in command.commands} if hasattr(command, "commands") else {name}
    return found


def code(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_site_builds_strictly_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert {"tutorial.html", "settings.html", "command-line.html"} <= {page.name for page in pages}
    for page in pages:
        loaded = re.findall(
            r"<(?:link|script|img|iframe)\b[^>]*?(?:src|href)=\"?((?:https?:)?//[^\s\">]+)", page.read_text()
        )
        assert not loaded, f"{page.name}: {loaded}"
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_setting_that_is_named_exists(page: Path) -> None:
    text = page.read_text()
    blocks = "\n".join(re.findall(r"^ *```bash\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL))
    called = re.findall(r"`digits ([a-z]+)", text) + re.findall(r"(?:^|[ /(])digits ([a-z]+)", blocks, re.MULTILINE)
    assert set(called) <= {command.split()[0] for command in commands()}
    for name in set(re.findall(r"\b((?:DIGITS|MLFLOW|PREFECT)_[A-Z_]+[A-Z])\b", text)):
        assert not name.startswith("DIGITS_") or f"#{name}=" in EXAMPLE, f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_of_a_command_that_is_named_exists(page: Path) -> None:
    text = page.read_text()
    lines = re.findall(r"`(digits [^`]+)`", text) + re.findall(r"^ *(?:export .*\$\()?(digits .*)$", text, re.MULTILINE)
    for line in lines:
        command = get_command(app)
        for word in line.split()[1:3]:
            command = getattr(command, "commands", {}).get(word, command)  # type: ignore[assignment]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", line.split("|")[0])) <= known, line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_tells_of_somebodys_machine(page: Path) -> None:
    assert not re.findall(r"/(?:work|root|home)/\w+", page.read_text())


def test_every_command_is_in_the_overview_and_on_the_generated_page(generated: dict[str, str]) -> None:
    overview = (DOCS / "reference" / "index.md").read_text()
    for command in commands():
        group, _, verb = command.rpartition(" ")
        assert (
            re.search(rf"`{verb}\b" if group else rf"`digits {command}\b", overview) or f"`digits {command}" in overview
        ), command
        assert f"\n## digits {command}\n" in generated["reference/command-line.md"]


def test_every_setting_is_in_the_example_and_on_the_generated_page(generated: dict[str, str]) -> None:
    page = generated["reference/settings.md"]
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE))
    assert documented == set(re.findall(r"^#([A-Z_]+)=", EXAMPLE, re.MULTILINE))
    assert len(documented) == len(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description in EXAMPLE, name
        assert field.description.replace("|", "&#124;") in page, name


def test_every_example_of_a_policy_is_valid_and_the_gate_page_names_all_fields() -> None:
    texts = EXAMPLE + "".join(page.read_text() for page in PAGES)
    gates = re.findall(r"DIGITS_GATE=(\{[^}`]+\})|gate's [^\n]*like (\{[^}]+\})", texts)
    examples = [json.loads(found) for pair in gates for found in pair if found]
    assert len(examples) >= 2
    for example in examples:
        GatePolicy.model_validate(example)
    for found in re.findall(r"DIGITS_FEEDBACK=(\{[^}`]+\})|feedback policy, like (\{[^}]+\})", texts):
        FeedbackPolicy.model_validate_json("".join(found))
    page = (DOCS / "explanation" / "gate.md").read_text()
    for name in GatePolicy.model_fields:
        assert f"`{name}`" in page, name


def test_every_recipe_is_in_the_table() -> None:
    from models.recipes import RECIPES

    page = (DOCS / "reference" / "recipes.md").read_text()
    assert set(RECIPES) == set(re.findall(r"^\| `([a-z0-9-]+)` \|", page, re.MULTILINE))


def test_every_alert_and_each_of_its_fields_is_explained() -> None:
    page = (DOCS / "reference" / "alerts.md").read_text()
    events = {
        name
        for path in (ROOT / "flows").glob("*.py")
        for name in re.findall(r'Alert\(\s*"([a-z ]+)"', path.read_text())
    }
    assert events
    for event in events.union(get_args(traffic.Event)):
        assert f"| `{event}` |" in page, event
    for field in (
        "event",
        "about",
        "reason",
        "at",
        "run_url",
        "recommendations",
        "severity",
        "count",
        "explanations",
        "accuracy",
        "report",
    ):
        assert f"| `{field}` |" in page and f'"{field}"' in CODE, field


def test_the_messages_of_troubleshooting_are_those_of_the_code() -> None:
    page = (DOCS / "how-to" / "troubleshoot.md").read_text()
    table = page.split("| message |")[1].split("\n\n")[0]
    messages = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert len(messages) > 5
    said = re.sub(r"\"\s*f?\"", "", CODE)  # strings that stand on several lines
    for message in messages:
        for part in re.split(r"…", message):
            assert part.strip() in said, message


def test_every_decision_has_a_date() -> None:
    page = (DOCS / "explanation" / "decisions.md").read_text()
    decisions = page.split("\n### ")[1:]
    assert len(decisions) > 30
    for decision in decisions:
        assert re.match(r"[^\n]+\n\*\d{4}-\d\d-\d\d\*\n\n\S", decision), decision[:80]


def test_the_recipe_of_the_guide_builds() -> None:
    from models import recipes, training

    (preset,) = code("how-to/add-a-recipe.md")
    names = dict(vars(recipes))
    exec(preset, names)
    recipe = names["SMALL_CONVOLUTIONAL"].recipe
    assert training.build(recipe).output_shape == (None, 10)


def test_the_statistic_of_the_guide_is_measured() -> None:
    from monitoring import image_statistics

    function, entry = code("how-to/add-a-drift-statistic.md")
    names = {**vars(image_statistics), "STATISTICS": dict(image_statistics.STATISTICS)}
    exec(function, names)
    exec(entry, names)
    statistic = names["STATISTICS"]["asymmetry"]
    images = np.concatenate([np.zeros((1, 28, 28), np.uint8), made_up(0, 5).images])
    values = statistic.function(image_statistics.Chunk(images))
    assert values.shape == (6,) and values[0] == 0 and (values[1:] > 0).all()


def test_the_format_of_the_guide_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from digits.data import formats, sources

    function, entry = code("how-to/add-a-source-format.md")
    names = dict(vars(formats))
    exec(function, names)
    monkeypatch.setattr(formats, "FORMATS", (eval(entry, names), *formats.FORMATS))
    split = made_up(0, 20)
    np.save(tmp_path / "images.npy", split.images)
    np.save(tmp_path / "labels.npy", split.labels)
    assert (sources.read_rows(tmp_path).split.images == split.images).all()
