"""Everything that can be set from outside, in one place: the only reader of the environment and of `.env`."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from digits.data.bucket import Bucket

AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
Port = Annotated[int, Field(ge=1, le=65535)]
Url = Annotated[str, AfterValidator(lambda url: _address(url))]
BucketUrl = Annotated[str, AfterValidator(lambda url: _bucket(url))]


def _address(url: str) -> str:
    """An address of a server, without a slash at its end."""
    if not re.fullmatch(r"https?://[^/\s]+.*", url):
        raise ValueError(f"expected an address like http://127.0.0.1:5000, got {url!r}")
    return url.rstrip("/")


def _bucket(url: str) -> str:
    """A bucket and perhaps a prefix, without a slash at its end."""
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/\S*)?", url):
        raise ValueError(f"expected a bucket like s3://digits/datasets, got {url!r}")
    return url.rstrip("/")


def without_password(url: str) -> str:
    """An address without the name and password it may hold, to be shown."""
    return re.sub(r"//[^/]*@", "//", url).rstrip("/")


def _reachable(host: str) -> str:
    """A host to connect to, as it stands in a URL: a server that listens on all addresses is reached on the loopback."""
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _private(values: dict[str, Any]) -> str:
    """The address of servers that ask nobody for a key: this machine's own, unless everything is open."""
    host: str = values["host"]
    return host if values["auth"] == "off" or _is_loopback(host) else "127.0.0.1"


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _named(name: str) -> AliasChoices:
    """The name other tools use for the same setting, then ours, then the plain field."""
    return AliasChoices(name, f"DIGITS_{name}", name.lower())


