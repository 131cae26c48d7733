"""All settings of the platform; no other module reads a setting from the environment or `.env`."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from digits import files
from digits.logs import LogFormat


@dataclass(frozen=True)
class Bucket:
    """A folder of data sets on this machine whose S3 bucket serves all machines."""

    folder: Path
    url: str  # s3://bucket/prefix

    def __str__(self) -> str:
        return f"{self.folder} or {self.url}"


def _url(pattern: str, example: str) -> AfterValidator:
    """Accepts URLs that match the pattern and removes the slash at their end."""

    def check(url: str) -> str:
        if not re.fullmatch(pattern, url):
            raise ValueError(f"expected {example}, got {url!r}")
        return url.rstrip("/")

    return AfterValidator(check)


def _host_name() -> AfterValidator:
    """Accepts host names without scheme and port, and makes them lower case."""

    def check(name: str) -> str:
        if not re.fullmatch(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*", name, re.ASCII):
            raise ValueError(f"expected a host without scheme and port like digits.example.org, got {name!r}")
        return name.lower()

    return AfterValidator(check)


def _login(text: str) -> str:
    """Accepts a user name and a password; the error does not quote them."""
    if ":" not in text:
        raise ValueError("expected a login like user:password, got a text without a colon")
    return text


def _channel(address: str) -> str:
    """Accepts what may be an address of Apprise, which the flows check; the error does not quote it."""
    if not re.match(r"\w+://\S", address):
        raise ValueError(
            "expected an address of Apprise like mailto://user:password@example.org, got a text without ://"
        )
    return address


def _absolute_sqlite(url: str) -> str:
    """An SQLite URL with an absolute path, because the platform's processes work in another folder; others as they are."""
    if found := re.fullmatch(r"(sqlite(?:\+\w+)?:///)((?!/|:memory:|file:).+)", url):
        return f"{found[1]}{Path(found[2]).absolute()}"
    return url


AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
# One name for a folder that links lead to: commands find the processes of a home by it.
RealPath = Annotated[Path, AfterValidator(lambda path: Path(os.path.realpath(path.expanduser())))]
Port = Annotated[int, Field(ge=1, le=65535)]
Share = Annotated[float, Field(ge=0, le=1)]
Url = Annotated[str, _url(r"https?://[^/\s]+.*", "an address like http://127.0.0.1:5000")]
# "*" stands for all hosts, "*.example.org" for all names below a domain
HostName = Annotated[str, _host_name()]
ChannelUrl = Annotated[str, AfterValidator(_channel)]
Login = Annotated[str, AfterValidator(_login)]
BucketUrl = Annotated[str, _url(r"s3://[a-z0-9][a-z0-9.-]+(/\S*)?", "a bucket like s3://digits/datasets")]


# Without it, MLflow opens its pages for language models.
_MLFLOW_MODE = "workflowType=machine_learning"


def without_password(url: str) -> str:
    """A URL without the user name and password that it may hold, for display."""
    return re.sub(r"//[^/]*@", "//", url).rstrip("/")


