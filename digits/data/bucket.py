"""Data sets in an S3 bucket: each is uploaded once under its fingerprint and downloaded by machines that do not have it.

Address and credentials are those of every S3 client: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, a profile or a role.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from digits.settings import Bucket

# In the order of their upload: a data set is complete once its manifest is there.
FILES = ("arrays.npz", "manifest.json")


def upload(bucket: Bucket, path: Path) -> None:
    """Copy the folder of a data set into the bucket unless it is there."""
    with _connected(bucket) as (client, name, prefix):
        if not _exists(client, name, f"{prefix}{path.name}/{FILES[-1]}"):
            for file in FILES:
                client.upload_file(str(path / file), name, f"{prefix}{path.name}/{file}")


def download(bucket: Bucket, fingerprint: str, path: Path) -> bool:
    """Copy a data set into a new folder. Returns False where the bucket does not have it."""
    with _connected(bucket) as (client, name, prefix):
        if not _exists(client, name, f"{prefix}{fingerprint}/{FILES[-1]}"):
            return False
        path.mkdir()
        for file in FILES:
            client.download_file(name, f"{prefix}{fingerprint}/{file}", str(path / file))
    return True


def set_current(bucket: Bucket, fingerprint: str) -> None:
    """Make a data set the one from which the next retraining starts on every machine."""
    with _connected(bucket) as (client, name, prefix):
        client.put_object(Bucket=name, Key=f"{prefix}current", Body=fingerprint.encode())


def current(bucket: Bucket) -> str | None:
    """The fingerprint of the data set from which the next retraining starts; None before the first."""
    with _connected(bucket) as (client, name, prefix):
        if not _exists(client, name, f"{prefix}current"):
            return None
        content: bytes = client.get_object(Bucket=name, Key=f"{prefix}current")["Body"].read()
    return content.decode().strip()


@contextmanager
def _connected(bucket: Bucket) -> Iterator[tuple[Any, str, str]]:
    """A client, the name of the bucket and the prefix of all keys; raises ConnectionError where S3 refuses or is unreachable."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    name, _, prefix = bucket.url.removeprefix("s3://").partition("/")
    try:
        yield _client(), name, f"{prefix.rstrip('/')}/".lstrip("/")
    except (Boto3Error, BotoCoreError, ClientError) as error:
        reason = f"the data sets in {bucket.url} are unreachable ({error})"
        raise ConnectionError(f"{reason}; check AWS_ENDPOINT_URL and the credentials") from error


@lru_cache(maxsize=1)
def _client() -> Any:
    import boto3  # 0.5 s, and not installed where the service runs
    from botocore.config import Config

    return boto3.client("s3", config=Config(connect_timeout=10, retries={"total_max_attempts": 4, "mode": "standard"}))


def _exists(client: Any, bucket: str, key: str) -> bool:
    return bool(client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)["KeyCount"])
