"""Changing the champion: load-checked first, one alias moved, recorded in the ledger."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from digits import ledger
from models import champion
from models.registry import Registry

log = logging.getLogger("digits.promotion")


def promote(
    registry: Registry,
    engine: Engine,
    version: str,
    why: str,
    cache: Path,
    evidence: Mapping[str, Any] | None = None,
    action: ledger.Action = "promotion",
) -> None:
    """Make the version the champion after it was fetched, verified and answered its golden query.

    The alias `previous` is moved first and `champion` last, so that there is one valid champion at every moment.
    """
    current = champion.version(registry.uri)
    if version == current:
        raise ValueError(f"digits v{version} is the champion already")
    champion.fetch_version(registry.uri, version, cache)
    if current is not None:
        registry.point("previous", current)
    registry.point("champion", version)
    ledger.append(engine, action, current, version, why, evidence or {})
    before = f"v{current}" if current else "none"
    log.info("%s: digits v%s is the champion (before: %s): %s", action, version, before, why)


def roll_back(registry: Registry, engine: Engine, why: str, cache: Path) -> str:
    """Make the previous champion the champion again; its version."""
    current = champion.version(registry.uri)
    previous = current and ledger.before(ledger.entries(engine), current)
    if not previous:
        raise LookupError(
            "there is no previous champion to roll back to; promote a version with `digits promote VERSION`"
        )
    promote(registry, engine, previous, why, cache, action="rollback")
    return previous
