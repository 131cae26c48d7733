"""Labels come slowly, and candidates daily: one of them stays the challenger, is judged on growing traffic, and is decided."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import Files
from conftest import Registry as Memory
from typer.testing import CliRunner
from versions import VersionRegistry, version_files

from digits.data import datasets
from digits.data.datasets import Dataset
from digits.data.perturbations import quarter_turn, shift
from digits.images import Split
from digits.settings import Settings
from digits.storage import feedback, judgements, ledger, predictions, registrations
from digits.storage.labels import AUDITOR
from digits.storage.predictions import PredictionBatch, new_ids
from flows import crashed_runs, retrain, verdict_page
from models import challengers, evaluation_sets, gate, judging, model_store, promotion
from models import registry as registries
from models.connections import Platform
from models.gate import UNDECIDED
from models.onnx_model import InvalidArtifact
from monitoring import baseline
from ops.cli import app


def moved(images: np.ndarray) -> np.ndarray:
    return shift(images, 3)


def upside_down(images: np.ndarray) -> np.ndarray:
    return quarter_turn(images, 2)


@dataclass
class Loop:
    """A platform whose champion reads the bundled digits; the traffic is shifted to the right."""

    platform: Platform
    versions: VersionRegistry
    dataset: Dataset
    sent: int = 0

    def register(self, version: str, share_shifted: float, seed: int = 0) -> None:
        """A version of which so large a share of the training images is shifted as the traffic is."""
        train = self.dataset.train
        chosen = np.random.default_rng(seed).permutation(len(train))[:1000]
        count = round(share_shifted * len(chosen))
        images = np.concatenate([train.images[chosen], moved(train.images[chosen[:count]])])
        learned = Split(images, np.concatenate([train.labels[chosen], train.labels[chosen[:count]]]))
        self.add(version, version_files(learned, self.dataset))
        self.versions.tag_version(version, {"inputs": f"inputs of v{version}"})

    def add(self, version: str, files: Files) -> None:
        """A version that this platform trained."""
        registrations.put(self.platform.engine, model_store.digest(files["card.json"]))
        self.versions.memory.versions[version] = files

    def label(self, count: int, change: Callable[[np.ndarray], np.ndarray] = moved) -> None:
        """Answers of the champion to changed digits that nobody trained on, labelled by an auditor."""
        rows = slice(self.sent, self.sent + count)
        images, labels = change(self.dataset.validation.images[rows]), self.dataset.validation.labels[rows]
        self.sent += count
        ids, engine = new_ids(count), self.platform.engine
        even = np.full((count, 10), 0.1, np.float32)
        predictions.append(engine, [PredictionBatch(ids, datetime.now(UTC), "1", images, even, "/classify")], 1.0)
        for id, digit in zip(ids, labels.tolist(), strict=True):
            predictions.label(engine, id, digit, AUDITOR)
        feedback.ingest_feedback(engine, feedback.FeedbackPolicy())

    def day(self, version: str, share_shifted: float = 0.5, labels: int = 10) -> str:
        """What a retraining does beside training: labels arrive, the challenger is judged again, and then a new candidate."""
        self.label(labels)
        retrain.review_challengers(self.platform)
        self.register(version, share_shifted, seed=int(version))
        return self.decide(version)

    def decide(self, version: str) -> str:
        return retrain.decide(self.platform, version)

    @property
    def aliases(self) -> dict[str, str]:
        return self.versions.memory.aliases

    def asked(self) -> list[tuple[str, str, int]]:
        """Candidate, champion and images of traffic of each judgement."""
        with self.platform.engine.connect() as connection:
            columns = judgements.Judgement.__table__.c
            query = judgements.Judgement.__table__.select().order_by(columns.number)
            return [(row.candidate, row.champion, row.traffic_images) for row in connection.execute(query)]


@pytest.fixture
def loop(registry: Memory, bundled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    return make_loop(registry, bundled, tmp_path, monkeypatch)


def make_loop(
    registry: Memory, bundled: Dataset, home: Path, monkeypatch: pytest.MonkeyPatch, **changes: str | float
) -> Loop:
    """The platform with its first champion, v1."""
    # A linear model that learns shifted digits reads the others a little worse.
    limits = {"min_sample": 30, "error_tolerance": 20, "max_corruption_loss": 0.05}
    settings = Settings(home=home, MLFLOW_TRACKING_URI=registry.uri, gate=limits, **changes)  # type: ignore[call-arg]
    platform, versions = Platform(settings), VersionRegistry(registry)
    vars(platform)["registry"] = versions
    datasets.save(bundled, settings.datasets)
    monkeypatch.setattr(verdict_page, "publish", lambda *_, **__: None)
    monkeypatch.setattr(retrain, "server_task", lambda step: step)
    loop = Loop(platform, versions, bundled)
    loop.register("1", share_shifted=0.0)
    registry.aliases["champion"] = "1"
    ledger.append(platform.engine, "promotion", None, "1", "the first", {})
    return loop


def test_with_ten_labels_a_day_the_first_candidate_stays_and_is_decided(loop: Loop) -> None:
    """A new data set each day is no reason to forget the challenger, whose evidence grows."""
    said = [loop.day(version) for version in "2345"]
    assert said[0].startswith("digits v2: not enough evidence: ")
    assert said[1].startswith("digits v3 waits behind the challenger v2, which it does not beat: ")
    assert said[3].startswith("digits v5 waits behind the challenger v3")
    assert [(entry.before, entry.after) for entry in ledger.replacements(loop.platform.engine)] == [
        (None, "1"),
        ("1", "2"),
    ]
    # Version 3 waited behind it and is judged beside the new champion; those of later days are as good, and queue.
    assert loop.asked() == [("2", "1", 0), ("2", "1", 30), ("3", "2", 30)]
    assert loop.aliases == {"champion": "2", "previous": "1", "challenger": "3"}
    assert {one.version for one in challengers.queue(loop.versions)} == {"3", "4", "5"}  # type: ignore[arg-type]


def test_without_new_labels_nothing_is_judged_again(loop: Loop) -> None:
    loop.day("2")
    asked = loop.asked()
    for _ in range(2):
        retrain.review_challengers(loop.platform)
        assert loop.decide("2").startswith("digits v2: not enough evidence")
    assert loop.asked() == asked == [("2", "1", 0)]


def test_a_challenger_is_judged_beside_a_champion_that_came_by_hand(loop: Loop) -> None:
    loop.day("2")
    loop.register("9", share_shifted=0.0, seed=9)
    promotion.promote(loop.platform, "9", "by hand")
    retrain.review_challengers(loop.platform)
    assert loop.asked() == [("2", "1", 0), ("2", "9", 0)]
    promotion.promote(loop.platform, "2", "by hand")
    retrain.review_challengers(loop.platform)
    assert len(loop.asked()) == 2 and "challenger" not in loop.aliases


def test_after_its_days_the_challenger_makes_room(loop: Loop) -> None:
    loop.day("2")
    loop.day("3")
    long_ago = datetime.now(UTC) - timedelta(days=14, minutes=1)
    loop.versions.tag_version("2", {challengers.SINCE: long_ago.isoformat()})
    retrain.review_challengers(loop.platform)
    assert loop.aliases["challenger"] == "3" and loop.versions.tags["2"]["challenger"] == "expired"
    assert loop.decide("2") == "digits v2 was a challenger (expired) and is not judged again without new data"


@pytest.mark.parametrize(("beside_challenger", "challenger"), [("promote", "3"), (UNDECIDED, "2"), ("hold", "2")])
def test_only_who_beats_the_challenger_replaces_it(
    beside_challenger: gate.GateVerdict, challenger: str, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(
        platform: Platform, version: str, other: str, level: float, is_challenger: bool = False
    ) -> gate.GateVerdict:
        decision = UNDECIDED if other == "1" else beside_challenger
        return gate.GateVerdict(decision, [], {}, model_store.digest(platform.models.card(version)))  # type: ignore[arg-type]

    monkeypatch.setattr(judging, "compare", compare)
    loop.day("2")
    loop.day("3")
    assert loop.aliases["challenger"] == challenger
    # Only who beats it is judged now.
    assert ("3", "1", 0) in loop.asked() if challenger == "3" else len(loop.asked()) == 1


def test_a_version_whose_files_are_damaged_stops_no_retraining(loop: Loop) -> None:
    loop.day("2")
    loop.versions.memory.versions["2"]["model.onnx"] = b"damaged"
    retrain.review_challengers(loop.platform)
    # The verified copy still answers.
    assert loop.aliases["challenger"] == "2"
    loop.versions.memory.versions["2"]["card.json"] = b"{}"
    retrain.review_challengers(loop.platform)
    assert "challenger" not in loop.aliases and loop.versions.tags["2"]["challenger"] == "unreadable"


def test_files_that_were_exchanged_after_the_verdict_are_not_promoted(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the verdict is that of an earlier retraining, which died before it promoted."""
    loop.register("2", share_shifted=0.5, seed=2)
    loop.register("3", share_shifted=0.4, seed=3)
    loop.label(40)
    files, actual = dict(loop.versions.memory.versions["2"]), promotion.record_verdict

    def exchange(*arguments: object) -> None:
        actual(*arguments)  # type: ignore[arg-type]
        loop.versions.memory.versions["2"] = loop.versions.memory.versions["3"]

    monkeypatch.setattr(promotion, "record_verdict", exchange)
    for asked in (1, 1):
        loop.versions.memory.versions["2"] = files
        with pytest.raises(InvalidArtifact, match="digits v2: its files are not those that were judged"):
            loop.decide("2")
        assert loop.aliases["champion"] == "1" and len(loop.asked()) == asked
    # Without the other ones in between, another version of the same number is judged anew.
    monkeypatch.setattr(promotion, "record_verdict", actual)
    assert loop.decide("2").startswith("digits v2: promote") and len(loop.asked()) == 2
    last = ledger.replacements(loop.platform.engine)[-1]
    assert last.digest == model_store.digest(loop.versions.memory.versions["3"]["card.json"])


