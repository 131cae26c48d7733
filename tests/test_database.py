"""The schema: upgraded when a process connects, once even if several connect at once, and equal to the tables of the code."""

import logging
import os
import pkgutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from conftest import find_free_port
from sqlalchemy import Engine, inspect, text

from digits import storage
from digits.storage import database, ledger, predictions

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
ROOT = Path(__file__).parent.parent
MODULES = [
    import_module(f"digits.storage.{one.name}") for one in pkgutil.iter_modules(storage.__path__) if not one.ispkg
]
TABLES = set(database.metadata.tables)  # of all modules
TOGETHER = 4
CONNECT = "import sys; from digits.storage import database; print(flush=True); sys.stdin.readline(); database.connect(sys.argv[1])"


def differences(engine: Engine) -> object:
    """Between the database and the tables of the code, as Alembic sees them."""
    with engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection), database.metadata)


def test_the_migrations_make_the_tables_of_the_code(database_url: str) -> None:
    engine = database.connect(database_url)
    assert differences(engine) == []
    assert set(inspect(engine).get_table_names()) == TABLES | {"alembic_version"}
    engine.dispose()


@pytest.mark.parametrize("has_digest", [False, True], ids=["first", "between"])
def test_a_database_of_the_first_schema_keeps_its_ledger(has_digest: bool, database_url: str) -> None:
    """Also one of a commit between the two migrations, whose first schema had the digest."""
    engine, config = database.make_engine(database_url), Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        if has_digest:
            connection.execute(text("ALTER TABLE ledger ADD COLUMN digest VARCHAR(64)"))
        columns = "(at, action, subject, after, by, reason, evidence)"
        values = "('2026-01-05 12:00:00', 'promotion', 'champion', '1', 'ops', 'the first', '{}')"
        connection.execute(text(f"INSERT INTO ledger {columns} VALUES {values}"))
    engine.dispose()
    engine = database.connect(database_url)
    assert differences(engine) == []
    assert [(one.at, one.after, one.digest) for one in ledger.entries(engine)] == [(NOON, "1", None)]
    assert ledger.promoted_digests(engine) == set()
    engine.dispose()


def test_the_predictions_of_an_earlier_schema_are_kept(database_url: str) -> None:
    engine, config = database.make_engine(database_url), Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    ids, images = predictions.new_ids(3), np.arange(3 * 784, dtype=np.uint8).reshape(3, 28, 28)
    probabilities = np.eye(10, dtype=np.float32)[[4, 5, 6]]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        for n, id in enumerate(ids):
            values = {
                "id": id,
                "at": f"2026-01-05 12:00:0{n}",
                "p": probabilities[n].tobytes(),
                "i": images[n].tobytes(),
            }
            row = f"(:id, :at, '7', {4 + n}, 1.0, :p, :i, '/classify', 'client {n}', {n == 1})"
            connection.execute(text(f"INSERT INTO predictions VALUES {row}"), values)
    engine.dispose()
    engine = database.connect(database_url)
    assert differences(engine) == []
    window = predictions.read_window(engine, NOON)
    assert (window.ids, window.clients) == (ids, ["client 0", "client 1", "client 2"])
    assert window.digits.tolist() == [4, 5, 6] and np.array_equal(window.images, images)
    assert window.at == [NOON + timedelta(seconds=n) for n in range(3)]
    assert predictions.read_audit_sample(engine, NOON).ids == [ids[1]]
    engine.dispose()


def test_the_numbers_in_the_names_are_one_line_of_migrations() -> None:
    script = ScriptDirectory(str(database.MIGRATIONS))
    assert [one.revision for one in script.walk_revisions()] == database._revisions()[::-1]
    assert script.get_heads() == [database._revisions()[-1]]


