"""Why two runs differ, and whether it matters: their data, code, recipe and environment, and their answers on the same images."""

import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from digits.data import datasets
from digits.data.datasets import Dataset, Storage
from digits.images import Labels, Split
from models import gate, runs
from models.model_store import ModelStore, VerifiedModel
from models.recipes import flatten
from models.registry import RegistryWriter
from models.runs import Run

SHOWN = 5  # labels or files named one by one
SIGNIFICANCE = 0.05  # two-sided, as the 95 % of the intervals
FIGURES = ("test_accuracy", "test_log_loss", "test_ece", "corruption_accuracy", "parameters", "train_seconds")
ROOMS = ("digits", "models", "flows", "uv.lock")  # the code that decides what a training gives
SAME = "the same"


@dataclass(frozen=True)
class RunDiff:
    """Everything that differs between run A and run B."""

    a: Run
    b: Run
    sections: dict[str, list[str]]  # lines by title

    @property
    def text(self) -> str:
        """A title and its lines after the other."""
        heads = {"A": [_head(self.a)], "B": [_head(self.b)]}
        return "\n".join(
            f"{title if number == 0 else '':<13}{line}"
            for title, lines in {**heads, **self.sections}.items()
            for number, line in enumerate(lines)
        )


@dataclass(frozen=True)
class Agreement:
    """Two models on the same labelled images."""

    both_right: int
    only_a: int  # images that only A gets right
    only_b: int
    both_wrong: int

    @property
    def n(self) -> int:
        return self.both_right + self.only_a + self.only_b + self.both_wrong

    @property
    def p_value(self) -> float:
        """Exact McNemar, two-sided: only images that exactly one of the two gets right tell them apart (Dietterich 1998)."""
        return min(1.0, 2 * gate.sign_test(max(self.only_a, self.only_b), min(self.only_a, self.only_b)))

    @property
    def sentence(self) -> str:
        """The counts, the p-value and what it means."""
        better = "A" if self.only_a > self.only_b else "B"
        means = f"{better} is better" if self.p_value <= SIGNIFICANCE else "no evidence that one is better"
        return (
            f"both right {self.both_right:,}, only A {self.only_a:,}, only B {self.only_b:,}, both wrong {self.both_wrong:,}; "
            f"p = {self.p_value:.3g} (exact McNemar, two-sided): {means}"
        )


class Place(NamedTuple):
    """Where an image stands in a data set, and under which label."""

    split: str
    row: int
    label: int


def compare(registry: RegistryWriter, a: Run, b: Run, storage: Storage, store: ModelStore) -> RunDiff:
    """Run A against run B; data sets are looked for in `storage`, models are fetched through `store`."""
    recipes, environments = (
        [runs.read_json(registry, run, name) for run in (a, b)] for name in ("recipe.json", "environment.json")
    )
    return RunDiff(
        a,
        b,
        {
            "data": _data(registry, a, b, storage),
            "code": differing_code(a.tags.get("git_commit"), b.tags.get("git_commit")) or [SAME],
            "recipe": differing(*recipes) or [SAME],
            "environment": differing(*environments) or [SAME],
            "weights": [_weights(a, b)],
            "figures": [_figure(name, a, b) for name in FIGURES if name in a.metrics and name in b.metrics],
            "answers": _answers(a, b, storage, store),
        },
    )


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`field: before → now` for every field that differs, nested ones joined by a dot; what one side lacks is `–`."""
    before, now = flatten(before), flatten(now)
    return [
        f"{name}: {before.get(name, '–')} → {now.get(name, '–')}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name, "–") != now.get(name, "–")
    ]


def differing_code(before: str | None, now: str | None, sides: tuple[str, str] = ("A", "B")) -> list[str]:
    """What tells two commits apart, each with a `+` where files differed from it; empty when they are surely the same."""
    commits = dict(zip(sides, (before, now), strict=True))
    if before is None or now is None:
        return ["not recorded for " + " and ".join(side for side, commit in commits.items() if commit is None)]
    if before == now:
        uncertain = f"both at {now[:8]} with changes that were not committed: it may differ"
        return [uncertain] if now.endswith("+") else []
    files = _changed_files(before.rstrip("+"), now.rstrip("+"))
    about = f": {_listed(files)}" if files else ""
    loose = [
        f"{side} has changes that were not committed" for side, commit in commits.items() if str(commit).endswith("+")
    ]
    return [f"{before[:8]} → {now[:8]}{about}", *loose]


def differing_data(before: Dataset, now: Dataset) -> list[str]:
    """Which images and labels changed, in which split; images are compared by content, rows are counted from 0."""
    places, places_now = _places(before), _places(now)
    pairs = [
        pair
        for key in dict.fromkeys([*places_now, *places])
        if places.get(key) != places_now.get(key)
        for pair in _pair_up(list(places.get(key, [])), list(places_now.get(key, [])))
    ]
    kept = [(old, new) for old, new in pairs if old and new]
    relabelled = [(old, new) for old, new in kept if old.label != new.label]
    moved = Counter(f"from {old.split} to {new.split}" for old, new in kept if old.split != new.split)
    removed = Counter(old.split for old, new in pairs if old and not new)
    added = Counter(new.split for old, new in pairs if new and not old)
    lines = [
        *([_relabelled(relabelled)] if relabelled else []),
        *([f"{_images(moved)} moved: {_counted(moved)}"] if moved else []),
        *([f"{_images(removed)} only in A: {_counted(removed)}"] if removed else []),
        *([f"{_images(added)} only in B: {_counted(added)}"] if added else []),
    ]
    return lines or (
        [SAME] if before.fingerprint == now.fingerprint else ["the same images and labels in another order"]
    )


def common(a: Split, b: Split) -> Split | None:
    """The images of `a` that stand in `b` under the same label; None when there are none."""
    known = {(image.tobytes(), int(label)) for image, label in zip(b.images, b.labels, strict=True)}
    shared = [(image.tobytes(), int(label)) in known for image, label in zip(a.images, a.labels, strict=True)]
    return Split(a.images[shared], a.labels[shared]) if any(shared) else None


def agreement(a: Labels, b: Labels, labels: Labels) -> Agreement:
    """The counts of two models' digits, all of shape (n,)."""
    right_a, right_b = a == labels, b == labels
    counts = (right_a & right_b, right_a & ~right_b, ~right_a & right_b, ~right_a & ~right_b)
    return Agreement(*(int(count.sum()) for count in counts))


