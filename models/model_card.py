"""The model card of a version, which MLflow shows as its description (Mitchell et al. 2019, "Model cards for model reporting")."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from sqlalchemy import Engine

from digits import intervals
from digits.storage import ledger
from digits.storage.ledger import Entry
from models import gate
from models.digit_score import FLAGGED_SHARE
from models.model_store import ModelStore
from models.onnx_model import InvalidArtifact
from models.registry import RegistryWriter, flatten
from models.registry_reader import VersionNotFound

log = logging.getLogger("digits.model_card")

MAX_CHARACTERS = 5_000  # of a description in MLflow's database; PostgreSQL refuses longer ones
MAX_REASON = 200  # characters
MAX_DECISIONS = 4
# By the tag `approval`; the others say how a wait ended that another line tells.
APPROVALS = {"waiting": "Waits for approval", "declined": "Declined", "held": "Held"}
PURPOSE = (
    "Says which digit, 0 to 9, a raw `uint8` image of 28 × 28 pixels shows (0 is paper, 255 is ink), with ten probabilities "
    "and a score that tells digits from other images. Meant for single handwritten digits that are centred as in MNIST; "
    "the service brings pictures of any size into this form."
)


def update(registry: RegistryWriter, store: ModelStore, engine: Engine, version: str) -> None:
    """Describe the version with its figures and all that was decided about it until now; raises RegistryUnreachable or DatabaseUnavailable.

    A version that the registry no longer has, or whose card cannot be read, keeps its description.
    """
    try:
        card = json.loads(store.card(version))
    except (VersionNotFound, InvalidArtifact, ValueError) as error:
        log.warning("the description of digits v%s stays as it is: %s", version, error)
        return
    entries = ledger.replacements(engine)
    registry.describe(version, render(version, card, registry.version_tags(version), entries))


def render(version: str, card: Mapping[str, Any], tags: Mapping[str, str], entries: Sequence[Entry] = ()) -> str:
    """The model card as Markdown, of at most `MAX_CHARACTERS`; what the version's card does not say is left out."""
    # A new registry counts versions from 1 again; older entries are of others.
    created = datetime.fromisoformat(card["created_at"]) if "created_at" in card else None
    own = [entry for entry in entries if version in (entry.before, entry.after)]
    own = [entry for entry in own if created is None or entry.at >= created]
    sections = {
        "Purpose": PURPOSE,
        "Data": _data(card),
        "Training": _training(card),
        "Figures": _figures(card),
        "Per digit": _per_digit(card),
        "Corruptions": _corruptions(card),
        "Calibration": _calibration(card),
        "Limits": _limits(card),
        "Decisions": _decisions(version, tags, own),
    }
    head = [f"# digits v{version}", _status(version, tags, own)]
    parts = [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join(filter(None, [*head, *parts]))[:MAX_CHARACTERS]


def _status(version: str, tags: Mapping[str, str], entries: Sequence[Entry]) -> str:
    if entries:
        last = entries[-1]
        if last.after == version:
            return f"**Champion** since {_time(last)}."
        return f"**Former champion**: the {last.action} of v{last.after} replaced it at {_time(last)}."
    if tags.get("approval") in APPROVALS:
        return f"**{APPROVALS[tags['approval']]}**{_approval(tags)}."
    if tags.get("challenger") == "waiting":
        return f"**Undecided**: it waits for labelled traffic since {tags.get('challenger_since', 'its judgement')}."
    if "challenger" in tags:
        return f"**Not promoted**: it waited as a challenger ({tags['challenger']})."
    if tags.get("gate") == "promote":
        return "**Candidate**: the gate would promote it."
    return "**Held** by the gate." if "gate" in tags else "**Candidate**: the gate has not judged it."


def _approval(tags: Mapping[str, str]) -> str:
    """Since when a version waits for approval, or by whom and why that ended."""
    if tags["approval"] == "waiting":
        return f" since {tags.get('approval_since', 'its judgement')}"
    by, reason = (_cell(tags.get(name, "")) for name in ("approval_by", "approval_reason"))
    return (f" by {by}" if by else "") + (f": {reason}" if reason else "")


def _data(card: Mapping[str, Any]) -> str:
    data = card.get("data", {})
    counts = data.get("images", {})
    source = f"Source `{data['source']}`, data set" if data else "Data set"
    lines = [f"{source} `{card.get('dataset', 'unknown')}`."]
    if counts:
        images = ", ".join(f"{count:,} {part}" for part, count in counts.items())
        lines.append(f"Images: {images}.")
    if data.get("overlap_removed"):
        lines.append(f"{data['overlap_removed']:,} images that are also test images were left out.")
    if data.get("near_duplicates"):
        lines.append(f"{data['near_duplicates']:,} test images nearly equal an image of another part.")
    return " ".join(lines)


def _training(card: Mapping[str, Any]) -> str:
    recipe = {name: value for name, value in flatten(card.get("recipe", {})).items() if value is not None}
    metrics = card.get("metrics", {})
    costs = {"parameters": ",.0f", "train_seconds": ",.1f"}
    cost = ", ".join(
        f"{name.replace('_', ' ')} {metrics[name]:{form}}" for name, form in costs.items() if name in metrics
    )
    fields = ", ".join(
        f"{name.removeprefix('architecture.')} {value}"
        for name, value in recipe.items()
        if name != "name" and "augmentation" not in name
    )
    augmented = "; augmented in every epoch" if any("augmentation" in name for name in recipe) else ""
    return f"Recipe `{recipe.get('name', 'unknown')}`: {fields}{augmented}.{f' Cost: {cost}.' if cost else ''}"


def _figures(card: Mapping[str, Any]) -> str:
    metrics, count = card.get("metrics", {}), _test_images(card)
    rows = []
    if "test_accuracy" in metrics:
        low, high = (metrics.get(f"test_accuracy_{side}") for side in ("low", "high"))
        interval = f" ({low:.2%} to {high:.2%})" if low is not None and high is not None else ""
        rows.append(("accuracy (95 % interval)", f"{metrics['test_accuracy']:.2%}{interval}"))
    rows += [
        (title, f"{metrics[name]:{form}}")
        for name, title, form in (
            ("test_log_loss", "log loss, nats", ".4f"),
            ("test_ece", "expected calibration error", ".4f"),
            ("corruption_accuracy", "mean accuracy on corruptions", ".2%"),
        )
        if name in metrics
    ]
    title = f"{count:,} test images" if count else "test images"
    return _table((title, ""), rows)


def _per_digit(card: Mapping[str, Any]) -> str:
    counts, metrics = card.get("data", {}).get("images_per_digit", {}).get("test", []), card.get("metrics", {})
    rows = []
    for digit, count in enumerate(counts):
        if count and f"recall_{digit}" in metrics:
            recall = intervals.wilson(round(metrics[f"recall_{digit}"] * count), count)
            precision = f"{metrics[f'precision_{digit}']:.2%}" if f"precision_{digit}" in metrics else "–"
            rows.append(
                (str(digit), f"{count:,}", f"{recall.value:.2%} ({recall.low:.2%} to {recall.high:.2%})", precision)
            )
    return _table(("digit", "images", "recall (95 % interval)", "precision"), rows)


def _corruptions(card: Mapping[str, Any]) -> str:
    suite = _corruption_accuracies(card)
    return _table(("the same images", "accuracy"), [(name, f"{value:.2%}") for name, value in suite.items()])


def _calibration(card: Mapping[str, Any]) -> str:
    lines, conformal, metrics = [], card.get("conformal", {}), card.get("metrics", {})
    if "temperature" in metrics:
        lines.append(
            f"Probabilities are scaled with the temperature {metrics['temperature']:.3f}, fitted on validation images."
        )
    if conformal.get("images"):
        lines.append(
            f"Prediction sets hold the true digit for {conformal['coverage']:.1%} of the images of each digit, calibrated on "
            f"{conformal['images']:,}; answers below {conformal['uncertain_below']:.0%} count as uncertain."
        )
    if card.get("digit_threshold") is not None:
        lines.append(
            f"The threshold for images that are no digit flags {FLAGGED_SHARE:.1%} of digits from the same source."
        )
    return " ".join(lines)


def _limits(card: Mapping[str, Any]) -> str:
    recalls = {name: value for name, value in card.get("metrics", {}).items() if name.startswith("recall_")}
    suite, lines = _corruption_accuracies(card), []
    if recalls:
        worst = min(recalls, key=lambda name: recalls[name])
        lines.append(f"- It misses {worst[-1]} most often: {1 - recalls[worst]:.2%} of them.")
    if suite:
        weakest = min(suite, key=lambda name: suite[name])
        lines.append(f"- Of the corruptions, {weakest} harms it most: {suite[weakest]:.2%} are right.")
    lines.append(
        "- All figures are of images from the source above; the accuracy on other writers and pictures is what monitoring measures."
    )
    return "\n".join(lines)


def _decisions(version: str, tags: Mapping[str, str], entries: Sequence[Entry]) -> str:
    lines = []
    if "gate" in tags:
        against = f" beside v{tags['gate_champion']}" if tags.get("gate_champion") else ""
        lines.append(f"Gate{against}: **{tags['gate']}**. {_cell(tags.get('gate_reasons', ''))}")
        with suppress(ValueError, KeyError, TypeError):
            found = gate.table(json.loads(tags["gate_evidence"]))
            if found:
                lines.append(_table(tuple(found[0]), [tuple(row.values()) for row in found]))
    if "approval" in tags:
        lines.append(f"Approval: {tags['approval']}{_approval(tags)}")
    lines += [
        f"- {_time(entry)}: {entry.action} of v{entry.after} (before: {_before(entry)}) by {_cell(entry.by)}: {_cell(entry.reason)}"
        for entry in entries[-MAX_DECISIONS:]
    ]
    return "\n\n".join(lines)


def _before(entry: Entry) -> str:
    return f"v{entry.before}" if entry.before else "none"


def _time(entry: Entry) -> str:
    return f"{entry.at:%Y-%m-%d %H:%M} UTC"


def _test_images(card: Mapping[str, Any]) -> int | None:
    return card.get("data", {}).get("images", {}).get("test")


def _corruption_accuracies(card: Mapping[str, Any]) -> dict[str, float]:
    found = {
        name.removeprefix("corruption_"): value
        for name, value in card.get("metrics", {}).items()
        if name.startswith("corruption_")
    }
    return {name.replace("_", " "): value for name, value in found.items() if name != "accuracy"}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    # MLflow's UI puts no space between columns.
    lines = [f"| {' &emsp;| '.join(row)} |" for row in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines) if len(lines) > 2 else ""


def _cell(text: str) -> str:
    """A text of a person or a tag, as one line without marks of Markdown tables or HTML."""
    line = " ".join(text.split()).replace("|", "/").replace("<", "&lt;")
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]} …"