def bracketed(host: str) -> str:
    """A host as URLs and Host headers name it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def local_url(host: str, port: int) -> str:
    """URL under which this machine reaches a server that binds to the host; one that binds to all addresses, on the loopback."""
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::', '') else bracketed(host)}:{port}"


def _private_host(values: dict[str, Any]) -> str:
    return values["host"] if values["auth"] == "off" else "127.0.0.1"


def _alias(name: str, *others: str) -> AliasChoices:
    """The names that other tools use for the same setting, then ours, then the field."""
    return AliasChoices(name, *others, f"DIGITS_{name}", name.lower())


class Settings(BaseSettings):
    """Defaults for a laptop; the field `x` is set as `DIGITS_X` in the environment or in `.env`."""

    model_config = SettingsConfigDict(
        env_prefix="DIGITS_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,  # it may be a password
    )

    home: RealPath = Field(Path("var"), description="Folder of all mutable state; removing it resets the platform.")
    mnist: AbsolutePath | None = Field(None, description="A local `mnist.npz`, read instead of a download.")
    datasets_url: BucketUrl | None = Field(None, description="Bucket that shares the data sets, `s3://bucket/prefix`.")
    inbox: AbsolutePath = Field(
        default_factory=lambda values: values["home"] / "inbox",
        description="Folder for new labelled files; the next retraining ingests each of them once.",
    )
    source_limit_bytes: int = Field(
        2_000_000_000,
        gt=0,
        description="Maximum size of a source or a file of the inbox, decompressed; others are refused.",
    )
    database_url: Annotated[str, AfterValidator(_absolute_sqlite)] = Field(
        default_factory=lambda values: f"sqlite:///{values['home']}/digits.db",
        description="SQLAlchemy URL of the database of predictions, feedback, ledger and API keys.",
        repr=False,  # it may hold a password
    )

    host: str = Field(
        "127.0.0.1",
        description="Address that the service binds to; the other servers use it only if `DIGITS_AUTH` is off.",
    )
    auth: Literal["off", "loopback", "required"] = Field(
        "loopback",
        description="Connections that need an API key: off (none), loopback (all except from 127.0.0.1) or required (all).",
    )
    api_key: str | None = Field(None, repr=False, description="API key that the commands send to the service.")
    rate_per_minute: int = Field(6_000, ge=1, description="Requests per minute of API keys without their own rate.")
    cors_origins: list[str] = Field([], description='Origins whose pages may use the service: ["https://example.org"].')
    allowed_hosts: list[HostName] = Field(
        [],
        description='Names under which the service is reached, in addition to its own: ["digits.example.org"].',
    )
    service_port: Port = Field(3000, description="Port of the HTTP endpoint and the drawing page.")
    mlflow_port: Port = Field(5000, description="Port of the MLflow server.")
    prefect_port: Port = Field(4200, description="Port of the Prefect server.")
    reports_port: Port = Field(8000, description="Port of the Evidently UI.")
    mlflow_tracking_uri: Url = Field(
        default_factory=lambda values: local_url(_private_host(values), values["mlflow_port"]),
        validation_alias=_alias("MLFLOW_TRACKING_URI"),
        repr=False,
        description="URL of the MLflow server.",
    )
    mlflow_public_url: Url = Field(
        default_factory=lambda values: without_password(values["mlflow_tracking_uri"]),
        description="URL of MLflow in links, where browsers reach it under another one; without a password.",
    )
    prefect_api_url: Url = Field(
        default_factory=lambda values: local_url(_private_host(values), values["prefect_port"]) + "/api",
        validation_alias=_alias("PREFECT_API_URL"),
        description="URL of the Prefect API.",
    )
    prefect_api_auth_string: Login | None = Field(
        None,
        validation_alias=_alias("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"),
        repr=False,
        description="Login of the Prefect API, `user:password`; by default the one that `digits up` generates for its server.",
    )
    dask_address: str | None = Field(None, description="Dask scheduler, `tcp://host:8786`; by default a local cluster.")
    work_pool: str = Field("digits", min_length=1, description="Prefect work pool that runs the flows.")
    work_pool_type: Literal["process", "docker", "kubernetes"] = Field(
        "process",
        description="How the work pool runs a flow: process (of the worker), docker (a container) or kubernetes (a job).",
    )
    flows_image: str = Field("digits-flows", description="Image of flows in Docker and Kubernetes work pools.")
    job_variables: dict[str, Any] = Field(
        {}, repr=False, description='Additional job variables of the deployments, like {"networks": ["digits"]}.'
    )
    first_recipe: str = Field("compact", description="Recipe of the first champion.")
    recipe: str = Field(
        "convolutional",
        description="Recipe of the scheduled retraining; `digits up` trains it once in the background, unless it is the first one.",
    )
    gate: dict[str, float] = Field({}, description='Changes to the gate\'s policy, like {"min_error_reduction": 0.25}.')
    promotion: Literal["automatic", "ask"] = Field(
        "automatic",
        description="Whether a version that the gate would promote is promoted at once, or when a person has approved it.",
    )
    approval_hours: float = Field(
        72.0, gt=0, description="Hours until a promotion that waits for approval is held, because nobody decided."
    )
    challenger_days: float = Field(14.0, gt=0, description="Days until an undecided candidate is given up.")
    feedback: dict[str, float] = Field({}, description='Changes to the feedback policy, like {"hold_out": 0.5}.')
    retrain_labels: int = Field(200, ge=1, description="Number of new labels that starts a retraining.")
    retrain_cooldown_hours: float = Field(12.0, ge=0, description="Hours from a retraining to the next by an event.")
    alert_urls: list[ChannelUrl] = Field(
        [],
        repr=False,  # they hold passwords and tokens
        description='Apprise addresses that receive all alerts: ["mailto://user:password@example.org", "jsons://host/path"].',
    )
    alert_cooldown_hours: float = Field(12.0, ge=0, description="Hours during which the same alert is not sent again.")
    registry_poll_seconds: float = Field(2.0, gt=0, description="How often the service looks for a new champion.")

    service_workers: int = Field(1, ge=1, description="Number of processes that answer requests.")
    body_limit_bytes: int = Field(16_000_000, gt=0, description="Maximum size of a request body; others get a 413.")
    json_limit_bytes: int = Field(4_194_304, gt=0, description="Maximum size of a `/classify` body; others get a 413.")
    body_timeout_seconds: float = Field(10.0, gt=0, description="Maximum time for a request body to arrive.")
    batch_limit: int = Field(1_000, ge=1, description="Maximum number of images in a `/classify` request.")
    picture_limit_pixels: int = Field(24_000_000, ge=784, description="Maximum number of pixels of a picture.")
    concurrency_limit: int = Field(
        128, ge=1, description="Maximum number of requests that a worker answers at once; else 503."
    )
    connection_limit: int = Field(
        2_048, ge=1, description="Maximum number of open connections per worker; others wait until one is closed."
    )
    worker_memory_mb: int = Field(
        1_500, ge=200, description="Memory in MB above which a worker of the service is replaced after three minutes."
    )
    log_limit: int = Field(50_000, ge=1, description="Maximum number of unstored predictions; others are not logged.")
    access_log: bool = Field(False, description="Whether the service logs every request.")
    log_format: LogFormat = Field(
        "text", description="Form of the log lines of service, flows and commands: text, or json (one object a line)."
    )
    bulk_log_sample_rate: Share = Field(1.0, description="Share of the `/classify_bulk` predictions that is logged.")
    audit_sample_rate: Share = Field(0.02, description="Share of the logged predictions drawn at random for labelling.")
    retention_days: float = Field(
        90, gt=0, description="Days for which predictions, request counts and reports are kept."
    )

    def as_variables(self, fields: Iterable[str]) -> dict[str, str]:
        """The environment variables from which these fields are read; none for None, nor for what other tools read too."""
        values = {name: getattr(self, name) for name in fields if not Settings.model_fields[name].validation_alias}
        return {
            f"DIGITS_{name.upper()}": str(value) if isinstance(value, (str, Path)) else json.dumps(value)
            for name, value in values.items()
            if value is not None
        }

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach the service."""
        return self.host not in ("localhost", "::1") and not self.host.startswith("127.")

    @property
    def private_host(self) -> str:
        """Address that MLflow, Prefect and the Evidently UI bind to."""
        return _private_host(vars(self))

    @property
    def any_host_allowed(self) -> bool:
        """Whether MLflow, Prefect and the Evidently UI answer under every host name."""
        return self.is_public and self.auth == "off"

    @property
    def local_names(self) -> list[str]:
        """The host names under which MLflow, Prefect and the Evidently UI answer otherwise."""
        return list(dict.fromkeys([bracketed(self.private_host), "127.0.0.1", "localhost", "[::1]"]))

    @property
    def prefect_login_path(self) -> Path:
        """The login that `digits up` generates for its Prefect server, `user:password`."""
        return self.home / "prefect" / "login"

    @property
    def mlflow_login_path(self) -> Path:
        """The login that `digits up` generates for its MLflow server, `user:password`."""
        return self.home / "mlflow" / "login"

    def is_own(self, url: str, port: int) -> bool:
        """Whether this is the URL of a server that `digits up` starts on the port."""
        server = urlsplit(url)
        return server.port == port and server.hostname in ("127.0.0.1", "localhost", "::1", self.private_host)

    @property
    def registry_uri(self) -> str:
        """URL of the MLflow server, with the login that `digits up` has generated if it is its own and the URL holds none."""
        uri, path = self.mlflow_tracking_uri, self.mlflow_login_path
        if urlsplit(uri).username is None and self.is_own(uri, self.mlflow_port) and path.exists():
            return uri.replace("://", f"://{path.read_text()}@", 1)
        return uri

    @property
    def service_url(self) -> str:
        """URL under which this machine reaches the service."""
        return local_url(self.host, self.service_port)

    def experiment_url(self, experiment_id: str) -> str:
        """URL of the runs of an experiment in MLflow's UI."""
        return f"{self.mlflow_public_url}/#/experiments/{experiment_id}/runs?{_MLFLOW_MODE}"

    def run_url(self, experiment_id: str, run_id: str) -> str:
        """URL of a run in MLflow's UI."""
        return f"{self.mlflow_public_url}/#/experiments/{experiment_id}/runs/{run_id}?{_MLFLOW_MODE}"

    def compare_url(self, experiment_id: str, run_ids: Sequence[str]) -> str:
        """URL of the comparison of these runs in MLflow's UI."""
        runs, experiments = (quote(json.dumps(names)) for names in (list(run_ids), [experiment_id]))
        return f"{self.mlflow_public_url}/#/compare-runs?runs={runs}&experiments={experiments}&{_MLFLOW_MODE}"

    def version_url(self, version: str) -> str:
        """URL of a version in MLflow's UI, with its model card."""
        return f"{self.mlflow_public_url}/#/models/digits/versions/{version}?{_MLFLOW_MODE}"

    @property
    def credentials(self) -> dict[str, str]:
        """The HTTP header with the API key; empty without one."""
        return {"X-API-Key": self.api_key} if self.api_key else {}

    @property
    def downloads(self) -> Path:
        """Downloaded source files."""
        return self.home / "downloads"

    @property
    def datasets(self) -> Path | Bucket:
        """Stored data sets, one folder per fingerprint."""
        folder = self.home / "datasets"
        return Bucket(folder, self.datasets_url) if self.datasets_url else folder

    @property
    def champions(self) -> Path:
        """Verified copies of served versions, for a start without the registry."""
        return self.home / "champions"

    @property
    def spool(self) -> Path:
        """Predictions that are not yet in the database."""
        return self.home / "spool"

    @property
    def workspace(self) -> Path:
        """The workspace of the Evidently UI."""
        return self.home / "workspace"


