"""Which answers monitoring compares with which: baselines, windows that go back, pictures, probes; through the steps of the flow."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from monitored import answer, held_out, reference
from numpy.typing import NDArray

from digits.data import perturbations
from digits.images import Images
from digits.settings import Settings
from digits.storage import feedback, ledger, predictions
from digits.storage.labels import AUDITOR
from digits.storage.predictions import PredictionBatch
from flows.monitor import alerts_of, choose_window, expectation
from models.conformal import UNCALIBRATED
from models.connections import Platform
from models.model_store import VerifiedModel
from models.onnx_model import Output
from models.registry_reader import RegistryReader
from monitoring import baseline, pictures, reports
from monitoring.reports import MonitoringVerdict
from ops.commands import monitoring

REPORT = Path("var/reports/a/report.html")
NOW = datetime.now(UTC)


class Answering:
    """The model of the monitored version."""

    def predict(self, images: Images) -> Output:
        """The digit score is the brightest pixel."""
        return Output(answer(images), images.max(axis=(1, 2)).astype(np.float32))


def version(number: str, created_at: datetime, digit_threshold: float | None = None) -> VerifiedModel:
    card = {"created_at": created_at.isoformat(), "digit_threshold": digit_threshold}
    return VerifiedModel(number, "", card, Answering(), UNCALIBRATED, reference())  # type: ignore[arg-type]  # no ONNX file


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return Platform(Settings(home=tmp_path))


def log(
    platform: Platform,
    images: Images,
    number: str,
    since: datetime,
    until: datetime,
    route: str = "/classify",
    scores: NDArray[np.float32] | None = None,
) -> Sequence[str]:
    """Log the images as answers of a version, spread evenly over this time; returns their ids."""
    ids, step = predictions.new_ids(len(images)), (until - since) / len(images)
    batches = [
        PredictionBatch(
            [id],
            since + row * step,
            number,
            images[row : row + 1],
            answer(images[row : row + 1]),
            route,
            digit_scores=None if scores is None else scores[row : row + 1],
        )
        for row, id in enumerate(ids)
    ]
    predictions.append(platform.engine, batches, audit_sample_rate=1.0)
    return ids


def judge(platform: Platform, model: VerifiedModel, since: str = "24h", until: datetime = NOW) -> MonitoringVerdict:
    """The verdict of the monitoring flow at this time."""
    (start, end), notes = choose_window(platform, model, since, until)
    answers = predictions.read_window(platform.engine, start, end, version=model.version)
    return reports.assess(model.reference, answers, None, expectation(platform, model, answers, end, notes))


def test_images_without_a_digit_are_a_column_for_versions_with_a_score(platform: Platform) -> None:
    images, start = held_out()[0][:300].copy(), NOW - hours(20)
    images[:60] //= 2
    for number, threshold in (("7", None), ("8", 200.0)):
        log(platform, images, number, start, NOW - hours(1), scores=images.max(axis=(1, 2)).astype(np.float32))
        verdict = judge(platform, version(number, NOW - hours(90), threshold))
        shares = [column for column in verdict.drift.columns if column.name == "no_digit"]
        assert len(shares) == (threshold is not None)
    assert shares[0].current == pytest.approx(0.2, abs=0.02) and shares[0].drifted
    assert (
        f"{shares[0].current:.1%} of the images show no digit, expected: {shares[0].reference:.1%}." in verdict.message
    )


def hours(count: float) -> timedelta:
    return timedelta(hours=count)


def changed(images: Images) -> Images:
    """Thick, slanted, right of the centre."""
    return perturbations.shift(perturbations.slant(perturbations.thicken(images, 1.0), 20), 2.5)


def test_after_a_healing_promotion_traffic_that_stays_different_is_no_alarm(platform: Platform) -> None:
    """Different from training and changed since the baseline are two questions."""
    images = held_out()[0]
    new = version("8", NOW)
    log(platform, images[:300], "7", NOW - hours(80), NOW - hours(20))
    ids = log(platform, changed(images[:350]), "7", NOW - hours(18), NOW)
    assert baseline.at_promotion(platform.engine, "8", "7") is None  # without labels: was it trained on this traffic?
    for id, digit in zip(ids[::7], held_out()[1][:350:7].tolist(), strict=True):
        predictions.label(platform.engine, id, digit, AUDITOR)
    feedback.ingest_feedback(platform.engine, feedback.FeedbackPolicy())
    accepted = baseline.at_promotion(platform.engine, "8", "7")
    assert accepted is not None and NOW - hours(20) < accepted.since < NOW - hours(10)
    for day in (1, 2):
        until = NOW + day * hours(24)
        log(platform, changed(images[150 * day : 150 * day + 320]), "8", until - hours(24), until)
        healed = judge(platform, new, until=until)
        assert [alert.event for alert in alerts_of("8", healed, REPORT)] == []
        assert (healed.drift.verdict, healed.training_drift.verdict) == ("no drift", "drift")
        assert healed.message.startswith(
            "No drift: none of 37 columns differs from the baseline. Compared with training: "
        )
    log(platform, perturbations.invert(images[:320]), "8", NOW + hours(49), NOW + hours(72))
    assert judge(platform, new, until=NOW + hours(72)).drift.verdict == "drift"
    assert baseline.current(platform.engine, "7") is None  # a rollback is compared with what it was before


def test_a_version_that_learned_nothing_of_the_traffic_keeps_what_was_normal(platform: Platform) -> None:
    log(platform, changed(held_out()[0][:200]), "7", NOW - hours(20), NOW - hours(1))
    baseline.accept(platform.engine, "7", NOW - hours(24), NOW, "the new scanner")
    kept = baseline.at_promotion(platform.engine, "8", "7")
    assert kept is not None and kept == baseline.current(platform.engine, "7") == baseline.current(platform.engine, "8")
    assert [entry.action for entry in ledger.entries(platform.engine, baseline.SUBJECT)] == ["baseline", "baseline"]


def test_the_present_is_accepted_as_normal_by_a_command(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DIGITS_HOME", str(platform.settings.home))
    monkeypatch.setattr(RegistryReader, "version", lambda reader: "7")
    model, now = version("7", NOW - hours(90)), datetime.now(UTC)
    with pytest.raises(ValueError, match=r"0 answers to 0 different images were logged from .* at least 100 images"):
        monitoring.baseline(reason="nothing yet")
    log(platform, changed(held_out()[0][:340]), "7", now - hours(20), now)
    assert judge(platform, model, until=now).drift.verdict == "drift"
    monitoring.baseline(reason="the new scanner")
    assert "is normal for digits v7" in capsys.readouterr().out
    (entry,) = ledger.entries(platform.engine, baseline.SUBJECT)
    assert (entry.reason, entry.before, entry.evidence["images"]) == ("the new scanner", None, 340)
    verdict = judge(platform, model, until=datetime.now(UTC))
    assert (verdict.drift.verdict, verdict.has_baseline) == ("no drift", True)
    assert "The baseline is the traffic from" in verdict.message
    predictions.delete_before(platform.engine, now - hours(3))
    gone = judge(platform, model, until=datetime.now(UTC))
    assert not gone.has_baseline and "the reference sample takes its place" in gone.message


def test_a_probe_alone_is_no_baseline(platform: Platform) -> None:
    """With too few different images it would be replaced by the reference sample at every look."""
    images = held_out()[0]
    ids = log(platform, np.repeat(images[:10], 40, axis=0), "7", NOW - hours(20), NOW)
    with pytest.raises(ValueError, match="400 answers to 10 different images were logged"):
        baseline.accept(platform.engine, "7", NOW - hours(24), NOW, "the probe")
    for id in ids[:100:2]:
        predictions.label(platform.engine, id, 3, AUDITOR)
    assert baseline.at_promotion(platform.engine, "8", "7") is None
    assert ledger.entries(platform.engine, baseline.SUBJECT) == []


def test_a_window_with_few_answers_goes_back_but_not_behind_the_version(platform: Platform) -> None:
    log(platform, held_out()[0][:400], "7", NOW - hours(240), NOW)
    (start, until), (note,) = choose_window(platform, version("7", NOW - hours(240)), "24h", NOW)
    assert len(predictions.read_window(platform.engine, start, until)) == baseline.ENOUGH
    assert "fewer than 300 answers in 24h, so the window goes back to" in note
    created_at = NOW - hours(48)
    assert choose_window(platform, version("7", created_at), "24h", NOW)[0] == (created_at, NOW)
    given = NOW - hours(24)
    assert choose_window(platform, version("7", NOW - hours(240)), given.isoformat(), NOW) == ((given, NOW), ())
    assert choose_window(platform, version("7", NOW - hours(240)), "9d", NOW)[1] == ()


def test_the_same_digits_as_picture_files_are_no_drift(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the answers are about pictures, whose strokes the decoder evens out; the reference goes the same way."""
    monkeypatch.setattr(pictures, "MAX_DECODED", 200)
    images = held_out()[0]
    log(platform, images[:160], "7", NOW - hours(20), NOW)
    log(platform, pictures.decode(images[160:320], "enlarged"), "7", NOW - hours(20), NOW, "/classify_file")
    verdict = judge(platform, version("7", NOW - hours(90)))
    assert verdict.drift.verdict == "no drift", verdict.message
    answers = predictions.read_window(platform.engine, NOW - hours(24), NOW)
    assert reports.assess(reference(), answers).drift.verdict == "drift"
    moved = perturbations.shift(answers.images, 2)
    log(platform, moved, "8", NOW - hours(20), NOW, "/classify_file")
    assert judge(platform, version("8", NOW - hours(90))).drift.verdict == "drift"


def test_a_probe_is_reported_and_raises_nothing(platform: Platform) -> None:
    images = held_out()[0][:320]
    log(platform, np.concatenate([images, np.repeat(images[:1], 1680, axis=0)]), "7", NOW - hours(20), NOW)
    verdict = judge(platform, version("7", NOW - hours(90)))
    assert (verdict.drift.verdict, verdict.repeats.answers, verdict.count) == ("no drift", 1680, 2000)
    assert "One image makes up 84% of the answers (1,681 of 2,000)" in verdict.message
