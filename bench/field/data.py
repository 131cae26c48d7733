"""Data sets that grow, and files of the inbox that are not what they should be: rows 2 and 13, on MNIST."""

import gzip
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from bench.field.scenario import Finding, Scenario
from digits.data import datasets, formats, inbox, near_duplicates, perturbations, sources, splitting
from digits.data.datasets import Dataset
from digits.images import Images, PredictProba, Split
from digits.settings import load_settings

ROWS = 10_000  # of the source that grows
FILE = 200  # images of a file of the inbox
BOMB_BYTES = 3_000_000_000


@cache
def mnist() -> Dataset:
    """MNIST, of DIGITS_MNIST."""
    settings = load_settings()
    return sources.read("mnist", mnist=settings.mnist, cache=settings.downloads)


# Row 2


def drawn_again(split: Split, seed: int = 0) -> tuple[Split, Split]:
    """Training and test images as they were divided before: a stratified drawing from all rows."""
    rng, test = np.random.default_rng(seed), np.zeros(len(split), bool)
    order = rng.permutation(len(split))
    for digit in range(10):
        own = order[split.labels[order] == digit]
        test[own[: round(0.15 * len(own))]] = True
    return splitting.pick(split, ~test), splitting.pick(split, test)


def by_content(split: Split) -> tuple[Split, Split]:
    """Training (with validation) and test images as they are divided now."""
    dataset = datasets.divide("a source", split, seed=0)
    return datasets.join(dataset.train, dataset.validation), dataset.test


def growth(repetitions: int) -> Finding:
    """A source of 10,000 rows grows by one: how many images of the new test part was the champion trained on?"""
    pool, rng = mnist().train, np.random.default_rng(0)
    leaked: dict[str, list[int]] = {"before": [], "now": []}
    sizes, rarest = [], []
    for _ in range(repetitions):
        rows = rng.choice(len(pool), ROWS + 1, replace=False)
        for name, divide in (("before", drawn_again), ("now", by_content)):
            learned, _ = divide(splitting.pick(pool, rows[1:]))
            _, test = divide(splitting.pick(pool, rows))
            leaked[name].append(int(np.isin(datasets.digests(test.images), datasets.digests(learned.images)).sum()))
        sizes.append(len(test))
        rarest.append(min(test.counts()))
    return Finding(
        f"{np.mean(leaked['before']):.0f} of {round(0.15 * ROWS)} test images had been trained on, in {repetitions} growths by one row",
        f"at most {max(leaked['now'])} had been",
        f"the test part has {min(sizes):,} to {max(sizes):,} images, the rarest digit at least {min(rarest)} (stratified: 1,500 and 135)",
        max(leaked["now"]) == 0,
    )


def _jpeg(image: Images, quality: int = 75) -> Images:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


COPIES: dict[str, Callable[[Images], Images]] = {
    "moved by a pixel": lambda image: np.roll(image, (1, -1), axis=(0, 1)),
    "JPEG of quality 75": _jpeg,
    "moved, JPEG of quality 50": lambda image: _jpeg(np.roll(image, (-1, 1), axis=(0, 1)), 50),
}


def copies(repetitions: int) -> Finding:
    """Copies of training images: how many are found, and how many of MNIST's test images are taken for copies."""
    data, rng = mnist(), np.random.default_rng(0)
    rows = rng.choice(len(data.train), 10 * repetitions, replace=False)
    found = {
        name: len(_near(np.stack([copy(image) for image in data.train.images[rows]]))) / len(rows)
        for name, copy in COPIES.items()
    }
    false = len(_near(data.test.images))
    return Finding(
        f"comparing bytes finds none of {len(rows):,} copies",
        "found: " + ", ".join(f"{share:.1%} {name}" for name, share in found.items()),
        f"{false} of {len(data.test):,} test images are taken for copies (counted, not removed)",
        min(found.values()) >= 0.98 and false <= 0.005 * len(data.test),
    )


def _near(images: Images) -> dict[int, int]:
    return near_duplicates.near_duplicates(images, mnist().train.images)


# Row 13


def shuffled(split: Split, rng: np.random.Generator) -> Split:
    """The labels in another order."""
    return Split(split.images, rng.permutation(split.labels))


