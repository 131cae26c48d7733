"""`digits keys`: the API keys of the service."""

from typing import Annotated

import typer

from digits.settings import load_settings
from ops.commands.connections import open_database
from ops.tables import format_time, print_table

app = typer.Typer(help="Manage the API keys of the service.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(help="Name of the client. Feedback is recorded under it; `audit` is the auditors' name.")
]
Roles = Annotated[list[str], typer.Option("--role", help="predict, feedback or admin; may be repeated.")]


@app.command()
def create(
    name: Name,
    role: Roles,
    rate: Annotated[
        int | None, typer.Option(min=1, help="Requests per minute.", show_default="DIGITS_RATE_PER_MINUTE")
    ] = None,
) -> None:
    """Create a key and print it once; only its hash is stored."""
    from digits.storage import api_keys

    print(api_keys.create(open_database(load_settings()), name, role, rate))


@app.command("list")
def list_keys() -> None:
    """List all keys with their roles, also revoked ones."""
    from digits.storage import api_keys

    settings = load_settings()
    rows = []
    for key in api_keys.by_hash(open_database(settings)).values():
        rate = f"{key.rate_per_minute or settings.rate_per_minute:,}"
        times = format_time(key.created_at), format_time(key.revoked_at)
        rows.append((key.name, ", ".join(sorted(key.roles)), rate, *times))
    print_table(("name", "roles", "requests a minute", "created (UTC)", "revoked (UTC)"), rows)


@app.command()
def revoke(name: str) -> None:
    """Revoke a key; every worker refuses it within seconds."""
    from digits.storage import api_keys

    api_keys.revoke(open_database(load_settings()), name)
