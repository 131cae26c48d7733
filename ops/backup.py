"""`digits backup` and `digits restore`: the state of the platform as one folder or .tar file.

Logs and reports are left out: the predictions that reports are computed from are in the database.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from digits.errors import quote
from digits.files import make_private, remove_abandoned, replacing, unfinished, write_atomically
from digits.settings import Settings
from digits.storage import database
from ops import processes

MANIFEST = "manifest.json"
FORMAT = 1
# Copies of digits' own database, from SQLite and from PostgreSQL.
DIGITS_DB, DIGITS_DUMP = "digits.db", "digits.dump"
OTHER_DBS = ("prefect/prefect.db", "mlflow/mlflow.db", "sweeps/trials.db")
FOLDERS = ("mlflow/artifacts", "datasets", "champions", "audit")
INBOX, SPOOL = "inbox", "spool"
# Folders in folders: Python's own functions call themselves for each level, up to a limit.
MAX_LEVELS = 100
# Size and checksum of each file by its path, as in the manifest.
Files = dict[str, dict[str, Any]]


def back_up(settings: Settings, target: Path) -> str:
    """Copy databases, artifacts, data sets and champions to a folder, or into one file if the name ends in .tar.

    What refers to something is copied before it: predictions move from the write-ahead log into the database, which names versions
    of MLflow, which name artifacts and data sets, and these never change. So all that a copy refers to is in a later copy.
    Returns a summary. Raises ValueError when the target exists or there is nothing to copy. What killed backups left beside the
    target is removed.
    """
    target, home = (Path(os.path.realpath(path.expanduser())) for path in (target, settings.home))
    if target.exists():
        raise ValueError(f"{target} exists already; give the backup another name")
    if not any(settings.home.glob("*")):
        raise ValueError(f"there is nothing to back up in {settings.home}; start the platform with `digits up`")
    if target.is_relative_to(home):
        raise ValueError(f"{target} is inside {home}, the folder to back up; give a path outside it")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent.glob(".*.tmp"))
    with unfinished(target) as folder:
        folder.mkdir(0o700)
        files = _copy(settings, folder)
        if target.suffix == ".tar":
            with replacing(target) as packed:
                packed.touch(0o600)
                with tarfile.open(packed, "w") as archive:
                    archive.add(folder, arcname="")
        else:
            folder.rename(target)
    return _summary(settings, files)


def _copy(settings: Settings, folder: Path) -> Files:
    """Copy all state into an empty folder and describe it in a manifest; returns the files."""
    # Twice, because a file may get its second and last name between being listed and being copied.
    for _ in range(2):
        _copy_folder(settings.spool, folder / SPOOL)
    path = _sqlite_path(settings.database_url)
    if path is None:
        _postgres("pg_dump", settings, "--format=custom", "--no-owner", f"--file={folder / DIGITS_DUMP}")
    else:
        _copy_sqlite(path, folder / DIGITS_DB)
    for name in OTHER_DBS:
        _copy_sqlite(settings.home / name, folder / name)
    _copy_folder(settings.inbox, folder / INBOX)
    for name in FOLDERS:
        _copy_folder(settings.home / name, folder / name)
    files = _describe(folder)
    manifest = {"format": FORMAT, "taken_at": datetime.now(UTC).isoformat(), "files": files}
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    return files


def restore(settings: Settings, source: Path) -> str:
    """Restore a backup into an empty DIGITS_HOME, after comparing every file with the manifest; returns a summary.

    What is restored is readable by its user only. Raises ValueError when the backup is damaged or incomplete, contains what
    `back_up` does not write, or would replace something; then nothing has changed.
    """
    source = Path(os.path.realpath(source.expanduser()))
    with processes.only_one(settings):
        # On the disk of DIGITS_HOME, so that renaming moves the files. What is there was left by a restore that was killed.
        staging = settings.home / ".restoring"
        shutil.rmtree(staging, ignore_errors=True)
        for path, name in ((settings.home, "DIGITS_HOME"), (settings.inbox, "DIGITS_INBOX")):
            if path.exists() and any(path.iterdir()):
                raise ValueError(f"{path} is not empty; move it away, or set {name} to an empty folder")
        if not source.exists():
            raise ValueError(f"there is no backup {source}; give a folder or a .tar that `digits backup` wrote")
        try:
            _unpack(source, staging)
            files = _check(staging)
            _restore_digits_database(settings, staging)
            if (staging / INBOX).exists():
                shutil.copytree(staging / INBOX, settings.inbox, dirs_exist_ok=True)
            for path in staging.iterdir():
                if path.name not in (MANIFEST, INBOX, DIGITS_DUMP):
                    path.rename(settings.home / path.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return _summary(settings, files)


def _summary(settings: Settings, files: Files) -> str:
    """The size of a backup, and what it does not contain because other servers keep it."""
    servers = (("MLflow", settings.mlflow_public_url, "mlflow"), ("Prefect", settings.prefect_api_url, "prefect"))
    local = {process.name for process in processes.processes(settings)}
    without = [f"without what {name} keeps at {url}" for name, url, process in servers if process not in local]
    if settings.datasets_url:
        without.append(f"without the data sets in {settings.datasets_url}")
    size = sum(file["bytes"] for file in files.values())
    return "; ".join([f"{len(files)} files, {size / 1e6:,.1f} MB", *without])


def _copy_sqlite(source: Path, target: Path) -> None:
    """Copy a consistent state while others write (https://www.sqlite.org/backup.html)."""
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    uri = f"file:{source}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=60)) as live, closing(sqlite3.connect(target)) as copy:
            live.backup(copy)
            # Leaves one file without a write-ahead log beside it.
            copy.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        raise OSError(f"{source} cannot be copied ({error}); nothing was backed up") from error


def _restore_digits_database(settings: Settings, staging: Path) -> None:
    """Restore into the database of the settings, which must be of the same kind and empty."""
    path = _sqlite_path(settings.database_url)
    if (staging / (DIGITS_DB if path is None else DIGITS_DUMP)).exists():
        kind = "SQLite" if path is None else "PostgreSQL"
        raise ValueError(f"the backup holds a {kind} database; set DIGITS_DATABASE_URL to a {kind} database")
    if (staging / DIGITS_DUMP).exists():
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        if _postgres("psql", settings, "--tuples-only", "--no-align", f"--command={tables}").strip() != "0":
            raise ValueError("the database of DIGITS_DATABASE_URL is not empty; name an empty one")
        options = ("--no-owner", "--exit-on-error", "--single-transaction")
        _postgres("pg_restore", settings, *options, str(staging / DIGITS_DUMP))
    elif path and path != settings.home / DIGITS_DB and (staging / DIGITS_DB).exists():
        if path.exists():
            raise ValueError(f"{path} exists already; move it away, or set DIGITS_DATABASE_URL")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(staging / DIGITS_DB, path)


def _sqlite_path(url: str) -> Path | None:
    """The file of a SQLite URL, None for the URL of another database."""
    return Path(url.split("///", 1)[1].split("?")[0]).absolute() if url.startswith("sqlite") else None


def _postgres(program: str, settings: Settings, *arguments: str) -> str:
    """The output of one of PostgreSQL's programs.

    Command lines can be read by other users, so the parameters of the URL are in a file for this user only, a service file
    (https://www.postgresql.org/docs/current/libpq-pgservice.html), and the password is in the environment: a line of the file
    could not end in a space.
    """
    url = database.checked(settings.database_url)
    _, parameters = url.get_dialect()().create_connect_args(url)
    password = parameters.pop("password", None)
    with tempfile.NamedTemporaryFile("w") as file:
        file.writelines(["[digits]\n", *(f"{name}={value}\n" for name, value in parameters.items())])
        file.flush()
        environment = {**os.environ, "PGSERVICEFILE": file.name} | ({"PGPASSWORD": str(password)} if password else {})
        command = [program, "--dbname=service=digits", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{program} failed: {(done.stderr.strip() or 'no reason given').splitlines()[0]}")
    return done.stdout


def _copy_folder(source: Path, target: Path) -> None:
    """Copy all files but temporary ones, those at the top first, because they name folders beside them.

    Others may write to the inbox: what is no file, a link to one outside the folder, or nested too deeply is left out.
    """
    inside = os.path.realpath(source)
    for path in _contents(source):
        relative = path.relative_to(source)
        if not path.is_file() or not Path(os.path.realpath(path)).is_relative_to(inside):
            continue
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        # A file that has been removed meanwhile was temporary.
        with suppress(FileNotFoundError):
            shutil.copyfile(path, target / relative)


def _contents(folder: Path) -> Iterator[Path]:
    """What is in a folder and its folders, level by level, without what is temporary."""
    folders = [folder]
    # In a backup it is one or two levels further down.
    for _ in range(MAX_LEVELS - 2):
        paths = []
        for one in folders:
            with suppress(FileNotFoundError, PermissionError):
                paths += [path for path in one.iterdir() if not path.name.endswith(".tmp")]
        yield from paths
        folders = [path for path in paths if path.is_dir() and not path.is_symlink()]


def _describe(folder: Path) -> Files:
    """Size and checksum of every file by its path; flushes all files to the disk."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    return files


def _unpack(source: Path, staging: Path) -> None:
    """Copy the files of a folder or of a .tar file; raises ValueError for what no backup contains."""
    staging.mkdir(0o700)
    try:
        if source.is_dir():
            for path in source.rglob("*"):
                if path.is_symlink() or not path.is_dir():
                    is_file = path.is_file() and not path.is_symlink()
                    shutil.copyfile(path, _place(staging, path.relative_to(source).as_posix(), is_file))
        else:
            with tarfile.open(source, "r:") as archive:
                # One by one, because Python before 3.11.14 reads a member of negative size again and again (CVE-2025-8194).
                for member in archive:
                    if member.isdir() and member.size == 0:
                        continue
                    copy, content = _place(staging, member.name, _is_plain(member)), archive.extractfile(member)
                    assert content is not None, "it is a file"
                    with copy.open("xb") as file:
                        shutil.copyfileobj(content, file)
    except (tarfile.TarError, EOFError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise ValueError(f"{source} is not a complete backup ({error}); nothing was restored") from error
    except RecursionError as error:
        raise ValueError(f"{source} is nested too deeply; nothing was restored") from error
    make_private(staging)


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Whether it is a file all of whose bytes are in the archive: a sparse one may announce any size."""
    return member.isfile() and not member.issparse() and member.size >= 0


def _place(staging: Path, name: str, is_file: bool) -> Path:
    """Where a file of a backup is put; raises ValueError unless `back_up` may have written it."""
    path = PurePosixPath(name)
    below = any(PurePosixPath(folder) in path.parents for folder in (SPOOL, INBOX, *FOLDERS))
    known = below or path.as_posix() in (MANIFEST, DIGITS_DB, DIGITS_DUMP, *OTHER_DBS)
    strange = len(path.parts) > MAX_LEVELS or any(part == ".." or part.endswith(".tmp") for part in path.parts)
    if not (is_file and known) or strange or "\0" in name:
        raise ValueError(f"{quote(name)} is no file that `digits backup` writes; nothing was restored")
    (staging / path).parent.mkdir(parents=True, exist_ok=True)
    return staging / path


def _check(staging: Path) -> Files:
    """The files of a backup; raises ValueError unless they are exactly those of its manifest."""
    try:
        manifest = json.loads((staging / MANIFEST).read_bytes())
        version, files = manifest["format"], {**manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"the backup has no readable {MANIFEST} ({error}); nothing was restored") from error
    if version != FORMAT:
        raise ValueError(f"the backup has format {version}, and this digits reads {FORMAT}; nothing was restored")
    found = _describe(staging)
    del found[MANIFEST]
    for name in sorted(found.keys() | files.keys()):
        shown = name if name.isprintable() else quote(name)
        if name not in found:
            raise ValueError(f"{shown} is missing in the backup; nothing was restored")
        if found[name] != files.get(name):
            how = "was changed in" if name in files else "does not belong to"
            raise ValueError(f"{shown} {how} the backup; nothing was restored")
    return files