def test_connecting_again_takes_milliseconds_and_prints_nothing(
    database_url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    database.connect(database_url).dispose()
    seconds = []
    for _ in range(10):
        began = time.process_time()
        database.connect(database_url).dispose()
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.05
    assert not [record for record in caplog.records if record.name.startswith("alembic")]
    assert capfd.readouterr() == ("", "")


def test_processes_that_connect_at_once_to_an_empty_database_all_succeed(database_url: str) -> None:
    command = [sys.executable, "-c", CONNECT, database_url]
    starting = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(TOGETHER)
    ]
    for process in starting:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
    for process in starting:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[1] for process in starting]
    assert [process.returncode for process in starting] == [0] * TOGETHER, said
    engine = database.connect(database_url)
    assert differences(engine) == []
    engine.dispose()


def test_threads_upgrade_different_databases_at_once(tmp_path: Path) -> None:
    """Alembic keeps the migration in progress in a global variable."""
    with ThreadPoolExecutor(TOGETHER) as pool:
        engines = list(pool.map(lambda name: database.connect(f"sqlite:///{tmp_path}/{name}.db"), range(TOGETHER)))
    assert [differences(engine) for engine in engines] == [[]] * TOGETHER
    for engine in engines:
        engine.dispose()


def test_threads_open_a_new_database_at_once(tmp_path: Path) -> None:
    together = Barrier(TOGETHER)

    def connect(url: str) -> Engine:
        together.wait()
        return database.connect(url)

    with ThreadPoolExecutor(TOGETHER) as pool:
        for number in range(40):
            engines = list(pool.map(connect, [f"sqlite:///{tmp_path}/{number}.db"] * TOGETHER))
            assert [differences(engine) for engine in engines] == [[]] * TOGETHER
            for engine in engines:
                engine.dispose()


def test_a_failing_migration_leaves_nothing_half_done(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic.operations import Operations

    def full(*arguments: object, **options: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Operations, "create_index", full)  # after the first table
    with pytest.raises(OSError, match="no space left"):
        database.connect(database_url)
    monkeypatch.undo()
    engine = database.make_engine(database_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    assert differences(database.connect(database_url)) == []


def test_a_database_of_newer_code_is_refused(database_url: str) -> None:
    engine = database.connect(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    newest = database._revisions()[-1]
    with pytest.raises(
        database.DatabaseUnavailable,
        match=f"has the schema 9999, and this version of digits knows those up to {newest};",
    ):
        database.connect(database_url)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_every_scheme_of_postgresql_uses_the_installed_driver(scheme: str) -> None:
    url = database.checked(f"{scheme}://digits:hush@db/digits")
    assert url.render_as_string(hide_password=False) == "postgresql+psycopg://digits:hush@db/digits"


def test_an_unreachable_database_is_named_without_its_password() -> None:
    port = find_free_port()
    with pytest.raises(
        database.DatabaseUnavailable, match=rf"127.0.0.1:{port}/digits is unreachable: .*refused"
    ) as refused:
        database.connect(f"postgresql://digits:hush@127.0.0.1:{port}/digits")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(("url", "got"), [("mysql://u:hush@db/digits", "mysql://…"), ("var/digits.db", "no URL")])
def test_another_kind_of_database_is_refused(url: str, got: str) -> None:
    with pytest.raises(ValueError, match=f"expected a database .* got {got}") as refused:
        database.connect(url)
    assert "hush" not in str(refused.value)


@pytest.mark.timeout(120)
def test_alembic_check_finds_no_missing_migration(database_url: str) -> None:
    """As a developer runs it: `uv run alembic check`."""
    environment = {**os.environ, "DIGITS_DATABASE_URL": database_url}
    for word, said in (("upgrade", ""), ("check", "No new upgrade operations detected.")):
        command = [sys.executable, "-m", "alembic", word, *(["head"] if word == "upgrade" else [])]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_the_folder_of_a_sqlite_file_is_created(tmp_path: Path) -> None:
    database.connect(f"sqlite:///{tmp_path}/a/b/digits.db").dispose()
    assert (tmp_path / "a" / "b" / "digits.db").exists()
