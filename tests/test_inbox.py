"""Files dropped into the inbox are taken in once, whatever happens on the way, and bad ones are set aside with the reason."""

import contextlib
import gzip
import io
import os
import shutil
import socket
import threading
import time
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import digit_data
import numpy as np
import pytest
from PIL import Image

from digits import files
from digits.data import datasets, inbox, sources
from digits.data.datasets import Dataset
from digits.data.formats import Rows
from digits.images import Split

read_now = partial(inbox.read_inbox, settle_seconds=0)


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return sources.read("bundled", mnist=None, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def drop(tmp_path: Path, bundled: Dataset) -> Callable[..., Split]:
    """Puts new images into the inbox under a name, and gives them back: bundled digits mirrored, so that none is known."""
    folder = tmp_path / "inbox"
    folder.mkdir()

    def put(name: str, start: int = 0, stop: int = 5) -> Split:
        split = Split(bundled.train.images[start:stop, :, ::-1], bundled.train.labels[start:stop])
        write(folder / name, split)
        return split

    return put


def write(path: Path, split: Split) -> None:
    if path.suffix == ".npz":
        np.savez(path, images=split.images, labels=split.labels)
    elif path.suffix in (".csv", ".gz"):
        header = ",".join(["label", *(f"pixel{pixel}" for pixel in range(784))])
        table = np.column_stack([split.labels, split.images.reshape(-1, 784)])
        np.savetxt(path, table, "%d", ",", header=header, comments="")  # gzips by itself what ends in .gz
    else:
        for row, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            (path / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path / str(label) / f"{row:03}.png")


def pairs(*splits: Split | None) -> Counter[tuple[bytes, int]]:
    assert None not in splits
    return digit_data.pairs(*filter(None, splits))


def retrain(folder: Path, store: Path, die_after: int = 9) -> None:
    """The steps of a retraining that concern the inbox; `die_after` leaves off after so many of them."""
    before = datasets.load(store, str(datasets.current(store)))
    taken = read_now(folder)
    after = before
    if taken.labelled is not None:
        after = datasets.extend(before, taken.labelled, validation_fraction=0.2, seed=0)
    steps: list[Callable[[], object]] = [
        lambda: datasets.save(after, store),
        lambda: datasets.set_current(store, after.fingerprint),
        lambda: inbox.archive(taken, folder),
    ]
    for step in steps[:die_after]:
        step()


def test_all_good_files_come_together(tmp_path: Path, drop: Callable[..., Split]) -> None:
    dropped = [
        drop("a.csv", 0, 3),
        drop("b.csv.gz", 3, 5),
        drop("c.npz", 5, 6),
        drop("d", 6, 20),
    ]
    taken = read_now(tmp_path / "inbox")
    assert pairs(taken.labelled) == pairs(datasets.join(*dropped))
    assert tuple(taken.stamps) == ("a.csv", "b.csv.gz", "c.npz", "d")
    assert taken.rejected == {}
    assert len(list((tmp_path / "inbox").iterdir())) == 4  # reading moves nothing


def test_idx_folders_and_keras_files_count_with_both_parts(
    tmp_path: Path, drop: Callable[..., Split], bundled: Dataset
) -> None:
    first, second = drop("a.npz", 0, 5), drop("b.npz", 5, 9)
    arrays = {"x_train": first.images, "y_train": first.labels, "x_test": second.images, "y_test": second.labels}
    (tmp_path / "inbox" / "b.npz").unlink()
    np.savez(tmp_path / "inbox" / "a.npz", **arrays)  # type: ignore[arg-type]
    assert pairs(read_now(tmp_path / "inbox").labelled) == pairs(datasets.join(first, second))


def test_what_was_read_moves_to_taken(tmp_path: Path, drop: Callable[..., Split]) -> None:
    folder = tmp_path / "inbox"
    drop("june.csv")
    drop("pictures")
    inbox.archive(read_now(folder), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["taken"]
    assert sorted(path.name for path in (folder / "taken").iterdir()) == ["june.csv", "pictures"]
    assert read_now(folder) == inbox.InboxBatch(None)
    drop("june.csv", 5, 9)
    inbox.archive(read_now(folder), folder)
    assert sorted(path.name for path in (folder / "taken").iterdir()) == ["june-2.csv", "june.csv", "pictures"]


def test_a_bad_file_is_set_aside_with_the_reason(tmp_path: Path, drop: Callable[..., Split]) -> None:
    folder = tmp_path / "inbox"
    good = drop("good.csv")
    (folder / "bad.csv").write_text((folder / "good.csv").read_text().replace("\n", "\n300", 1))
    (folder / "notes.txt").write_text("please take these in")
    drop("scans")
    (folder / "scans" / "5" / "torn.png").parent.mkdir(exist_ok=True)
    (folder / "scans" / "5" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    taken = read_now(folder)
    assert tuple(taken.stamps) == ("good.csv",) and pairs(taken.labelled) == pairs(good)
    assert set(taken.rejected) == {"bad.csv", "notes.txt", "scans"}
    assert sorted(path.name for path in folder.iterdir()) == ["good.csv", "rejected"]
    rejected = folder / "rejected"
    for name, reason in taken.rejected.items():
        assert (rejected / name).exists()
        assert (rejected / f"{name}.reason.txt").read_text() == reason + "\n"
    label = f"300{good.labels[0]}"
    assert taken.rejected["bad.csv"] == (
        "bad.csv: 1 of 5 rows are unusable, a file may have 10% of them; the first: "
        f"row 1 (line 2) has the label '{label}', expected a whole number 0 to 9"
    )
    assert taken.rejected["notes.txt"].startswith("notes.txt is in no known format; give")
    assert "the first: 5/torn.png is not a readable picture of a digit: " in taken.rejected["scans"]
    assert read_now(folder).rejected == {}


def test_a_second_bad_file_of_the_same_name_does_not_replace_the_first(tmp_path: Path) -> None:
    for text in ("one", "two"):
        (tmp_path / "bad.csv").write_text(text)
        read_now(tmp_path)
    rejected = tmp_path / "rejected"
    assert (rejected / "bad.csv").read_text() == "one" and (rejected / "bad-2.csv").read_text() == "two"
    assert "'two'" in (rejected / "bad-2.csv.reason.txt").read_text()


def test_a_rejection_cut_short_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Path) -> None:
        raise KeyboardInterrupt

    (tmp_path / "bad.csv").write_text("one")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            read_now(tmp_path)
    assert (tmp_path / "bad.csv").exists()
    read_now(tmp_path)
    assert sorted(path.name for path in (tmp_path / "rejected").iterdir()) == ["bad.csv", "bad.csv.reason.txt"]


@pytest.mark.parametrize(
    "name", [".hidden.csv", "scans.part", "new.csv.part", "new.csv.tmp", "new.npz.crdownload", "new.csv~"]
)
def test_unfinished_names_are_left(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("half a tab")
    assert read_now(tmp_path) == inbox.InboxBatch(None)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_in_which_a_file_is_unfinished_is_left(tmp_path: Path, drop: Callable[..., Split]) -> None:
    drop("scans")
    unfinished = next((tmp_path / "inbox" / "scans").iterdir()) / "last.png.part"
    unfinished.write_bytes(b"")
    assert read_now(tmp_path / "inbox") == inbox.InboxBatch(None)
    unfinished.unlink()
    assert tuple(read_now(tmp_path / "inbox").stamps) == ("scans",)


def test_an_empty_folder_is_left(tmp_path: Path) -> None:
    (tmp_path / "about to be filled").mkdir()
    assert read_now(tmp_path) == inbox.InboxBatch(None)
    assert (tmp_path / "about to be filled").is_dir()


def test_a_young_file_is_left_until_it_has_settled(tmp_path: Path, drop: Callable[..., Split]) -> None:
    drop("new.csv")
    folder = tmp_path / "inbox"
    assert inbox.read_inbox(folder, settle_seconds=60) == inbox.InboxBatch(None)
    now = time.time()
    os.utime(folder / "new.csv", (now, now - 61))
    assert tuple(inbox.read_inbox(folder, settle_seconds=60).stamps) == ("new.csv",)
    os.utime(folder / "new.csv", (now, now + 86_400))  # the clock of the machine it was copied from is wrong
    assert tuple(inbox.read_inbox(folder, settle_seconds=60).stamps) == ("new.csv",)


def test_a_file_being_written_is_neither_taken_nor_rejected(tmp_path: Path, drop: Callable[..., Split]) -> None:
    split = drop("slow.csv", 0, 200)
    path = tmp_path / "inbox" / "slow.csv"
    text = path.read_bytes()
    path.unlink()
    writing = threading.Event()

    def write_slowly() -> None:
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(text), len(text) // 20 + 1):
                file.write(text[start : start + len(text) // 20 + 1])
                writing.set()
                time.sleep(0.02)

    writer = threading.Thread(target=write_slowly)
    writer.start()
    writing.wait()
    while writer.is_alive():
        assert inbox.read_inbox(path.parent, settle_seconds=0.5) == inbox.InboxBatch(None)
    time.sleep(0.5)
    assert pairs(inbox.read_inbox(path.parent, settle_seconds=0.5).labelled) == pairs(split)


@pytest.mark.parametrize("so_far", ["good", "bad"])
def test_a_file_that_grows_while_it_is_read_is_left(
    so_far: str, tmp_path: Path, drop: Callable[..., Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    drop("slow.csv")
    path = tmp_path / "inbox" / "slow.csv"
    row = path.read_text().splitlines()[-1] + "\n"
    if so_far == "bad":
        path.write_text(path.read_text() + row[:100])
    read = sources.read_rows

    def read_while_it_grows(source: Path, limit_bytes: int) -> Rows:
        try:
            return read(source, limit_bytes)
        finally:
            source.write_text(source.read_text() + (row[100:] if so_far == "bad" else row))

    monkeypatch.setattr(sources, "read_rows", read_while_it_grows)
    assert read_now(path.parent) == inbox.InboxBatch(None)
    monkeypatch.undo()
    assert len(read_now(path.parent).labelled or ()) == 6


def test_a_file_replaced_after_it_was_read_is_read_again(tmp_path: Path, drop: Callable[..., Split]) -> None:
    folder = tmp_path / "inbox"
    drop("labels.csv", 0, 5)
    taken = read_now(folder)
    later = drop("labels.csv", 5, 12)
    inbox.archive(taken, folder)
    assert (folder / "labels.csv").exists() and not (folder / "taken").exists()
    assert pairs(read_now(folder).labelled) == pairs(later)


def test_marking_twice_or_after_the_file_is_gone_does_no_harm(tmp_path: Path, drop: Callable[..., Split]) -> None:
    folder = tmp_path / "inbox"
    drop("labels.csv")
    taken = read_now(folder)
    inbox.archive(taken, folder)
    inbox.archive(taken, folder)
    assert [path.name for path in (folder / "taken").iterdir()] == ["labels.csv"]


def test_no_inbox_is_an_empty_inbox(tmp_path: Path) -> None:
    assert read_now(tmp_path / "none") == inbox.InboxBatch(None)
    inbox.archive(inbox.InboxBatch(None), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("die_after", [0, 1, 2, 3])
def test_a_crash_at_any_step_ends_in_the_same_data_set(
    die_after: int, tmp_path: Path, drop: Callable[..., Split], bundled: Dataset
) -> None:
    new = datasets.join(drop("a.csv", 0, 30), drop("b.npz", 30, 60))
    folder, store = tmp_path / "inbox", tmp_path / "datasets"
    undisturbed = datasets.extend(bundled, new, validation_fraction=0.2, seed=0)
    datasets.set_current(store, datasets.save(bundled, store).name)
    retrain(folder, store, die_after)
    retrain(folder, store)
    assert datasets.current(store) == undisturbed.fingerprint
    assert datasets.load(store, undisturbed.fingerprint).fingerprint == undisturbed.fingerprint
    assert len(undisturbed.train) + len(undisturbed.validation) == 1258 + 269 + 60
    assert sorted(path.name for path in (folder / "taken").iterdir()) == ["a.csv", "b.npz"]
    expected = {".lock", "current", bundled.fingerprint, undisturbed.fingerprint}
    assert {path.name for path in store.iterdir()} == expected


@pytest.mark.parametrize(
    "name", ["n" * 250 + ".csv", os.fsdecode(b"caf\xe9.csv"), "a\nb.csv"], ids=["long", "Latin-1", "of two lines"]
)
@pytest.mark.parametrize("is_good", [True, False])
def test_a_file_of_any_name_is_moved(name: str, is_good: bool, tmp_path: Path, drop: Callable[..., Split]) -> None:
    folder = tmp_path / "inbox"
    good = drop("labels.csv", 0, 20)
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").rename(folder / name)
    (folder / name).write_text(text + "3,4\n" if is_good else "garbage")
    batch = read_now(folder)
    inbox.archive(batch, folder)
    assert [path for path in folder.iterdir() if path.is_file()] == []
    if is_good:
        assert pairs(inbox.read_taken(folder).labelled) == pairs(batch.labelled) == pairs(good)
        assert len(list((folder / "rejected").glob("*.rows.csv"))) == 1
    else:
        (reason,) = (folder / "rejected").glob("*.reason.txt")
        assert "begins with 'garbage'" in reason.read_text()
        assert (folder / "rejected" / reason.name.removesuffix(".reason.txt")).read_text() == "garbage"


def test_what_cannot_be_moved_stays_and_the_others_are_moved(
    tmp_path: Path, drop: Callable[..., Split], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as a folder that another user copied into the inbox: only its owner may move it elsewhere."""
    rename = Path.rename

    def refuse_folders(path: Path, target: Path) -> Path:
        if path.is_dir():
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    folder = tmp_path / "inbox"
    dropped = [drop("a", 0, 5), drop("b.csv", 5, 9)]
    (folder / "bad" / "seven").mkdir(parents=True)
    (folder / "bad" / "seven" / "7.png").write_bytes(b"")
    (folder / "worse.csv").write_text("garbage")
    monkeypatch.setattr(Path, "rename", refuse_folders)
    for _ in range(2):
        batch = read_now(folder)
        inbox.archive(batch, folder)
        assert {"bad", "a"} <= {*batch.rejected, *batch.stamps}
        known = inbox.read_taken(folder).labelled
        assert pairs(known) == pairs(dropped[1])
    assert sorted(path.name for path in folder.iterdir()) == ["a", "bad", "rejected", "taken"]
    assert caplog.text.count("a stays in the inbox and is read again each time, because it cannot be moved") == 2


def test_a_folder_that_may_not_be_listed_is_rejected(
    tmp_path: Path, drop: Callable[..., Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the tests may read every folder."""
    folder = tmp_path / "inbox"
    good = drop("good.csv")
    (folder / "closed").mkdir()
    scandir, iterdir = os.scandir, Path.iterdir

    def refused(function: Callable[..., object]) -> Callable[..., object]:
        def of(path: Path | str) -> object:
            if Path(path).name == "closed":
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return of

    monkeypatch.setattr(os, "scandir", refused(scandir))
    monkeypatch.setattr(Path, "iterdir", refused(iterdir))
    batch = read_now(folder)
    assert pairs(batch.labelled) == pairs(good) and list(batch.rejected) == ["closed"]
    assert "Permission denied" in (folder / "rejected" / "closed.reason.txt").read_text()


def test_a_link_within_the_inbox_still_names_its_file_after_it_moved(
    tmp_path: Path, drop: Callable[..., Split]
) -> None:
    folder = tmp_path / "inbox"
    good = drop(".labels.csv")
    (folder / "labels.csv").symlink_to("./.labels.csv")
    inbox.archive(read_now(folder), folder)
    assert not (folder / "labels.csv").is_symlink()
    assert pairs(inbox.read_taken(folder).labelled) == pairs(good)


LINKS: dict[str, tuple[str, str]] = {
    "a file": ("labels.csv", "../outside/labels.csv"),
    "a folder": ("digits", "../outside/digits"),
    "the file system": ("all", "/"),
    "itself": ("loop.csv", "loop.csv"),
    "nothing": ("gone.csv", "../gone.csv"),
    "a device": ("zero.csv", "/dev/zero"),
    "a picture": ("scans/3/0.png", "../../../outside/digits/3/000.png"),
    "a folder of pictures": ("scans/4", "../../outside/digits/4"),
    "any text": ("scans/5/0.png", "/etc/passwd"),
}


@pytest.mark.parametrize("kind", LINKS)
def test_nothing_outside_the_inbox_is_read_or_moved(
    kind: str, tmp_path: Path, drop: Callable[..., Split], caplog: pytest.LogCaptureFixture
) -> None:
    folder, (name, target) = tmp_path / "inbox", LINKS[kind]
    good = drop("good.csv", 0, 5)
    drop("labels.csv", 5, 9)
    drop("digits", 9, 40)
    (tmp_path / "outside").mkdir()
    for one in ("labels.csv", "digits"):
        (folder / one).rename(tmp_path / "outside" / one)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(target)
    outside = sorted((tmp_path / "outside").rglob("*"))
    batch = read_now(folder)
    inbox.archive(batch, folder)
    assert pairs(batch.labelled) == pairs(good) == pairs(inbox.read_taken(folder).labelled)
    (reason,) = batch.rejected.values()
    expected = "is neither a file nor a folder" if kind == "itself" else "leads out of the inbox"
    assert expected in reason and reason in caplog.text and "root:" not in reason
    assert sorted((tmp_path / "outside").rglob("*")) == outside
    assert sorted(path.name for path in folder.iterdir()) == ["rejected", "taken"]


@pytest.mark.parametrize("exchanged", ["labels.csv", "digits", "digits/3"])
def test_what_was_a_link_while_it_was_read_is_left_for_the_next_time(
    exchanged: str, tmp_path: Path, drop: Callable[..., Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer exchanges it after the check for links, and puts it back before the next."""
    folder, outside, read = tmp_path / "inbox", tmp_path / "outside", sources.read_rows
    good, path = drop(exchanged.partition("/")[0], 0, 100), tmp_path / "inbox" / exchanged
    shutil.copytree(folder, outside)

    def read_link(*arguments: object) -> object:
        path.rename(tmp_path / "aside")
        path.symlink_to(outside / exchanged)
        rows = read(*arguments)  # type: ignore[arg-type]
        path.unlink()
        (tmp_path / "aside").rename(path)
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(sources, "read_rows", read_link)
        batch = read_now(folder)
    assert batch.labelled is None and not batch.stamps and not batch.rejected
    assert pairs(read_now(folder).labelled) == pairs(good)


def test_a_link_that_was_put_into_taken_is_left_out(tmp_path: Path, drop: Callable[..., Split]) -> None:
    folder = tmp_path / "inbox"
    drop("labels.csv")
    (folder / "labels.csv").rename(tmp_path / "labels.csv")
    (folder / "taken").mkdir()
    (folder / "taken" / "labels.csv").symlink_to(tmp_path / "labels.csv")
    assert inbox.read_taken(folder).labelled is None


@pytest.mark.parametrize("name", inbox.OWN_FOLDERS)
def test_the_platform_neither_reads_nor_writes_where_a_folder_of_its_own_is_a_link(
    name: str, tmp_path: Path, drop: Callable[..., Split]
) -> None:
    folder, outside = tmp_path / "inbox", tmp_path / "outside"
    drop("good.csv")
    batch = read_now(folder)
    (folder / "evil.pth").write_text("import antigravity")
    outside.mkdir()
    (folder / name).symlink_to(outside)
    calls: list[Callable[[], object]] = [
        lambda: read_now(folder),
        lambda: inbox.read_taken(folder),
        lambda: inbox.archive(batch, folder),
    ]
    for call in calls:
        with pytest.raises(datasets.BadData, match=rf"inbox/{name} is a link to .*outside; remove it"):
            call()
    assert list(outside.iterdir()) == [] and sorted(path.name for path in folder.iterdir()) == sorted(
        ["evil.pth", "good.csv", name]
    )


def test_a_reason_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "inbox" / "rejected").mkdir(parents=True)
    (tmp_path / "inbox" / "bad.csv").write_text("one")
    note = tmp_path / "inbox" / "rejected" / "bad.csv.reason.txt"
    note.symlink_to(tmp_path / "outside.pth")
    read_now(tmp_path / "inbox")
    assert not (tmp_path / "outside.pth").exists() and note.read_text().startswith("bad.csv")


def test_a_pipe_in_place_of_a_quarantine_stops_nobody(tmp_path: Path, drop: Callable[..., Split]) -> None:
    folder = tmp_path / "inbox"
    good = drop("good.csv")
    (folder / "rejected").mkdir()
    os.mkfifo(folder / "rejected" / "good.csv.rows.csv")
    inbox.archive(read_now(folder), folder)
    assert (folder / "taken" / "good-2.csv").exists()
    os.mkfifo(folder / "rejected" / "good-2.csv.rows.csv")
    assert inbox.read_taken(folder).labelled is None
    (folder / "rejected" / "good-2.csv.rows.csv").unlink()
    assert pairs(inbox.read_taken(folder).labelled) == pairs(good)


@pytest.mark.parametrize("kind", ["a pipe", "a socket"])
def test_what_is_no_file_is_rejected_without_being_opened(kind: str, tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    path = tmp_path / "inbox" / "x.csv"
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):
            one.bind(path.name)
    assert read_now(path.parent).rejected == {
        "x.csv": "x.csv is neither a file nor a folder; remove it or copy a regular file"
    }
    assert not path.exists() and (path.parent / "rejected" / "x.csv").exists()


def test_a_folder_named_as_a_file_is_a_folder(tmp_path: Path, drop: Callable[..., Split]) -> None:
    folder = tmp_path / "inbox"
    good = drop("labels", 0, 20)
    (folder / "labels").rename(folder / "x.npz")
    (folder / "x.csv" / "deep").mkdir(parents=True)
    (folder / "x.csv" / "deep" / "labels.csv").write_text("label\n")
    batch = read_now(folder)
    assert pairs(batch.labelled) == pairs(good)
    (reason,) = batch.rejected.values()
    assert reason == "x.csv holds 'deep', expected sub-folders 0 to 9 with pictures, or the IDX files of MNIST"


NAMES = {
    "two lines": "a\nERROR promoted.csv",
    "a terminal's commands": "\x1b[2J\x1b]0;title\x07.csv",
    "right to left": "a\u202evsc.exe.csv",
    "surrogates": os.fsdecode(b"\xff\xfe.csv"),
    "spaces": "  .csv",
    "backslashes": "a\\..\\x.csv",
    "an option": "--help.csv",
}


@pytest.mark.parametrize("is_good", [True, False])
@pytest.mark.parametrize("kind", NAMES)
def test_a_name_is_one_printable_line_in_every_message(
    kind: str, is_good: bool, tmp_path: Path, drop: Callable[..., Split], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = tmp_path / "inbox"
    drop("labels.csv", 0, 20)
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").unlink()
    (folder / NAMES[kind]).write_text(text if is_good else "garbage")
    batch = read_now(folder)
    inbox.archive(batch, folder)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and all(message.isprintable() for message in messages)
    assert batch.source.isprintable() and bool(batch.source) == is_good
    for reason in (folder / "rejected").glob("*.reason.txt"):
        assert reason.read_text().removesuffix("\n").isprintable()
    assert sorted(path.name for path in folder.iterdir()) == ["taken" if is_good else "rejected"]


# Row by row


def digit_rows(bundled: Dataset, n: int) -> Split:
    """Digits of which some may be in the data set, and a fifth of each is not."""
    split = datasets.join(bundled.train, bundled.validation)
    return Split(split.images[:n, :, ::-1], split.labels[:n])


def changed(split: Split, rows: slice, change: Callable[[np.ndarray], np.ndarray]) -> Split:
    images = split.images.copy()
    images[rows] = change(split.images[rows])
    return Split(images, split.labels)


def test_one_blank_picture_does_not_reject_a_folder_of_201(tmp_path: Path, drop: Callable[..., Split]) -> None:
    folder = tmp_path / "inbox"
    good = drop("scans", 0, 200)
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(folder / "scans" / "3" / "empty.png")
    batch = read_now(folder)
    assert pairs(batch.labelled) == pairs(good) and batch.rejected == {}
    assert not (folder / "rejected").exists()  # until the file is archived
    inbox.archive(batch, folder)
    text = (folder / "rejected" / "scans.rows.csv").read_text().splitlines()
    assert text[0] == "row,label,reason" and len(text) == 2
    assert text[1].startswith("3/empty.png,,is not a readable picture of a digit: ")
    assert pairs(inbox.read_taken(folder).labelled) == pairs(good)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda images: 255 - images, "has a border of mostly 255"),
        (lambda images: images // 16, "has a largest value of 15, expected ink up to 255; scale it first"),
        (lambda images: images * 0, "is blank"),
    ],
)
def test_unusable_rows_go_into_quarantine_and_the_others_into_training(
    change: Callable[[np.ndarray], np.ndarray], reason: str, tmp_path: Path, bundled: Dataset
) -> None:
    split = changed(digit_rows(bundled, 100), slice(3, 6), change)
    write(tmp_path / "june.npz", split)
    batch = read_now(tmp_path)
    good = pairs(split) - pairs(Split(split.images[3:6], split.labels[3:6]))
    assert pairs(batch.labelled) == good
    inbox.archive(batch, tmp_path)
    inbox.archive(batch, tmp_path)
    rejected = tmp_path / "rejected"
    table = (rejected / "june.npz.rows.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table] == [
        "row",
        *(f"row {row} of images (counted from 0)" for row in (3, 4, 5)),
    ]
    assert all(reason in line for line in table[1:])
    with np.load(rejected / "june.npz.rows.npz") as arrays:
        assert (arrays["images"] == split.images[3:6]).all() and (arrays["labels"] == split.labels[3:6]).all()
    assert pairs(inbox.read_taken(tmp_path).labelled) == good
    assert sorted(path.name for path in rejected.iterdir()) == ["june.npz.rows.csv", "june.npz.rows.npz"]


def test_killed_between_quarantine_and_archive_the_next_one_ends_as_an_undisturbed_one(
    tmp_path: Path, bundled: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "june.npz", changed(digit_rows(bundled, 100), slice(3, 6), lambda images: images * 0))

    def killed_after(target: Path, content: bytes) -> None:
        files.write_atomically(target, content)
        if target.suffix == ".npz":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(inbox, "write_atomically", killed_after)
        with pytest.raises(KeyboardInterrupt):
            inbox.archive(read_now(tmp_path), tmp_path)
    assert (tmp_path / "june.npz").exists()
    inbox.archive(read_now(tmp_path), tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == [
        "rejected/june.npz.rows.csv",
        "rejected/june.npz.rows.npz",
        "taken/june.npz",
    ]


def test_a_file_with_too_many_unusable_rows_is_rejected_whole(tmp_path: Path, bundled: Dataset) -> None:
    write(tmp_path / "half.npz", changed(digit_rows(bundled, 100), slice(50, 100), lambda images: 255 - images))
    batch = read_now(tmp_path)
    assert batch.labelled is None
    assert batch.rejected["half.npz"].startswith(
        "half.npz: 50 of 100 rows are unusable, a file may have 10% of them; the first: row 50 of images (counted from 0) has"
    )
    assert (tmp_path / "rejected" / "half.npz").exists()


def test_the_same_image_with_two_labels_is_not_taken_in(tmp_path: Path, bundled: Dataset) -> None:
    split = digit_rows(bundled, 50)
    twice = datasets.join(
        split, Split(split.images[:1], (split.labels[:1] + 1) % 10), Split(split.images[1:2], split.labels[1:2])
    )
    write(tmp_path / "june.csv", twice)
    batch = read_now(tmp_path)
    assert pairs(batch.labelled) == pairs(
        Split(twice.images[1:50], twice.labels[1:50]), Split(twice.images[51:], twice.labels[51:])
    )
    labels = " and ".join(map(str, sorted([split.labels[0], (split.labels[0] + 1) % 10])))
    assert batch.quarantine["june.csv"].reasons == {
        f"row {row}": f"is the same image as another row, with the labels {labels}" for row in (1, 51)
    }


def oracle(split: Split, confidence: float) -> Callable[[np.ndarray], np.ndarray]:
    """A champion that reads these images as they are labelled, and knows no others."""
    digits = {image.tobytes(): int(label) for image, label in zip(split.images, split.labels, strict=True)}

    def predict_proba(images: np.ndarray) -> np.ndarray:
        probabilities = np.full((len(images), 10), (1 - confidence) / 9)
        probabilities[np.arange(len(images)), [digits[image.tobytes()] for image in images]] = confidence
        return probabilities

    return predict_proba


def test_labels_that_a_confident_champion_contradicts_are_in_quarantine(tmp_path: Path, bundled: Dataset) -> None:
    split = digit_rows(bundled, 100)
    labels = split.labels.copy()
    labels[:5] = (labels[:5] + 1) % 10
    write(tmp_path / "june.npz", Split(split.images, labels))
    batch = read_now(tmp_path, oracle(split, 0.995))
    assert pairs(batch.labelled) == pairs(Split(split.images[5:], split.labels[5:]))
    assert batch.quarantine["june.npz"].reasons["row 0 of images (counted from 0)"] == (
        f"is labelled {labels[0]}, and the champion reads {split.labels[0]} (99.5%)"
    )
    inbox.archive(batch, tmp_path)
    assert len(inbox.read_taken(tmp_path).labelled or ()) == 95  # without the champion, too
    write(tmp_path / "uncertain.npz", Split(split.images, labels))
    assert len(read_now(tmp_path, oracle(split, 0.9)).labelled or ()) == 100


def test_shuffled_labels_are_refused_unless_they_are_confirmed(tmp_path: Path, bundled: Dataset) -> None:
    split = digit_rows(bundled, 100)
    shuffled = Split(split.images, np.random.default_rng(0).permutation(split.labels))
    write(tmp_path / "june.npz", shuffled)
    reason = read_now(tmp_path, oracle(split, 0.995)).rejected["june.npz"]
    assert reason.startswith("june.npz: the champion contradicts ") and "of 100 labels" in reason
    assert reason.endswith("if they are right, put the file into the inbox as june.confirmed.npz")
    (tmp_path / "rejected" / "june.npz").rename(tmp_path / "june.confirmed.npz")
    assert pairs(read_now(tmp_path, oracle(split, 0.995)).labelled) == pairs(shuffled)


def test_rows_in_quarantine_come_back_when_a_person_confirms_them(tmp_path: Path, bundled: Dataset) -> None:
    split = changed(digit_rows(bundled, 100), slice(5, 8), lambda images: images * 0)
    labels = split.labels.copy()
    labels[:5] = (labels[:5] + 1) % 10
    champion = oracle(Split(split.images, split.labels), 0.995)
    write(tmp_path / "june.npz", Split(split.images, labels))
    inbox.archive(read_now(tmp_path, champion), tmp_path)
    (tmp_path / "rejected" / "june.npz.rows.npz").rename(tmp_path / "june.confirmed.npz")
    batch = read_now(tmp_path, champion)
    assert pairs(batch.labelled) == pairs(Split(split.images[:5], labels[:5]))  # the blank ones are in quarantine again
    inbox.archive(batch, tmp_path)
    usable = np.r_[0:5, 8:100]
    assert pairs(inbox.read_taken(tmp_path).labelled) == pairs(Split(split.images[usable], labels[usable]))


def test_rows_whose_images_were_moved_out_of_quarantine_do_not_come_back_with_the_wrong_label(
    tmp_path: Path, bundled: Dataset
) -> None:
    split = digit_rows(bundled, 100)
    labels = split.labels.copy()
    labels[:5] = (labels[:5] + 1) % 10
    write(tmp_path / "june.npz", Split(split.images, labels))
    inbox.archive(read_now(tmp_path, oracle(split, 0.995)), tmp_path)
    (tmp_path / "rejected" / "june.npz.rows.npz").unlink()
    write(tmp_path / "june.confirmed.npz", Split(split.images[:5], split.labels[:5]))
    inbox.archive(read_now(tmp_path), tmp_path)
    assert pairs(inbox.read_taken(tmp_path).labelled) == pairs(split)


def test_another_file_of_the_same_name_keeps_the_quarantine_of_the_first(tmp_path: Path, bundled: Dataset) -> None:
    for start in (0, 100):
        split = digit_rows(bundled, start + 100)
        one = Split(split.images[start:], split.labels[start:])
        write(tmp_path / "june.npz", changed(one, slice(0, 3 + start // 50), lambda images: images * 0))
        inbox.archive(read_now(tmp_path), tmp_path)
        (tmp_path / "taken" / "june.npz").unlink(missing_ok=True)  # a person frees the space
    assert len(inbox.read_taken(tmp_path).labelled or ()) == 95
    tables = sorted((tmp_path / "rejected").glob("*.csv"))
    assert [len(path.read_text().splitlines()) - 1 for path in tables] == [5, 3]
    assert [path.name for path in tables] == ["june-2.npz.rows.csv", "june.npz.rows.csv"]


# Files that would exhaust the memory, and whatever else a reader raises


def bomb(path: Path, split: Split, megabytes: int) -> None:
    """A gzipped CSV of so many megabytes, of the same blank row."""
    row = b"1" + b",0" * 784 + b"\n"
    header = ",".join(["label", *(f"pixel{pixel}" for pixel in range(784))]).encode() + b"\n"
    with gzip.open(path, "wb", 1) as file:
        file.write(header)
        for _ in range(megabytes):
            file.write(row * (1_000_000 // len(row)))


@pytest.mark.parametrize("kind", ["csv.gz", "npz", "idx.gz"])
def test_a_bomb_is_rejected_beside_a_good_file(kind: str, tmp_path: Path, drop: Callable[..., Split]) -> None:
    folder = tmp_path / "inbox"
    good = drop("good.csv")
    zeros = np.zeros((40_000, 28, 28), np.uint8)
    name = f"bomb.{kind}" if kind != "idx.gz" else "bomb"
    if kind == "csv.gz":
        bomb(folder / name, good, megabytes=21)
    elif kind == "npz":
        np.savez_compressed(folder / name, images=zeros, labels=zeros[:, 0, 0])
    else:
        (folder / name).mkdir()
        with gzip.open(folder / name / "train-images-idx3-ubyte.gz", "wb") as file:
            file.write(bytes([0, 0, 8, 3]) + zeros.tobytes())
    tracemalloc.start()
    batch = inbox.read_inbox(folder, limit_bytes=20_000_000, settle_seconds=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pairs(batch.labelled) == pairs(good)
    assert batch.rejected == {
        name: f"{name} has more than 20,000,000 bytes of content; divide it into several, or raise DIGITS_SOURCE_LIMIT_BYTES"
    }
    assert peak < 20_000_000


def test_an_npz_whose_header_promises_more_than_it_holds_is_rejected(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**13, 28, 28)})
    with zipfile.ZipFile(tmp_path / "liar.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + b"\0" * 784)
        archive.writestr("labels.npy", header.getvalue())
    assert read_now(tmp_path).rejected["liar.npz"].startswith("liar.npz cannot be read, it is damaged or cut off: ")


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("too deep"), AssertionError("of a library")])
def test_whatever_a_reader_raises_the_other_files_are_read_and_this_one_does_not_return(
    error: Exception, tmp_path: Path, drop: Callable[..., Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = drop("good.csv")
    drop("strange.npz")
    read = sources.read_rows

    def read_rows(path: Path, limit_bytes: int) -> Rows:
        if path.name == "strange.npz":
            raise error
        return read(path, limit_bytes)

    monkeypatch.setattr(sources, "read_rows", read_rows)
    batch = read_now(tmp_path / "inbox")
    assert pairs(batch.labelled) == pairs(good)
    assert batch.rejected["strange.npz"].startswith("strange.npz cannot be read: ")
    assert [path.name for path in (tmp_path / "inbox").iterdir() if path.is_file()] == ["good.csv"]
