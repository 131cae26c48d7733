"""The description of a version says what it is for, what it reached and what was decided about it, and follows each decision."""

import json
import math
from pathlib import Path

import pytest
from conftest import Runs

from digits.data import datasets
from digits.settings import Settings
from digits.storage import database, ledger
from models import candidates, challengers, gate, model_card, promotion, runs
from models.connections import Platform
from models.model_store import ModelStore
from models.recipes import SIGMOID
from models.registry import RegistryWriter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def writer(trained_runs: Runs) -> RegistryWriter:
    return RegistryWriter(trained_runs.uri)


def wilson(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The formula of https://www.itl.nist.gov/div898/handbook/prc/section2/prc241.htm."""
    middle, spread = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return (middle - spread) / (1 + z**2 / n), (middle + spread) / (1 + z**2 / n)


def description(writer: RegistryWriter, version: str) -> str:
    return str(writer.client.get_model_version("digits", version).description)


def test_a_new_version_says_what_it_reached(writer: RegistryWriter, trained_runs: Runs) -> None:
    run, text = runs.find(writer, trained_runs.other_seed), description(writer, trained_runs.other_seed)
    dataset = datasets.load(trained_runs.datasets, run.tags["dataset"])
    assert text.startswith(f"# digits v{trained_runs.other_seed}\n\n**Candidate**: the gate has not judged it.")
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    expected = ("Purpose", "Data", "Training", "Figures", "Per digit", "Corruptions", "Calibration", "Limits")
    assert titles == [*expected]
    low, high = (run.metrics[f"test_accuracy_{side}"] for side in ("low", "high"))
    assert f"&emsp;| {run.metrics['test_accuracy']:.2%} ({low:.2%} to {high:.2%}) |" in text
    count, recall = dataset.test.counts()[3], run.metrics["recall_3"]
    low, high = wilson(recall, count)
    assert (
        f"| 3 &emsp;| {count} &emsp;| {recall:.2%} ({low:.2%} to {high:.2%}) &emsp;| {run.metrics['precision_3']:.2%} |"
        in text
    )
    assert f"| inverted &emsp;| {run.metrics['corruption_inverted']:.2%} |" in text
    train = candidates.split(dataset, SIGMOID).train
    assert f"Source `bundled`, data set `{dataset.fingerprint}`. Images: {len(train):,} train" in text


def test_it_follows_promotion_rollback_and_hold(writer: RegistryWriter, trained_runs: Runs, tmp_path: Path) -> None:
    platform = Platform(Settings(_env_file=None, home=tmp_path, MLFLOW_TRACKING_URI=trained_runs.uri))  # type: ignore[call-arg]
    first, second = trained_runs.first, trained_runs.other_seed
    try:
        promotion.promote(platform, first, "the first | of <all>")
        at = ledger.entries(platform.engine)[-1].at
        assert f"**Champion** since {at:%Y-%m-%d %H:%M} UTC." in description(writer, first)
        assert "promotion of v1 (before: none) by " in description(writer, first)
        assert ": the first / of &lt;all>" in description(writer, first)
        promotion.promote(platform, second, "better")
        assert f"**Former champion**: the promotion of v{second} replaced it" in description(writer, first)
        promotion.roll_back(platform, "sevens")
        assert "**Champion**" in description(writer, first)
        assert f"**Former champion**: the rollback of v{first} replaced it" in description(writer, second)
        held = gate.GateVerdict("hold", ["worse on anchor"], {"candidate: size_bytes": 1.0})
        third = trained_runs.other_label
        promotion.record_verdict(writer, third, first, held)
        promotion.apply_verdict(platform, third, first, held)
        text = description(writer, third)
        assert "**Held** by the gate." in text and f"Gate beside v{first}: **hold**. worse on anchor" in text
    finally:
        for alias in ("champion", "previous"):
            writer.remove_alias(alias)


def test_it_fits_into_the_database_of_mlflow(trained_runs: Runs, tmp_path: Path) -> None:
    """Of which PostgreSQL refuses longer ones than 5,000 characters."""
    store = ModelStore(trained_runs.uri, tmp_path)
    card = store.fetch_version(trained_runs.first).card
    sets = ("anchor", "champion", "candidate", "traffic")
    columns = ("images", "left out", "accuracy", "champion accuracy", "p-value", "bound", "margin")
    evidence = {f"{name}: {column}": 12345.6789 for name in sets for column in columns}
    tags = {"gate": "not enough evidence", "gate_reasons": "long " * 900, "gate_evidence": json.dumps(evidence)}
    engine = database.connect(f"sqlite:///{tmp_path}/digits.db")
    for number in range(12):
        ledger.append(engine, "promotion", str(number), "7", f"reason {number} " * 900, {})
    text = model_card.render("7", card, {**tags, "gate_champion": "6"}, ledger.replacements(engine))
    assert len(text) <= 5_000 and text.endswith("…") and "reason 11" in text


def test_a_version_that_is_gone_is_left_alone(
    writer: RegistryWriter, trained_runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine, store = database.connect(f"sqlite:///{tmp_path}/digits.db"), ModelStore(trained_runs.uri, tmp_path)
    model_card.update(writer, store, engine, "99999")
    assert "the description of digits v99999 stays as it is" in caplog.text


def test_a_challenger_is_undecided(trained_runs: Runs, tmp_path: Path) -> None:
    card = ModelStore(trained_runs.uri, tmp_path).fetch_version(trained_runs.first).card
    text = model_card.render("3", card, {challengers.TAG: "waiting", challengers.SINCE: "2026-01-05T12:00:00+00:00"})
    assert "**Undecided**: it waits for labelled traffic since 2026-01-05T12:00:00+00:00." in text


@pytest.mark.parametrize(
    ("tags", "status"),
    [
        ({"approval": "waiting", "approval_since": "2026-01-05"}, "**Waits for approval** since 2026-01-05."),
        ({"approval": "declined", "approval_by": "Anna", "approval_reason": "late"}, "**Declined** by Anna: late."),
        ({"approval": "held", "approval_by": "", "approval_reason": "nobody decided"}, "**Held**: nobody decided."),
        ({"approval": "superseded", "challenger": "waiting", "challenger_since": "now"}, "**Undecided**: it waits"),
        ({}, "**Candidate**: the gate would promote it."),
    ],
)
def test_a_version_that_the_gate_would_promote_is_not_called_held_by_it(tags: dict[str, str], status: str) -> None:
    text = model_card.render("3", {}, {"gate": "promote", "gate_champion": "1", **tags})
    assert text.startswith(f"# digits v3\n\n{status}") and "Gate beside v1: **promote**." in text
