"""A release: a Bento (https://docs.bentoml.com) with the champion in it, which answers without a registry. `make bento` builds one.

`python -m services.bento REQUIREMENTS`, where REQUIREMENTS is a file of pinned packages; the path of the Bento is printed. The
champion comes from the registry, or is the last good copy of it where the registry is unreachable.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from digits.settings import Settings, load_settings
from models.model_store import ModelStore, VerifiedModel, last_good, remember
from models.registry_reader import RegistryUnreachable, VersionNotFound

ROOT = Path(__file__).parent.parent
BENTOFILE = ROOT / "docker" / "bentofile.yaml"
ROOMS = ("digits", "models", "services")


def main() -> None:
    """Build the release and print its path."""
    if len(sys.argv) != 2:
        raise SystemExit("expected one file of pinned packages: python -m services.bento requirements.txt")
    try:
        print(build(load_settings(), Path(sys.argv[1])))
    except (OSError, LookupError, ValueError) as error:
        raise SystemExit(f"digits: {error}") from error


def build(settings: Settings, requirements: Path) -> Path:
    """The path of the release in the Bento store, `bentos/` of DIGITS_HOME; raises RegistryUnreachable, VersionNotFound or InvalidArtifact."""
    # read when BentoML is imported; a running service empties its own
    os.environ["BENTOML_HOME"] = str(settings.home / "bentos")
    import bentoml

    with tempfile.TemporaryDirectory() as temporary:
        context = Path(temporary)
        for room in ROOMS:
            shutil.copytree(ROOT / room, context / room, ignore=shutil.ignore_patterns("__pycache__", "release"))
        shutil.copy(requirements, context / "requirements.txt")
        champion = _copy_champion(settings, context / "services" / "release")
        labels = {"model_version": champion.version, "dataset": str(champion.card.get("dataset"))}
        bento = bentoml.bentos.build_bentofile(str(BENTOFILE), labels=labels, build_ctx=str(context))
    return Path(bento.path)


def _copy_champion(settings: Settings, folder: Path) -> VerifiedModel:
    """The champion, verified, and its files in the folder."""
    try:
        champion = ModelStore(settings.registry_uri, folder).fetch()
    except RegistryUnreachable as unreachable:
        try:
            champion = last_good("champion", settings.champions)
        except VersionNotFound:
            raise unreachable from None
        shutil.copytree(settings.champions / champion.version, folder / champion.version)
    remember(champion, "champion", folder)
    return champion


if __name__ == "__main__":
    main()
