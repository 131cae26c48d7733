"""Data sets on S3: each put into a bucket once, under its fingerprint, and fetched by machines that do not have it.

Address and credentials are those of every S3 client: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, a profile or a role.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

FILES = ("arrays.npz", "manifest.json")  # in the order they are uploaded: with the last one, a data set is complete


@dataclass(frozen=True)
class Bucket:
    """A folder of data sets on this machine that has a bucket behind it, for all machines."""

    folder: Path
    url: str  # s3://bucket/prefix

    def __str__(self) -> str:
        return f"{self.folder} or {self.url}"

    def upload(self, path: Path) -> None:
        """Put the folder of a data set into the bucket, unless it is there."""
        with self._asking() as (client, bucket, prefix):
            if not _is_there(client, bucket, f"{prefix}{path.name}/{FILES[-1]}"):
                for name in FILES:
                    client.upload_file(str(path / name), bucket, f"{prefix}{path.name}/{name}")

    def download(self, fingerprint: str, path: Path) -> bool:
        """Fetch a data set into a new folder; False where the bucket does not have it either."""
        with self._asking() as (client, bucket, prefix):
            if not _is_there(client, bucket, f"{prefix}{fingerprint}/{FILES[-1]}"):
                return False
            path.mkdir()
            for name in FILES:
                client.download_file(bucket, f"{prefix}{fingerprint}/{name}", str(path / name))
        return True

    def point(self, fingerprint: str) -> None:
        """Make it the data set that the next retraining starts from, on whatever machine."""
        with self._asking() as (client, bucket, prefix):
            client.put_object(Bucket=bucket, ApiKey=f"{prefix}current", Body=fingerprint.encode())

    def pointed(self) -> str | None:
        """The fingerprint of the data set that the next retraining starts from; None before the first."""
        with self._asking() as (client, bucket, prefix):
            if not _is_there(client, bucket, f"{prefix}current"):
                return None
            content: bytes = client.get_object(Bucket=bucket, ApiKey=f"{prefix}current")["Body"].read()
        return content.decode().strip()

    @contextmanager
    def _asking(self) -> Iterator[tuple[Any, str, str]]:
        """A client, the bucket and the prefix of all keys; raises ConnectionError where S3 does not do what it is asked."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        try:
            yield _client(), bucket, f"{prefix.rstrip('/')}/".lstrip("/")
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise ConnectionError(
                f"the data sets in {self.url} cannot be reached ({error}); see to AWS_ENDPOINT_URL and the credentials"
            ) from error


@lru_cache(maxsize=1)
def _client() -> Any:
    import boto3  # 0.5 s, and absent where the service runs
    from botocore.config import Config

    return boto3.client("s3", config=Config(connect_timeout=10, retries={"total_max_attempts": 4, "mode": "standard"}))


def _is_there(client: Any, bucket: str, key: str) -> bool:
    from botocore.exceptions import ClientError

    try:
        client.head_object(Bucket=bucket, ApiKey=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey"):  # of a missing bucket, too: putting says so
            return False
        raise
    return True