def _head(run: Run) -> str:
    return f"{run.title}, {run.tags.get('recipe', '–')}, {run.started_at:%Y-%m-%d %H:%M} UTC"


def _figure(name: str, a: Run, b: Run) -> str:
    before, now = f"{a.metrics[name]:.6g}", f"{b.metrics[name]:.6g}"
    return f"{name}: {before} → {now}" if before != now else f"{name}: {now}"


def _weights(a: Run, b: Run) -> str:
    before, now = a.tags.get("weights_hash"), b.tags.get("weights_hash")
    if before is None or now is None:
        return "not recorded"
    return "identical" if before == now else "different"


def _data(registry: RegistryWriter, a: Run, b: Run, storage: Storage) -> list[str]:
    """The images where both data sets are stored here, and otherwise what the runs recorded about them."""
    before, now = (run.tags.get("dataset", "–") for run in (a, b))
    if before == now:
        return [f"{SAME} ({now})"]
    try:
        stored = [datasets.load(storage, fingerprint) for fingerprint in (before, now)]
    except datasets.BadData as error:
        manifests = [runs.read_json(registry, run, "dataset.json") for run in (a, b)]
        kept = [{name: about.get(name) for name in ("source", "images", "checksum")} for about in manifests]
        return [f"{before} → {now}", f"image by image they cannot be compared: {error}", *differing(*kept)]
    return [f"{before} → {now}", *differing_data(*stored)]


def _answers(a: Run, b: Run, storage: Storage, store: ModelStore) -> list[str]:
    """The paired test, on the test images common to both."""
    unregistered = [run.title for run in (a, b) if run.version is None]
    if unregistered:
        return [f"cannot be compared: {' and '.join(unregistered)} became no version"]
    models = [store.fetch_version(str(run.version)) for run in (a, b)]
    images, what = _test_images(a, b, models, storage, store)
    if images is None:
        return ["cannot be compared: their test images have none in common"]
    a_digits, b_digits = (model.predict_proba(images.images).argmax(axis=1).astype(np.uint8) for model in models)
    counts = agreement(a_digits, b_digits, images.labels)
    return [f"on {counts.n:,} {what}", counts.sentence]


def _test_images(
    a: Run, b: Run, models: list[VerifiedModel], storage: Storage, store: ModelStore
) -> tuple[Split | None, str]:
    """From the stored data sets, or from the samples kept with the versions where these are not here."""
    try:
        tests = [datasets.load(storage, run.tags["dataset"]).test for run in (a, b)]
        what = "test images" if a.tags["dataset"] == b.tags["dataset"] else "test images common to both data sets"
    except (datasets.BadData, KeyError):
        samples = [store.reference(model) for model in models]
        tests = [Split(sample.images, sample.labels) for sample in samples]
        what = "test images kept with both versions"
    return common(*tests), what


def _changed_files(before: str, now: str) -> list[str]:
    """Files that differ between two commits; none where git or a commit is not at hand."""
    command = ["git", "diff", "--name-only", before, now, "--", *ROOMS]
    root = Path(__file__).parent.parent
    try:
        found = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.split()


def _places(dataset: Dataset) -> dict[bytes, list[Place]]:
    """Where each image stands, by its bytes."""
    places: dict[bytes, list[Place]] = defaultdict(list)
    for name, split in dataset.splits().items():
        for row, (image, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
            places[image.tobytes()].append(Place(name, row, label))
    return places


def _pair_up(before: list[Place], now: list[Place]) -> list[tuple[Place | None, Place | None]]:
    """The places of one image then and now: the likeliest pairs first, what is left over alone."""
    pairs: list[tuple[Place | None, Place | None]] = []
    for likeness in (("split", "label"), ("split",), ("label",), ()):
        for new in list(now):
            old = next(
                (old for old in before if all(getattr(old, name) == getattr(new, name) for name in likeness)), None
            )
            if old is not None:
                before.remove(old)
                now.remove(new)
                pairs.append((old, new))
    return [*pairs, *((old, None) for old in before), *((None, new) for new in now)]


def _relabelled(pairs: list[tuple[Place, Place]]) -> str:
    """`1 label differs: train image 17 is 4, was 9`."""
    ordered = sorted(pairs, key=lambda pair: pair[1])
    told = [f"{new.split} image {new.row} is {new.label}, was {old.label}" for old, new in ordered]
    return f"{len(pairs):,} label{'s differ' if len(pairs) > 1 else ' differs'}: {_listed(told, '; ')}"


def _images(counts: Counter[str]) -> str:
    return f"{counts.total():,} image{'s' if counts.total() > 1 else ''}"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _listed(words: Iterable[str], separator: str = ", ") -> str:
    """The first few, and how many more there are."""
    words = list(words)
    more = [f"and {len(words) - SHOWN:,} more"] if len(words) > SHOWN else []
    return separator.join([*words[:SHOWN], *more])
