"""Why two runs differ, and whether it matters: their data, code, recipe and environment, and their answers on the same images."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from digits.data import datasets
from digits.data.datasets import Dataset, DatasetStore
from digits.images import Labels, Split
from models import provenance, runs
from models.model_store import ModelStore, VerifiedModel
from models.registry import RegistryWriter, flatten
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
        heads = {"A": [_head(self.a)], "B": [_head(self.b)]}
        return "\n".join(
            f"{title if number == 0 else '':<13}{line}"
            for title, lines in {**heads, **self.sections}.items()
            for number, line in enumerate(lines)
        )


@dataclass(frozen=True)
class Agreement:
    """On how many labelled images two models are right; only images that one of the two gets right tell them apart."""

    both_right: int
    only_a: int
    only_b: int
    both_wrong: int

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test, two-sided (Dietterich 1998)."""
        from scipy.stats import binomtest

        differing = self.only_a + self.only_b
        return float(binomtest(self.only_a, differing).pvalue) if differing else 1.0

    @property
    def sentence(self) -> str:
        """The counts, the p-value and what it means."""
        better = "A" if self.only_a > self.only_b else "B"
        means = f"{better} is better" if self.p_value <= SIGNIFICANCE else "no evidence that one is better"
        counts = f"both right {self.both_right:,}, only A {self.only_a:,}, only B {self.only_b:,}"
        test = f"p = {self.p_value:.3g} (exact McNemar, two-sided)"
        return f"{counts}, both wrong {self.both_wrong:,}; {test}: {means}"


def compare(registry: RegistryWriter, a: Run, b: Run, storage: DatasetStore, store: ModelStore) -> RunDiff:
    """Run A against run B; data sets are looked for in `storage`, models are fetched through `store`."""
    recipes, environments = (
        [runs.read_json(registry, run, name) for run in (a, b)] for name in ("recipe.json", "environment.json")
    )
    sections = {
        "data": _data(registry, a, b, storage),
        "code": differing_code(a.tags.get("git_commit"), b.tags.get("git_commit")) or [SAME],
        "recipe": differing(*recipes) or [SAME],
        "environment": differing(*environments) or [SAME],
        "weights": [_weights(a, b)],
        "figures": [_figure(name, a, b) for name in FIGURES if name in a.metrics and name in b.metrics],
        "answers": _answers(a, b, storage, store),
    }
    return RunDiff(a, b, sections)


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
    if before is None or now is None:
        missing = [side for side, commit in zip(sides, (before, now), strict=True) if commit is None]
        return [f"not recorded for {' and '.join(missing)}"]
    if before == now:
        return [f"both at {now[:8]} with uncommitted changes, which may differ"] if now.endswith("+") else []
    files = _changed_files(before.rstrip("+"), now.rstrip("+"))
    changed = f"{before[:8]} → {now[:8]}" + (f": {_listed(files)}" if files else "")
    uncommitted = [side for side, commit in zip(sides, (before, now), strict=True) if commit.endswith("+")]
    return [changed, *(f"{side} has uncommitted changes" for side in uncommitted)]


def differing_data(before: Dataset, now: Dataset) -> list[str]:
    """Which images and labels changed, in which split; images are compared by content, rows are counted from 0."""
    kept, removed, added = _match(_table(before), _table(now).add_suffix("_now"))
    relabelled = kept[kept.label != kept.label_now].sort_values(["split_now", "row_now"]).itertuples()
    moved = kept[kept.split != kept.split_now]
    changes = {
        "labels": [f"{row.split_now} image {row.row_now} is {row.label_now}, was {row.label}" for row in relabelled],
        "moved": _counted("from " + moved.split + " to " + moved.split_now),
        "only in A": _counted(removed.split),
        "only in B": _counted(added.split_now),
    }
    lines = [f"{change}: {_listed(found, '; ')}" for change, found in changes.items() if found]
    same = SAME if before.fingerprint == now.fingerprint else "the same images and labels in another order"
    return lines or [same]


