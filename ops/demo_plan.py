"""What `digits demo` will add to a platform, and whether it may: it says so before it begins."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from digits.data import datasets
from digits.data.datasets import Dataset
from digits.settings import Settings, local_url
from digits.storage import api_keys, ledger, predictions
from digits.storage.labels import AUDITOR
from models import approvals, recipes
from models.connections import Platform
from models.training import Recipe
from ops import background_training

CLIENT = "digits-demo"  # of all answers to the demo
REASON = "demo: "  # how the reasons of its promotions begin
# Answers of others below which a platform is new: someone has tried the page. With fewer, no drift report has a verdict.
MAX_TRIES = 99


@dataclass(frozen=True, eq=False)
class Plan:
    """The platform as the demo finds it, and what it will do there."""

    settings: Settings
    dataset: Dataset  # the current one
    champion: str | None  # version
    card: dict[str, Any]  # of the champion; empty without one
    others: int  # logged answers to others than the demo
    seed: int  # of the trainings: the number of demos before, so that each learns something new
    in_background: bool  # whether the platform trains in the background
    waiting: list[str]  # the versions that wait for approval

    @cached_property
    def recipes(self) -> list[Recipe]:
        """The recipes of the five projects that the platform grew out of."""
        reproduced = [preset.recipe for preset in recipes.RECIPES.values() if preset.reported != "ours"]
        return [recipe.model_copy(update={"seed": self.seed}) for recipe in reproduced]

    @property
    def source(self) -> str | None:
        """The SOURCE to train on; None, the current data set with all feedback, where it cannot be named."""
        return self.dataset.source if self.dataset.source in ("mnist", "bundled") else None

    @property
    def accuracy(self) -> float:
        """The champion's, on its own test images; 0 without one."""
        return float(self.card["metrics"]["test_accuracy"]) if self.champion else 0.0

    @property
    def refusal(self) -> str | None:
        """Why the demo keeps out; None where it may begin."""
        if self.waiting:
            versions = " and ".join(f"digits v{version}" for version in self.waiting)
            return (
                f"approval waits for {versions}, and a champion of the demo would end that; decide with `digits approve` first, "
                "or run `digits demo --force`"
            )
        if self.others <= MAX_TRIES:
            return None
        return (
            f"this platform has {self.others:,} answers of its own, and the demo would add its digits, labels and champions to them; "
            "start a platform for it with another DIGITS_HOME, or run `digits demo --force`"
        )

    @property
    def lines(self) -> list[str]:
        """What the demo is going to do, for a reader who sees the platform for the first time."""
        data, count = self.dataset, len(self.dataset.train) + len(self.dataset.validation)
        champion = f"now digits v{self.champion}, {self.card['recipe']['name']}" if self.champion else "now none"
        lines = [
            "A true story in seven chapters, about five minutes: five recipes are trained and the best one answers; then other",
            "people's handwriting arrives, monitoring raises the alarm, an auditor labels, and a retraining heals the platform.",
            "",
            f"It adds to {self.settings.home} and to the servers of the platform, for good:",
            f"- up to six trainings on {data.source} ({count:,} digits, {len(data.test):,} more for tests), each a run and a version in MLflow",
            f"- 35,000 to 47,000 answers to the client {CLIENT}, and 2,000 labels of an auditor",
            "- four reports in Evidently, and the runs of all flows in Prefect",
            f"- a new champion: the best of the five, later the healed version ({champion})",
        ]
        if self.settings.promotion == "ask":
            lines.append("DIGITS_PROMOTION is ask: the demo approves its own versions for you, and only these.")
        if self.in_background:
            recipe = self.settings.recipe
            lines.append(f"The training of {recipe} in the background stops meanwhile, and begins anew afterwards.")
        return lines


def read(platform: Platform) -> Plan:
    """Look at the platform; raises LookupError without a data set and PermissionError without the key of an auditor."""
    settings, current = platform.settings, datasets.current(platform.datasets)
    if current is None:
        raise LookupError("there is no data set yet; start the platform with `digits up`")
    _require_auditor(platform)
    champion = platform.models.registry.version()
    return Plan(
        settings=settings,
        dataset=datasets.load(platform.datasets, current),
        champion=champion,
        card=json.loads(platform.models.card(champion)) if champion else {},
        others=sum(count for name, count in predictions.counts_by_client(platform.engine).items() if not _is_own(name)),
        seed=sum(entry.reason.startswith(REASON) for entry in ledger.replacements(platform.engine)),
        in_background=background_training.is_running(settings),
        waiting=[version for version, _ in approvals.queue(platform.models.registry)],
    )


def _is_own(client: str) -> bool:
    """Whether this is the demo's client, also behind the name of an API key."""
    return client.rpartition("/")[2] == CLIENT


def _require_auditor(platform: Platform) -> None:
    """Only an auditor's labels measure accuracy and judge candidates; where keys are required, the key says who labels."""
    settings = platform.settings
    on_loopback = settings.service_url == local_url("127.0.0.1", settings.service_port)
    if settings.auth == "off" or (settings.auth == "loopback" and on_loopback):
        return
    key = api_keys.by_hash(platform.engine).get(api_keys.digest((settings.api_key or "").encode()))
    if key is None or key.name != AUDITOR or not (key.may("predict") and key.may("feedback")):
        have = f"DIGITS_API_KEY is the key {key.name!r}" if key else "DIGITS_API_KEY is no key of this platform"
        raise PermissionError(
            f"{have}, but the demo labels as an auditor; `digits keys create {AUDITOR} --role predict --role feedback` creates its key"
        )
