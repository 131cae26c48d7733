"""The recipe of the retraining is trained in the background where no version of it knows the current data set."""

from pathlib import Path
from typing import Any

import pytest
from conftest import Runs, find_free_port

from digits.data import datasets
from digits.data.datasets import Dataset
from digits.images import Split
from digits.settings import Settings
from models import recipes
from models.registry_reader import RegistryReader
from ops import background_training, bootstrap, processes


def settings_of(home: Path, **changes: Any) -> Settings:
    return Settings(_env_file=None, home=home, **changes)  # type: ignore[call-arg]


@pytest.mark.slow
def test_it_is_needed_until_the_recipe_was_trained_on_the_current_data(
    trained_runs: Runs, bundled: Dataset, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, mlflow_tracking_uri=trained_runs.uri, recipe="sigmoid")
    classic = settings.model_copy(update={"recipe": "classic"})
    assert not background_training.is_needed(settings)  # the data set is not known here, the recipe is
    assert background_training.is_needed(classic)
    make_current(bundled, settings)
    assert not background_training.is_needed(settings)
    assert background_training.is_needed(classic)
    assert not background_training.is_needed(classic.model_copy(update={"first_recipe": "classic"}))
    grown = datasets.extend(bundled, turned(bundled), validation_fraction=0.1, seed=0)
    make_current(grown, settings)
    assert not background_training.is_needed(settings)
    make_current(datasets.divide("turned", turned(bundled), seed=0), settings)
    assert background_training.is_needed(settings)


def test_a_search_that_fails_does_not_stop_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = f"http://127.0.0.1:{find_free_port()}"
    for name in ("processes", "wait_healthy"):
        monkeypatch.setattr(processes, name, lambda *_: [])
    monkeypatch.setattr(RegistryReader, "version", lambda _: "1")
    monkeypatch.setattr(bootstrap, "print_status", lambda _: True)
    bootstrap._start(None, settings_of(tmp_path, mlflow_tracking_uri=nobody))  # type: ignore[arg-type]
    assert "no training starts in the background: the registry at" in capsys.readouterr().out


def test_the_time_follows_the_number_of_images(bundled: Dataset, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, recipe="augmented")
    assert background_training.minutes(settings) == recipes.RECIPES["augmented"].minutes(recipes.MNIST_SIZE) > 5
    make_current(bundled, settings)
    assert background_training.minutes(settings) == 1


def test_the_table_has_a_line_while_it_runs_and_after_it_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, prefect_api_url="http://127.0.0.1:4200/api")
    for state, shown in (
        ({"statename": "STOPPED", "exitstatus": 0}, None),
        ({"statename": "RUNNING", "exitstatus": 0}, "http://127.0.0.1:4200/runs"),
        ({"statename": "EXITED", "exitstatus": 0}, None),
        ({"statename": "EXITED", "exitstatus": 1}, str(tmp_path / "logs" / "training.log")),
    ):
        monkeypatch.setattr(processes, "process_info", lambda _, state=state: {"training": state})
        assert [row[1] for row in background_training.rows(settings)] == ([shown] if shown else [])
    monkeypatch.setattr(processes, "process_info", lambda _: {"training": {"statename": "RUNNING", "exitstatus": 0}})
    for promotion, then in (("automatic", "promoted if better"), ("ask", "waits for approval if better")):
        asked = settings.model_copy(update={"promotion": promotion})
        assert background_training.rows(asked)[0][0] == f"in training, {then}"


def test_it_stops_for_a_while_and_starts_again_on_a_platform_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, calls = settings_of(tmp_path), list[str]()
    info = {"training": {"statename": "RUNNING", "exitstatus": 0}}
    monkeypatch.setattr(processes, "process_info", lambda _: info)
    monkeypatch.setattr(processes, "end", lambda _, process: calls.append(f"end {process.name}"))
    monkeypatch.setattr(processes, "start", lambda _, process: calls.append(f"start {process.name}"))
    with pytest.raises(KeyboardInterrupt), background_training.paused(settings):
        assert calls == ["end training"]
        raise KeyboardInterrupt
    assert calls == ["end training", "start training"]
    with background_training.paused(settings):
        info.clear()  # `digits down` in another terminal
    assert calls == ["end training", "start training", "end training"]
    with background_training.paused(settings):
        pass
    assert len(calls) == 3


def make_current(dataset: Dataset, settings: Settings) -> None:
    datasets.save(dataset, settings.datasets)
    datasets.set_current(settings.datasets, dataset.fingerprint)


def turned(dataset: Dataset) -> Split:
    """The training digits upside down."""
    return Split(dataset.train.images[:, ::-1, ::-1].copy(), dataset.train.labels)
