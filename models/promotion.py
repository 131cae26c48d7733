"""Promotion and rollback: verify the version, move the alias, record it in the ledger."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine

from digits.storage import ledger
from models import gate
from models.gate import GateVerdict
from models.model_store import ModelStore
from models.registry import RegistryWriter

log = logging.getLogger("digits.promotion")


def promote(
    registry: RegistryWriter,
    store: ModelStore,
    engine: Engine,
    version: str,
    why: str,
    evidence: Mapping[str, Any] | None = None,
    action: ledger.Action = "promotion",
) -> None:
    """Fetch and verify the version, then make it the champion.

    The alias `previous` is moved first and `champion` last, so that there is one valid champion at every moment.
    """
    version = version.removeprefix("v")
    if not version.isdecimal():
        raise ValueError(f"{version!r} is no version; give its number, see `digits leaderboard`")
    current = store.registry.version()
    if version == current:
        raise ValueError(f"digits v{version} is the champion already")
    store.fetch_version(version)
    if (meanwhile := store.registry.version()) != current:
        raise RuntimeError(f"v{meanwhile} became the champion meanwhile; see `digits ledger`, then promote again")
    if current is not None:
        registry.set_alias("previous", current)
    registry.set_alias("champion", version)
    ledger.append(engine, action, current, version, why, evidence or {})
    before = f"v{current}" if current else "none"
    log.info("%s: digits v%s is the champion (before: %s): %s", action, version, before, why)


def roll_back(registry: RegistryWriter, store: ModelStore, engine: Engine, why: str) -> str:
    """Make the previous champion the champion again; its version."""
    current = store.registry.version()
    previous = current and ledger.previous_champion(ledger.entries(engine), current)
    if not previous:
        raise LookupError("there is no previous champion to roll back to; use `digits promote VERSION`")
    promote(registry, store, engine, previous, why, action="rollback")
    return previous


def record_verdict(registry: RegistryWriter, version: str, over: str | None, verdict: GateVerdict) -> None:
    """Tag the version with the gate's verdict."""
    evidence = json.dumps(verdict.evidence)
    tags = {"gate": verdict.decision, "gate_reasons": "; ".join(verdict.reasons), "gate_evidence": evidence}
    registry.tag_version(version, {**tags, "gate_champion": over or ""})


def last_evidence(registry: RegistryWriter, version: str, over: str) -> dict[str, float]:
    """The evidence of the last comparison with this champion if it was undecided, else empty."""
    tags = registry.version_tags(version)
    if (tags.get("gate"), tags.get("gate_champion")) != (gate.UNDECIDED, over):
        return {}
    evidence: dict[str, float] = json.loads(tags["gate_evidence"])
    return evidence


def repair_ledger(registry: RegistryWriter, store: ModelStore, engine: Engine) -> None:
    """Append the promotion that is missing from the ledger when a process died after it moved the alias."""
    current = store.registry.version()
    book = ledger.entries(engine)
    last = book[-1].to_version if book else None
    if current is None or current == last:
        return
    tags = registry.version_tags(current)
    evidence = json.loads(tags.get("gate_evidence", "{}"))
    why = tags.get("gate_reasons", "found as champion; its promotion recorded no reason")
    ledger.append(engine, "promotion", last, current, why, evidence)
    log.warning("digits v%s was made the champion by a process that died; the ledger has it now", current)


def apply_verdict(
    registry: RegistryWriter, store: ModelStore, engine: Engine, version: str, over: str | None, verdict: GateVerdict
) -> None:
    """Promote the candidate over the champion it was judged against, or make an undecided one the challenger.

    It replaces only an undecided challenger, not, say, the best version of a sweep.
    """
    current = store.registry.version()
    if current == version:  # an earlier attempt moved the alias
        repair_ledger(registry, store, engine)
    elif current != over:
        log.warning(
            "digits v%s was judged against v%s, but v%s is the champion now: nothing changes; "
            "the next retraining judges it again",
            version,
            over,
            current,
        )
    elif verdict.decision == "promote":
        promote(registry, store, engine, version, "; ".join(verdict.reasons), verdict.evidence)
    elif verdict.decision == gate.UNDECIDED:
        sitting = store.registry.version("challenger")
        if sitting in (None, current) or registry.version_tags(sitting).get("gate") == gate.UNDECIDED:
            registry.set_alias("challenger", version)
            log.info("digits v%s is the challenger (before: %s)", version, sitting and f"v{sitting}")
