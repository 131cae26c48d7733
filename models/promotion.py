"""Promotion and rollback: verify the version, move the alias, record it in the ledger."""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from digits.storage import ledger
from models import challengers, gate
from models.gate import GateVerdict
from models.model_store import ModelStore
from models.registry import RegistryWriter
from models.registry_reader import version_number

log = logging.getLogger("digits.promotion")


def promote(
    registry: RegistryWriter,
    store: ModelStore,
    engine: Engine,
    version: str,
    reason: str,
    evidence: Mapping[str, Any] | None = None,
    action: ledger.Action = "promotion",
) -> None:
    """Fetch and verify the version, then make it the champion.

    The alias `previous` is moved first and `champion` last, so that there is one valid champion at every moment.
    """
    version = version_number(version)
    current = store.registry.version()
    if version == current:
        raise ValueError(f"digits v{version} is the champion already")
    store.fetch_version(version)
    if (new_champion := store.registry.version()) != current:
        raise RuntimeError(f"v{new_champion} became the champion meanwhile; see `digits ledger`, then promote again")
    if current is not None:
        registry.set_alias("previous", current)
    registry.set_alias("champion", version)
    ledger.append(engine, action, current, version, reason, evidence or {})
    challengers.close(registry, version, "promoted")
    before = f"v{current}" if current else "none"
    log.info("%s: digits v%s is the champion (before: %s): %s", action, version, before, reason)


def roll_back(registry: RegistryWriter, store: ModelStore, engine: Engine, reason: str) -> str:
    """Make the previous champion the champion again. Returns its version."""
    current = store.registry.version()
    previous = current and ledger.previous_champion(ledger.replacements(engine), current)
    if not previous:
        raise LookupError("there is no previous champion to roll back to; use `digits promote VERSION`")
    promote(registry, store, engine, previous, reason, action="rollback")
    return previous


def record_verdict(registry: RegistryWriter, version: str, champion: str | None, verdict: GateVerdict) -> None:
    """Tag the version with the gate's verdict."""
    evidence = json.dumps(verdict.evidence)
    tags = {"gate": verdict.decision, "gate_reasons": "; ".join(verdict.reasons), "gate_evidence": evidence}
    registry.tag_version(version, {**tags, "gate_champion": champion or ""})


def repair_ledger(registry: RegistryWriter, store: ModelStore, engine: Engine) -> ledger.Entry | None:
    """Append the promotion that is missing from the ledger when a process died after it moved the alias. Returns it."""
    current = store.registry.version()
    entries = ledger.replacements(engine)
    last = entries[-1].after if entries else None
    if current is None or current == last:
        return None
    tags = registry.version_tags(current)
    evidence = json.loads(tags.get("gate_evidence", "{}"))
    reason = tags.get("gate_reasons", "found as champion; its promotion recorded no reason")
    ledger.append(engine, "promotion", last, current, reason, evidence)
    log.warning("digits v%s was made the champion by a process that died; the ledger now records it", current)
    return ledger.replacements(engine)[-1]


def apply_verdict(
    registry: RegistryWriter,
    store: ModelStore,
    engine: Engine,
    version: str,
    champion: str | None,
    verdict: GateVerdict,
) -> None:
    """Promote a version that was judged against the champion, let an undecided one wait, or close one that is held."""
    current = store.registry.version()
    # An earlier attempt moved the alias.
    if current == version:
        repair_ledger(registry, store, engine)
        challengers.close(registry, version, "promoted")
    elif current != champion:
        change = f"digits v{version} was judged against v{champion}, but v{current} is the champion now"
        log.warning("%s: nothing changes; the next retraining judges it again", change)
    elif verdict.decision == "promote":
        promote(registry, store, engine, version, "; ".join(verdict.reasons), verdict.evidence)
    elif verdict.decision == gate.UNDECIDED:
        challengers.enqueue(registry, version, datetime.now(UTC))
    else:
        challengers.close(registry, version, "held")
