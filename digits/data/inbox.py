"""The inbox: labelled files dropped into a folder, taken in once by the next retraining, or rejected with the reason.

Reading and moving are apart: a file stays until the data set that holds its images is stored and current, and only then moves
to `taken/`. After a crash in between it is read again, and since `datasets.extend` leaves out what a data set already holds,
the second time ends in the same data set.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

from digits.data import datasets, sources
from digits.data.datasets import BadData
from digits.images import Split

log = logging.getLogger(__name__)

OWN_FOLDERS = ("taken", "rejected")
UNFINISHED = (
    ".part",
    ".partial",
    ".tmp",
    ".crdownload",
    ".filepart",
    "~",
)  # names that copying programs give meanwhile

Stamp = frozenset[tuple[str, int, int]]  # path, bytes and time of change in nanoseconds of every file


@dataclass(frozen=True)
class InboxBatch:
    """What was read from the inbox: the images of all good files together, and what became of each file."""

    labelled: Split | None
    stamps: dict[str, Stamp] = field(default_factory=dict)  # of each good file or folder as it was read
    rejected: dict[str, str] = field(default_factory=dict)  # the reason of each bad one

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.stamps)


def read_inbox(inbox: Path, settle_seconds: float = 1.0) -> InboxBatch:
    """Reads every labelled file and folder; good ones stay where they are, bad ones move to `rejected/`.

    Left alone: hidden and unfinished names, empty folders, and what changed within the last `settle_seconds` or while it
    was read.
    """
    splits: list[Split] = []
    stamps: dict[str, Stamp] = {}
    rejected: dict[str, str] = {}
    for path in _waiting(inbox):
        stamp = _stamp(path)
        if not _settled(stamp, settle_seconds):
            continue
        try:
            split, reason = sources.read_labelled(path), ""
        except BadData as error:
            split, reason = None, str(error)
        if _stamp(path) != stamp:
            continue
        if split is None:
            _reject(path, reason)
            rejected[path.name] = reason
        else:
            splits.append(split)
            stamps[path.name] = stamp
    return InboxBatch(datasets.join(*splits) if splits else None, stamps, rejected)


def archive(taken: InboxBatch, inbox: Path) -> None:
    """Moves what was read to `taken/`; a file that changed since then stays, to be read by the next retraining."""
    for name, stamp in taken.stamps.items():
        if _stamp(inbox / name) == stamp:
            (inbox / name).rename(_free(inbox / "taken", name))
            log.info("took in %s", name)


def _waiting(inbox: Path) -> list[Path]:
    found = sorted(inbox.iterdir()) if inbox.is_dir() else []
    return [path for path in found if path.name not in OWN_FOLDERS and not _unfinished(path.name)]


def _unfinished(name: str) -> bool:
    return name.startswith(".") or name.lower().endswith(UNFINISHED)


def _stamp(path: Path) -> Stamp:
    """Empty for an empty folder and for what is gone."""
    return frozenset(_entries(path))


def _entries(path: Path) -> Iterator[tuple[str, int, int]]:
    for file in chain([path], path.rglob("*")):
        try:
            about = file.stat()
        except FileNotFoundError:  # renamed by whoever writes it
            continue
        if file.is_file():
            yield file.relative_to(path.parent).as_posix(), about.st_size, about.st_mtime_ns


def _settled(stamp: Stamp, settle_seconds: float) -> bool:
    """Whether nothing in it is being written. A time in the future is a wrong clock, not a file being written."""
    if not stamp or any(name.lower().endswith(UNFINISHED) for name, _, _ in stamp):
        return False
    youngest = max(changed_ns for _, _, changed_ns in stamp) / 1e9
    return abs(time.time() - youngest) >= settle_seconds


def _reject(path: Path, reason: str) -> None:
    """The reason first: a crash in between leaves the file to be rejected again."""
    target = _free(path.parent / "rejected", path.name)
    target.with_name(f"{target.name}.reason.txt").write_text(f"{reason}\n")
    path.rename(target)
    log.warning("rejected %s: %s", path.name, reason)


def _free(folder: Path, name: str) -> Path:
    """A path in the folder that is not taken: `june.csv`, then `june-2.csv`."""
    folder.mkdir(exist_ok=True)
    stem, dot, suffix = name.partition(".")
    names = chain([name], (f"{stem}-{number}{dot}{suffix}" for number in count(2)))
    return next(folder / free for free in names if not (folder / free).exists())
