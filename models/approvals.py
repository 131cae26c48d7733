"""Approvals: versions that the gate would promote, and that wait until a person decides (`DIGITS_PROMOTION=ask`).

Their state is in the registry: the tag `approval` of a version says whether it waits or how that ended, `approval_since` since when. The
evidence is the judgement in the database, which also says of which files and beside which champion. Every function can be repeated.
"""

import logging
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

from digits.logs import printable
from digits.settings import Settings
from digits.storage import judgements, ledger, locks
from digits.storage.judgements import Judgement
from models import challengers, promotion
from models.challengers import WAITING, Waiting
from models.connections import Platform
from models.gate import GateVerdict
from models.promotion import Decision
from models.registry import RegistryWriter
from models.registry_reader import RegistryReader

log = logging.getLogger("digits.approvals")

TAG, BY, REASON = "approval", "approval_by", "approval_reason"
# Held: nobody decided in time. Superseded: the champion changed meanwhile.
Outcome = Literal["approved", "declined", "held", "superseded"]


class NotWaiting(LookupError):
    """The version waits for no approval, or no longer."""


def is_needed(settings: Settings, champion: str | None, verdict: GateVerdict) -> bool:
    """Whether a person is asked before the version is promoted; the first champion of a platform needs no approval."""
    return settings.promotion == "ask" and champion is not None and verdict.decision == "promote"


def request(platform: Platform, version: str) -> None:
    """Let a version wait for approval; one that waits already keeps its deadline."""
    registry = platform.registry
    challengers.enqueue(registry, version, datetime.now(UTC), TAG)
    challengers.close(registry, version, "up for approval")
    promotion.update_cards(platform, version)


def queue(registry: RegistryReader | RegistryWriter) -> list[Waiting]:
    """The versions that wait for approval, those that wait longest first."""
    return challengers.queue(registry, TAG)


def deadline(settings: Settings, since: datetime) -> datetime:
    """Until when somebody may decide about a version that waits since then."""
    return since + timedelta(hours=settings.approval_hours)


def review(platform: Platform) -> ledger.Entry | None:
    """Close what no longer waits: versions that became the champion, that were judged beside another one, or whose time is over.

    A version that was judged beside another champion becomes a challenger, which retrainings judge beside the present one. Returns the
    promotion that this finished, as `promotion.finish_promotion` does, of a version whose time would be over otherwise.
    """
    if not queue(platform.registry):
        return None
    finished = None
    with locks.decision(platform.engine):
        for version, since in queue(platform.registry):
            is_over = datetime.now(UTC) >= deadline(platform.settings, since)
            if is_over and _promotion_of(platform, version):
                finished = promotion.finish(platform) or finished
            _review(platform, version, is_over)
    return finished


def _review(platform: Platform, version: str, is_over: bool) -> None:
    champion, entry = platform.models.registry.version(), _promotion_of(platform, version)
    if version == champion and entry:
        _close(platform, version, "approved", entry.by, entry.reason)
    elif version == champion:
        log.error(
            "digits v%s, which waits for approval, is the champion in the registry: %s", version, _record(version)
        )
    elif champion and judgement(platform, version) is None:
        # First, because a version that is closed and in no queue would be lost.
        challengers.enqueue(platform.registry, version, datetime.now(UTC))
        _close(platform, version, "superseded", "", f"digits v{champion} became the champion after it was judged")
    elif is_over and not entry:
        hours = platform.settings.approval_hours
        _close(platform, version, "held", "", f"nobody decided within {hours:g} hours")


def _promotion_of(platform: Platform, version: str) -> ledger.Entry | None:
    """The last entry about the champion where it made this version the champion, in the registry perhaps not yet."""
    entry = promotion.last_champion(platform.engine)
    return entry if entry and entry.after == version else None


def _record(version: str) -> str:
    return f"the ledger does not say so; `digits promote {version}` records it"


