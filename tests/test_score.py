"""The flow answers with the champion itself, verified, and tells the balance."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Files, Registry

from digits import reference
from digits.settings import Settings
from flows import score
from models.connections import Platform
from models.registry_reader import VersionNotFound


@pytest.fixture
def settings(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    return Settings()


def test_the_champion_answers_a_file(
    registry: Registry, champion_files: Files, other_files: Files, settings: Settings, tmp_path: Path
) -> None:
    registry.versions |= {"1": other_files, "2": champion_files}
    registry.aliases["champion"] = "2"
    champion = Platform(settings).models.fetch()
    assert champion.version == "2"
    sample = reference.from_bytes(champion_files["reference.npz"])
    source, target = tmp_path / "test.csv", tmp_path / "submission.csv"
    np.savetxt(source, sample.images.reshape(-1, 784), "%d", ",")
    count = score.write_answers(source, target, champion, settings)
    assert count.answered == len(sample) and count.rejected == 0
    answers = np.loadtxt(target, int, delimiter=",", skiprows=1)
    assert (answers[:, 0] == np.arange(1, len(sample) + 1)).all()
    assert (answers[:, 1] == sample.probabilities.argmax(axis=1)).all()
    assert (answers[:, 1] == sample.labels).mean() > 0.85


def test_without_a_champion_nothing_is_answered(settings: Settings) -> None:
    with pytest.raises(VersionNotFound, match="train and promote one"):
        Platform(settings).models.fetch()
