"""A person approves promotions, with a real Prefect server: a run asks and is suspended, an answer there or in a terminal decides."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Registry as Memory
from conftest import find_free_port, get, post, wait_for
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events import emit_event
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled, Crashed, Failed, Running
from sqlalchemy import delete
from test_deployments import settings_of
from test_retrain_challengers import Loop, logged, make_loop
from typer.testing import CliRunner
from versions import VersionRegistry

from digits.data.datasets import Dataset
from digits.settings import Settings
from digits.storage import ledger
from flows import alerts, approve, deployments, promote, retrain
from flows.alerts import Alert
from flows.channels import Delivery
from models import approvals, challengers, gate, promotion
from models.model_store import ModelStore, VerifiedModel
from models.registry_reader import RegistryUnreachable
from monitoring import baseline
from ops import demo, flow_runs
from ops.cli import app

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ANSWER = {"decision": "approve", "name": "Anna", "reason": "the new forms"}


@pytest.fixture(scope="module")
def registered(prefect: str) -> str:
    deployments.register(settings_of(prefect))
    return prefect


@pytest.fixture
def loop(
    registered: str, registry: Memory, bundled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Loop]:
    """A platform that asks; v2, which learned what traffic looks like, would be promoted."""
    monkeypatch.setenv("DIGITS_PROMOTION", "ask")
    monkeypatch.setenv("DIGITS_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    monkeypatch.setenv("DIGITS_GATE", '{"min_sample": 30, "error_tolerance": 20, "max_corruption_loss": 0.05}')
    loop = make_loop(registry, bundled, tmp_path, monkeypatch)
    monkeypatch.setattr(approve, "Platform", lambda: loop.platform)
    monkeypatch.setattr("models.connections.Platform", lambda: loop.platform)
    monkeypatch.setattr(flow_runs, "prepare", lambda: None)
    loop.register("2", share_shifted=0.5, seed=2)
    loop.label(40)
    yield loop
    with get_client(sync_client=True) as client:
        for run in runs():
            client.delete_flow_run(run.id)


def runs(flow: str = "approve") -> list[FlowRun]:
    """The runs of a flow, by default those that ask, oldest first."""
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])))
    return sorted(found, key=lambda run: str(run.created))


def work(version: str = "2") -> FlowRun:
    """Execute the run that asks about the version, as the worker of the pool does; returns it with its new state."""
    with get_client(sync_client=True) as client:
        (run,) = [run for run in runs() if run.parameters == {"version": version}]
        # How a suspended run ends its process.
        with suppress(Pause):
            run_flow(approve.approve, flow_run=run, parameters=run.parameters, return_type="state")
        return client.read_flow_run(run.id)


def answer(run: FlowRun, **fields: str) -> Any:
    """Resume a run as its form in the Prefect UI does."""
    with get_client(sync_client=True) as client:
        return client.resume_flow_run(run.id, run_input=fields)


def entries(loop: Loop, action: str) -> list[tuple[str, str, str]]:
    """By whom, about what and why something was decided."""
    found = [entry for entry in ledger.entries(loop.platform.engine) if entry.action == action]
    return [(entry.by, entry.after or entry.subject, entry.reason) for entry in found]


def test_nothing_changes_until_a_person_approves_in_prefect(loop: Loop, registered: str) -> None:
    assert loop.decide("2").endswith("; it waits for approval: `digits approve 2`")
    run = work()
    assert run.name == "Promote digits v2?" and run.state_name == "Suspended"
    assert loop.aliases == {"champion": "1"} and not entries(loop, "decline")
    asked = get(f"{registered}/flow_runs/{run.id}/input/suspended-answer-description").text
    assert "Shall digits v2 replace v1 as the champion?" in asked and "| traffic | 40 | 0.1500 |" in asked
    assert "/#/models/digits/versions/2" in asked
    assert "\n\n**Waits for approval** since 20" in loop.versions.descriptions["2"]
    assert loop.decide("2") == "digits v2 waits for approval: `digits approve 2`" and len(runs()) == 1
    answer(run, **ANSWER)
    run = work()
    assert run.state_name == "Completed"
    assert loop.aliases == {"champion": "2", "previous": "1"}
    ((by, version, reason),) = entries(loop, "promotion")[1:]
    assert (by, version) == ("Anna (in Prefect)", "2") and reason.startswith(
        "approved: the new forms; traffic: only the candidate"
    )
    tags = loop.versions.version_tags("2")
    decided = (tags["approval"], tags["approval_by"], tags["approval_reason"])
    assert decided == ("approved", "Anna (in Prefect)", "the new forms")
    wanted = {"flow_runs": {"id": {"any_": [str(run.id)]}}}
    (page,) = post(f"{registered}/artifacts/filter", json=wanted).json()
    assert page["key"] == "approval" and page["data"].startswith("Shall digits v2")
    last = ledger.replacements(loop.platform.engine)[-1]
    assert last.evidence["traffic: images"] == 40 and last.digest
    assert "**Champion** since" in loop.versions.descriptions["2"]
    assert "Approval: approved by Anna (in Prefect): the new forms" in loop.versions.descriptions["2"]


def test_what_a_person_declines_stays_declined(loop: Loop) -> None:
    loop.decide("2")
    answer(work(), decision="decline", name="Anna", reason="no holiday deployments")
    assert work().state_name == "Completed"
    assert loop.aliases == {"champion": "1"}
    assert entries(loop, "decline") == [("Anna (in Prefect)", "digits v2", "no holiday deployments")]
    said = loop.decide("2")
    assert said.startswith(
        "digits v2 was declined by Anna (in Prefect) (no holiday deployments) and is not judged again"
    )
    assert "`digits promote 2`" in said
    promote.by_hand(loop.platform, "2", "after the holidays")
    assert loop.aliases["champion"] == "2"


def test_an_answer_without_a_name_or_a_decision_is_refused(loop: Loop) -> None:
    loop.decide("2")
    run = work()
    for refused in ({**ANSWER, "name": ""}, {**ANSWER, "decision": "perhaps"}, {"decision": "approve"}, {}):
        assert "REJECT" in str(answer(run, **refused).status)
    assert runs()[0].state_name == "Suspended" and loop.aliases == {"champion": "1"}


@pytest.mark.parametrize("is_suspended", [True, False])
@pytest.mark.parametrize(
    ("arguments", "champion", "said"),
    [
        (["2", "--reason", "good"], "2", "digits v2: approved by me@here: good"),
        (["v2", "--decline", "--reason", "late"], "1", "digits v2: declined by me@here: late"),
    ],
)
def test_a_person_decides_in_a_terminal(
    arguments: list[str], champion: str, said: str, is_suspended: bool, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "user", lambda: "me@here")
    assert CliRunner().invoke(app, ["approve"]).output == "no version waits for approval\n"
    loop.decide("2")
    if is_suspended:
        work()
    listed = CliRunner().invoke(app, ["approve"]).output.splitlines()
    assert listed[1].split()[:2] == ["2", "v1"] and loop.aliases == {"champion": "1"}
    done = CliRunner().invoke(app, ["approve", *arguments])
    assert done.exit_code == 0 and done.output.strip() == said
    assert loop.aliases["champion"] == champion
    (run,) = runs()
    assert run.state is not None and (run.state.type, run.state.message) == (StateType.COMPLETED, said)
    again = CliRunner().invoke(app, ["approve", "2"])
    assert isinstance(again.exception, approvals.NotWaiting)
    assert str(again.exception).startswith(f"digits v2 is {said.split()[2]}: ")


def test_when_nobody_answers_in_time_the_version_is_held(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.decide("2")
    assert work().state_name == "Suspended"
    approve.hold()
    assert work().state_name == "Suspended" and loop.versions.version_tags("2")["approval"] == "waiting"
    changed = loop.platform.settings.model_copy(update={"approval_hours": 0.0001})
    monkeypatch.setattr(loop.platform, "settings", changed)
    wait_for(lambda: datetime.now(UTC) >= approvals.deadline(changed, approvals.queue(loop.platform.registry)[0].since))
    approve.hold()
    assert loop.aliases == {"champion": "1"}
    (run,) = runs()
    assert run.state is not None and run.state.type == StateType.COMPLETED
    assert run.state.message == "digits v2: held: nobody decided within 0.0001 hours"
    tags = loop.versions.version_tags("2")
    assert (tags["approval"], tags["approval_by"]) == ("held", "")
    assert "**Held**: nobody decided within 0.0001 hours." in loop.versions.descriptions["2"]
    with pytest.raises(approvals.NotWaiting, match=r"digits v2 is held: nobody decided within 0\.0001 hours"):
        approve.decide(loop.platform, "2", True, "Anna", "late")
    assert loop.decide("2").startswith("digits v2 is held, nobody decided")


def test_a_run_that_waits_is_not_taken_for_a_dead_one(loop: Loop) -> None:
    """Although, like that of a run whose process died, its heartbeats end."""
    automation = deployments.missing_heartbeats(timedelta(seconds=10))
    automation.name = "soon"
    automation.create()
    heartbeat: Callable[[FlowRun], object] = lambda run: emit_event(  # noqa: E731
        deployments.HEARTBEAT_EVENT, resource={"prefect.resource.id": f"prefect.flow-run.{run.id}"}
    )
    loop.decide("2")
    heartbeat(runs()[0])
    assert work().state_name == "Suspended"
    with get_client(sync_client=True) as client:
        dead = client.create_flow_run(retrain.retrain, state=Running())
        heartbeat(dead)
        wait_for(lambda: client.read_flow_run(dead.id).state_name == "Crashed", seconds=120)
        assert runs()[0].state_name == "Suspended"
        assert automation.id is not None
        client.delete_automation(automation.id)
        client.delete_flow_run(dead.id)


@pytest.mark.parametrize("by", ["approval", "hand"])
def test_a_version_that_was_judged_beside_another_champion_is_not_promoted(by: str, loop: Loop) -> None:
    loop.decide("2")
    loop.register("3", share_shifted=0.4, seed=3)
    assert loop.decide("3").endswith("`digits approve 3`")
    waiting = [work("2"), work("3")]
    listed = CliRunner().invoke(app, ["approve"]).output.splitlines()
    assert [line.split()[:2] for line in listed[1:]] == [["2", "v1"], ["3", "v1"]]
    if by == "approval":
        answer(waiting[1], **ANSWER)
        assert work("3").state_name == "Completed"
    else:
        promote.by_hand(loop.platform, "3", "by hand")
        answer(waiting[0], **ANSWER)
        assert work("2").state_name == "Completed"
    assert loop.aliases["champion"] == "3"
    assert loop.versions.version_tags("2")["approval"] == "superseded"
    assert loop.versions.version_tags("3")["approval"] == "approved"
    assert {one.version for one in challengers.queue(loop.versions)} == {"2"}  # type: ignore[arg-type]
    approve.review(loop.platform)
    assert {run.state_name for run in runs()} == {"Completed"}
    retrain.review_challengers(loop.platform)
    assert loop.asked()[-1][:2] == ("2", "3")


@pytest.mark.parametrize("declined", [False, True])
def test_the_demo_answers_for_its_user_unless_somebody_was_faster(declined: bool, loop: Loop) -> None:
    said: list[str] = []
    stage: Any = SimpleNamespace(platform=loop.platform, say=said.append, busy=lambda _: nullcontext())
    decision = loop.decide("2")
    run = work()
    demo.approve_for_user(stage, "digits v2: hold: it is worse")
    assert loop.aliases == {"champion": "1"} and not said
    if declined:
        approve.decide(loop.platform, "2", False, "Anna", "not this one")
    demo.approve_for_user(stage, decision)
    assert loop.aliases["champion"] == ("1" if declined else "2")
    assert said == ["DIGITS_PROMOTION is ask, so digits v2 waits for a person; here the demo approves it for you."]
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run.id).state
    assert state is not None and str(state.message).startswith(
        "digits v2: declined by Anna: " if declined else "digits v2: approved by "
    )


def test_a_challenger_that_labels_decide_waits_for_approval_too(loop: Loop) -> None:
    loop.sent = 0
    engine = loop.platform.engine
    challengers.enqueue(loop.versions, "2", ledger.entries(engine)[0].at)  # type: ignore[arg-type]
    retrain.review_challengers(loop.platform)
    assert loop.aliases == {"champion": "1"} and [row[0] for row in approve.waiting(loop.platform)] == ["2"]
    assert not challengers.queue(loop.versions)  # type: ignore[arg-type]


def test_the_wait_begins_without_prefect_and_its_run_is_opened_later(loop: Loop) -> None:
    nobody = f"http://127.0.0.1:{find_free_port()}/api"
    with temporary_settings({PREFECT_API_URL: nobody, PREFECT_CLIENT_MAX_RETRIES: 0}):
        assert loop.decide("2").endswith("; it waits for approval: `digits approve 2`")
    assert not runs()
    approve.review(loop.platform)
    approve.review(loop.platform)
    answer(work(), **ANSWER)
    assert work().state_name == "Completed" and loop.aliases["champion"] == "2"


@pytest.mark.parametrize("step", [(promotion, "_move_aliases"), (approvals, "_close"), (promote, "settle")])
def test_killed_while_it_promotes_the_next_attempt_ends_the_same(
    step: tuple[Any, str], loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline.accept(loop.platform.engine, "1", *logged(loop, 200), "the new form is normal")
    loop.decide("2")

    attempt: Callable[[], str] = lambda: approve.decide(loop.platform, "2", True, "Anna", "good")  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(*step, killed)
        with pytest.raises(KeyboardInterrupt):
            attempt()
    if loop.versions.version_tags("2")["approval"] == "approved" or loop.aliases["champion"] == "2":
        with pytest.raises(approvals.NotWaiting, match="digits v2 is approved"):
            attempt()
    else:
        attempt()
    assert loop.aliases == {"champion": "2", "previous": "1"} and len(entries(loop, "promotion")) == 2
    assert loop.versions.version_tags("2")["approval_by"] == "Anna"
    assert baseline.current(loop.platform.engine, "2") is not None


def test_a_run_that_died_is_opened_again_and_the_alert_is_sent_once(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    changed = loop.platform.settings.model_copy(update={"alert_urls": ["json://127.0.0.1:1"]})
    monkeypatch.setattr(loop.platform, "settings", changed)

    def deliver(_: Settings, alert: Alert) -> list[Delivery]:
        sent.append(alert.message)
        return [Delivery("json://")]

    monkeypatch.setattr(alerts, "deliver", deliver)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(approve, "open_runs", killed)
        loop.decide("2")
    assert not sent and not runs()
    with get_client(sync_client=True) as client:
        for state in (Crashed(), Failed(), Cancelled()):
            approve.review(loop.platform)
            client.set_flow_run_state(runs()[-1].id, state, force=True)
    approve.review(loop.platform)
    # A person who cancels the run does not want to be asked again.
    assert [run.state_name for run in runs()] == ["Crashed", "Failed", "Cancelled"]
    assert len(sent) == 1 and sent[0].startswith("digits v2 waits for approval: `digits approve 2`, or http")


def killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("then", ["decline", "expiry"])
def test_an_approval_that_did_not_reach_the_registry_stands(
    then: str, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline.accept(loop.platform.engine, "1", *logged(loop, 200), "the new form is normal")
    loop.decide("2")

    def unreachable(*_: object) -> None:
        raise RegistryUnreachable("MLflow is down")

    with monkeypatch.context() as patch, pytest.raises(RegistryUnreachable):
        patch.setattr(promotion, "_move_aliases", unreachable)
        approve.decide(loop.platform, "2", True, "Anna", "good")
    assert loop.aliases == {"champion": "1"}
    if then == "decline":
        with pytest.raises(approvals.NotWaiting, match="digits v2 is approved: approved: good"):
            approve.decide(loop.platform, "2", False, "Ben", "bad")
    else:
        changed = loop.platform.settings.model_copy(update={"approval_hours": 1e-9})
        monkeypatch.setattr(loop.platform, "settings", changed)
        approve.review(loop.platform)
    assert loop.aliases == {"champion": "2", "previous": "1"} and not entries(loop, "decline")
    tags = loop.versions.version_tags("2")
    assert (tags["approval"], tags["approval_by"]) == ("approved", "Anna")
    assert baseline.current(loop.platform.engine, "2") is not None


@pytest.mark.parametrize("other", ["approve", "decline", "by hand"])
def test_of_two_decisions_at_once_the_first_counts(other: str, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other person decides while the files of the version are read, after the check that it waits."""
    loop.decide("2")
    loop.register("3", share_shifted=0.4, seed=3)
    fetch = ModelStore.fetch_version

    def slow(store: ModelStore, version: str) -> VerifiedModel:
        monkeypatch.setattr(ModelStore, "fetch_version", fetch)
        if other == "by hand":
            promotion.promote(loop.platform, "3", "by hand")
        else:
            approve.decide(loop.platform, "2", other == "approve", "Anna", "I was faster")
        return fetch(store, version)

    monkeypatch.setattr(ModelStore, "fetch_version", slow)
    outcome = {"approve": "approved", "decline": "declined", "by hand": "superseded"}[other]
    with pytest.raises(approvals.NotWaiting, match=f"digits v2 is {outcome}"):
        approve.decide(loop.platform, "2", True, "Ben", "I was slower")
    assert loop.aliases["champion"] == {"approve": "2", "decline": "1", "by hand": "3"}[other]
    assert [entry[:2] for entry in entries(loop, "promotion")[1:] if entry[0] == "Ben"] == []
    assert bool(entries(loop, "decline")) == (other == "decline")


