"""Backup and restore: a consistent copy while others write, and nothing but a whole one is ever put in place."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from digits.settings import Settings
from digits.storage import database, ledger, predictions, request_counts
from digits.storage.predictions import PredictionBatch, new_ids
from digits.storage.request_counts import Total
from ops import backup
from services.prediction_log import PredictionLog

if TYPE_CHECKING:
    from postgres import Postgres

DATABASES = ("mlflow/mlflow.db", "prefect/prefect.db", "sweeps/trials.db")
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
COUNTED = Total("/classify", 200, 5, 9, 1)


def answers(count: int = 3) -> PredictionBatch:
    probabilities = np.full((count, 10), 0.1, np.float32)
    return PredictionBatch(
        new_ids(count), NOON, "1", np.zeros((count, 28, 28), np.uint8), probabilities, "/classify", ["app/ann"] * count
    )


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A DIGITS_HOME with a little of everything."""
    # MLflow's client sets it for the whole process when another test names a server.
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = Settings(home=tmp_path / "home", database_url=f"sqlite:///{tmp_path}/home/digits.db")
    files = {
        "datasets/current": b"f1",
        "datasets/f1/data.npz": bytes(range(256)),
        "datasets/.f2.tmp/data.npz": b"half of it",
        "mlflow/artifacts/1/model.onnx": b"\x08" * 1000,
        "champions/champion.txt": b"1",
        "champions/1/model.onnx": b"\x08" * 1000,
        "inbox/more.csv": b"label,pixel0\n",
        "logs/service.log": b"not kept",
    }
    for name, content in files.items():
        (settings.home / name).parent.mkdir(parents=True, exist_ok=True)
        (settings.home / name).write_bytes(content)
    engine = database.connect(settings.database_url)
    request_counts.append(engine, NOON, [COUNTED])
    ledger.append(engine, "promotion", None, "1", "it is the first", {"accuracy": 0.98})
    for name in DATABASES:
        (settings.home / name).parent.mkdir(exist_ok=True)
        with closing(sqlite3.connect(settings.home / name)) as connection, connection:
            connection.execute("CREATE TABLE versions (name)")
            connection.execute("INSERT INTO versions VALUES ('1')")
    return settings


def elsewhere(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "new", database_url=f"sqlite:///{tmp_path}/new/digits.db")


def content(home: Path) -> dict[str, bytes]:
    """Files that are no database, by name."""
    files = [path for path in home.rglob("*") if path.is_file() and ".db" not in path.name]
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["backup", "backup.tar"])
def test_all_state_comes_back_and_nothing_else(settings: Settings, tmp_path: Path, name: str) -> None:
    target, new = tmp_path / "far" / name, elsewhere(tmp_path)
    taken = backup.back_up(settings, target)
    restored = backup.restore(new, target)
    assert taken == restored and re.fullmatch(r"\d+ files, \d+\.\d MB", taken)
    kept = content(settings.home)
    del kept["datasets/.f2.tmp/data.npz"], kept["logs/service.log"]
    assert content(new.home) == kept
    restored_database = database.connect(new.database_url)
    assert request_counts.by_hour(restored_database, NOON, NOON + timedelta(minutes=1)) == [(0, COUNTED)]
    (before,), (after,) = (ledger.entries(database.connect(one.database_url)) for one in (settings, new))
    names = [column.name for column in ledger.Entry.__table__.columns]
    assert [getattr(after, name) for name in names] == [getattr(before, name) for name in names]
    for database_name in DATABASES:
        with closing(sqlite3.connect(new.home / database_name)) as connection:
            assert connection.execute("SELECT * FROM versions").fetchall() == [("1",)]
    assert [path.name for path in target.parent.iterdir()] == [name]


def test_an_inbox_elsewhere_comes_back_to_where_the_settings_have_it(settings: Settings, tmp_path: Path) -> None:
    mail, other = tmp_path / "mail", tmp_path / "other"
    (mail / "taken").mkdir(parents=True)
    (mail / "taken" / "may.csv").write_bytes(b"label,pixel0\n")
    backup.back_up(settings.model_copy(update={"inbox": mail}), tmp_path / "b.tar")
    new = elsewhere(tmp_path).model_copy(update={"inbox": other})
    backup.restore(new, tmp_path / "b.tar")
    assert content(other) == content(mail) and not (new.home / "inbox").exists()
    again = Settings(home=tmp_path / "third", database_url=f"sqlite:///{tmp_path}/third/digits.db", inbox=other)
    with pytest.raises(ValueError, match=r"other is not empty; .*DIGITS_INBOX"):
        backup.restore(again, tmp_path / "b.tar")


