"""The environment of the platform's processes, and the lock that lets one `digits up` run at a time."""

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import give_away, wait_for

from digits.settings import Settings, load_settings
from monitoring import evidently_ui
from ops import bootstrap, process_environment, processes

ROOT = Path(__file__).parent.parent
LIMITS = ("MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS")
LOGINS = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING")
MLFLOW_SERVER = (
    "MLFLOW_AUTH_CONFIG_PATH",
    "MLFLOW_AUTH_ADMIN_USERNAME",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        *LIMITS,
        *LOGINS,
        *MLFLOW_SERVER,
        "MLFLOW_TRACKING_URI",
        "PREFECT_API_URL",
        "DIGITS_HOST",
        "DIGITS_AUTH",
    ):
        monkeypatch.delenv(name, raising=False)


def settings_of(home: Path, **changes: Any) -> Settings:
    settings = Settings(_env_file=None, home=home, **changes)  # type: ignore[call-arg]
    process_environment.generate_logins(settings)
    return settings


def logins(settings: Settings) -> set[str | None]:
    environment = process_environment.of_servers(settings)
    return {environment.get(name) for name in LOGINS}


def test_server_and_clients_get_the_login_of_this_home(tmp_path: Path) -> None:
    settings, other = settings_of(tmp_path / "1"), settings_of(tmp_path / "2")
    (login,) = logins(settings)
    assert login is not None and login.startswith("digits:") and len(login) >= len("digits:") + 43
    assert logins(settings) == {login} != logins(other)
    assert settings.prefect_login_path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", LOGINS)
def test_a_login_of_the_user_is_taken_for_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "ann:hush")
    settings = settings_of(tmp_path)
    assert logins(settings) == {"ann:hush"}
    assert "hush" not in repr(settings)


@pytest.mark.parametrize("name", LOGINS)
def test_a_login_without_a_colon_is_refused_and_not_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "hush")
    with pytest.raises(ValueError, match="expected a login like user:password, got a text without a colon") as caught:
        settings_of(tmp_path)
    assert "hush" not in str(caught.value)


def test_a_server_elsewhere_does_not_get_the_login(tmp_path: Path) -> None:
    assert logins(settings_of(tmp_path, prefect_api_url="https://prefect.example.org/api")) == {None}
    assert logins(settings_of(tmp_path, prefect_api_url="http://127.0.0.1:4201/api")) == {None}


