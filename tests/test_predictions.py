"""The prediction log: every record is found again, and the most recent label wins."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from logged import NOON, answers, write
from sqlalchemy import Engine, func, select, update

from digits.storage import labels, predictions, request_counts
from digits.storage.predictions import UnknownPrediction, new_ids
from digits.storage.request_counts import Total
from services.prediction_log import PredictionLog


def test_a_window_returns_what_was_appended_oldest_first(database_url: str, engine: Engine, tmp_path: Path) -> None:
    early, late = answers(3), answers(2, NOON + timedelta(minutes=5), seed=1)
    write(database_url, tmp_path, late, early)
    window = predictions.read_window(engine, NOON)
    assert window.ids == early.ids + late.ids
    assert window.at == [NOON] * 3 + [NOON + timedelta(minutes=5)] * 2
    assert np.array_equal(window.images, np.concatenate([early.images, late.images]))
    assert np.array_equal(window.probabilities, np.concatenate([early.probabilities, late.probabilities]))
    assert np.array_equal(window.digits, window.probabilities.argmax(1))
    assert window.labels.tolist() == [-1] * 5


def test_a_window_is_limited_by_time_count_version_and_label(database_url: str, engine: Engine, tmp_path: Path) -> None:
    old, new = answers(3), answers(3, NOON + timedelta(hours=1), "2", seed=1)
    write(database_url, tmp_path, old, new)
    assert predictions.read_window(engine, NOON + timedelta(seconds=1)).ids == new.ids
    assert predictions.read_window(engine, NOON, NOON + timedelta(hours=1)).ids == old.ids
    assert predictions.read_window(engine, NOON, limit=6).ids == old.ids + new.ids
    predictions.label(engine, new.ids[1], 3, "page")
    assert predictions.read_window(engine, NOON, labelled=True).ids == [new.ids[1]]
    assert predictions.read_window(engine, NOON, version="1").ids == old.ids
    empty = predictions.read_window(engine, NOON + timedelta(days=1))
    assert len(empty) == 0 and empty.images.shape == (0, 28, 28) and empty.probabilities.shape == (0, 10)


def test_a_limited_window_is_a_random_sample_that_stays_the_same(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    """Every tenth answer of a form with ten boxes would be the same box."""
    batch = answers(1000)
    write(database_url, tmp_path, batch)
    drawn = predictions.read_window(engine, NOON, limit=100)
    assert drawn.ids == predictions.read_window(engine, NOON, limit=100).ids == sorted(drawn.ids) and len(drawn) == 100
    boxes = [batch.ids.index(id) % 10 for id in drawn.ids]
    assert min(np.bincount(boxes, minlength=10)) >= 1 and max(np.bincount(boxes)) <= 25


def test_the_most_recent_label_wins_and_earlier_ones_are_kept(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    batch = answers(2)
    write(database_url, tmp_path, batch)
    for digit in (3, 3, 8, 8):
        predictions.label(engine, batch.ids[0], digit, "page")
    assert predictions.read_window(engine, NOON).labels.tolist() == [8, -1]
    assert predictions.find(engine, batch.ids[0]).labels.tolist() == [8]
    with engine.connect() as connection:
        kept = connection.scalars(select(labels.feedback.c.label).order_by(labels.feedback.c.sequence))
        assert kept.all() == [3, 8]


def test_a_prediction_is_found_by_its_id(database_url: str, engine: Engine, tmp_path: Path) -> None:
    batch = answers(3)
    write(database_url, tmp_path, batch)
    found = predictions.find(engine, batch.ids[1])
    assert (found.ids, found.versions, found.routes, found.at) == ([batch.ids[1]], ["1"], ["/classify"], [NOON])
    assert found.labels.tolist() == [-1] and found.clients == ["writer 0"]
    assert np.array_equal(found.images, batch.images[1:2])
    assert np.array_equal(found.probabilities, batch.probabilities[1:2])


def test_a_prediction_of_a_large_batch_is_found_by_its_id(engine: Engine) -> None:
    batch = answers(2500)
    batch = batch._replace(clients=["a", "b"] * 1250)
    predictions.append(engine, [batch, answers(3, seed=1)], audit_sample_rate=0)
    predictions.append(engine, [batch, answers(0)], audit_sample_rate=0)  # again, as after a crash
    assert predictions.counts(engine, NOON, NOON + timedelta(seconds=1)) == {"1": 2503}
    for n in (0, 999, 1000, 2499):
        found = predictions.find(engine, batch.ids[n])
        assert (found.ids, found.clients) == ([batch.ids[n]], ["ab"[n % 2]])
        assert np.array_equal(found.images, batch.images[n : n + 1])
    for missing in (batch.ids[7][:-1] + "g", batch.ids[7][:16] + "0" * 16, "f" + batch.ids[7][1:]):
        with pytest.raises(UnknownPrediction):
            predictions.find(engine, missing)


def test_ids_of_any_order_are_found(engine: Engine) -> None:
    """As of a batch whose ids were made in different milliseconds."""
    batch = answers(4)
    ids = [f"{number:012x}{number:020x}" for number in (7, 3, 3 << 40, 5)]
    predictions.append(engine, [batch._replace(ids=ids)], audit_sample_rate=0)
    for n, id in enumerate(ids):
        assert np.array_equal(predictions.find(engine, id).images[0], batch.images[n])


def test_labels_of_several_batches_are_read_with_their_predictions(engine: Engine) -> None:
    large, single = answers(1500), answers(1, NOON + timedelta(hours=1), "2", seed=1)
    predictions.append(engine, [large, single], audit_sample_rate=0)
    labelled = [large.ids[n] for n in (3, 4, 1200)] + single.ids
    for digit, id in enumerate(labelled):
        predictions.label(engine, id, digit, "page")
    window = predictions.read_window(engine, NOON, labelled=True)
    assert (window.ids, window.labels.tolist()) == (labelled, [0, 1, 2, 3])
    assert np.array_equal(window.images[:3], large.images[[3, 4, 1200]])
    assert predictions.read_window(engine, NOON, NOON + timedelta(hours=1), labelled=True).ids == labelled[:3]
    assert predictions.read_window(engine, NOON, version="2", labelled=True).ids == single.ids
    assert len(predictions.read_window(engine, NOON, limit=2, labelled=True)) == 2
    assert predictions.start_of_newest(engine, 2, NOON + timedelta(days=1)) == NOON
    assert predictions.start_of_newest(engine, 1502, NOON + timedelta(days=1)) is None


def test_unknown_ids_are_refused(engine: Engine) -> None:
    with pytest.raises(predictions.UnknownPrediction, match='the id "unknown"'):
        predictions.label(engine, "unknown", 3, "page")
    with pytest.raises(LookupError, match="no prediction"):
        predictions.find(engine, "unknown")


def test_ids_are_unique_and_sorted_by_time() -> None:
    ids = [id for _ in range(50) for id in new_ids(100)]
    assert len(set(ids)) == 5000 and {len(id) for id in ids} == {32}
    first = new_ids()[0]
    time.sleep(0.003)
    assert first < new_ids()[0]


def test_an_id_does_not_reveal_its_neighbours() -> None:
    """Requests of different clients share a batch, and an id gives access to its image."""
    ids = new_ids(100)
    assert len({id[-16:] for id in ids}) == 100 and ids == sorted(ids)


def test_there_are_ids_for_any_number_of_predictions() -> None:
    ids = new_ids(70_000)
    assert len(set(ids)) == 70_000 and {len(id) for id in ids} == {32}


def test_the_audit_sample_is_drawn_at_random(database_url: str, engine: Engine, tmp_path: Path) -> None:
    write(database_url, tmp_path, answers(2000), audit_sample_rate=0.1)
    assert 120 < len(predictions.read_audit_sample(engine, NOON)) < 280  # six standard deviations around 200


def test_predictions_are_counted_by_client(engine: Engine) -> None:
    single, mixed = answers(3, seed=4), answers(4, seed=5)._replace(clients=["ann", "", "ann", "bob"])
    unknown = answers(2, seed=6)._replace(clients=[])
    predictions.append(engine, [single, mixed, unknown], audit_sample_rate=0)
    assert predictions.counts_by_client(engine) == {"writer 4": 3, "ann": 2, "bob": 1, "": 3}


def test_old_predictions_are_deleted_with_their_feedback(database_url: str, engine: Engine, tmp_path: Path) -> None:
    # the clock is trusted once there was an answer a day ago
    old, new = answers(1500), answers(2, datetime.now(UTC) - timedelta(hours=25), seed=1)
    write(database_url, tmp_path, old, new)
    predictions.label(engine, old.ids[0], 3, "page")
    predictions.label(engine, new.ids[0], 4, "page")
    for at in (NOON, datetime.now(UTC)):
        request_counts.append(engine, at, [Total("/classify", 200, 1, 1, 0)])
    PredictionLog(database_url, tmp_path / "spool", retention=timedelta(days=2)).close()
    ((_, kept),) = request_counts.by_hour(engine, NOON, datetime.now(UTC) + timedelta(minutes=1))
    assert kept.requests == 1
    window = predictions.read_window(engine, NOON)
    assert window.ids == new.ids and window.labels.tolist() == [4, -1]
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(labels.feedback)) == 1


@pytest.mark.parametrize("ahead_days", [60, 120, 4_000])
def test_a_clock_that_jumps_ahead_deletes_nothing(
    ahead_days: int, database_url: str, engine: Engine, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    jumped = now - timedelta(days=ahead_days)  # when the answers before the jump were given, by the clock after it
    ages = [timedelta(days=days) for days in (0, 40, 89)]
    before = [answers(1, jumped - age, seed=seed) for seed, age in enumerate(ages)]
    after = answers(1, now - timedelta(hours=1), seed=9)
    write(database_url, tmp_path, *before, after)
    PredictionLog(database_url, tmp_path / "spool", retention=timedelta(days=90)).close()
    assert len(predictions.read_window(engine, jumped - timedelta(days=90))) == 4


def test_after_months_without_answers_the_old_ones_are_deleted_a_day_after_the_first_new_one(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    old, new = answers(3, now - timedelta(days=120)), answers(1, now - timedelta(hours=25), seed=1)
    write(database_url, tmp_path, old, new)
    PredictionLog(database_url, tmp_path / "spool", retention=timedelta(days=90)).close()
    assert predictions.read_window(engine, now - timedelta(days=200)).ids == new.ids


def test_a_damaged_record_is_named(database_url: str, engine: Engine, tmp_path: Path) -> None:
    batch = answers(2)
    write(database_url, tmp_path, batch)
    with engine.begin() as connection:
        connection.execute(update(predictions.batches).values(images=b"\0"))
    with pytest.raises(ValueError, match=f"{batch.ids[0]} holds 1 bytes of images; expected 1568"):
        predictions.read_window(engine, NOON)


def test_an_id_tells_when_it_was_made_and_another_text_is_none(engine: Engine) -> None:
    before = time.time()
    (id,) = new_ids()
    assert before - 0.001 <= predictions.made_at(id) <= time.time()
    # NUL is no text for PostgreSQL, and half a pair of surrogates none for either
    for other in ("", "nobody", id[:-1], id + "0", id.upper().replace("0", "A"), id[:-1] + "\0", id[:-1] + "\ud800"):
        with pytest.raises(UnknownPrediction, match="no prediction has the id"):
            predictions.find(engine, other)
        with pytest.raises(UnknownPrediction, match="no prediction has the id"):
            predictions.label(engine, other, 3, "api")