@pytest.mark.parametrize("is_recorded", [True, False])
def test_an_alias_that_was_moved_by_hand_is_nobodys_approval(is_recorded: bool, loop: Loop) -> None:
    loop.decide("2")
    if not is_recorded:
        with loop.platform.engine.begin() as connection:
            connection.execute(delete(ledger.Entry))
    loop.versions.set_alias("champion", "2")
    approve.review(loop.platform)
    assert loop.versions.version_tags("2")["approval"] == "waiting"
    with pytest.raises(approvals.NotWaiting, match="the ledger does not say so; `digits promote 2` records it"):
        approve.decide(loop.platform, "2", True, "Anna", "good")
    promote.by_hand(loop.platform, "2", "it is good")
    tags = loop.versions.version_tags("2")
    assert (tags["approval"], tags["approval_reason"]) == ("approved", "it is good")


def test_a_superseded_version_is_not_lost_when_its_closing_is_killed(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.decide("2")
    loop.register("3", share_shifted=0.4, seed=3)
    tag = VersionRegistry.tag_version

    def killed(registry: VersionRegistry, version: str, tags: dict[str, str]) -> None:
        tag(registry, version, tags)
        if tags.get("approval") == "superseded":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VersionRegistry, "tag_version", killed)
        promote.by_hand(loop.platform, "3", "by hand")
    approve.review(loop.platform)
    assert {one.version for one in challengers.queue(loop.versions)} == {"2"}  # type: ignore[arg-type]


def test_the_first_champion_needs_no_approval(loop: Loop) -> None:
    settings, verdict = loop.platform.settings, gate.GateVerdict("promote", [], {})
    assert not approvals.is_needed(settings, None, verdict) and approvals.is_needed(settings, "1", verdict)
    assert not approvals.is_needed(settings.model_copy(update={"promotion": "automatic"}), "1", verdict)
    assert not approvals.is_needed(settings, "1", gate.GateVerdict("hold", [], {}))
