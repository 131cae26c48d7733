"""The champion: only a version that is whole and answers its golden query is served, and a good one is never given up."""

import hashlib
import io
import json
import logging
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import hostile
import numpy as np
import pytest
from conftest import Files, Registry, serve_registry, wait_for
from test_read import picture, sure

from digits import reference
from digits.images import Images
from digits.settings import Settings
from digits.storage.database import DatabaseUnavailable
from models import model_store, onnx_model, registry_reader, verification
from models.model_store import ModelStore
from models.onnx_model import InferenceFailed, InvalidArtifact, OnnxModel, Output
from models.registry_reader import RegistryReader, RegistryUnreachable, VersionNotFound
from services import serving_state
from services.serving_context import ServingContext
from services.serving_state import AliasWatcher


def watcher(registry: Registry, cache: Path) -> AliasWatcher:
    return AliasWatcher(registry.uri, "champion", cache, 0.02, lambda: registry.promoted)


def fetch_copy(registry: Registry, cache: Path) -> None:
    """As a service does that serves the champion."""
    model_store.remember(ModelStore(registry.uri, cache).fetch(), "champion", cache)


def version_of(watching: AliasWatcher) -> str | None:
    champion = watching.state.champion
    return champion.version if champion else None


def test_the_alias_is_fetched_and_answers_as_it_did_when_registered(
    registry: Registry, champion_files: Files, tmp_path: Path
) -> None:
    registry.promote("3", champion_files)
    fetched = ModelStore(registry.uri, tmp_path).fetch()
    sample = reference.from_bytes(champion_files["reference.npz"])
    answers = fetched.predict_proba(sample.images)
    assert (fetched.version, fetched.card["recipe"]["name"]) == ("3", "linear")
    assert answers.shape == (597, 10) and answers.dtype == np.float32
    assert np.allclose(answers, sample.probabilities, atol=1e-6)
    assert (answers.argmax(1) == sample.labels).mean() > 0.85
    assert RegistryReader(registry.uri).version() == "3"


def test_a_large_batch_is_answered_as_its_parts_are(champion_files: Files) -> None:
    model = onnx_model.load(champion_files["model.onnx"])
    images = np.random.default_rng(0).integers(0, 256, (2500, 28, 28), dtype=np.uint8)
    assert np.allclose(model.predict_proba(images)[2400:], model.predict_proba(images[2400:]), atol=1e-6)


@pytest.mark.parametrize(("name", "limit"), [("card.json", 1_000_000), ("model.onnx", 2_000_000)])
def test_a_file_that_is_too_large_is_not_read_to_its_end(
    name: str, limit: int, registry: Registry, champion_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_reader, "MAX_FILE_BYTES", 2_000_000)
    registry.versions["1"] = champion_files | {name: bytes(60_000_000)}
    tracemalloc.start()
    try:
        with pytest.raises(InvalidArtifact, match=rf"digits v1: {name} is larger than {limit:,} bytes"):
            ModelStore(registry.uri, tmp_path).fetch_version("1")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("status", [200, 400, 404, 429])
def test_what_is_no_mlflow_is_said_and_not_taken_for_an_empty_one(
    registry: Registry, tmp_path: Path, status: int
) -> None:
    registry.broken = status
    with pytest.raises(
        RegistryUnreachable, match=rf"answered {status}, and not as MLflow does; set MLFLOW_TRACKING_URI"
    ):
        ModelStore(registry.uri, tmp_path).fetch()
    with pytest.raises(RegistryUnreachable, match=f"answered {status} to a search of versions"):
        RegistryReader(registry.uri).tagged("recipe", "compact")


def test_no_champion_is_said_with_what_to_do(registry: Registry, champion_files: Files, tmp_path: Path) -> None:
    with pytest.raises(VersionNotFound, match="digits retrain"):
        ModelStore(registry.uri, tmp_path).fetch()
    assert RegistryReader(registry.uri).version() is None
    registry.versions["1"] = champion_files
    with pytest.raises(VersionNotFound, match="alias champion"):
        ModelStore(registry.uri, tmp_path).fetch()
    with pytest.raises(VersionNotFound, match="no digits v7"):
        ModelStore(registry.uri, tmp_path).fetch_version("7")


