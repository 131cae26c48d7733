"""Settings come from the environment with laptop defaults, and every one of them is documented."""

import os
from pathlib import Path

import pytest
from conftest import give_away
from pydantic import ValidationError

from digits.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
SHARED = {
    "mlflow_tracking_uri": "MLFLOW_TRACKING_URI",
    "prefect_api_url": "PREFECT_API_URL",
    "prefect_api_auth_string": "PREFECT_API_AUTH_STRING",
}  # other tools read them too


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no `.env` of the machine that runs the tests."""
    monkeypatch.chdir(tmp_path)
    for field in Settings.model_fields:
        monkeypatch.delenv(f"DIGITS_{field.upper()}", raising=False)
    for name in SHARED.values():
        monkeypatch.delenv(name, raising=False)


def test_defaults_are_those_of_a_laptop(tmp_path: Path) -> None:
    settings = Settings()
    assert settings.home == tmp_path / "var"
    assert settings.inbox == tmp_path / "var" / "inbox"
    assert settings.database_url == f"sqlite:///{tmp_path}/var/digits.db"
    assert settings.host == "127.0.0.1"
    assert settings.mlflow_tracking_uri == "http://127.0.0.1:5000"
    assert settings.prefect_api_url == "http://127.0.0.1:4200/api"


def test_moving_home_or_a_port_moves_what_follows_from_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("DIGITS_MLFLOW_PORT", "5055")
    settings = Settings()
    assert settings.inbox == tmp_path / "elsewhere" / "inbox"
    assert settings.mlflow_tracking_uri == "http://127.0.0.1:5055"


def test_a_link_to_a_home_is_that_home_also_before_it_exists(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("home")
    assert Settings(home=tmp_path / "link" / "a").home == tmp_path / "home" / "a"


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "DIGITS_MLFLOW_TRACKING_URI"])
def test_mlflow_is_found_under_its_own_name_too(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://tracking:5000")
    assert Settings().mlflow_tracking_uri == "http://tracking:5000"


def test_links_to_a_run_tell_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://admin:hush@mlflow:5000")
    assert (
        Settings().run_url("1", "5f3c") == "http://mlflow:5000/#/experiments/1/runs/5f3c?workflowType=machine_learning"
    )
    assert "hush" not in repr(Settings())
    monkeypatch.setenv("DIGITS_MLFLOW_PUBLIC_URL", "https://mlflow.example.org")
    assert Settings().run_url("1", "5f3c").startswith("https://mlflow.example.org/#/")


def test_a_port_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIGITS_SERVICE_PORT", "70000")
    with pytest.raises(ValidationError, match="service_port") as caught:
        Settings()
    # A traceback does not show the value, which may be a password; the command line quotes it.
    assert caught.value.errors()[0]["input"] == "70000" and "70000" not in str(caught.value)


def test_a_database_password_is_not_printed() -> None:
    assert "hush" not in repr(Settings(database_url="postgresql://digits:hush@db/digits"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:///a/b.db?timeout=5", "sqlite:///{}/a/b.db?timeout=5"),
        ("sqlite+pysqlite:///b.db", "sqlite+pysqlite:///{}/b.db"),
        *((url, url) for url in ("sqlite:////b.db", "sqlite://", "sqlite:///:memory:", "postgresql:///digits")),
    ],
)
def test_a_database_stays_the_same_file_in_another_folder(tmp_path: Path, given: str, expected: str) -> None:
    assert Settings(database_url=given).database_url == expected.format(tmp_path)


def test_every_setting_is_in_the_example_file_and_nothing_else() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    named = [line.removeprefix("#").split("=")[0].strip() for line in lines if "=" in line]
    assert sorted(named) == sorted(SHARED.get(field, f"DIGITS_{field.upper()}") for field in Settings.model_fields)


def test_the_example_file_shows_the_defaults(tmp_path: Path) -> None:
    """Uncommented as it stands, from a folder of its own, it changes nothing."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    (tmp_path / ".env").write_text(
        "\n".join(line.removeprefix("#") for line in lines if "=" in line and line[:2] != "# ")
    )
    shown, default = Settings(), Settings(_env_file=None)  # type: ignore[call-arg]
    assert shown == default


@pytest.mark.parametrize("owner", ["file", "link", "target"])
def test_an_env_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str) -> None:
    env_file, target = tmp_path / ".env", tmp_path / "target"
    target.write_text("DIGITS_MLFLOW_PORT=5055\n")
    env_file.write_text(target.read_text()) if owner == "file" else env_file.symlink_to(target)
    assert load_settings().mlflow_port == 5055
    give_away(target if owner == "target" else env_file, monkeypatch)
    with pytest.raises(PermissionError, match=rf"{env_file} belongs to .+, so its settings are not read"):
        load_settings()


def test_an_env_file_of_root_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("DIGITS_MLFLOW_PORT=5055\n")
    if os.geteuid() != 0:
        pytest.skip("only root makes files of root")
    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    assert load_settings().mlflow_port == 5055


def test_a_folder_of_that_name_is_no_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").mkdir()
    give_away(tmp_path / ".env", monkeypatch)
    assert load_settings().mlflow_port == 5000


@pytest.mark.parametrize("is_in_file", [True, False])
def test_the_former_setting_of_alerts_is_refused(
    is_in_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if is_in_file:
        (tmp_path / ".env").write_text("DIGITS_ALERT_URL=https://example.org/secret\n")
    else:
        monkeypatch.setenv("DIGITS_ALERT_URL", "https://example.org/secret")
    with pytest.raises(ValueError, match=r"DIGITS_ALERT_URL is not read any more; .*DIGITS_ALERT_URLS=") as caught:
        load_settings()
    assert "secret" not in str(caught.value)