def common(a: Split, b: Split) -> Split | None:
    """The images of `a` that stand in `b` under the same label; None when there are none."""
    known = set(zip(datasets.digests(b.images), b.labels, strict=True))
    shared = [pair in known for pair in zip(datasets.digests(a.images), a.labels, strict=True)]
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


def _data(registry: RegistryWriter, a: Run, b: Run, storage: DatasetStore) -> list[str]:
    """The images where both data sets are stored here, and otherwise what the runs recorded about them."""
    before, now = (run.tags.get("dataset", "–") for run in (a, b))
    if before == now:
        return [f"{SAME} ({now})"]
    try:
        stored = [datasets.load(storage, fingerprint) for fingerprint in (before, now)]
    except datasets.BadData as error:
        manifests = [runs.read_json(registry, run, "dataset.json") for run in (a, b)]
        kept = [{name: about.get(name) for name in ("source", "images")} for about in manifests]
        return [f"{before} → {now}", f"image by image they cannot be compared: {error}", *differing(*kept)]
    return [f"{before} → {now}", *differing_data(*stored)]


def _answers(a: Run, b: Run, storage: DatasetStore, store: ModelStore) -> list[str]:
    """The paired test, on the test images common to both."""
    unregistered = [run.title for run in (a, b) if run.version is None]
    if unregistered:
        return [f"cannot be compared: {' and '.join(unregistered)} became no version"]
    models = [store.fetch_version(str(run.version)) for run in (a, b)]
    images, what = _test_images(a, b, models, storage)
    if images is None:
        return ["cannot be compared: their test images have none in common"]
    a_digits, b_digits = (model.predict_proba(images.images).argmax(axis=1).astype(np.uint8) for model in models)
    counts = agreement(a_digits, b_digits, images.labels)
    return [f"on {len(images):,} {what}", counts.sentence]


def _test_images(a: Run, b: Run, models: list[VerifiedModel], storage: DatasetStore) -> tuple[Split | None, str]:
    """From the stored data sets, or from the samples kept with the versions where these are not here."""
    try:
        tests = [datasets.load(storage, run.tags["dataset"]).test for run in (a, b)]
        what = "test images" if a.tags["dataset"] == b.tags["dataset"] else "test images common to both data sets"
    except (datasets.BadData, KeyError):
        samples = [model.reference for model in models]
        tests = [Split(sample.images, sample.labels) for sample in samples]
        what = "test images kept with both versions"
    return common(*tests), what


def _changed_files(before: str, now: str) -> list[str]:
    """Files that differ between two commits; none where git or a commit is missing."""
    try:
        return provenance.git("diff", "--name-only", before, now, "--", *ROOMS).split()
    except (OSError, subprocess.SubprocessError):
        return []


def _table(dataset: Dataset) -> pd.DataFrame:
    """One row per image: the digest of its content, its split, its row there and its label."""
    tables = {
        split: pd.DataFrame({"image": datasets.digests(part.images), "label": part.labels})
        for split, part in dataset.splits().items()
    }
    return pd.concat(tables, names=["split", "row"]).reset_index()


def _match(before: pd.DataFrame, now: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The pairs of rows with the same image, and the rows of each table that have no partner.

    Of an image that a data set has several times, rows that agree in split and label are paired first.
    """
    pairs = []
    for alike in (["image", "split", "label"], ["image", "split"], ["image", "label"], ["image"]):
        alike_now = [f"{column}_now" for column in alike]
        before, now = (
            table.assign(nth=table.groupby(columns).cumcount())
            for table, columns in ((before, alike), (now, alike_now))
        )
        joined = before.reset_index().merge(
            now.reset_index(names="index_now"), left_on=[*alike, "nth"], right_on=[*alike_now, "nth"]
        )
        pairs.append(joined)
        before, now = before.drop(joined["index"]), now.drop(joined["index_now"])
    return pd.concat(pairs), before, now


def _counted(values: "pd.Series[str]") -> list[str]:
    return [f"{count:,} {value}" for value, count in values.value_counts().items()]


def _listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first few, and how many more there are."""
    more = [f"and {len(items) - SHOWN:,} more"] if len(items) > SHOWN else []
    return separator.join([*items[:SHOWN], *more])
