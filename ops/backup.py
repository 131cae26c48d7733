"""`digits backup` and `digits restore`: the state of the platform in one folder or .tar file, taken while the platform runs.

Left out are logs and reports: the answers that reports are made of are in the database.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from digits.files import replacing
from digits.settings import Settings
from ops import processes

MANIFEST = "manifest.json"
FORMAT = 1
DIGITS_DB, DIGITS_DUMP = "digits.db", "digits.dump"  # of SQLite, of PostgreSQL
OTHER_DBS = ("prefect/prefect.db", "mlflow/mlflow.db", "sweeps/trials.db")
FOLDERS = ("mlflow/artifacts", "datasets", "champions", "audit")
INBOX = "inbox"


class BadBackup(ValueError):
    """What should be restored is no whole backup."""


@dataclass(frozen=True)
class Backup:
    """What was backed up or restored."""

    files: int
    bytes: int
    without: list[str]  # what other servers keep

    def __str__(self) -> str:
        return f"{self.files} files, {self.bytes / 1e6:,.1f} MB" + "".join(f"; {reason}" for reason in self.without)


def back_up(settings: Settings, target: Path) -> Backup:
    """Copy databases, artifacts, data sets and champions to a folder, or into one file where the name ends in .tar.

    What refers to something is copied before it: answers move from the spool into the database, which names versions of MLflow,
    which name artifacts and data sets, and none of those ever change. So all that a copy refers to is in a later copy. Raises
    ValueError when the target exists or there is nothing to copy.
    """
    target = target.expanduser().absolute()
    if target.exists():
        raise ValueError(f"{target} exists already; give the backup another name")
    if not any(settings.home.glob("*")):
        raise ValueError(f"there is nothing to back up in {settings.home}; start the platform with `digits up`")
    if target.is_relative_to(settings.home):
        raise ValueError(f"{target} lies in {settings.home} itself, and would be lost with it; give another place")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(target) as folder:
        _copy_folder(settings.spool, folder / "spool")
        _copy_digits_database(settings, folder)
        for database in OTHER_DBS:
            if (settings.home / database).exists():
                _copy_sqlite(settings.home / database, folder / database)
        _copy_folder(settings.inbox, folder / INBOX)
        for name in FOLDERS:
            _copy_folder(settings.home / name, folder / name)
        files = _describe(folder)
        _write_manifest(folder, files)
        if target.suffix == ".tar":
            with replacing(target) as packed, tarfile.open(packed, "w") as archive:
                archive.add(folder, arcname="")
        else:
            folder.rename(target)
    return Backup(len(files), sum(file["bytes"] for file in files.values()), _elsewhere(settings))


def restore(settings: Settings, source: Path) -> Backup:
    """Put a backup in the place of an empty DIGITS_HOME, after every byte of it was compared with its manifest.

    Raises BadBackup when the backup is damaged or incomplete, ValueError when something is there that it would replace; then
    nothing has changed.
    """
    if processes.states(settings):
        raise ValueError(
            f"the platform runs on {settings.home}; stop it with `digits down`, or set DIGITS_HOME to an empty folder"
        )
    if settings.home.exists() and any(settings.home.iterdir()):
        raise ValueError(f"{settings.home} is not empty; move it away, or set DIGITS_HOME to an empty folder")
    if settings.inbox.exists() and any(settings.inbox.iterdir()):
        raise ValueError(
            f"the inbox {settings.inbox} is not empty; move it away, or set DIGITS_INBOX to an empty folder"
        )
    if not source.exists():
        raise ValueError(f"there is no backup {source}; give a folder or a .tar that `digits backup` wrote")
    settings.home.mkdir(parents=True, exist_ok=True)
    staging = settings.home / ".restoring"  # on the same disk, so that moving it into place copies nothing
    try:
        _unpack(source.expanduser(), staging)
        files = _check(staging)
        _restore_digits_database(settings, staging)
        if (staging / INBOX).exists():
            shutil.copytree(staging / INBOX, settings.inbox, dirs_exist_ok=True)
            shutil.rmtree(staging / INBOX)
        for path in staging.iterdir():
            if path.name != MANIFEST:
                path.rename(settings.home / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Backup(len(files), sum(file["bytes"] for file in files.values()), _elsewhere(settings))


# Databases


def _copy_sqlite(source: Path, target: Path) -> None:
    """A consistent copy while others write (https://www.sqlite.org/backup.html)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    uri = f"file:{source}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=60)) as living, closing(sqlite3.connect(target)) as copy:
            living.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, with nothing beside it
    except sqlite3.Error as error:
        raise OSError(f"{source} cannot be copied ({error}); nothing was backed up") from error


def _copy_digits_database(settings: Settings, folder: Path) -> None:
    path = _sqlite_path(settings.database_url)
    if path is None:
        _postgres("pg_dump", settings, "--format=custom", "--no-owner", f"--file={folder / DIGITS_DUMP}")
    elif path.exists():
        _copy_sqlite(path, folder / DIGITS_DB)


def _restore_digits_database(settings: Settings, staging: Path) -> None:
    """Into the database of the settings, which has to be of the same kind and empty."""
    path = _sqlite_path(settings.database_url)
    wanted, other = (DIGITS_DUMP, DIGITS_DB) if path is None else (DIGITS_DB, DIGITS_DUMP)
    if (staging / other).exists():
        kind = "SQLite" if other == DIGITS_DB else "PostgreSQL"
        raise ValueError(
            f"the backup holds a database of {kind}, and DIGITS_DATABASE_URL names another kind; change it"
        )
    if not (staging / wanted).exists():
        return
    if path is None:
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        if _postgres("psql", settings, "--tuples-only", "--no-align", f"--command={tables}").strip() != "0":
            raise ValueError("the database of DIGITS_DATABASE_URL is not empty; name an empty one")
        _postgres(
            "pg_restore", settings, "--no-owner", "--exit-on-error", "--single-transaction", str(staging / wanted)
        )
        (staging / wanted).unlink()
    elif path != settings.home / DIGITS_DB:
        if path.exists():
            raise ValueError(f"{path} exists already; move it away, or set DIGITS_DATABASE_URL")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(staging / wanted, path)


def _sqlite_path(url: str) -> Path | None:
    """The file of a SQLite URL, None for another database's."""
    return Path(url.split("///", 1)[1].split("?")[0]).absolute() if url.startswith("sqlite") else None


def _postgres(program: str, settings: Settings, *words: str) -> str:
    """What a program of PostgreSQL prints; the password goes through the environment, where other users cannot read it."""
    parts = urlsplit(settings.database_url)
    host = parts.netloc.rpartition("@")[2]
    user = unquote(parts.username or "")
    address = urlunsplit(("postgresql", f"{parts.username}@{host}" if user else host, parts.path, parts.query, ""))
    password = {"PGPASSWORD": unquote(parts.password)} if parts.password else {}
    try:
        command = [program, f"--dbname={address}", *words]
        done = subprocess.run(command, env={**os.environ, **password}, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise OSError(f"{program} is not installed; get PostgreSQL's client programs") from error
    if done.returncode:
        raise OSError(
            f"{program} failed: {done.stderr.strip().splitlines()[0] if done.stderr.strip() else 'no reason given'}"
        )
    return done.stdout


def _elsewhere(settings: Settings) -> list[str]:
    """What this machine does not keep."""
    servers = (("MLflow", settings.mlflow_public_url, "mlflow"), ("Prefect", settings.prefect_api_url, "prefect"))
    here = {process.name for process in processes.processes(settings)}
    without = [f"without what {name} keeps at {url}" for name, url, process in servers if process not in here]
    return [*without, f"without the data sets in {settings.datasets_url}"] if settings.datasets_url else without


# Files


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A folder beside the target, gone afterwards unless it was renamed."""
    folder = target.with_name(f".{target.name}.{os.getpid()}.partial")
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_folder(source: Path, target: Path) -> None:
    """All files, those on top first: they are pointers into the folders beside them. What vanishes meanwhile was temporary."""
    files = [path for path in source.rglob("*") if path.is_file() and not _is_temporary(path.relative_to(source))]
    for path in sorted(files, key=lambda path: len(path.parts)):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            shutil.copyfile(path, copy)


def _is_temporary(path: Path) -> bool:
    return path.suffix == ".tmp" or any(part.startswith(".") and part.endswith(".tmp") for part in path.parts)


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file by its path, all forced onto the disk."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _flush(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    return files


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_manifest(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """The list of all files; its own checksum is that of what stands in it otherwise."""
    content = {"format": FORMAT, "taken_at": datetime.now(UTC).isoformat(), "files": files}
    (folder / MANIFEST).write_text(json.dumps({**content, "sha256": _digest(content)}, indent=1))
    _flush(folder / MANIFEST)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _unpack(source: Path, staging: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, staging)
        return
    try:
        with tarfile.open(source, "r:") as archive:
            for member in archive:
                if not member.isdir():
                    _unpack_file(archive, member, staging)
    except (tarfile.TarError, EOFError, FileExistsError, NotADirectoryError) as error:
        raise BadBackup(f"{source} is no whole .tar file ({error}); nothing was restored") from error


def _unpack_file(archive: tarfile.TarFile, member: tarfile.TarInfo, staging: Path) -> None:
    """One file of an archive that strangers may have made; Python has a filter for this only from 3.11.4 on."""
    path = PurePosixPath(member.name)
    content = archive.extractfile(member) if member.isfile() else None
    if content is None or path.is_absolute() or ".." in path.parts:
        raise tarfile.ExtractError(f"{member.name!r} in it is no plain file of its own")
    target = staging / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with content, target.open("xb") as file:
        shutil.copyfileobj(content, file)


def _check(staging: Path) -> dict[str, dict[str, Any]]:
    """The files of a backup; raises BadBackup unless they are exactly those of its manifest."""
    try:
        manifest = json.loads((staging / MANIFEST).read_bytes())
        claimed = manifest.pop("sha256")
        form, files = manifest["format"], manifest["files"]
        is_whole = claimed == _digest(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadBackup(f"the backup has no readable {MANIFEST} ({error}); nothing was restored") from error
    if not is_whole:
        raise BadBackup(f"the {MANIFEST} of the backup was changed; nothing was restored")
    if form != FORMAT:
        raise BadBackup(
            f"the backup is of format {form}, and this version of digits reads {FORMAT}; nothing was restored"
        )
    found = _describe(staging)
    del found[MANIFEST]
    for name in sorted(found.keys() | files.keys()):
        if found.get(name) != files.get(name):
            how = "is missing" if name not in found else "does not belong" if name not in files else "was changed"
            raise BadBackup(f"{name} {how} in the backup; nothing was restored")
    return files