def test_commands_and_flows_get_the_login_and_nothing_of_the_servers(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    environment = process_environment.of_clients(settings)
    assert environment["PREFECT_API_AUTH_STRING"] == process_environment.prefect_login(settings)
    assert not {*LIMITS, *MLFLOW_SERVER, "PREFECT_SERVER_API_AUTH_STRING"} & set(environment)


def test_mlflows_server_and_clients_get_the_login_of_this_home(tmp_path: Path) -> None:
    settings, other = settings_of(tmp_path / "1"), settings_of(tmp_path / "2")
    login = settings.mlflow_login_path.read_text()
    assert login.startswith("digits:") and len(login) >= len("digits:") + 43
    assert login not in (other.mlflow_login_path.read_text(), settings.prefect_login_path.read_text())
    assert settings.mlflow_login_path.stat().st_mode & 0o777 == 0o600
    server = process_environment.of_servers(settings)
    assert f"{server['MLFLOW_AUTH_ADMIN_USERNAME']}:{server['MLFLOW_AUTH_ADMIN_PASSWORD']}" == login
    assert str(settings.home) in Path(server["MLFLOW_AUTH_CONFIG_PATH"]).read_text()
    client = process_environment.of_clients(settings)["MLFLOW_TRACKING_URI"]
    assert client == settings.registry_uri == f"http://{login}@127.0.0.1:5000"
    assert login.partition(":")[2] not in repr(settings) + settings.run_url("1", "5f3c")
    process_environment.generate_logins(settings)
    assert settings.mlflow_login_path.read_text() == login


@pytest.mark.parametrize(
    "uri", ["https://mlflow.example.org", "http://127.0.0.1:5001", "http://ann:hush@mlflow.example.org"]
)
def test_an_mlflow_server_elsewhere_does_not_get_the_login(tmp_path: Path, uri: str) -> None:
    settings = settings_of(tmp_path, MLFLOW_TRACKING_URI=uri)
    assert process_environment.of_clients(settings)["MLFLOW_TRACKING_URI"] == settings.registry_uri == uri
    assert process_environment.mlflow_login(settings) is None
    assert not set(MLFLOW_SERVER) & set(process_environment.of_servers(settings))


def test_a_login_in_the_url_of_our_own_mlflow_server_is_taken_for_both(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, MLFLOW_TRACKING_URI="http://ann:a%20long%20secret@localhost:5000")
    server = process_environment.of_servers(settings)
    assert (server["MLFLOW_AUTH_ADMIN_USERNAME"], server["MLFLOW_AUTH_ADMIN_PASSWORD"]) == ("ann", "a long secret")
    assert server["MLFLOW_TRACKING_URI"] == settings.mlflow_tracking_uri


def test_accounts_of_a_login_that_is_gone_are_forgotten(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    users = settings.home / "mlflow" / "users.db"
    users.touch()
    process_environment.generate_logins(settings)
    assert users.exists()
    settings.mlflow_login_path.unlink()
    process_environment.generate_logins(settings)
    assert not users.exists() and settings.mlflow_login_path.exists()


ELSEWHERE = """
DIGITS_HOME=state
DIGITS_AUTH=required
DIGITS_API_KEY=hush
DIGITS_DATABASE_URL=sqlite:///own.db
DIGITS_RETENTION_DAYS=7.5
DIGITS_MLFLOW_PORT=5055
DIGITS_ACCESS_LOG=true
DIGITS_INBOX=new files
DIGITS_RECIPE=augmented
DIGITS_CORS_ORIGINS=["https://example.org"]
DIGITS_GATE={"min_error_reduction": 0.25}
DIGITS_JOB_VARIABLES={"env": {"A": "ä"}}
PREFECT_SERVER_API_AUTH_STRING=ann:hush
"""


def test_servers_see_the_env_file_of_the_folder_where_up_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("DIGITS_")]:
        monkeypatch.delenv(name)
    started, code = tmp_path / "started", tmp_path / "code"
    started.mkdir()
    code.mkdir()
    (started / ".env").write_text(ELSEWHERE)
    (code / ".env").write_text("DIGITS_AUTH=off\nDIGITS_BATCH_LIMIT=7\nDIGITS_RECIPE=ensemble\n")
    monkeypatch.chdir(started)
    settings = load_settings()
    assert (settings.auth, settings.retention_days, settings.batch_limit) == ("required", 7.5, 1_000)
    servers, clients = process_environment.of_servers(settings), process_environment.of_clients(settings)
    # a client runs where it was called, so that the defaults of a server elsewhere need not reach it
    assert clients["DIGITS_AUTH"] == "required" and "DIGITS_BATCH_LIMIT" not in clients
    monkeypatch.chdir(code)
    for name, value in servers.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


def test_browsers_reach_the_servers_under_the_names_of_this_machine_only(tmp_path: Path) -> None:
    environment = process_environment.of_servers(settings_of(tmp_path, mlflow_public_url="https://mlflow.example.org"))
    assert environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",") == [
        "127.0.0.1:5000",
        "localhost:5000",
        "[::1]:5000",
        "mlflow.example.org",
    ]
    assert environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == "https://mlflow.example.org"
    assert environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",") == [
        "http://127.0.0.1:4200",
        "http://localhost:4200",
        "http://[::1]:4200",
    ]


