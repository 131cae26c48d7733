"""What the demo says before it begins, and which platforms it keeps out of."""

from pathlib import Path
from typing import Any

import pytest
from logged import answers
from sqlalchemy import Engine
from typer.testing import CliRunner

from digits.data import datasets
from digits.data.datasets import Dataset
from digits.settings import Settings
from digits.storage import api_keys, ledger, predictions
from models.connections import Platform
from models.registry_reader import RegistryReader
from ops import demo, demo_plan
from ops.cli import app
from ops.demo_plan import CLIENT, REASON


@pytest.fixture
def platform(tmp_path: Path, bundled: Dataset, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A platform without servers, on the bundled digits and without a champion."""
    monkeypatch.setattr(RegistryReader, "version", lambda _: None)
    monkeypatch.setattr(RegistryReader, "tagged", lambda *_: {})
    datasets.save(bundled, tmp_path / "datasets")
    datasets.set_current(tmp_path / "datasets", bundled.fingerprint)
    return of(tmp_path)


def of(home: Path, **more: Any) -> Platform:
    return Platform(Settings(_env_file=None, home=home, **more))  # type: ignore[call-arg]


def log(engine: Engine, client: str, count: int, seed: int) -> None:
    batch = answers(count, seed=seed)._replace(clients=[client] * count)
    predictions.append(engine, [batch], audit_sample_rate=0)


def test_a_platform_with_traffic_of_its_own_is_left_alone_and_one_with_that_of_demos_is_not(platform: Platform) -> None:
    log(platform.engine, CLIENT, 500, seed=1)
    log(platform.engine, f"audit/{CLIENT}", 500, seed=2)
    log(platform.engine, "", demo_plan.MAX_TRIES, seed=3)
    plan = demo_plan.read(platform)
    assert (plan.others, plan.refusal) == (demo_plan.MAX_TRIES, None)
    log(platform.engine, "somebody", 1, seed=4)
    refusal = demo_plan.read(platform).refusal
    assert refusal and "has 100 answers of its own" in refusal and "`digits demo --force`" in refusal


def test_a_platform_where_a_version_waits_for_approval_is_left_alone(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promotions of the demo would supersede it."""
    assert "DIGITS_PROMOTION" not in "\n".join(demo_plan.read(platform).lines)
    asking = of(platform.settings.home, promotion="ask")
    plan = demo_plan.read(asking)
    assert plan.refusal is None and "the demo approves its own versions for you" in plan.lines[-1]
    waiting = {"7": {"approval": "waiting", "approval_since": "2026-01-05T12:00:00+00:00"}}
    monkeypatch.setattr(RegistryReader, "tagged", lambda _, *tag: waiting if tag == ("approval", "waiting") else {})
    refusal = demo_plan.read(asking).refusal
    assert refusal and refusal.startswith("approval waits for digits v7, ") and "`digits demo --force`" in refusal


def test_forced_it_says_what_it_adds_and_begins_beside_the_traffic_of_others(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(platform.engine, "somebody", demo_plan.MAX_TRIES + 1, seed=1)
    told: list[demo.Stage] = []
    monkeypatch.setattr(demo, "_require_servers", lambda _: None)
    monkeypatch.setattr(demo, "tell", told.append)
    monkeypatch.setenv("DIGITS_HOME", str(platform.settings.home))
    refused = CliRunner().invoke(app, ["demo"])
    assert isinstance(refused.exception, RuntimeError) and "has 100 answers of its own" in str(refused.exception)
    assert not told
    forced = CliRunner().invoke(app, ["demo", "--force"])
    assert forced.exit_code == 0 and f"adds to {platform.settings.home} " in forced.output
    (stage,) = told
    assert stage.plan.others == 100


def test_it_says_what_it_adds(platform: Platform) -> None:
    text = "\n".join(demo_plan.read(platform).lines)
    assert f"adds to {platform.settings.home} " in text and f"the client {CLIENT}" in text
    assert "up to six trainings on bundled (1,527 digits, 270 more for tests)" in text
    assert "(now none)" in text and "in the background" not in text


def test_the_next_demo_trains_other_versions_on_the_same_source(platform: Platform) -> None:
    first = demo_plan.read(platform)
    assert [recipe.name for recipe in first.recipes] == ["kaggle-sgd", "classic", "adam", "compact", "sigmoid"]
    assert {recipe.seed for recipe in first.recipes} == {0} and first.source == "bundled"
    ledger.append(platform.engine, "promotion", None, "2", f"{REASON}the best of five recipes", {})
    ledger.append(platform.engine, "promotion", "2", "3", "manual", {})
    assert {recipe.seed for recipe in demo_plan.read(platform).recipes} == {1}


def test_where_keys_are_required_the_demo_needs_an_auditors(platform: Platform) -> None:
    home = platform.settings.home
    with pytest.raises(PermissionError, match="DIGITS_API_KEY is no key of this platform, but the demo labels as an"):
        demo_plan.read(of(home, auth="required"))
    other = api_keys.create(platform.engine, "someone", ["predict", "feedback"])
    with pytest.raises(PermissionError, match="DIGITS_API_KEY is the key 'someone', but"):
        demo_plan.read(of(home, auth="required", api_key=other))
    key = api_keys.create(platform.engine, "audit", ["predict", "feedback"])
    assert demo_plan.read(of(home, auth="required", api_key=key)).seed == 0
    with pytest.raises(PermissionError):
        demo_plan.read(of(home, host="192.0.2.1"))


def test_without_a_data_set_there_is_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="no data set yet"):
        demo_plan.read(of(tmp_path))
