"""Opens the registry for commands that read or change versions."""

from flows.connections import Platform


def connect() -> Platform:
    """Raises RegistryUnreachable before the 4 s that importing MLflow takes."""
    platform = Platform()
    platform.models.registry.version()
    return platform
