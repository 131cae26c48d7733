"""Pages that MkDocs generates at build time from the code itself: the command line, the settings, and the files in the root.

Generated instead of written, so that a new option or setting is documented by the line that declares it.
"""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parent.parent
TYPES = {"str": "text", "int": "number", "float": "number", "Path": "path"}
COPIED = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
SETTINGS_INTRODUCTION = """# Settings

Every setting is an environment variable or a line in the file `.env` in the folder where a command is run; the environment
wins. A `.env` that belongs to another user than root is refused. The defaults suit one machine. `.env.example` lists the same settings, ready to be copied. This page is generated from
`digits/settings.py`.
"""
COMMANDS_INTRODUCTION = """# Command line

`.venv/bin/digits`, `uv run digits`, or `python -m ops` in the environment. A command that fails prints one sentence and exits
with 1. This page is generated from the help texts; `digits COMMAND --help` prints the same. [The overview](index.md) sorts the commands
by task.
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages to those in docs/."""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def pages() -> dict[str, str]:
    """Markdown of every generated page by its path in the site."""
    copied = {name.lower(): _copied((ROOT / name).read_text()) for name in COPIED}
    return {"reference/command-line.md": command_line(), "reference/settings.md": settings(), **copied}


def _copied(text: str) -> str:
    """A page of the root, with its links as they are seen from docs/."""
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(rf"\]\(({'|'.join(COPIED)})", lambda found: f"]({found[1].lower()}", text)


def command_line() -> str:
    """A section per command with its usage, arguments and options."""
    from ops.cli import app

    group = typer.main.get_command(app)
    return COMMANDS_INTRODUCTION + "".join(_commands(group, "digits"))


def _commands(group: Any, prefix: str) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield _command(command, f"{prefix} {name}")


def _command(command: Any, name: str) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = context.get_usage().removeprefix("Usage: ").replace("{", "").replace("}", "")
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    rows = [_parameter(*record) for record in records if record and record[0] != "--help"]
    table = "| parameter | | default, limits |\n|---|---|---|\n" + "".join(rows) if rows else ""
    return f"\n## {name}\n\n{_cell(command.help)}\n\n```text\n{usage}\n```\n\n{table}"


def _parameter(name: str, text: str) -> str:
    found = re.fullmatch(r"(.*?)\s*(?:\[(?:default: )?([^\[\]]*)\])?", text, re.DOTALL)
    description, limits = found.groups("") if found else (text, "")
    limits = re.sub(r"(\S+)<=x<=(\S+)", r"\1 to \2", limits).replace("x>=", "at least ")
    name = re.sub(r"<(?:list\[)?(\w+)(?: range)?\]?>", lambda kind: f"<{TYPES.get(kind[1], kind[1])}>", name)
    return f"| <code>{_cell(html.escape(name))}</code> | {_cell(description)} | {_cell(limits.strip('()'))} |\n"


def settings() -> str:
    """A table of all settings, then one for each policy that a setting takes as JSON."""
    from digits.settings import Settings
    from digits.storage.feedback import FeedbackPolicy
    from models.gate import GatePolicy

    policies = {"DIGITS_GATE": GatePolicy, "DIGITS_FEEDBACK": FeedbackPolicy}
    text = SETTINGS_INTRODUCTION + "\n| setting | default | |\n|---|---|---|\n"
    text += "".join(_setting(name, field) for name, field in Settings.model_fields.items())
    for variable, policy in policies.items():
        text += f"\n## {variable}\n\n{_cell(policy.__doc__ or '')} The setting is a JSON object of the fields that differ.\n\n"
        text += fields_table(policy)
    return text


def _setting(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    variable = str(alias.choices[0]) if alias is not None and hasattr(alias, "choices") else f"DIGITS_{name.upper()}"
    return f"| `{variable}` | {default_in_example(variable)} | {_cell(field.description or '')} |\n"


def default_in_example(variable: str) -> str:
    """The default that .env.example shows: those that depend on another setting stand there as they come out."""
    found = re.search(rf"^#{variable}=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    return f"`{found[1]}`" if found and found[1] else ""


def fields_table(model: type[BaseModel]) -> str:
    """The fields of a model with their defaults and descriptions."""
    rows = (
        f"| `{name}` | {_default(field)} | {_cell(field.description or '')} |\n"
        for name, field in model.model_fields.items()
    )
    return "| field | default | |\n|---|---|---|\n" + "".join(rows)


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=False)
    return "" if default is PydanticUndefined or default is None else f"`{json.dumps(default, default=str)}`"


def _cell(text: str) -> str:
    """On one line, and without ending the cell of a table."""
    return " ".join(text.split()).replace("|", "&#124;")
