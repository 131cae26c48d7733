"""`digits keys`: the API keys of the service."""

from typing import Annotated

import typer

from ops.tables import format_time, print_table

app = typer.Typer(help="Manage the API keys of the service.", no_args_is_help=True)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Client name, recorded with its feedback; `audit` for auditors.")],
    role: Annotated[list[str], typer.Option("--role", help="predict, feedback or admin; may be repeated.")],
    rate: Annotated[int | None, typer.Option(min=1, help="Requests per minute, if not the setting's.")] = None,
) -> None:
    """Create a key and print it once; only its hash is stored."""
    from digits.storage import api_keys
    from models.connections import Platform

    print(api_keys.create(Platform().engine, name, role, rate))


@app.command("list")
def list_keys() -> None:
    """List all keys with their roles, also revoked ones."""
    from digits.storage import api_keys
    from models.connections import Platform

    platform, rows = Platform(), []
    for key in api_keys.by_hash(platform.engine).values():
        rate = f"{key.rate_per_minute or platform.settings.rate_per_minute:,}"
        times = format_time(key.created_at), format_time(key.revoked_at)
        rows.append((key.name, key.roles.replace(" ", ", "), rate, *times))
    print_table(("name", "roles", "requests a minute", "created (UTC)", "revoked (UTC)"), rows)


@app.command("revoke")
def revoke(name: str) -> None:
    """Revoke a key; every worker refuses it within seconds."""
    from digits.storage import api_keys
    from models.connections import Platform

    api_keys.revoke(Platform().engine, name)