def test_an_ipv6_address_is_in_brackets(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, host="::1", auth="off")
    hosts = process_environment.of_servers(settings)["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert hosts == ["[::1]:5000", "127.0.0.1:5000", "localhost:5000"]
    assert evidently_ui.allowed_hosts(settings) == ["[::1]", "127.0.0.1", "localhost"]


def test_names_and_origins_of_the_user_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LIMITS:
        monkeypatch.setenv(name, "chosen.example")
    environment = process_environment.of_servers(settings_of(tmp_path))
    assert {environment[name] for name in LIMITS} == {"chosen.example"}


def test_without_authentication_on_a_public_address_every_name_is_allowed(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, host="0.0.0.0", auth="off")
    assert not set(LIMITS) & set(process_environment.of_servers(settings))
    assert evidently_ui.allowed_hosts(settings) == ["*"]


def test_an_error_of_the_holder_is_not_taken_for_another_holder(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="fork"), processes.only_one(settings_of(tmp_path)):
        raise BlockingIOError(errno.EAGAIN, "fork")


def test_a_second_up_at_the_same_moment_says_so_and_starts_nothing(tmp_path: Path) -> None:
    with processes.only_one(settings_of(tmp_path)):
        up = subprocess.run(
            [sys.executable, "-m", "ops", "up"],
            cwd=ROOT,
            env={**os.environ, "DIGITS_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert up.returncode == 1
    assert up.stderr == (
        f"digits: another `digits up` or `digits restore` is at work on {tmp_path}; wait until it has finished\n"
    )
    assert not (tmp_path / "run").exists()


def test_no_other_user_can_foresee_or_take_the_socket_of_a_home_with_a_long_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    settings = settings_of(tmp_path / ("long" * 25))
    first = socket_of(settings)
    assert first.parent.parent == tmp_path / "tmp" and first.parent.stat().st_mode & 0o777 == 0o700
    # a new one each time that the folder is not ours any more, and none that another home has
    first.parent.rmdir()
    if os.geteuid() == 0:
        first.parent.mkdir()
        os.chown(first.parent, 12_345, -1)
    monkeypatch.setattr(processes, "getRPCInterface", None)  # not asked
    assert processes.process_info(settings) == {}
    second = socket_of(settings)
    assert second == socket_of(settings) != first
    copied = settings_of(tmp_path / ("copied" * 20))
    shutil.copytree(settings.home / "run", copied.home / "run")
    assert socket_of(copied) != second


def test_a_supervisor_of_a_home_with_a_long_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(processes, "processes", lambda _: [processes.Process("sleep", "sleeps", ["/bin/sleep", "99"])])
    settings = settings_of(tmp_path / ("long" * 25))
    with processes.running(settings):
        wait_for(lambda: processes.state(settings, "sleep") in ("STARTING", "RUNNING"), 60)
        assert processes.stop(settings)
    assert processes.process_info(settings) == {} and not processes.stop(settings)
    shutil.rmtree(tempfile.gettempdir())


@pytest.mark.parametrize("name", [".", "digits.db", "mlflow", "mlflow/login", "prefect/login"])
def test_up_refuses_a_home_in_which_something_belongs_to_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings = settings_of(tmp_path / "home")
    (settings.home / "digits.db").touch()
    processes._prepare_home(settings)
    give_away(settings.home / name, monkeypatch)
    path = re.escape(str(settings.home / name)) if os.geteuid() == 0 else ""
    for start in (bootstrap.up, processes._prepare_home):
        with pytest.raises(PermissionError, match=rf"{path} belongs to .+ set DIGITS_HOME to a folder of your own"):
            start(settings)


def test_a_home_of_root_is_refused_and_what_root_left_in_ours_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes files of root")
    settings = settings_of(tmp_path / "home")
    give_away(settings.home, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: settings.home.stat().st_uid)
    processes.refuse_foreign_home(settings)
    os.chown(settings.home, 0, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    with pytest.raises(PermissionError, match=f"{settings.home} belongs to root"):
        processes.refuse_foreign_home(settings)


def test_a_platform_is_found_by_every_name_of_its_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "processes", lambda _: [processes.Process("sleep", "sleeps", ["/bin/sleep", "99"])])
    home, link = tmp_path / "home", tmp_path / "link"
    link.symlink_to(home)  # to a folder that does not exist yet
    for started, other in ((link, home), (home, link)):
        with processes.running(settings_of(started)):
            wait_for(lambda: processes.state(settings_of(other), "sleep") in ("STARTING", "RUNNING"), 60)  # noqa: B023
            assert processes.stop(settings_of(other))


def test_up_runs_no_code_from_the_folder_where_it_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("supervisor", "ops"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "processes", lambda _: [processes.Process("sleep", "sleeps", ["/bin/sleep", "99"])])
    settings = settings_of(tmp_path / "home")
    with processes.running(settings) as supervisor:
        wait_for(lambda: supervisor.poll() is not None or processes.state(settings, "sleep") != "DOWN", 60)
    monkeypatch.setattr(bootstrap, "_first_source", lambda _: "nowhere.npz")
    with pytest.raises(RuntimeError, match="the first training left no champion"):
        bootstrap._train_first_champion(settings)
    assert not (tmp_path / "ran").exists()


def socket_of(settings: Settings) -> Path:
    """Where a Supervisor that is started now would listen."""
    processes._create_socket_folder(settings)
    return Path(processes._supervisor(settings)["SUPERVISOR_SERVER_URL"].removeprefix("unix://"))