@pytest.mark.timeout(60)
def test_links_out_of_the_inbox_and_what_is_no_file_are_left_out(settings: Settings, tmp_path: Path) -> None:
    rejected, secret = settings.inbox / "rejected", tmp_path / "secret"
    rejected.mkdir()
    secret.write_text("secret")
    (rejected / "file.csv").symlink_to(secret)
    (rejected / "device.csv").symlink_to("/dev/null")
    (rejected / "within.csv").symlink_to(settings.inbox / "more.csv")
    (rejected / "june.csv").write_bytes(b"label\n")
    os.mkfifo(rejected / "pipe.csv")
    backup.back_up(settings, tmp_path / "backup")
    kept = content(tmp_path / "backup" / "inbox")
    names = ("rejected/within.csv", "more.csv")
    assert kept == {**dict.fromkeys(names, b"label,pixel0\n"), "rejected/june.csv": b"label\n"}


def test_what_a_bucket_keeps_is_said_to_be_missing(settings: Settings, tmp_path: Path) -> None:
    taken = backup.back_up(settings.model_copy(update={"datasets_url": "s3://digits/datasets"}), tmp_path / "b.tar")
    assert "without the data sets in s3://digits/datasets" in taken


def test_every_answer_before_the_backup_is_in_it_though_others_go_on(settings: Settings, tmp_path: Path) -> None:
    log, stop = PredictionLog(settings.database_url, settings.spool, interval_seconds=0.01), threading.Event()
    before: list[str] = []

    def send() -> None:
        while not stop.is_set():
            batch = answers()
            log.append(batch)
            before.extend(batch.ids)
            stop.wait(0.001)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for number in range(5):
            asked, new = list(before), elsewhere(tmp_path / str(number))
            backup.back_up(settings, tmp_path / f"{number}.tar")
            backup.restore(new, tmp_path / f"{number}.tar")
            PredictionLog(new.database_url, new.spool).close()  # as the service does at its start
            window = predictions.read_window(database.connect(new.database_url), NOON)
            assert set(asked) <= set(window.ids) and len(window) == len(set(window.ids))
            assert set(window.clients) <= {"app/ann"}
    finally:
        stop.set()
        sender.join()
        log.close()