def half_shuffled(split: Split, rng: np.random.Generator) -> Split:
    """The labels of the second half in another order."""
    half = len(split) // 2
    return Split(split.images, np.concatenate([split.labels[:half], rng.permutation(split.labels[half:])]))


def half_inverted(split: Split, rng: np.random.Generator) -> Split:
    """The images of a random half with dark ink."""
    inverted = rng.permutation(len(split)) < len(split) // 2
    return Split(np.where(inverted[:, None, None], 255 - split.images, split.images), split.labels)


def noise(split: Split, rng: np.random.Generator) -> Split:
    """Independent pixels with any value."""
    return Split(rng.integers(0, 256, split.images.shape, dtype=np.uint8), split.labels)


def framed_noise(split: Split, rng: np.random.Generator) -> Split:
    """Independent pixels where MNIST has its digits, with paper around them."""
    images = np.zeros_like(split.images)
    images[:, 4:24, 4:24] = rng.integers(0, 256, (len(split), 20, 20))
    return Split(images, split.labels)


def bundled(split: Split, rng: np.random.Generator) -> Split:
    """Digits of other writers, scanned by others: scikit-learn's."""
    return splitting.pick(bundled_digits(), rng.choice(len(bundled_digits()), len(split), replace=False))


@cache
def bundled_digits() -> Split:
    """All 1,797 of them."""
    data = sources.read("bundled", mnist=None, cache=Path())
    return datasets.join(data.train, data.validation, data.test)


def slanted(split: Split, rng: np.random.Generator) -> Split:
    """Digits that lean 25 degrees further to the right."""
    return Split(perturbations.slant(split.images, 25), split.labels)


def thick(split: Split, rng: np.random.Generator) -> Split:
    """Digits of a broad pen."""
    return Split(perturbations.thicken(split.images, 2), split.labels)


def as_they_are(split: Split, rng: np.random.Generator) -> Split:
    """Digits like those the champion learned from."""
    return split


BAD = (shuffled, half_shuffled, half_inverted, noise, framed_noise)
GOOD = (as_they_are, slanted, thick, bundled)


@cache
def champion() -> PredictProba:
    """`predict_proba` of the recipe `compact` on MNIST, as it would be served."""
    from models import candidates, export, onnx_model, recipes, training

    recipe = recipes.find("compact")
    trained = training.fit(recipe, candidates.split(mnist(), recipe))
    training.predict_proba(trained.model, mnist().test.images[:10])  # Keras exports only models that were called
    return onnx_model.load(export.to_onnx(trained.model)).predict_proba


