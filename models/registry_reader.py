"""Read access to the model registry over HTTP: aliases by MLflow's REST API, files of versions by a route of its UI.

The service, the gate and monitoring read the registry here; importing MLflow takes 4 s and is not needed for it.
"""

import json
from contextlib import suppress
from dataclasses import dataclass

import httpx

from digits.errors import first_line
from digits.settings import without_password
from models.onnx_model import InvalidArtifact

EXPERIMENT_NAME, MODEL_NAME = "digits", "digits"
TIMEOUT = httpx.Timeout(10, connect=3)  # seconds
# A card is read before anything is known of its version; ours have 2 kB.
MAX_CARD_BYTES = 1_000_000
MAX_FILE_BYTES = 100_000_000
MAX_FOUND_BYTES = 10_000_000


class VersionNotFound(LookupError):
    """The registry has no such alias or version."""


class RegistryUnreachable(ConnectionError):
    """The registry failed or is unreachable."""


@dataclass(frozen=True)
class AliasTarget:
    """What an alias points to. A new registry counts versions from 1 again, so only version and run together are unique."""

    version: str
    run_id: str | None


def version_number(text: str) -> str:
    """The number of a version that is written `3` or `v3`; raises ValueError for anything else."""
    number = text.removeprefix("v")
    if not number.isdecimal():
        raise ValueError(f"{text!r} is no version; give its number, see `digits leaderboard`")
    return number


class RegistryReader:
    """A connection to one MLflow server; its methods raise RegistryUnreachable where the server fails or is unreachable."""

    def __init__(self, uri: str) -> None:
        url = httpx.URL(uri)
        auth = (url.username, url.password) if url.username else None
        self._http = httpx.Client(base_url=without_password(uri), auth=auth, timeout=TIMEOUT)

    def close(self) -> None:
        self._http.close()

    def version(self, alias: str = "champion") -> str | None:
        """The version an alias points to, None when there is none."""
        with suppress(VersionNotFound):
            return self.alias_target(alias).version
        return None

    def alias_target(self, alias: str) -> AliasTarget:
        """What an alias points to; raises VersionNotFound."""
        route = "/api/2.0/mlflow/registered-models/alias"
        response, content = self._read(route, MAX_CARD_BYTES, name=MODEL_NAME, alias=alias)
        try:
            fields = json.loads(content)
            # MLflow answers 404 without the model, 400 without the alias.
            if response.status_code in (400, 404) and "error_code" in fields:
                fix = "train and promote one with `digits retrain`"
                raise VersionNotFound(f"no version of {MODEL_NAME} has the alias {alias} yet; {fix}")
            found = fields["model_version"]
            return AliasTarget(version_number(str(found["version"])), found.get("run_id"))
        except (ValueError, KeyError, TypeError) as error:
            problem = f"{self._http.base_url} answered {response.status_code}, and not as MLflow does"
            raise RegistryUnreachable(f"{problem}; set MLFLOW_TRACKING_URI to its server") from error

    def experiment_id(self) -> str | None:
        """The id of our experiment; None before the first run."""
        response, content = self._read(
            "/api/2.0/mlflow/experiments/get-by-name", MAX_CARD_BYTES, experiment_name=EXPERIMENT_NAME
        )
        with suppress(ValueError, KeyError, TypeError):
            return str(json.loads(content)["experiment"]["experiment_id"]) if response.is_success else None
        return None

    def tagged(self, name: str, value: str) -> dict[str, dict[str, str]]:
        """The tags of each version whose tag of this name has this value, of at most 1,000 versions."""
        route, query = "/api/2.0/mlflow/model-versions/search", f"name='{MODEL_NAME}' and tags.`{name}`='{value}'"
        response, content = self._read(route, MAX_FOUND_BYTES, filter=query, max_results="1000")
        problem = f"{self._http.base_url} answered {response.status_code} to a search of versions"
        if response.is_error:
            raise RegistryUnreachable(problem)
        try:
            found = json.loads(content).get("model_versions", [])
            return {version_number(one["version"]): {tag["key"]: tag["value"] for tag in one["tags"]} for one in found}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryUnreachable(f"{problem}, and not as MLflow does") from error

    def download(self, version: str, path: str) -> bytes:
        """One file of a version as it is; raises VersionNotFound or InvalidArtifact."""
        # This route is not documented, which is one reason to pin MLflow. The documented ones take two requests for each file
        # (`get-download-uri`, then `mlflow-artifacts`) and deliver only what the server proxies.
        limit = MAX_CARD_BYTES if path == "card.json" else MAX_FILE_BYTES
        route, artifact = "/model-versions/get-artifact", f"{MODEL_NAME} v{version}"
        response, content = self._read(route, limit, name=MODEL_NAME, version=version, path=path)
        if response.status_code == 404 and b"Model Version" in content:
            raise VersionNotFound(f"the registry has no {artifact}; see `digits leaderboard`")
        if response.is_error:
            problem = f"the registry answered {response.status_code} for {path}"
            raise InvalidArtifact(f"{artifact}: {problem}; register it again")
        if len(content) > limit:
            raise InvalidArtifact(f"{artifact}: {path} is larger than {limit:,} bytes; register a smaller version")
        return content

    def _read(self, route: str, limit: int, **parameters: str) -> tuple[httpx.Response, bytes]:
        """An answer about the version and its content, of which the rest is left out once it exceeds the limit in bytes.

        Raises RegistryUnreachable where there is none, or one about the server itself.
        """
        server, content = self._http.base_url, bytearray()
        try:
            with self._http.stream("GET", route, params=parameters) as response:
                for part in response.iter_bytes():
                    content += part
                    if len(content) > limit:
                        break
        except httpx.HTTPError as error:
            problem, fix = first_line(error), "start it with `digits up` or set MLFLOW_TRACKING_URI"
            raise RegistryUnreachable(f"the registry at {server} does not answer ({problem}); {fix}") from error
        if response.status_code in (401, 403) or response.is_server_error:
            status = f"{response.status_code} {response.reason_phrase}"
            fix = "check the MLflow server, or the name and password in MLFLOW_TRACKING_URI"
            raise RegistryUnreachable(f"the registry at {server} answered {status}; {fix}")
        return response, bytes(content)
