"""Opens what several commands use: the registry, the model store and the database."""

from typing import TYPE_CHECKING

from sqlalchemy import Engine

from digits.settings import Settings
from digits.storage import database

if TYPE_CHECKING:
    from models.model_store import ModelStore
    from models.registry import RegistryWriter


def open_database(settings: Settings) -> Engine:
    return database.connect(settings.database_url)


def open_registry(settings: Settings) -> "RegistryWriter":
    """Raises RegistryUnreachable before the 4 s that importing MLflow takes."""
    from models.registry_reader import RegistryReader

    RegistryReader(settings.mlflow_tracking_uri).version()
    from models.registry import RegistryWriter

    return RegistryWriter(settings.mlflow_tracking_uri)


def open_store(settings: Settings) -> "ModelStore":
    from models.model_store import ModelStore

    return ModelStore(settings.mlflow_tracking_uri, settings.champions)