class Settings(BaseSettings):
    """Laptop defaults; a field `x` is set as `DIGITS_X` in the environment or in `.env`."""

    model_config = SettingsConfigDict(
        env_prefix="DIGITS_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, validate_default=True
    )

    home: AbsolutePath = Field(Path("var"), description="Folder of all mutable state; removing it is a clean slate.")
    mnist: AbsolutePath | None = Field(
        None, description="A local `mnist.npz`, used before Keras's cache and any download."
    )
    datasets_url: BucketUrl | None = Field(
        None,
        description="Bucket that keeps the data sets for all machines, `s3://bucket/prefix`; only in DIGITS_HOME unless set.",
    )
    inbox: AbsolutePath = Field(
        default_factory=lambda values: values["home"] / "inbox",
        description="Labelled files dropped here are taken in once, by the next retraining.",
    )
    database_url: str = Field(
        default_factory=lambda values: f"sqlite:///{values['home']}/digits.db",
        description="SQLAlchemy URL of the prediction log and the ledger.",
        repr=False,  # it may hold a password
    )

    host: str = Field(
        "127.0.0.1",
        description="Address the service binds to; the other servers have no authentication and bind to it only where `DIGITS_AUTH` is off.",
    )
    auth: Literal["off", "loopback", "required"] = Field(
        "loopback",
        description="Which connections need an API key: off (none), loopback (all but those to 127.0.0.1) or required (all).",
    )
    api_key: str | None = Field(
        None, repr=False, description="API key that the commands send to a service that wants one."
    )
    rate_per_minute: int = Field(
        6_000, ge=1, description="Requests per minute of an API key without a rate of its own."
    )
    cors_origins: list[str] = Field(
        [], description='Origins whose pages may ask the service, like ["https://example.org"].'
    )
    service_port: Port = Field(3000, description="Port of the HTTP endpoint and the drawing page.")
    mlflow_port: Port = Field(5000, description="Port of the MLflow server.")
    prefect_port: Port = Field(4200, description="Port of the Prefect server.")
    reports_port: Port = Field(8000, description="Port of the Evidently UI.")
    mlflow_tracking_uri: Url = Field(
        default_factory=lambda values: f"http://{_reachable(_private(values))}:{values['mlflow_port']}",
        validation_alias=_named("MLFLOW_TRACKING_URI"),
        repr=False,
        description="MLflow server.",
    )
    mlflow_public_url: Url = Field(
        default_factory=lambda values: without_password(values["mlflow_tracking_uri"]),
        description="MLflow's address in links, where browsers reach it under another; without a password.",
    )
    prefect_api_url: Url = Field(
        default_factory=lambda values: f"http://{_reachable(_private(values))}:{values['prefect_port']}/api",
        validation_alias=_named("PREFECT_API_URL"),
        description="Prefect API.",
    )
    dask_address: str | None = Field(
        None, description="Scheduler of a Dask cluster, `tcp://host:8786`; a cluster on this machine unless set."
    )
    work_pool: str = Field("digits", min_length=1, description="Prefect work pool that the flows run in.")
    work_pool_type: Literal["process", "docker", "kubernetes"] = Field(
        "process",
        description="Where the pool's flows run: process (of the worker), docker (a container each) or kubernetes (a job each).",
    )
    flows_image: str = Field("digits-flows", description="Image that the flows of a Docker or Kubernetes pool run in.")
    job_variables: dict[str, Any] = Field(
        {}, repr=False, description='More job variables of the flows\' deployments, like {"networks": ["digits"]}.'
    )
    recipe: str = Field("compact", description="Recipe of the scheduled retraining.")
    gate: dict[str, float] = Field({}, description='Policy of the gate where it differs, like {"minimum_gain": 0.25}.')
    feedback: dict[str, float] = Field(
        {}, description='Policy of what is learned from feedback where it differs, like {"hold_out": 0.5}.'
    )
    retrain_labels: int = Field(200, ge=1, description="So many new labels start a retraining.")
    retrain_cooldown_hours: float = Field(
        12.0, ge=0, description="Time after a retraining in which neither drift nor new labels start another."
    )
    alert_url: str | None = Field(
        None, repr=False, description="Webhook that is told of drift, lost accuracy and failed retrainings, as JSON."
    )
    alert_cooldown_hours: float = Field(12.0, ge=0, description="Time in which the same alert is not sent again.")
    registry_poll_seconds: float = Field(
        2.0, gt=0, description="How often the service looks whether the champion changed."
    )

    service_workers: int = Field(1, ge=1, description="Processes that answer requests.")
    body_limit_bytes: int = Field(16_000_000, gt=0, description="Larger requests are refused.")
    body_timeout_seconds: float = Field(10.0, gt=0, description="Requests that take longer to arrive are refused.")
    batch_limit: int = Field(1_000, ge=1, description="Images in one JSON request; more go to `/classify_bulk`.")
    picture_limit_pixels: int = Field(24_000_000, ge=784, description="Pictures of more pixels are refused.")
    concurrency_limit: int = Field(
        128, ge=1, description="Requests that a worker takes at once; more are asked to come back."
    )
    log_limit: int = Field(
        20_000, ge=1, description="Answers that wait in memory when neither the database nor the disk takes them."
    )
    access_log: bool = Field(False, description="Whether the service prints a line per request.")
    traces: bool = Field(False, description="Whether the service records OpenTelemetry traces.")
    bulk_log_sample_rate: float = Field(
        1.0, ge=0, le=1, description="Share of the answers of `/classify_bulk` that is logged."
    )
    audit_sample_rate: float = Field(
        0.02, ge=0, le=1, description="Share of the logged answers drawn at random for labelling."
    )
    retention_days: float = Field(
        90, gt=0, description="How long answers stay in the prediction log, and reports on disk."
    )

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach the service."""
        return not _is_loopback(self.host)

    @property
    def private_host(self) -> str:
        """Address that MLflow, Prefect and the Evidently UI bind to."""
        return _private({"host": self.host, "auth": self.auth})

    @property
    def local_host(self) -> str:
        """The address under which this machine reaches its own servers but the service."""
        return _reachable(self.private_host)

    @property
    def service_url(self) -> str:
        """The endpoint as this machine reaches it."""
        return f"http://{_reachable(self.host)}:{self.service_port}"

    def run_url(self, experiment_id: str, run_id: str) -> str:
        """Where a run is seen in MLflow's UI."""
        return f"{self.mlflow_public_url}/#/experiments/{experiment_id}/runs/{run_id}"

    @property
    def credentials(self) -> dict[str, str]:
        """The header that opens the endpoint, empty where no key is set."""
        return {"X-API-Key": self.api_key} if self.api_key else {}

    @property
    def downloads(self) -> Path:
        """Fetched source files."""
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
        """Answers that wait for the database."""
        return self.home / "spool"

    @property
    def sweeps(self) -> Path:
        """The trials of every sweep, and a lock for each that is under way."""
        return self.home / "sweeps"

    @property
    def reports(self) -> Path:
        """Drift and accuracy reports, one folder per window."""
        return self.home / "reports"

    @property
    def workspace(self) -> Path:
        """What the Evidently UI shows."""
        return self.home / "workspace"


def load_settings() -> Settings:
    """The settings as the environment has them now; entry points read them once and pass values on."""
    return Settings()