def status(platform: Platform, version: str) -> str | None:
    """What became of the question whether to promote a version, for one that waits or was not approved; None for others."""
    tags = platform.registry.version_tags(version)
    state, by, reason = (tags.get(name, "") for name in (TAG, BY, REASON))
    again = f"is not judged again without new data; `digits promote {version}` promotes it"
    return {
        WAITING: f"digits v{version} waits for approval: `digits approve {version}`",
        "declined": f"digits v{version} was declined by {by} ({reason}) and {again}",
        "held": f"digits v{version} is held, {reason}, and {again}",
    }.get(state)


def judgement(platform: Platform, version: str) -> Judgement | None:
    """The judgement by which the gate would promote a version in the place of the present champion; None without one."""
    champion = platform.models.registry.version()
    found = judgements.last(platform.engine, version, champion) if champion else None
    # Judgements from before migration 0003 do not say of which files they are.
    return found if found and found.decision == "promote" and found.digest else None


def approve(platform: Platform, version: str, by: str, reason: str) -> ledger.Entry:
    """Promote a version that waits, as this person decided. Returns the entry in the ledger.

    Raises NotWaiting, also where the champion has changed since the version was judged, or as `promotion.replace_champion` does.
    """
    found = _judgement_of_waiting(platform, version)
    reasons = "; ".join([f"approved: {reason}", *found.reasons])
    decision = Decision(reasons, found.evidence, found.digest or "", by=by)
    check = partial(_check_undecided, platform, version)
    entry = promotion.replace_champion(platform, found.champion, version, decision, check)
    _close(platform, version, "approved", by, reason)
    return entry


def decline(platform: Platform, version: str, by: str, reason: str) -> None:
    """Hold a version that waits, as this person decided; raises NotWaiting or ConnectionError.

    An approval that was recorded before, but did not reach the registry, is finished instead.
    """
    found, subject = _judgement_of_waiting(platform, version), f"digits v{version}"
    with locks.decision(platform.engine):
        if _promotion_of(platform, version):
            promotion.finish(platform)
        _check_undecided(platform, version)
        recorded = ledger.entries(platform.engine, subject)
        # An earlier attempt may have died before the registry knew of it.
        if not recorded or recorded[-1].at < found.at:
            ledger.append(platform.engine, "decline", None, None, reason, found.evidence, subject=subject, by=by)
        _close(platform, version, "declined", by, reason)


def _judgement_of_waiting(platform: Platform, version: str) -> Judgement:
    """The judgement of a version that waits; raises NotWaiting for others, or VersionNotFound."""
    platform.models.card(version)
    review(platform)
    _check_waiting(platform, version)
    if found := judgement(platform, version):
        return found
    raise NotWaiting(f"digits v{version} cannot be approved: {_record(version)}")


def _check_waiting(platform: Platform, version: str) -> None:
    """Raise NotWaiting for a version that waits no longer, or never did, saying what became of it."""
    tags = platform.registry.version_tags(version)
    if tags.get(TAG) != WAITING:
        became = f"is {tags[TAG]}: {tags.get(REASON, '')}" if TAG in tags else "waits for no approval"
        raise NotWaiting(f"digits v{version} {became}; `digits approve` lists what waits")


def _check_undecided(platform: Platform, version: str) -> None:
    """Raise NotWaiting for a version about which somebody else has decided meanwhile; the caller holds the lock of decisions."""
    _check_waiting(platform, version)
    _review(platform, version, is_over=False)
    _check_waiting(platform, version)


def _close(platform: Platform, version: str, outcome: Outcome, by: str, reason: str) -> None:
    """Record on the version how the wait ended, the state last."""
    platform.registry.tag_version(version, {BY: by, REASON: reason[:5000]})
    platform.registry.tag_version(version, {TAG: outcome})
    promotion.update_cards(platform, version)
    log.info("digits v%s is %s%s: %s", version, outcome, f" by {printable(by)}" if by else "", printable(reason))