# Fields whose values are shown nowhere.
SECRETS = {name for name, field in Settings.model_fields.items() if not field.repr}


class _FormerSettings(BaseSettings):
    """Settings of earlier versions, which would be ignored in silence."""

    model_config = SettingsConfigDict(env_prefix="DIGITS_", env_file=".env", extra="ignore")

    alert_url: str = ""


def load_settings() -> Settings:
    """The present settings; entry points read them once and pass values on. Raises ValueError naming the wrong setting.

    Raises PermissionError for a `.env` that another user than root made: the addresses in it would get our passwords.
    """
    env_file = Path(".env")
    if not env_file.is_dir() and (owner := files.foreign_owner(env_file, trusts_root=True)):
        raise PermissionError(
            f"{env_file.absolute()} belongs to {owner}, so its settings are not read; "
            "work in another folder, or replace it by a copy of your own"
        )
    if _FormerSettings().alert_url:
        webhook = 'DIGITS_ALERT_URLS=["jsons://host/path"] for a webhook at https://host/path'
        raise ValueError(f"DIGITS_ALERT_URL is not read any more; replace it by {webhook}")
    try:
        return Settings()
    except SettingsError as error:
        if not isinstance(error.__cause__, JSONDecodeError):
            raise
        name = str(error).split('"')[1]
        found = "another text" if name in SECRETS else repr(error.__cause__.doc)
        raise ValueError(f"DIGITS_{name.upper()}: expected JSON, got {found} ({error.__cause__})") from error
