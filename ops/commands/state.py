"""`digits backup` and `restore`: the state of the platform."""

from pathlib import Path
from typing import Annotated

import typer

from digits.settings import load_settings

BackupPath = Annotated[Path, typer.Argument(metavar="FOLDER|FILE.tar")]


def backup(target: BackupPath) -> None:
    """Copy all state into a new folder or .tar file; the platform may keep running."""
    from ops import backup

    print(f"backed up to {target}: {backup.back_up(load_settings(), target)}")


def restore(source: BackupPath) -> None:
    """Restore a backup into an empty DIGITS_HOME."""
    from ops import backup

    settings = load_settings()
    print(f"restored {source} into {settings.home}: {backup.restore(settings, source)}; start it with `digits up`")
