"""Promotion and rollback: verify the version, record it in the ledger, move the alias.

The ledger comes first: it decides, and the alias follows. What a process left undone that died in between, `finish_promotion` does.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from digits.errors import first_line
from digits.logs import printable
from digits.storage import database, ledger, locks
from models import challengers, gate, model_card, model_store
from models.connections import Platform
from models.gate import GateVerdict
from models.model_store import ModelStore
from models.onnx_model import InvalidArtifact
from models.registry import RegistryWriter
from models.registry_reader import VersionNotFound, version_number

log = logging.getLogger("digits.promotion")


@dataclass(frozen=True)
class Decision:
    """Why a version becomes the champion, and who decided so."""

    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""  # of the version that was judged; without it, whichever files it has
    action: ledger.Action = "promotion"
    by: str | None = None  # the user of this process, unless given


def promote(platform: Platform, version: str, reason: str) -> ledger.Entry:
    """Make a version the champion as a person decided. Returns the entry; raises ValueError where it is, or as `replace_champion` does."""
    version, current = version_number(version), platform.models.registry.version()
    last = last_champion(platform.engine)
    if last and version == current == last.after and _is_registered(platform.models, version, last.digest):
        raise ValueError(f"digits v{version} is the champion already")
    return replace_champion(platform, current, version, Decision(reason))


def roll_back(platform: Platform, reason: str) -> str:
    """Make the previous champion the champion again. Returns its version; raises LookupError, or as `replace_champion` does."""
    current = platform.models.registry.version()
    previous = current and ledger.previous_champion(ledger.replacements(platform.engine), current)
    if not previous:
        raise LookupError("there is no previous champion to roll back to; use `digits promote VERSION`")
    replace_champion(platform, current, previous, Decision(reason, action="rollback"))
    return previous


def replace_champion(
    platform: Platform,
    current: str | None,
    version: str,
    decision: Decision,
    check: Callable[[], None] = lambda: None,
) -> ledger.Entry:
    """Verify a version, then make it the champion in the place of the current one; called again, it finishes what failed.

    Returns the entry in the ledger. `check` is called when nothing else can decide any more; what it raises ends the promotion. Raises
    VersionNotFound, InvalidArtifact also where other files were judged, RuntimeError where the champion changed meanwhile, or
    ConnectionError.
    """
    registry, store, engine = platform.registry, platform.models, platform.engine
    digest = store.fetch_version(version).digest
    if decision.digest not in ("", digest):
        raise InvalidArtifact(f"digits v{version}: its files are not those that were judged; register it again")
    with locks.decision(engine):
        check()
        if (champion := store.registry.version()) != current:
            change = f"the champion changed from {_named(current)} to {_named(champion)} meanwhile"
            raise RuntimeError(f"{change}; see `digits ledger`, then promote again")
        entry = last_champion(engine)
        if entry is None or (entry.after, entry.digest) != (version, digest):
            before = entry.after if entry and current == version else current
            action, reason, evidence = decision.action, decision.reason, decision.evidence
            entry = ledger.append(engine, action, before, version, reason, evidence, digest=digest, by=decision.by)
        _move_aliases(registry, current, version)
    challengers.close(registry, version, "promoted")
    update_cards(platform, version, current)
    change = f"digits v{version} is the champion (before: {_named(current)})"
    log.info("%s: %s: %s", decision.action, change, printable(decision.reason))
    return entry


def _move_aliases(registry: RegistryWriter, current: str | None, version: str) -> None:
    """`previous` is moved first and `champion` last, so that there is one valid champion at every moment."""
    if current not in (None, version):
        registry.set_alias("previous", current)
    registry.set_alias("champion", version)


def _is_registered(store: ModelStore, version: str, digest: str | None) -> bool:
    """Whether the registry has this version, and not another one of the same number."""
    try:
        return model_store.digest(store.card(version)) == digest
    except (VersionNotFound, InvalidArtifact):
        return False


def last_champion(engine: Engine) -> ledger.Entry | None:
    """The last promotion or rollback in the ledger; None before the first."""
    entries = ledger.replacements(engine)
    return entries[-1] if entries else None


def without_champion(platform: Platform) -> str | None:
    """Why a version cannot be judged as the first one: the registry has lost the champion's alias; None where it is the first.

    A new registry does not have the champion's version either.
    """
    last, store = last_champion(platform.engine), platform.models
    if last is None or not last.after or store.registry.version() or not _is_registered(store, last.after, last.digest):
        return None
    problem = f"v{last.after} is the champion in the ledger, but the registry has no alias `champion`"
    return f"{problem}; `digits promote {last.after}` sets it"


def _named(version: str | None) -> str:
    return f"v{version}" if version else "no version"


def update_cards(platform: Platform, *versions: str | None) -> None:
    """Describe versions about which something was decided; that is done, so a failure is a warning."""
    for version in filter(None, dict.fromkeys(versions)):
        try:
            model_card.update(platform.registry, platform.models, platform.engine, version)
        except (*database.ERRORS, ConnectionError, LookupError, TypeError, ValueError) as error:
            log.warning("the model card of digits v%s is out of date: %s", version, first_line(error))


def record_verdict(registry: RegistryWriter, version: str, champion: str | None, verdict: GateVerdict) -> None:
    """Tag the version with the gate's verdict."""
    evidence = json.dumps(verdict.evidence)
    tags = {"gate": verdict.decision, "gate_reasons": "; ".join(verdict.reasons), "gate_evidence": evidence}
    registry.tag_version(version, {**tags, "gate_champion": champion or ""})


def finish_promotion(platform: Platform) -> ledger.Entry | None:
    """Move the alias to the ledger's last champion where a process died before it did. Returns the entry.

    An alias that was moved by anything else stays, and the service does not follow it.
    """
    with locks.decision(platform.engine):
        return finish(platform)


def finish(platform: Platform) -> ledger.Entry | None:
    """As `finish_promotion`, for a caller that holds the lock of decisions."""
    store, last = platform.models, last_champion(platform.engine)
    current = store.registry.version()
    if last is None or last.after in (None, current):
        return None
    if current != last.before or not _is_registered(store, last.after, last.digest):
        fix = f"`digits promote {current or last.after}` records a decision"
        log.error("the champion is %s in the registry, but v%s in the ledger; %s", _named(current), last.after, fix)
        return None
    _move_aliases(platform.registry, current, last.after)
    update_cards(platform, last.after, current)
    log.warning(
        "digits v%s is the champion now; the process that promoted it died before it moved the alias", last.after
    )
    return last


def apply_verdict(platform: Platform, version: str, champion: str | None, verdict: GateVerdict) -> None:
    """Promote a version that was judged against the champion, let an undecided one wait, or close one that is held."""
    registry, current = platform.registry, platform.models.registry.version()
    # An earlier attempt moved the alias.
    if current == version:
        challengers.close(registry, version, "promoted")
    elif current != champion:
        change = f"digits v{version} was judged against {_named(champion)}, but {_named(current)} is the champion now"
        log.warning("%s: nothing changes; the next retraining judges it again", change)
    elif verdict.decision == "promote":
        decision = Decision("; ".join(verdict.reasons), verdict.evidence, verdict.digest)
        replace_champion(platform, champion, version, decision)
    elif verdict.decision == gate.UNDECIDED:
        challengers.enqueue(registry, version, datetime.now(UTC))
    else:
        challengers.close(registry, version, "held")
    model_card.update(registry, platform.models, platform.engine, version)
