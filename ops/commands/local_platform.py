"""`digits up`, `down`, `status`, `demo`, `backup` and `restore`: the platform on this machine and its state."""

from pathlib import Path
from typing import Annotated

import typer

from digits.settings import load_settings

BackupPath = Annotated[Path, typer.Argument(metavar="FOLDER|FILE.tar")]


def up() -> None:
    """Start the whole platform on this machine and stay in the foreground; Ctrl-C stops it."""
    from ops import bootstrap

    bootstrap.up(load_settings())


def down() -> None:
    """Stop a platform that `digits up` started in another terminal."""
    from ops import processes

    settings = load_settings()
    print("stopped" if processes.stop(settings) else f"no platform runs on {settings.home}")


def status() -> None:
    """Show the servers, their addresses and states, and the model version that serves."""
    from ops import bootstrap

    if not bootstrap.print_status(load_settings()):
        raise SystemExit(1)


def demo(
    force: Annotated[bool, typer.Option("--force", help="Also on a platform with traffic of its own.")] = False,
) -> None:
    """Tell a true story through every tool, in about five minutes: recipes, a champion, a drift and its healing."""
    from ops import demo

    demo.run(load_settings(), force)


def backup(target: BackupPath) -> None:
    """Copy all state into a new folder or .tar file; the platform may keep running."""
    from ops import backup

    print(f"backed up to {target}: {backup.back_up(load_settings(), target)}")


def restore(source: BackupPath) -> None:
    """Restore a backup into an empty DIGITS_HOME."""
    from ops import backup

    settings = load_settings()
    print(f"restored {source} into {settings.home}: {backup.restore(settings, source)}; start it with `digits up`")