def ingested(split: Split, predict_proba: PredictProba) -> Split | None:
    """What the inbox ingests of a file with these images; None where it rejects the file."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "file.npz", images=split.images, labels=split.labels)
        return inbox.read_inbox(Path(folder), predict_proba, settle_seconds=0).labelled


def accepted_whole(split: Split) -> bool:
    """Whether a file passes checks of the whole file alone, without the guard: its scale and the median of its border."""
    images = split.images
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    return bool(images.max() >= 64 and np.median(border) <= 127)


def files(repetitions: int) -> Finding:
    """Files with wrong labels or images, and files of new but right handwriting, beside a champion."""
    test, predict_proba, rng = mnist().test, champion(), np.random.default_rng(0)
    before, refused, kept = ({change.__name__: 0 for change in (*BAD, *GOOD)} for _ in range(3))
    for change in (*BAD, *GOOD):
        for _ in range(repetitions):
            split = change(splitting.pick(test, rng.choice(len(test), FILE, replace=False)), rng)
            before[change.__name__] += accepted_whole(split)
            usable = ingested(split, predict_proba)
            refused[change.__name__] += usable is None
            kept[change.__name__] += 0 if usable is None else len(usable)
    naive = ", ".join(f"{name} {before[name] / repetitions:.0%}" for name in before)
    told = ", ".join(f"{name} {refused[name] / repetitions:.0%}" for name in refused)
    lost = ", ".join(
        f"{name} {1 - kept[name] / repetitions / FILE:.2%}" for name in (change.__name__ for change in GOOD)
    )
    bad, good = ([refused[change.__name__] for change in changes] for changes in (BAD, GOOD))
    return Finding(
        f"accepted: {naive}",
        f"refused, of {repetitions} files of {FILE} images each: {told}",
        f"right rows that are in quarantine: {lost}",
        min(bad) == repetitions and max(good) == 0,
    )


def few_wrong_labels(repetitions: int) -> Finding:
    """Files in which 5 % of the labels are wrong: how many of these are in quarantine?"""
    test, predict_proba, rng = mnist().test, champion(), np.random.default_rng(0)
    wrong, right = [], []
    for _ in range(repetitions):
        split = splitting.pick(test, rng.choice(len(test), FILE, replace=False))
        false = np.arange(FILE) < FILE // 20
        labels = np.where(false, (split.labels + rng.integers(1, 10, FILE)) % 10, split.labels).astype(np.uint8)
        usable = ingested(Split(split.images, labels), predict_proba)
        out = (
            ~np.isin(datasets.digests(split.images), datasets.digests(usable.images)) if usable else np.ones(FILE, bool)
        )
        wrong.append(out[false].mean())
        right.append(out[~false].mean())
    return Finding(
        "all wrong labels are trained on",
        f"{np.mean(wrong):.1%} of the wrong labels are in quarantine, in {repetitions} files of {FILE}",
        f"{np.mean(right):.2%} of the right ones are, too: the champion's confident mistakes, which a person may confirm",
        float(np.mean(wrong)) >= 0.7 and float(np.mean(right)) <= 0.01,
    )


def blank_picture(_: int) -> Finding:
    """A folder of 200 pictures and a blank one."""
    with tempfile.TemporaryDirectory() as folder:
        for row, (image, label) in enumerate(zip(mnist().test.images[:200], mnist().test.labels[:200], strict=True)):
            path = Path(folder) / "scans" / str(label) / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        Image.new("L", (28, 28)).save(path.with_name("blank.png"))
        rows = sources.read_rows(Path(folder) / "scans")
        usable = inbox.read_inbox(Path(folder), settle_seconds=0).labelled
    n = len(usable or ())
    naive = f"{len(rows.unreadable)} unreadable picture of 201 rejects the folder"
    return Finding(naive, f"{n} of 201 are ingested", "", n == 200)


# Prints what became of the files, and the largest resident memory in MB before and after. (getrusage would begin with the parent's.)
READER = """
import json, re, sys
from pathlib import Path
from digits.data import inbox
def peak(): return int(re.search(r"VmHWM:\\s+([0-9]+)", Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
batch = inbox.read_inbox(Path(sys.argv[1]), limit_bytes=int(sys.argv[2]), settle_seconds=0)
print(json.dumps([batch.rejected.get("bomb.csv.gz", "ingested"), before, peak()]))
"""


def bomb(_: int) -> Finding:
    """A .csv.gz of 3 GB of text, read by a process of its own; without the limit, only a fifth of it."""
    row = b"1" + b",255" * 20 + b",0" * 764 + b"\n"
    member = gzip.compress(row * 10_000)
    n = BOMB_BYTES // (10_000 * len(row)) + 1
    naive_fate, naive_before, naive = _read_members(member, n // 5, 10**12)
    fate, before, peak = _read_members(member, n, formats.LIMIT_BYTES)
    return Finding(
        f"a fifth of {len(member) * n / 1e6:.0f} MB takes {naive - naive_before:,} MB of memory: {naive_fate}",
        f"all of it takes {peak - before} MB of memory, then: {fate}",
        "a .gz is decompressed twice",
        "bytes of content" in fate and peak - before < 100,
    )


def _read_members(member: bytes, n: int, limit_bytes: int) -> tuple[str, int, int]:
    """What became of a file of n equal gzip members, and the reader's memory before and after."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bomb.csv.gz").write_bytes(member * n)
        command = [sys.executable, "-c", READER, folder, str(limit_bytes)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    fate, before, peak = json.loads(done.stdout)
    return fate, before, peak


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(2, "a source grows by one row", growth),
    Scenario(2, "near copies of training images in the test part", copies),
    Scenario(13, "files with wrong labels, wrong images and new handwriting", files),
    Scenario(13, "a file with a few wrong labels", few_wrong_labels),
    Scenario(13, "a blank picture in a folder", blank_picture),
    Scenario(13, "a bomb in the inbox", bomb),
)
