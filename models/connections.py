"""The platform that a flow run or a command works on: made once, passed on, each server connected when it is first used."""

from functools import cached_property
from typing import TYPE_CHECKING

from digits.data.datasets import DatasetStore
from digits.settings import Settings, load_settings
from digits.storage import database

if TYPE_CHECKING:  # MLflow takes 4 s to import, ONNX Runtime 1 s
    from sqlalchemy import Engine

    from models.model_store import ModelStore
    from models.registry import RegistryWriter


class Platform:
    """The settings, and the servers that they name."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or load_settings()

    @property
    def datasets(self) -> DatasetStore:
        return self.settings.datasets

    @cached_property
    def engine(self) -> "Engine":
        """The digits database; raises DatabaseUnavailable."""
        return database.connect(self.settings.database_url)

    @cached_property
    def registry(self) -> "RegistryWriter":
        """The writer of MLflow's runs and versions; raises RegistryUnreachable."""
        # Where it does not answer, this raises before the 4 s that importing MLflow takes.
        self.models.registry.version()
        from models.registry import RegistryWriter

        return RegistryWriter(self.settings.registry_uri)

    @cached_property
    def models(self) -> "ModelStore":
        """Registered versions, verified and cached; its `registry` reads aliases without importing MLflow."""
        from models.model_store import ModelStore

        return ModelStore(self.settings.registry_uri, self.settings.champions)
