"""Labels come slowly, and candidates daily: one of them stays the challenger, is judged on growing traffic, and is decided."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from conftest import Registry as Memory
from versions import VersionRegistry, version_files

from digits.data import datasets
from digits.data.datasets import Dataset
from digits.data.perturbations import shift
from digits.images import Split
from digits.settings import Settings
from digits.storage import feedback, judgements, ledger, predictions
from digits.storage.predictions import AUDITOR, PredictionBatch, new_ids
from flows import retrain
from flows.connections import Platform
from models import challengers, gate, promotion
from models.gate import UNDECIDED


@dataclass
class Loop:
    """A platform whose champion reads the bundled digits; the traffic is shifted to the right."""

    platform: Platform
    versions: VersionRegistry
    dataset: Dataset
    sent: int = 0
    decisions: list[str] = field(default_factory=list)

    def register(self, version: str, share_shifted: float, seed: int = 0) -> None:
        """A version of which so large a share of the training images is shifted as the traffic is."""
        train = self.dataset.train
        chosen = np.random.default_rng(seed).permutation(len(train))[:1000]
        count = round(share_shifted * len(chosen))
        images = np.concatenate([train.images[chosen], moved(train.images[chosen[:count]])])
        learned = Split(images, np.concatenate([train.labels[chosen], train.labels[chosen[:count]]]))
        self.versions.memory.versions[version] = version_files(learned, self.dataset)
        self.versions.tag_version(version, {"inputs": f"inputs of v{version}"})

    def label(self, count: int) -> None:
        """Answers of the champion to shifted digits that nobody trained on, labelled by an auditor."""
        rows = slice(self.sent, self.sent + count)
        images, labels = moved(self.dataset.validation.images[rows]), self.dataset.validation.labels[rows]
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
        champion, verdict = retrain.judge(self.platform, version)
        retrain.apply_verdict(self.platform, version, champion, verdict)
        return verdict.decision

    @property
    def aliases(self) -> dict[str, str]:
        return self.versions.memory.aliases

    def asked(self) -> list[tuple[str, str, int]]:
        """Candidate, champion and images of traffic of each judgement."""
        with self.platform.engine.connect() as connection:
            columns = judgements.Judgement.__table__.c
            query = judgements.Judgement.__table__.select().order_by(columns.number)
            return [(row.candidate, row.champion, row.traffic_images) for row in connection.execute(query)]


def moved(images: np.ndarray) -> np.ndarray:
    return shift(images, 3)


@pytest.fixture
def loop(registry: Memory, bundled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    settings = Settings(home=tmp_path, MLFLOW_TRACKING_URI=registry.uri, gate={"min_sample": 30})  # type: ignore[call-arg]
    platform, versions = Platform(settings), VersionRegistry(registry)
    vars(platform)["registry"] = versions
    datasets.save(bundled, settings.datasets)
    monkeypatch.setattr(retrain, "publish", lambda *_: None)
    loop = Loop(platform, versions, bundled)
    loop.register("1", share_shifted=0.0)
    registry.aliases["champion"] = "1"
    return loop


def test_with_ten_labels_a_day_the_first_candidate_stays_and_is_decided(loop: Loop) -> None:
    decided = [loop.day(version) for version in "2345678"]
    # Of candidates as good as itself none replaces the challenger.
    first = [judged for judged in loop.asked() if judged[0] == "2"]
    print(decided, loop.asked(), loop.aliases, loop.versions.tags)
    assert first == [("2", "1", 0), ("2", "1", 30), ("2", "1", 60)][: len(first)] and len(first) > 1
    assert decided[0] == UNDECIDED
    assert loop.aliases["champion"] == "2" and loop.versions.tags["2"]["challenger"] == "promoted"
    assert [entry.after for entry in ledger.entries(loop.platform.engine)] == ["2"]