def test_files_that_change_within_a_judgement_are_not_judged(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.register("2", share_shifted=0.5, seed=2)
    loop.register("3", share_shifted=0.4, seed=3)
    assemble = evaluation_sets.assemble

    def exchange(*arguments: object) -> object:
        loop.versions.memory.versions["2"] = loop.versions.memory.versions["3"]
        return assemble(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation_sets, "assemble", exchange)
    with pytest.raises(InvalidArtifact, match="digits v2: its files changed while it was judged"):
        loop.decide("2")
    assert loop.asked() == []


@pytest.mark.parametrize("exchanged", ["alias", "files"])
def test_a_candidate_is_not_compared_with_a_champion_that_the_ledger_does_not_know(exchanged: str, loop: Loop) -> None:
    """Any candidate would beat version 9, which reads nothing."""
    first = loop.platform.models.card("1")
    ledger.append(loop.platform.engine, "rollback", None, "1", "with digest", {}, digest=model_store.digest(first))
    loop.register("2", share_shifted=0.5, seed=2)
    train = loop.dataset.train
    loop.add("9", version_files(Split(train.images[:10], train.labels[9::-1]), loop.dataset))
    if exchanged == "alias":
        loop.aliases["champion"] = "9"
    else:
        loop.versions.memory.versions["1"] = loop.versions.memory.versions["9"]
    before = dict(loop.aliases)
    number = before["champion"]
    with pytest.raises(
        InvalidArtifact, match=f"digits v{number}, .* compared with, is not as the platform recorded it"
    ):
        loop.decide("2")
    assert loop.aliases == before and loop.asked() == []


def test_a_version_of_somebody_else_that_is_tagged_as_waiting_is_not_judged(loop: Loop) -> None:
    train, versions = loop.dataset.train, loop.versions
    images = np.concatenate([train.images, moved(train.images)])
    foreign = Split(images, np.concatenate([train.labels, train.labels]))
    versions.memory.versions["9"] = version_files(foreign, loop.dataset)
    challengers.enqueue(versions, "9", datetime.now(UTC))  # type: ignore[arg-type]
    loop.label(60)
    retrain.review_challengers(loop.platform)
    assert loop.aliases == {"champion": "1"} and loop.asked() == []
    assert versions.tags["9"][challengers.TAG] == "unreadable"
    with pytest.raises(InvalidArtifact, match="digits v9 is not as a training of this platform registered it"):
        judging.judge(loop.platform, "9")


def test_without_its_data_set_a_challenger_makes_room_for_the_next(loop: Loop) -> None:
    loop.day("2")
    loop.day("3")
    card = json.loads(loop.versions.memory.versions["2"]["card.json"])
    other = json.dumps({**card, "dataset": "2" * 16}).encode()
    loop.add("2", {**loop.versions.memory.versions["2"], "card.json": other})
    retrain.review_challengers(loop.platform)
    assert loop.aliases["challenger"] == "3" and loop.versions.tags["2"]["challenger"] == "unreadable"


def test_damage_of_the_champion_is_not_the_challengers(loop: Loop) -> None:
    loop.day("2")
    loop.label(30)
    loop.versions.memory.versions["1"]["trained_on.npy"] = b"damaged"
    with pytest.raises(InvalidArtifact, match=r"v1: the checksum of trained_on\.npy"):
        retrain.review_challengers(loop.platform)
    assert loop.aliases["challenger"] == "2" and loop.versions.tags["2"]["challenger"] == "waiting"


def test_without_the_set_traffic_new_labels_spend_no_significance(loop: Loop) -> None:
    evaluation_sets.retire(loop.platform.engine, "traffic", "a trial of the form")
    loop.day("2")
    loop.label(60)
    retrain.review_challengers(loop.platform)
    assert loop.asked() == [("2", "1", 0)]
    evaluation_sets.reinstate(loop.platform.engine, "traffic", "the trial is over")
    retrain.review_challengers(loop.platform)
    assert loop.asked() == [("2", "1", 0), ("2", "1", 70)]


def test_after_a_rollback_the_set_champion_is_whole_and_the_question_another_one(loop: Loop) -> None:
    engine = loop.platform.engine
    evaluation_sets.retire(engine, "champion digit 7", "sevens have a bar now")
    loop.day("2", labels=0)
    for action, before, after in (("promotion", "1", "9"), ("rollback", "9", "1")):
        ledger.append(engine, action, before, after, "by hand", {})  # type: ignore[arg-type]
    for _ in range(2):
        retrain.review_challengers(loop.platform)
    assert loop.asked() == [("2", "1", 0), ("2", "1", 0)]


def test_after_a_comparison_with_the_challenger_the_version_names_the_sets_of_its_judgement(loop: Loop) -> None:
    loop.day("2")
    loop.day("3")
    assert "evaluation_sets" in loop.versions.tags["2"] and "evaluation_sets" not in loop.versions.tags["3"]


def test_a_promotion_by_hand_leaves_what_one_by_the_gate_leaves(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The anchor, the next challenger and the baseline, through the command."""
    loop.day("2", labels=0)
    loop.day("3", labels=0)
    engine, settings = loop.platform.engine, loop.platform.settings
    baseline.accept(engine, "1", *logged(loop, 200), "the new form is normal")
    monkeypatch.setattr(registries, "RegistryWriter", lambda _: loop.versions)
    monkeypatch.setenv("DIGITS_HOME", str(settings.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.mlflow_tracking_uri)
    done = CliRunner().invoke(app, ["promote", "v2", "--reason", "seen by eye"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert loop.aliases == {"champion": "2", "previous": "1", "challenger": "3"}
    assert loop.versions.tags["2"]["challenger"] == "promoted"
    assert baseline.current(engine, "2") == baseline.current(engine, "1") is not None
    assert evaluation_sets.stored_sets(loop.platform.models, engine, "2")["champion"][1] is not None
    retrain.review_challengers(loop.platform)
    assert loop.asked()[-1] == ("3", "2", 0)


def test_a_promotion_that_the_registry_lacked_has_its_baseline_too(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process died after it recorded the promotion and before it moved the alias."""
    monkeypatch.setattr(crashed_runs, "mark_crashed", lambda *_: None)
    baseline.accept(loop.platform.engine, "1", *logged(loop, 200), "the new form is normal")
    loop.register("2", share_shifted=0.5, seed=2)
    digest = model_store.digest(loop.platform.models.card("2"))
    ledger.append(loop.platform.engine, "promotion", "1", "2", "better", {}, digest=digest)
    for _ in range(2):
        retrain.repair_crashed(loop.platform)
    assert loop.aliases["champion"] == "2"
    assert baseline.current(loop.platform.engine, "2") == baseline.current(loop.platform.engine, "1") is not None
    assert [entry.action for entry in ledger.entries(loop.platform.engine, "baseline")] == ["baseline"] * 2


def logged(loop: Loop, count: int) -> tuple[datetime, datetime]:
    """The hour around so many answers without labels."""
    now, images = datetime.now(UTC), moved(loop.dataset.train.images[:count])
    batch = PredictionBatch(new_ids(count), now, "1", images, np.full((count, 10), 0.1, np.float32), "/classify")
    predictions.append(loop.platform.engine, [batch], 0.0)
    return now - timedelta(hours=1), now + timedelta(seconds=1)


STEPS = {
    "judged": (promotion, "record_verdict"),
    "recorded": (retrain, "apply_verdict"),
    "promoted": (ledger, "append"),
    "moved": (VersionRegistry, "set_alias"),
    "closed": (challengers, "close"),
    "appointed": (challengers, "appoint"),
}


@pytest.mark.parametrize("step", STEPS)
def test_killed_in_a_step_the_next_retraining_decides_the_same_at_the_same_cost(
    step: str, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.day("2")
    loop.day("3")
    loop.label(10)
    module, name = STEPS[step]
    actual = getattr(module, name)

    def killed(*arguments: object, **named: object) -> object:
        """At its first call about a promotion of version 2."""
        if step != "appointed" and "2" not in arguments:
            return actual(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            retrain.review_challengers(loop.platform)
    promotion.finish_promotion(loop.platform)
    retrain.review_challengers(loop.platform)
    assert loop.asked() == [("2", "1", 0), ("2", "1", 30), ("3", "2", 30)]
    assert [(entry.before, entry.after) for entry in ledger.replacements(loop.platform.engine)] == [
        (None, "1"),
        ("1", "2"),
    ]
    assert loop.aliases == {"champion": "2", "previous": "1", "challenger": "3"}
    assert loop.versions.tags["2"]["challenger"] == "promoted"


def test_the_best_of_a_sweep_is_judged_like_any_candidate(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import sweep

    monkeypatch.setattr(sweep, "retraining_slot", nullcontext)
    monkeypatch.setattr(sweep.search, "ranked", lambda _: ["the best trial"])
    monkeypatch.setattr(sweep.search, "recipe_of", lambda _: None)
    loop.day("2", labels=0)
    loop.label(40)
    loop.register("3", share_shifted=0.5, seed=3)
    loop.register("4", share_shifted=0.0, seed=4)
    said = []
    for version in "34":
        vars(loop.versions)["trained_before"] = lambda *_, version=version: version
        said.append(sweep.register_best(loop.platform, None, loop.dataset, "run"))  # type: ignore[arg-type]
    assert said[0].startswith("digits v3 waits behind the challenger v2")
    assert said[1].startswith("digits v4 waits behind the challenger v2")
    challengers.close(loop.versions, "2", "expired")  # type: ignore[arg-type]
    retrain.review_challengers(loop.platform)
    # Forty labels of shifted digits had come, which version 3 can read and version 4 cannot.
    assert (loop.aliases["champion"], loop.aliases["previous"]) == ("3", "1")
    assert loop.asked() == [("2", "1", 0), ("3", "1", 40), ("4", "3", 40)]


@pytest.mark.parametrize(("unread", "decision"), [(None, "promote"), (6, "hold")])
def test_a_gain_on_traffic_pays_for_no_digit_that_is_lost_there(unread: int | None, decision: str, loop: Loop) -> None:
    """The candidate learned many more shifted digits; where it answers 1 to each shifted 7, the others do not make up for it."""
    train = loop.dataset.train
    for version, count, lost in (("1", 200, None), ("2", len(train), unread)):
        images = np.concatenate([train.images, moved(train.images[:count])])
        shifted = np.where(train.labels == lost, 1, train.labels).astype(np.uint8)
        learned = Split(images, np.concatenate([train.labels, shifted[:count]]))
        loop.add(version, version_files(learned, loop.dataset))
    loop.label(len(loop.dataset.validation))
    said = loop.decide("2")
    assert f": {decision}: " in said and ("traffic digit 6" in said) == (unread == 6), said


@pytest.mark.parametrize(("labels", "decision"), [(0, "hold"), (269, "promote")])
def test_corruptions_that_nobody_sends_hold_no_candidate_that_reads_the_traffic(
    labels: int, decision: str, loop: Loop
) -> None:
    """The camera is upside down: who learned such digits reads corrupted upright ones worse."""
    train = loop.dataset.train
    images = np.concatenate([train.images, upside_down(train.images[:800])])
    learned = Split(images, np.concatenate([train.labels, train.labels[:800]]))
    loop.add("2", version_files(learned, loop.dataset))
    loop.label(labels, upside_down)
    said = loop.decide("2")
    assert f": {decision}: " in said and ("weighted accuracy on corrupted images" in said) == (labels == 0), said


@pytest.mark.parametrize("mode", ["automatic", "ask"])
def test_a_candidate_does_not_become_the_champion_because_the_alias_is_lost(
    mode: str, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = loop.platform.settings.model_copy(update={"promotion": mode})
    monkeypatch.setattr(loop.platform, "settings", changed)
    promotion.promote(loop.platform, "1", "recorded")
    loop.register("2", share_shifted=0.5, seed=2)
    del loop.aliases["champion"]
    said = loop.decide("2")
    assert said.startswith(
        "digits v2: hold: v1 is the champion in the ledger, but the registry has no alias `champion`"
    )
    assert "`digits promote 1`" in said and loop.aliases == {}
    # A new registry has another version of that number.
    loop.register("1", share_shifted=0.2, seed=3)
    assert loop.decide("2").startswith("digits v2: promote") and loop.aliases == {"champion": "2"}
