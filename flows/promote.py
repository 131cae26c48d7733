"""A promotion by hand, and what follows any promotion: the anchor, and what traffic is normal for the version."""

from datetime import UTC, datetime

from models.connections import Platform
from monitoring import baseline


def by_hand(platform: Platform, version: str, reason: str) -> None:
    """Make the version the champion as a person decided; raises as `models.promotion.promote` does."""
    from models import challengers, promotion

    recorded = promotion.promote(platform, version, reason)
    settle(platform, str(recorded.after), recorded.before)
    challengers.appoint(platform.registry, platform.models, datetime.now(UTC))


def settle(platform: Platform, version: str, replaced: str | None) -> None:
    """Pin the first champion's anchor, record the baseline of a version that has just become the champion, and close what waited for it."""
    from models import approvals, evaluation_sets

    evaluation_sets.pin_first_anchor(platform.models, platform.engine)
    baseline.at_promotion(platform.engine, version, replaced)
    approvals.review(platform)
