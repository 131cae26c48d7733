"""The inbox: a folder for labelled files; the next retraining ingests each of them once, or rejects it with the reason.

A file stays until the data set with its images is stored and current, and only then moves to `taken/`. After a crash in between
it is read again; `datasets.extend` leaves out images that a data set already holds, so the result is the same data set.
"""

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

from digits.data import datasets, sources
from digits.data.datasets import BadData
from digits.images import Split

log = logging.getLogger(__name__)

OWN_FOLDERS = ("taken", "rejected")
# Endings of the names that copying programs use until a file is complete.
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".filepart", "~")

Stamp = frozenset[tuple[str, int, int]]  # path, bytes and modification time in nanoseconds of every file


@dataclass(frozen=True)
class InboxBatch:
    """The images of all valid files together, and the fate of each file."""

    labelled: Split | None
    stamps: dict[str, Stamp] = field(default_factory=dict)  # of each valid file or folder at the time of reading
    rejected: dict[str, str] = field(default_factory=dict)  # the reason for each other one


def read_inbox(inbox: Path, settle_seconds: float = 1.0) -> InboxBatch:
    """Read every labelled file and folder; valid ones stay where they are, others move to `rejected/`.

    Ignored are hidden and unfinished names, empty folders, and files that changed within the last `settle_seconds` or while
    they were read.
    """
    splits: list[Split] = []
    stamps: dict[str, Stamp] = {}
    rejected: dict[str, str] = {}
    for path in sorted(inbox.iterdir()) if inbox.is_dir() else []:
        stamp = _stamp(path)
        if path.name in OWN_FOLDERS or not _is_settled(path.name, stamp, settle_seconds):
            continue
        try:
            split = sources.read_labelled(path)
        except BadData as error:
            if _stamp(path) == stamp:
                rejected[path.name] = str(error)
                _reject(path, str(error))
            continue
        if _stamp(path) == stamp:
            splits.append(split)
            stamps[path.name] = stamp
    return InboxBatch(datasets.join(*splits) if splits else None, stamps, rejected)


def archive(batch: InboxBatch, inbox: Path) -> None:
    """Move the ingested files to `taken/`; a file that has changed since stays for the next retraining."""
    for name, stamp in batch.stamps.items():
        if _stamp(inbox / name) == stamp:
            (inbox / name).rename(_unused(inbox / "taken", name))
            log.info("ingested %s", name)


def _stamp(path: Path) -> Stamp:
    """Empty for an empty folder and a missing file."""
    stamp = set()
    for file in chain([path], path.rglob("*")):
        # Its writer may have renamed it.
        with suppress(FileNotFoundError):
            if file.is_file():
                status = file.stat()
                stamp.add((file.relative_to(path.parent).as_posix(), status.st_size, status.st_mtime_ns))
    return frozenset(stamp)


def _is_settled(name: str, stamp: Stamp, settle_seconds: float) -> bool:
    """Whether no file in it is hidden or being written. A time in the future means a wrong clock, not a file being written."""
    names = [name, *(file for file, _, _ in stamp)]
    if not stamp or name.startswith(".") or any(name.lower().endswith(UNFINISHED) for name in names):
        return False
    latest = max(changed_ns for _, _, changed_ns in stamp) / 1e9
    return abs(time.time() - latest) >= settle_seconds


def _reject(path: Path, reason: str) -> None:
    """Move a file to `rejected/`, its reason first: after a crash in between the file is rejected again."""
    target = _unused(path.parent / "rejected", path.name)
    target.with_name(f"{target.name}.reason.txt").write_text(f"{reason}\n")
    path.rename(target)
    log.warning("rejected %s: %s", path.name, reason)


def _unused(folder: Path, name: str) -> Path:
    """A path in the folder that does not exist: `june.csv`, then `june-2.csv`."""
    folder.mkdir(exist_ok=True)
    stem, dot, suffix = name.partition(".")
    names = chain([name], (f"{stem}-{number}{dot}{suffix}" for number in count(2)))
    return next(folder / name for name in names if not (folder / name).exists())
