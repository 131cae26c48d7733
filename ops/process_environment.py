"""The environment variables of the platform's processes, with the logins of MLflow and Prefect that `digits up` generates."""

import configparser
import os
import secrets
from pathlib import Path

import httpx

from digits import files
from digits.settings import Settings

ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "True",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "ITERATIVE_DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    # MLflow's job runners are 13 processes with 1.7 GB.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "digits",
    # Leases in memory are lost when the server restarts: the slot of a killed retraining would never be free again.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "PYTHONUNBUFFERED": "1",
}


def of_clients(settings: Settings) -> dict[str, str]:
    """This process's environment variables, with those that the platform's processes need and the settings that are set, as in `.env`."""
    login = prefect_login(settings)
    return {
        **os.environ,
        **ENVIRONMENT,
        **settings.as_variables({"home"} | settings.model_fields_set),
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{settings.home}/mlflow/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": f"{settings.home}/mlflow/artifacts",
        "MLFLOW_TRACKING_URI": settings.registry_uri,
        "PREFECT_API_URL": settings.prefect_api_url,
        "PREFECT_HOME": str(settings.home / "prefect"),
        "BENTOML_HOME": str(settings.home / "bentoml"),
        **({"PREFECT_API_AUTH_STRING": login} if login else {}),
    }


def of_servers(settings: Settings) -> dict[str, str]:
    """The same as `of_clients` with what MLflow's and Prefect's servers need; limits for browsers that are set already are kept.

    Defaults are passed too: servers work in the folder of the code, whose `.env` may be another one.
    """
    login = prefect_login(settings)
    access = {"PREFECT_SERVER_API_AUTH_STRING": login} if login else {}
    variables = settings.as_variables(Settings.model_fields)
    return {**_browser_limits(settings), **of_clients(settings), **variables, **access, **_mlflow_access(settings)}


def _mlflow_access(settings: Settings) -> dict[str, str]:
    """What MLflow's basic authentication needs; nothing for a server elsewhere."""
    if (login := mlflow_login(settings)) is None:
        return {}
    user, password = login
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(_mlflow_configuration(settings)),
        "MLFLOW_AUTH_ADMIN_USERNAME": user,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        # It signs the form for new accounts.
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
    }


def _browser_limits(settings: Settings) -> dict[str, str]:
    """The names and origins under which browsers may use MLflow and Prefect; nothing where DIGITS_AUTH is off on a public address.

    MLflow's own default also accepts names like 10.example.org, which a web page can point to this machine.
    """
    if settings.any_host_allowed:
        return {}
    public = httpx.URL(settings.mlflow_public_url)
    local = [f"{name}:{settings.mlflow_port}" for name in settings.local_names]
    hosts = dict.fromkeys([*local, public.netloc.decode()])
    # Prefect's page under the name localhost calls the API under the address.
    origins = [f"http://{name}:{settings.prefect_port}" for name in settings.local_names]
    return {
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": f"{public.scheme}://{public.netloc.decode()}",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins),
    }


def prefect_login(settings: Settings) -> str | None:
    """`user:password` for the Prefect API: that of the settings, or what `digits up` has generated for its own server."""
    own, path = settings.prefect_api_auth_string, settings.prefect_login_path
    if own is None and path.exists() and settings.is_own(settings.prefect_api_url, settings.prefect_port):
        return path.read_text()
    return own


def mlflow_login(settings: Settings) -> tuple[str, str] | None:
    """User and password of the MLflow server of `digits up`: those in its URL, or what has been generated for it."""
    url = httpx.URL(settings.registry_uri)
    is_own = settings.is_own(settings.mlflow_tracking_uri, settings.mlflow_port)
    return (url.username, url.password) if is_own and url.username else None


def generate_logins(settings: Settings) -> None:
    """Store a login for each server of this DIGITS_HOME that has none yet, readable by its user only, and configure MLflow's."""
    users = settings.mlflow_login_path.with_name("users.db")
    if not settings.mlflow_login_path.exists():
        # MLflow would keep the password of an account that it has.
        users.unlink(missing_ok=True)
    for path in (settings.prefect_login_path, settings.mlflow_login_path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with files.replacing(path) as part:
                part.touch(0o600)
                part.write_text(f"digits:{secrets.token_urlsafe(32)}")
    config = configparser.RawConfigParser()
    config["mlflow"] = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": f"sqlite:///{users}",
        # Checking a password hash is slow by design, and the service polls every two seconds.
        "auth_cache_ttl_seconds": "60",
    }
    with _mlflow_configuration(settings).open("w") as file:
        config.write(file)


def _mlflow_configuration(settings: Settings) -> Path:
    return settings.home / "mlflow" / "basic-auth.ini"