def test_a_registry_that_is_away_is_named(free_port: int, tmp_path: Path) -> None:
    with pytest.raises(RegistryUnreachable, match=f"127.0.0.1:{free_port}.*MLFLOW_TRACKING_URI"):
        ModelStore(f"http://127.0.0.1:{free_port}", tmp_path).fetch()


def test_the_password_of_a_registry_is_not_shown(free_port: int, tmp_path: Path) -> None:
    with pytest.raises(RegistryUnreachable, match=f"http://127.0.0.1:{free_port}") as refused:
        ModelStore(f"http://admin:hush@127.0.0.1:{free_port}", tmp_path).fetch()
    assert "hush" not in str(refused.value)


def test_a_version_is_downloaded_once_and_again_when_its_copy_is_damaged(
    registry: Registry, champion_files: Files, tmp_path: Path
) -> None:
    registry.promote("3", champion_files)
    ModelStore(registry.uri, tmp_path).fetch()
    assert sorted(path.name for path in (tmp_path / "3").iterdir()) == ["card.json", "model.onnx", "reference.npz"]
    registry.asked.clear()
    ModelStore(registry.uri, tmp_path).fetch_version("3")
    assert registry.asked == ["card.json"]
    (tmp_path / "3" / "model.onnx").write_bytes(b"rot")
    ModelStore(registry.uri, tmp_path).fetch_version("3")
    assert (tmp_path / "3" / "model.onnx").read_bytes() == champion_files["model.onnx"]


def damaged(files: Files, how: str, other: Files) -> Files:
    """A version gone wrong in one way, its checksums in order unless they are what is wrong."""
    files = dict(files)
    card = json.loads(files["card.json"])
    if how == "checksum":
        files["model.onnx"] = other["model.onnx"]
    elif how == "no card":
        del files["card.json"]
    elif how == "no model":
        del files["model.onnx"]
    elif how == "card is no JSON":
        files["card.json"] = b"<html>"
    elif how == "another certainty":
        card["conformal"] = {"level": 0.9}
        files["card.json"] = json.dumps(card).encode()
    else:
        wrong = {"no ONNX": ("model.onnx", b"\x00\x01"), "another model": ("model.onnx", other["model.onnx"]),
                 "float model": ("model.onnx", float_model()), "no reference": ("reference.npz", b"PK")}  # fmt: skip
        name, content = wrong[how]
        files[name] = content
        card["files"][name] = hashlib.sha256(content).hexdigest()
        files["card.json"] = json.dumps(card).encode()
    return files


def float_model() -> bytes:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "floats",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