def test_a_segment_that_is_sealed_before_it_is_copied_is_in_the_backup(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def seal_first(source: Path, target: Path) -> None:
        if source.suffix == ".wal":
            source.rename(source.with_suffix(".sealed"))
        copy(source, target)

    settings.spool.mkdir()
    (settings.spool / "1.wal").write_bytes(b"answers")
    monkeypatch.setattr(shutil, "copyfile", seal_first)
    backup.back_up(settings, tmp_path / "backup")
    assert content(tmp_path / "backup" / "spool") == {"1.sealed": b"answers"}


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a byte of a model": (lambda folder: flip(folder / "mlflow/artifacts/1/model.onnx"), "model.onnx was changed"),
    "a byte of the database": (lambda folder: flip(folder / "digits.db"), "digits.db was changed"),
    "a byte of a data set": (lambda folder: flip(folder / "datasets/f1/data.npz"), "data.npz was changed"),
    "a missing file": (lambda folder: (folder / "datasets/current").unlink(), "datasets/current is missing"),
    "a file too many": (lambda folder: (folder / "champions/evil").touch(), "champions/evil does not belong to"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "no readable manifest.json"),
    "a cut manifest": (lambda folder: (folder / "manifest.json").write_text("{"), "no readable manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_backup_is_refused_and_leaves_nothing(settings: Settings, tmp_path: Path, damage: str) -> None:
    new = elsewhere(tmp_path)
    backup.back_up(settings, tmp_path / "backup")
    change, reason = DAMAGES[damage]
    change(tmp_path / "backup")
    with pytest.raises(ValueError, match=rf"{reason}.*nothing was restored$"):
        backup.restore(new, tmp_path / "backup")
    assert list(new.home.iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_truncated_archive_is_refused_and_leaves_nothing(settings: Settings, tmp_path: Path, share: float) -> None:
    new, archive = elsewhere(tmp_path), tmp_path / "backup.tar"
    backup.back_up(settings, archive)
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    with pytest.raises(ValueError, match=r"nothing was restored$"):
        backup.restore(new, archive)
    assert list(new.home.iterdir()) == []


def test_an_archive_that_reaches_out_of_its_folder_is_refused(settings: Settings, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.add(settings.home / "inbox/more.csv", arcname="../../evil.csv")
    with pytest.raises(ValueError, match="nothing was restored"):
        backup.restore(elsewhere(tmp_path), tmp_path / "evil.tar")
    assert not list(tmp_path.rglob("evil.csv"))


def sealed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Files with the manifest that a backup of them would have."""
    described = {name: {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()} for name, body in files.items()}
    return {**files, "manifest.json": json.dumps({"format": 1, "files": described}).encode()}


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return folder


def packed(archive: Path, files: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    """A .tar of executable files, and of further members without content."""
    with tarfile.open(archive, "w") as opened:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(body), 0o4777
            opened.addfile(member, io.BytesIO(body))
        for member in more:
            opened.addfile(member, io.BytesIO(b"0\n".ljust(512, b"\0")))
    return archive


FOREIGN = (
    *("prefect/login", "prefect/profiles.toml", "mlflow/login", "mlflow/basic-auth.ini", ".env", "run/socket-folder"),
    *("metrics/counter_1.db", "mlflow", "champions", "datasets/.f.tmp/data.npz", "inbox/../mlflow/login", "x\x1b[31m"),
)


@pytest.mark.parametrize("kind", ["folder", "tar"])
@pytest.mark.parametrize("name", FOREIGN)
def test_only_what_a_backup_writes_is_restored(tmp_path: Path, name: str, kind: str) -> None:
    new, files = elsewhere(tmp_path), sealed({"datasets/current": b"f1", name: b"digits:known"})
    source = put(tmp_path / "b", files) if kind == "folder" else packed(tmp_path / "b.tar", files)
    with pytest.raises(ValueError, match=r"is no file that `digits backup` writes; nothing was restored$") as refused:
        backup.restore(new, source)
    assert str(refused.value).isprintable() and list(new.home.iterdir()) == []


def test_what_is_restored_is_for_its_user_only(tmp_path: Path) -> None:
    new, files = elsewhere(tmp_path), sealed({"champions/1/card.json": b"{}", "inbox/more.csv": b"label\n"})
    before = os.umask(0o022)
    try:
        backup.restore(new, packed(tmp_path / "b.tar", files))
    finally:
        os.umask(before)
    modes = {oct(path.stat().st_mode & 0o7777) for path in new.home.rglob("*") if path.is_file()}
    folders = {oct(path.stat().st_mode & 0o7777) for path in new.home.rglob("*") if path.is_dir()}
    assert (modes, folders) == ({"0o600"}, {"0o700"})


def member(kind: bytes, length: int = 0, **pax: str) -> tarfile.TarInfo:
    made = tarfile.TarInfo("inbox/more.csv")
    made.type, made.size, made.linkname, made.pax_headers = kind, length, "/etc/passwd", pax
    return made


SPARSE = {"major": "1", "minor": "0", "name": "inbox/more.csv", "realsize": "3000000000"}
MEMBERS = {
    "a link": member(tarfile.SYMTYPE),
    "a hard link": member(tarfile.LNKTYPE),
    "a pipe": member(tarfile.FIFOTYPE),
    "a device": member(tarfile.CHRTYPE),
    "a sparse file": member(tarfile.REGTYPE, 512, **{f"GNU.sparse.{name}": value for name, value in SPARSE.items()}),
    "a negative size": member(tarfile.REGTYPE, 512, size="-1536"),  # back to its own first header
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", MEMBERS)
def test_an_archive_holds_files_with_all_their_bytes(tmp_path: Path, kind: str) -> None:
    new = elsewhere(tmp_path)
    with pytest.raises(ValueError, match=r"is no file that `digits backup` writes; nothing was restored$"):
        backup.restore(new, packed(tmp_path / "b.tar", sealed({"inbox/a.csv": b"label\n"}), MEMBERS[kind]))
    assert list(new.home.iterdir()) == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["link", "pipe", "linked folder"])
def test_a_folder_holds_files_only(tmp_path: Path, kind: str) -> None:
    new, secret = elsewhere(tmp_path), put(tmp_path / "secret", {"more.csv": b"label\n"})
    source = put(tmp_path / "b", sealed({"datasets/current": b"f1"}))
    (source / "inbox").mkdir()
    if kind == "pipe":
        os.mkfifo(source / "inbox/more.csv")
    else:
        (source / "inbox/more.csv").symlink_to(secret if kind == "linked folder" else secret / "more.csv")
    with pytest.raises(ValueError, match=r"is no file that `digits backup` writes; nothing was restored$"):
        backup.restore(new, source)
    assert list(new.home.iterdir()) == []


NESTED = {
    "manifest": {"manifest.json": b"[" * 200_000},
    "no mapping": {"manifest.json": b'{"format": 1, "files": [[1, 2]]}'},
    "path": sealed({f"inbox/{'d/' * 1500}more.csv": b"label\n"}),
}


@pytest.mark.parametrize("kind", NESTED)
def test_what_is_nested_too_deeply_is_refused(tmp_path: Path, kind: str) -> None:
    new = elsewhere(tmp_path)
    with pytest.raises(ValueError, match=r"nothing was restored$"):
        backup.restore(new, packed(tmp_path / "b.tar", NESTED[kind]))
    assert list(new.home.iterdir()) == []


@contextmanager
def deep(folder: Path) -> Iterator[list[Path]]:
    """Folders in folders, more than Python's own functions can remove."""
    folders = [folder / "/".join(["d"] * depth) for depth in range(1, 1200)]
    folder.mkdir(exist_ok=True)
    for path in folders:
        path.mkdir()
    yield folders
    subprocess.run(["rm", "-r", folder / "d"], check=True)


def test_a_deep_folder_is_no_backup(tmp_path: Path) -> None:
    new = elsewhere(tmp_path)
    with deep(tmp_path / "b"), pytest.raises(ValueError, match=r"is nested too deeply; nothing was restored$"):
        backup.restore(new, tmp_path / "b")
    assert list(new.home.iterdir()) == []


def test_a_deep_folder_of_the_inbox_does_not_stop_a_backup(settings: Settings, tmp_path: Path) -> None:
    with deep(settings.inbox) as folders:
        for folder in (folders[90], folders[-1]):
            (folder / "deep.csv").write_bytes(b"label\n")
        backup.back_up(settings, tmp_path / "b.tar")
    new = elsewhere(tmp_path)
    backup.restore(new, tmp_path / "b.tar")
    assert sorted(path.name for path in new.inbox.rglob("*.csv")) == ["deep.csv", "more.csv"]


def test_a_link_to_the_folder_to_back_up_is_that_folder(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(settings.home)
    linked = settings.model_copy(update={"home": tmp_path / "link"})
    for one, target in ((linked, settings.home / "b.tar"), (settings, tmp_path / "link" / "b.tar")):
        with pytest.raises(ValueError, match=r"b.tar is inside .*home, the folder to back up"):
            backup.back_up(one, target)
    assert not (settings.home / "b.tar").exists()


def test_nothing_is_overwritten(settings: Settings, tmp_path: Path) -> None:
    backup.back_up(settings, tmp_path / "backup")
    with pytest.raises(ValueError, match="backup exists already; give the backup another name"):
        backup.back_up(settings, tmp_path / "backup")
    with pytest.raises(ValueError, match="home is not empty; move it away, or set DIGITS_HOME to an empty folder"):
        backup.restore(settings, tmp_path / "backup")
    with pytest.raises(ValueError, match=r"there is no backup .*nowhere"):
        backup.restore(elsewhere(tmp_path), tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"is inside .*, the folder to back up"):
        backup.back_up(settings, settings.home / "backup")
    with pytest.raises(ValueError, match="there is nothing to back up in"):
        backup.back_up(elsewhere(tmp_path), tmp_path / "other")


def test_a_disk_that_fills_up_leaves_no_half_backup(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, target = shutil.copyfile, tmp_path / "far" / "backup.tar"

    def fill(source: Path, copied: Path) -> None:
        if source.name == "model.onnx":
            raise OSError(28, "No space left on device", str(copied))
        copy(source, copied)

    monkeypatch.setattr(shutil, "copyfile", fill)
    with pytest.raises(OSError, match="No space left"):
        backup.back_up(settings, target)
    assert list(target.parent.iterdir()) == []


def test_a_killed_backup_leaves_nothing_after_the_next_one(settings: Settings, tmp_path: Path) -> None:
    target = tmp_path / "far" / "backup.tar"
    killed = os.fork()
    if killed == 0:
        backup._describe = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, func-returns-value]
        backup.back_up(settings, target)
    assert os.waitstatus_to_exitcode(os.waitpid(killed, 0)[1]) == -signal.SIGKILL
    (left,) = target.parent.iterdir()
    assert (left / "mlflow/artifacts/1/model.onnx").exists()
    backup.back_up(settings, target)
    assert list(target.parent.iterdir()) == [target]


def test_a_killed_restore_is_not_in_the_way_of_the_next_one(settings: Settings, tmp_path: Path) -> None:
    new = elsewhere(tmp_path)
    backup.back_up(settings, tmp_path / "backup")
    shutil.copytree(tmp_path / "backup" / "datasets", new.home / ".restoring" / "datasets")
    backup.restore(new, tmp_path / "backup")
    assert (new.home / "datasets/current").read_bytes() == b"f1" and not (new.home / ".restoring").exists()


@pytest.mark.parametrize(("name", "mode"), [("backup", 0o700), ("backup.tar", 0o600)])
def test_a_backup_is_readable_by_its_user_only(settings: Settings, tmp_path: Path, name: str, mode: int) -> None:
    backup.back_up(settings, tmp_path / name)
    assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_no_part_of_the_database_url_is_on_a_command_line(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "pg_dump"
    program.parent.mkdir()
    program.write_text(f"""#!/bin/sh
        (echo "$@"; stat -c %a "$PGSERVICEFILE"; cat "$PGSERVICEFILE"; echo "$PGPASSWORD|") > {tmp_path}/seen""")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    url = "postgresql+psycopg://ann@db.example.org:5433/digits?password=hush%20&sslpassword=hush2"
    backup.back_up(settings.model_copy(update={"database_url": url}), tmp_path / "backup")
    command, mode, *lines = (tmp_path / "seen").read_text().splitlines()
    assert mode == "600" and lines[-1] == "hush |"
    parameters = {"host=db.example.org", "port=5433", "user=ann", "dbname=digits", "sslpassword=hush2"}
    assert lines[0] == "[digits]" and set(lines[1:-1]) == parameters
    assert "service=digits" in command and not re.search("hush|ann|example", command)


@pytest.mark.postgres
def test_postgresql_is_dumped_and_restored_into_an_empty_database(postgres: "Postgres", tmp_path: Path) -> None:
    urls = [postgres.new_database() for _ in range(2)]
    old, new = (Settings(home=tmp_path / str(number), database_url=url) for number, url in enumerate(urls))
    log = PredictionLog(old.database_url, old.spool)
    batch = answers()
    log.append(batch)
    log.close()
    backup.back_up(old, tmp_path / "backup.tar")
    backup.restore(new, tmp_path / "backup.tar")
    window = predictions.read_window(database.connect(new.database_url), NOON)
    assert window.ids == batch.ids and window.clients == batch.clients
    assert not (new.home / "digits.dump").exists()
    shutil.rmtree(new.home)
    with pytest.raises(ValueError, match="the database of DIGITS_DATABASE_URL is not empty"):
        backup.restore(new, tmp_path / "backup.tar")
    with pytest.raises(ValueError, match="holds a PostgreSQL database; set DIGITS_DATABASE_URL"):
        backup.restore(elsewhere(tmp_path), tmp_path / "backup.tar")