BAD = {
    "checksum": "the checksum of model.onnx",
    "no card": "answered 404 for card.json",
    "no model": "answered 404 for model.onnx",
    "card is no JSON": "card.json has no checksums",
    "another certainty": "no readable conformal predictor",
    "no ONNX": "model.onnx does not load",
    "another model": "golden query is answered .* off in a batch of 1,",
    "float model": "golden query fails in a batch of 1: .*expected: \\(tensor\\(float\\)\\)",
    "no reference": "expected an npz",
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_version_is_refused_and_the_champion_goes_on(
    how: str,
    registry: Registry,
    champion_files: Files,
    other_files: Files,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry.promote("1", champion_files)
    watching = watcher(registry, tmp_path)
    watching.poll()
    registry.promote("2", damaged(champion_files, how, other_files))
    with pytest.raises(InvalidArtifact, match=f"digits v2: .*{BAD[how]}"):
        ModelStore(registry.uri, tmp_path).fetch()
    for _ in range(3):
        watching.poll()
    assert version_of(watching) == "1"
    assert watching.state.warning and "digits v2" in watching.state.warning
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "2").exists()
    registry.promote("3", other_files)
    watching.poll()
    assert version_of(watching) == "3" and watching.state.warning is None


def test_a_refused_version_is_not_downloaded_at_every_look(
    registry: Registry, champion_files: Files, other_files: Files, tmp_path: Path
) -> None:
    registry.promote("2", damaged(champion_files, "checksum", other_files))
    watching = watcher(registry, tmp_path)
    for _ in range(10):
        watching.poll()
    assert registry.asked.count("model.onnx") == 1


def test_the_watcher_waits_for_a_first_champion_and_follows_the_alias(
    registry: Registry, champion_files: Files, other_files: Files, tmp_path: Path
) -> None:
    watching = watcher(registry, tmp_path)
    watching.start()
    try:
        wait_for(lambda: "digits retrain" in (watching.state.warning or ""))
        assert version_of(watching) is None
        registry.promote("1", champion_files)
        wait_for(lambda: version_of(watching) == "1")
        registry.promote("2", other_files)
        wait_for(lambda: version_of(watching) == "2")
        registry.aliases["champion"] = "1"  # a rollback
        wait_for(lambda: version_of(watching) == "1")
    finally:
        watching.stop()


def test_without_the_registry_the_last_good_champion_starts_from_its_copy(
    champion_files: Files, tmp_path: Path
) -> None:
    registry, server = serve_registry()
    registry.promote("4", champion_files)
    fetch_copy(registry, tmp_path)
    server.shutdown()
    server.server_close()
    watching = watcher(registry, tmp_path)
    watching.poll()
    assert version_of(watching) == "4"
    assert "does not answer" in (watching.state.warning or "")
    (tmp_path / "4" / "model.onnx").write_bytes(b"rot")
    damaged_start = watcher(registry, tmp_path)
    damaged_start.poll()
    assert version_of(damaged_start) is None


def test_an_unreachable_registry_does_not_take_the_champion_away(
    champion_files: Files, other_files: Files, tmp_path: Path
) -> None:
    registry, server = serve_registry()
    registry.promote("1", champion_files)
    watching = watcher(registry, tmp_path)
    watching.poll()
    server.shutdown()
    server.server_close()
    watching.poll()
    assert version_of(watching) == "1" and "does not answer" in (watching.state.warning or "")
    again, server = serve_registry(int(registry.uri.rsplit(":", 1)[1]))
    again.promote("2", other_files)
    registry.promoted |= again.promoted
    watching.poll()
    server.shutdown()
    server.server_close()
    assert version_of(watching) == "2" and watching.state.warning is None


def test_the_same_number_in_a_new_registry_is_another_version(
    registry: Registry, champion_files: Files, other_files: Files, tmp_path: Path
) -> None:
    registry.promote("1", champion_files)
    watching = watcher(registry, tmp_path)
    watching.poll()
    before = watching.state.champion
    registry.run_prefix = "77aa"
    registry.promote("1", other_files)
    watching.poll()
    assert before and watching.state.champion and version_of(watching) == "1"
    assert watching.state.champion.card["files"] != before.card["files"]
    watching.poll()
    assert registry.asked.count("card.json") == 2


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_registry_that_fails_or_shuts_the_door_is_not_a_bad_version(
    status: int, registry: Registry, champion_files: Files, tmp_path: Path
) -> None:
    registry.promote("1", champion_files)
    watching = watcher(registry, tmp_path)
    watching.poll()
    registry.broken = status
    with pytest.raises(RegistryUnreachable, match=f"answered {status}"):
        ModelStore(registry.uri, tmp_path).fetch_version("1")
    watching.poll()
    assert version_of(watching) == "1" and f"answered {status}" in (watching.state.warning or "")
    registry.broken = None
    watching.poll()
    assert watching.state.warning is None


def test_only_the_newest_copies_are_kept(registry: Registry, champion_files: Files, tmp_path: Path) -> None:
    for version in map(str, range(1, 9)):
        registry.promote(version, champion_files)
        fetch_copy(registry, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "4",
        "5",
        "6",
        "7",
        "8",
        "champion-former.txt",
        "champion.txt",
    ]


def test_a_full_disk_does_not_keep_a_champion_from_answering(
    registry: Registry, champion_files: Files, tmp_path: Path
) -> None:
    cache = tmp_path / "file"
    cache.touch()  # nothing can be written below a file
    registry.promote("1", champion_files)
    assert ModelStore(registry.uri, cache).fetch().version == "1"


def test_answering_needs_none_of_the_training_stack() -> None:
    program = (
        "import sys, models.model_store; "
        "print({'tensorflow', 'keras', 'mlflow', 'prefect', 'evidently', 'onnx', 'sklearn', 'pandas'} & set(sys.modules))"
    )
    root = Path(__file__).parent.parent
    assert subprocess.check_output([sys.executable, "-c", program], cwd=root, text=True).strip() == "set()"


def test_the_reference_of_the_fixture_is_held_out(champion_files: Files) -> None:
    with np.load(io.BytesIO(champion_files["reference.npz"])) as arrays:
        assert arrays["images"].shape == (597, 28, 28)


def test_a_pinned_version_is_served_from_its_copy_and_asks_no_registry(
    registry: Registry, champion_files: Files, tmp_path: Path
) -> None:
    registry.promote("3", champion_files)
    fetch_copy(registry, tmp_path)
    registry.asked.clear()
    pinned = watcher(registry, tmp_path)
    pinned.pin()
    assert version_of(pinned) == "3" and registry.asked == []
    (tmp_path / "3" / "model.onnx").write_bytes(b"rot")
    with pytest.raises(InvalidArtifact, match=r"checksum of model\.onnx"):
        pinned.pin()
    pinned.stop()


def worthless_answers(watching: AliasWatcher, files: Files) -> bool:
    """Whether what is served says zero for nearly every image."""
    champion = watching.state.champion
    sample = reference.from_bytes(files["reference.npz"])
    return champion is not None and (champion.predict_proba(sample.images).argmax(1) == 0).mean() > 0.9


def test_a_version_that_is_not_recorded_in_the_ledger_is_not_served_though_its_card_fits(
    registry: Registry, champion_files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody who can write to MLflow, but not to the ledger, replaces the champion: as another version, then in its place."""
    registry.promote("1", champion_files)
    watching, worthless = watcher(registry, tmp_path), hostile.worthless(champion_files)
    watching.poll()
    registry.versions["2"], registry.aliases["champion"] = worthless, "2"
    ModelStore(registry.uri, tmp_path / "elsewhere").fetch()  # it passes every check of its own files
    for _ in range(3):
        watching.poll()
    assert version_of(watching) == "1" and not worthless_answers(watching, champion_files)
    assert watching.state.warning and "digits v2, which is not recorded in the ledger" in watching.state.warning
    assert "`digits promote 2`" in watching.state.warning
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
    registry.versions["1"], registry.aliases["champion"] = worthless, "1"
    again = watcher(registry, tmp_path)
    again.poll()
    assert version_of(again) == "1" and not worthless_answers(again, champion_files)
    assert "digits v1, which is not recorded in the ledger" in (again.state.warning or "")
    empty = watcher(registry, tmp_path / "new")
    empty.poll()
    assert version_of(empty) is None


def test_a_copy_that_another_command_replaced_is_not_taken_for_the_last_good_one(
    registry: Registry, champion_files: Files, tmp_path: Path
) -> None:
    registry.promote("1", champion_files)
    watcher(registry, tmp_path).poll()
    registry.versions["1"] = hostile.worthless(champion_files)
    ModelStore(registry.uri, tmp_path).fetch()  # as `digits score` does, into the same cache
    with pytest.raises(
        InvalidArtifact, match=f"the copy in {tmp_path / '1'} does not match the recorded digest; remove"
    ):
        model_store.last_good("champion", tmp_path)
    del registry.aliases["champion"]
    watching = watcher(registry, tmp_path)
    watching.poll()
    assert version_of(watching) is None and not worthless_answers(watching, champion_files)


def test_without_any_promotion_the_alias_is_followed_with_a_warning(
    registry: Registry, champion_files: Files, tmp_path: Path
) -> None:
    registry.versions["1"], registry.aliases["champion"] = champion_files, "1"
    watching = watcher(registry, tmp_path)
    watching.poll()
    watching.poll()
    assert version_of(watching) == "1"
    assert "digits v1 cannot be checked against it; `digits promote 1`" in (watching.state.warning or "")
    registry.promote("1", champion_files)
    watching.poll()
    assert version_of(watching) == "1" and watching.state.warning is None


def test_while_the_ledger_is_unreachable_the_version_in_place_and_after_a_start_its_copy_answers(
    registry: Registry, champion_files: Files, other_files: Files, tmp_path: Path
) -> None:
    def unreachable() -> set[str]:
        raise DatabaseUnavailable("the database is unreachable")

    registry.promote("1", champion_files)
    watching = watcher(registry, tmp_path)
    watching.poll()
    registry.promote("2", other_files)
    watching._promoted_digests = unreachable
    started = AliasWatcher(registry.uri, "champion", tmp_path, 1, unreachable)
    first = AliasWatcher(registry.uri, "champion", tmp_path / "new", 1, unreachable)
    for one, version in ((watching, "1"), (started, "1"), (first, None)):
        one.poll()
        assert version_of(one) == version and one.state.warning == "the database is unreachable"
    watching._promoted_digests = lambda: registry.promoted
    watching.poll()
    assert version_of(watching) == "2" and watching.state.warning is None


def test_after_the_alias_is_removed_and_a_restart_the_last_verified_copy_answers(
    registry: Registry, champion_files: Files, tmp_path: Path
) -> None:
    registry.promote("1", champion_files)
    watcher(registry, tmp_path).poll()
    del registry.aliases["champion"]
    watching = watcher(registry, tmp_path)
    watching.poll()
    assert version_of(watching) == "1" and "alias champion" in (watching.state.warning or "")


def test_the_watcher_goes_on_while_an_endless_model_is_tried(
    registry: Registry, champion_files: Files, other_files: Files, tmp_path: Path
) -> None:
    """Without the ledger it would be followed; a promotion of another version ends its verification."""
    registry.versions["1"], registry.aliases["champion"] = champion_files, "1"
    watching = watcher(registry, tmp_path)
    watching.start(60)
    try:
        registry.versions["2"], registry.aliases["champion"] = hostile.endless(champion_files), "2"
        wait_for(lambda: registry.asked.count("model.onnx") == 2)
        assert version_of(watching) == "1"
        started = time.monotonic()
        registry.promote("3", other_files)
        wait_for(lambda: version_of(watching) == "3")
        assert time.monotonic() - started < verification.TIME_LIMIT_SECONDS
    finally:
        watching.stop()


def test_a_version_that_fails_while_it_answers_is_replaced_by_the_one_before_it(
    registry: Registry, champion_files: Files, other_files: Files, tmp_path: Path
) -> None:
    """It fails on batches that no verification has; also after a restart, when the version before it is a copy on disk only."""
    images = np.zeros((100, 28, 28), np.uint8)
    registry.promote("1", other_files)
    watching = watcher(registry, tmp_path)
    watching.poll()
    registry.promote("2", hostile.failing_at(100, champion_files))
    for one in (watching, watcher(registry, tmp_path)):
        one.poll()
        failed = one.state.champion
        assert failed is not None and failed.version == "2"
        with pytest.raises(InferenceFailed) as error:
            failed.predict_proba(images)
        replacement = one.replace_failed(failed, str(error.value))
        assert replacement is not None and replacement.version == version_of(one) == "1"
        assert replacement.predict_proba(images).shape == (100, 10)
        assert one.replace_failed(failed, "again") is replacement
        one.poll()
        assert version_of(one) == "1" and "digits v2 fails while it answers" in (one.state.warning or "")
        assert one.replace_failed(replacement, "this one, too") is None
    registry.promote("3", champion_files)
    watching.poll()
    assert version_of(watching) == "3" and watching.state.warning is None


def test_the_version_before_it_is_loaded_beforehand_and_not_by_the_request(
    registry: Registry, champion_files: Files, other_files: Files, tmp_path: Path
) -> None:
    for version, files in (("1", other_files), ("2", champion_files)):
        registry.promote(version, files)
        fetch_copy(registry, tmp_path)
    watching = watcher(registry, tmp_path)
    away = AliasWatcher("http://127.0.0.1:1", "champion", tmp_path, 1, lambda: registry.promoted)
    for one in (watching, away):
        one.poll()
    shutil.rmtree(tmp_path / "1")
    for one in (watching, away):
        failed = one.state.champion
        assert failed is not None and failed.version == "2"
        replacement = one.replace_failed(failed, "no memory")
        assert replacement is not None and replacement.version == "1"


def test_a_failure_in_the_moment_of_the_swap_is_not_forgotten(
    registry: Registry, champion_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote("1", champion_files)
    watching = watcher(registry, tmp_path)
    monkeypatch.setattr(serving_state, "remember", lambda model, *_: watching.replace_failed(model, "no memory"))
    for _ in range(2):
        watching.poll()
        assert "digits v1 fails while it answers: no memory" in (watching.state.warning or "")


def test_a_session_that_fails_once_is_asked_again(
    registry: Registry, champion_files: Files, other_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime reports a moment without memory like any other failure."""
    context = ServingContext.__new__(ServingContext)
    context._watcher = watching = watcher(registry, tmp_path)
    for version, files in (("1", other_files), ("2", champion_files)):
        registry.promote(version, files)
        watching.poll()
    failures, predict = ["bad allocation"], OnnxModel.predict
    champion = watching.state.champion

    def predict_or_fail(model: OnnxModel, images: Images) -> Output:
        if champion and model is champion.model and failures:
            raise InferenceFailed(failures.pop())
        return predict(model, images)

    monkeypatch.setattr(OnnxModel, "predict", predict_or_fail)
    images = np.zeros((1, 28, 28), np.uint8)
    assert context._predict(images)[0].version == version_of(watching) == "2"
    failures += ["bad allocation", "bad allocation"]
    assert context._predict(images)[0].version == version_of(watching) == "1"


def test_all_lines_of_a_picture_are_read_by_the_version_that_is_named(
    registry: Registry, champion_files: Files, other_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ServingContext.__new__(ServingContext)
    context._watcher = watching = watcher(registry, tmp_path)
    context.settings = Settings(_env_file=None)  # type: ignore[call-arg]
    for version, files in (("1", other_files), ("2", champion_files)):
        registry.promote(version, files)
        watching.poll()
    predict, champion, models = OnnxModel.predict, watching.state.champion, []

    def predict_or_fail(model: OnnxModel, images: Images) -> Output:
        models.append(model)
        if champion and model is champion.model and len(models) % 3 == 0:  # after the first line
            raise InferenceFailed("no memory")
        return predict(model, images)

    monkeypatch.setattr(OnnxModel, "predict", predict_or_fail)
    sample = reference.from_bytes(champion_files["reference.npz"])
    body = picture(sure(sample, 3, 1), sure(sample, 4, 7), sure(sample, 2))
    answer = context.read(body, True, None, None)
    assert answer["model_version"] == version_of(watching) == "1"
    assert champion and [model is champion.model for model in models[:6]] == [True] * 6
    assert not any(model is champion.model for model in models[6:])
    assert {digit["model_version"] for line in answer["lines"] for digit in line["digits"]} == {"1"}
