"""`digits demo`: a true story on a running platform, from five recipes to a drift that a retraining heals.

Every step is what an operator, a client or an auditor does: flows run through Prefect, digits are sent to the endpoint, and labels to
its route for feedback.
"""

import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from digits import intervals
from digits.data import perturbations, splitting
from digits.images import Images, Split
from digits.intervals import Proportion
from digits.settings import Settings, local_url
from digits.storage import cooldowns, feedback, ledger
from models.connections import Platform
from ops import background_training, demo_plan, endpoint, processes, traffic
from ops.demo_plan import CLIENT, REASON, Plan
from ops.flow_runs import run_flow

if TYPE_CHECKING:  # MLflow takes 4 s to import, Evidently 7 s
    from models.runs import Run
    from monitoring.reports import MonitoringVerdict

BATCH = 100  # digits of one request
MAX_HELD_OUT = 2_000  # test digits that are sent only to measure what the healing achieved
ORDINARY = 3_000  # answers to the handwriting of the training
# The changed handwriting: enough answers for a clear verdict, and as many more as the audit sample needs.
MIN_CHANGED, MAX_CHANGED = 2_000, 40_000
# Of the audit sample, 30 % judge the candidate: about 180 digits.
MIN_AUDITED, MIN_AUDITED_AFTER = 600, 60
LABELS = 2_000
# Averaged by the healing. The best of five was lucky on the test digits, on which one more network would rarely match it.
N_MODELS = 3
# Mean and standard deviation of the new hands' slant, degrees, and of what a pen adds to the strokes, px.
SLANT, PEN = (38, 4), (1.0, 0.25)
SERVING_TIMEOUT_SECONDS = 120
# An event may have started a retraining, with the recipe of the settings.
SLOT_WAIT_SECONDS = 3600


def run(settings: Settings, force: bool) -> None:
    """Say what the demo adds, then tell the story; raises RuntimeError on a platform with answers of its own, unless forced."""
    platform = Platform(settings)
    _require_servers(settings)
    plan = demo_plan.read(platform)
    for line in plan.lines:
        print(line, flush=True)
    if plan.refusal and not force:
        raise RuntimeError(plan.refusal)
    with _quiet_log(), background_training.paused(settings), Stage(platform, plan).opened() as stage:
        tell(stage)


def tell(stage: "Stage") -> None:
    """The story, chapter by chapter."""
    runs = train_recipes(stage)
    with better_champion_kept(stage):
        promote_best(stage, runs)
        receive_ordinary_digits(stage)
        changed = receive_other_hands(stage)
        label_as_auditor(stage, changed)
        if retrain(stage):
            measure_healing(stage, changed)
    stage.print_summary()


def train_recipes(stage: "Stage") -> "list[Run]":
    """Train the five recipes on the same data, in one flow each; returns their runs, the most accurate first."""
    from models import runs

    plan = stage.plan
    stage.begin(f"Five recipes learn from the same {plan.dataset.source} digits")
    found = []
    for recipe in plan.recipes:
        version = stage.registry.trained_before(plan.dataset.fingerprint, recipe)
        before = "trained before" if version else "trained now"
        run = runs.find(stage.registry, version or run_flow("train", recipe, plan.source))
        stage.say(f"{recipe.name:12} {stage.test_accuracy(run)} on test digits: digits v{run.version}, {before}")
        found.append(run)
    found.sort(key=lambda run: run.metrics["test_accuracy"], reverse=True)
    best, second = found[:2]
    stage.say(f"{best.params['name']} is the best, {stage.lead(best, second)}.")
    accuracies = f"from {stage.test_accuracy(found[-1]).value:.2%} to {stage.test_accuracy(best).value:.2%}"
    stage.note(
        f"five recipes compared, {accuracies} right on test digits",
        stage.settings.compare_url(stage.registry.experiment_id, [run.id for run in found]),
    )
    return found


def promote_best(stage: "Stage", runs: "list[Run]") -> None:
    """Make the best of the five the champion, by hand, and wait until it answers."""
    from flows import promote

    best = runs[0]
    stage.begin("The best of them becomes the champion")
    if stage.platform.models.registry.version() != best.version:
        with stage.busy("its files are verified"):
            reason = f"{REASON}the best of five recipes, {stage.test_accuracy(best)} on test digits"
            promote.by_hand(stage.platform, str(best.version), reason)
    stage.wait_until_serving(str(best.version))
    # The alarm's event retrains DIGITS_RECIPE, by default for a quarter of an hour. As after any training, it waits.
    cooldowns.put(stage.platform.engine, cooldowns.RETRAINED, datetime.now(UTC))
    stage.say(f"digits v{best.version} ({best.params['name']}) answers now at {stage.settings.service_url}")
    stage.note(
        f"digits v{best.version} ({best.params['name']}) promoted", stage.settings.version_url(str(best.version))
    )


@contextmanager
def better_champion_kept(stage: "Stage") -> Iterator[None]:
    """After the block, also after Ctrl-C in it, promote the champion from before the demo again if it is the more accurate one."""
    from flows import promote

    try:
        yield
    finally:
        before, now = stage.plan.champion, stage.platform.models.registry.version()
        if before and now != before and stage.plan.accuracy > stage.upper_bound(now):
            promote.by_hand(
                stage.platform, before, f"{REASON}its end, digits v{before} is more accurate on test digits"
            )
            stage.say(
                f"digits v{before} was the champion before and is more accurate on test digits: it answers again."
            )


def receive_ordinary_digits(stage: "Stage") -> None:
    """Send test digits as they are: monitoring stays quiet."""
    from monitoring import baseline

    stage.begin("Ordinary digits arrive")
    digits = stage.plan.dataset.test
    sent = stage.send(digits, min(ORDINARY, len(digits)))
    stage.say(f"{len(sent):,} answers, {sent.accuracy} right")
    version = str(stage.platform.models.registry.version())
    # A promotion takes the latest traffic for normal where an auditor labelled it: other hands, after an earlier demo.
    if baseline.current(stage.platform.engine, version):
        reason = f"{REASON}ordinary digits are normal"
        baseline.accept(stage.platform.engine, version, sent.since, datetime.now(UTC), reason)
    verdict, report = stage.monitor(sent.since)
    stage.say(f"Monitoring: {verdict.drift.message}")
    stage.note(f"{len(sent):,} ordinary digits, {sent.accuracy.value:.2%} right: {verdict.drift.verdict}", report)


def receive_other_hands(stage: "Stage") -> "Sent":
    """Send test digits in another handwriting: monitoring raises the alarm and names its cause."""
    stage.begin("Other people write: a fatter pen, and a strong slant to the right")
    sent = stage.send(stage.labelled, MIN_CHANGED, by_other_hands, MIN_AUDITED)
    stage.say(f"{len(sent):,} answers, {sent.accuracy} right, as only the demo knows so far: nobody has labelled them")
    verdict, report = stage.monitor(sent.since)
    stage.say(f"Monitoring: {verdict.drift.message}")
    for sentence in verdict.recommendations:
        stage.say(f"It recommends: {sentence}")
    causes = "; ".join(one.message for one in verdict.drift.explanations) or "no alarm"
    stage.note(f"{len(sent):,} digits by other hands, {sent.accuracy.value:.2%} right: {causes}", report)
    return sent


def label_as_auditor(stage: "Stage", sent: "Sent") -> None:
    """Give true digits to the audit sample, which was drawn at random, and to others: monitoring finds that accuracy fell."""
    stage.begin("An auditor labels")
    drawn = stage.audit_sample(sent)
    chosen = list(dict.fromkeys([*drawn, *sent.answers]))[:LABELS]
    with stage.busy("labels are sent"):
        traffic.give_labels(stage.client, {id: sent.labels[id] for id in chosen})
    stage.say(f"{len(chosen):,} labels, {min(len(drawn), len(chosen)):,} of them for the audit sample, drawn at random")
    if len(drawn) < MIN_AUDITED:
        stage.say(f"The gate needs about {MIN_AUDITED} of these; DIGITS_AUDIT_SAMPLE_RATE says which share is drawn.")
    verdict, report = stage.monitor(sent.since)
    stage.say(f"Monitoring: {_accuracy_message(verdict)}")
    stage.note(f"{len(chosen):,} labels of an auditor; accuracy: {verdict.accuracy.verdict}", report)


def retrain(stage: "Stage") -> bool:
    """Train on the labels too; the gate compares the candidate with the champion. Returns whether another version answers now."""
    from models import runs

    before = str(stage.platform.models.registry.version())
    recipe, seed = runs.find(stage.registry, before).params["name"], stage.plan.seed
    stage.begin(f"A retraining heals: {N_MODELS} networks of {recipe} learn from the same digits and the labels")
    if hours := stage.settings.retrain_cooldown_hours:
        stage.say(
            f"The alarm retrains by itself {hours:g} hours after the last training; the demo does not wait so long."
        )
    decision = run_flow("retrain", recipe, None, seed, f"{REASON}other hands", False, SLOT_WAIT_SECONDS, N_MODELS)
    stage.say(f"The gate: {decision}")
    approve_for_user(stage, decision)
    after = str(stage.platform.models.registry.version())
    if after == before:
        stage.say(f"digits v{before} stays the champion, so the last chapter is left out.")
        stage.note("retrained, and not promoted", f"{stage.settings.prefect_api_url.removesuffix('/api')}/runs")
        return False
    stage.wait_until_serving(after)
    stage.say(f"digits v{after} answers now")
    stage.note(f"digits v{after} trained, judged and promoted", runs.find(stage.registry, after).tags["prefect_run"])
    return True


def approve_for_user(stage: "Stage", decision: str) -> None:
    """Answer the question whether the version is promoted, where a person is asked (`DIGITS_PROMOTION=ask`) and has not answered yet."""
    from flows import approve
    from models.approvals import NotWaiting

    asked = re.search(r"`digits approve (\d+)`", decision)
    if asked is None:
        return
    stage.say(f"DIGITS_PROMOTION is ask, so digits v{asked[1]} waits for a person; here the demo approves it for you.")
    with suppress(NotWaiting), stage.busy("it becomes the champion"):
        approve.decide(stage.platform, asked[1], True, ledger.user(), f"{REASON}it reads other hands")


def measure_healing(stage: "Stage", changed: "Sent") -> None:
    """Send digits that no label was given for, by yet other hands, and compare both versions on them."""
    stage.begin("The same handwriting again, of digits that nobody labelled")
    count = len(stage.held_out)
    sent = stage.send(stage.held_out, count, by_other_hands, MIN_AUDITED_AFTER, most=2 * count)
    before = stage.accuracy_of(changed.version, sent)
    stage.say(
        f"{len(sent):,} answers, {sent.accuracy} right; digits v{changed.version} reads {before} of the same ones"
    )
    with stage.busy("labels are sent"):
        traffic.give_labels(stage.client, {id: sent.labels[id] for id in stage.audit_sample(sent)})
    verdict, report = stage.monitor(sent.since)
    stage.say(f"Monitoring: {verdict.drift.message}")
    stage.say(f"Monitoring: {_accuracy_message(verdict)}")
    stage.note(f"healed: {before.value:.2%} → {sent.accuracy.value:.2%} of new digits right", report)


def by_other_hands(images: Images, random: np.random.Generator) -> Images:
    """The digits as other people write them, each with a slant and a pen of its own."""
    written = [
        perturbations.slant(perturbations.thicken(image[None], max(0.1, random.normal(*PEN))), random.normal(*SLANT))
        for image in images
    ]
    return np.concatenate(written)


@dataclass(eq=False)
class Sent:
    """Digits that were sent since a time, in order, with the answers by their ids."""

    since: datetime
    different: int  # images of test digits behind them; the same digit by several hands counts once in intervals
    version: str  # that answers
    images: list[Images]
    answers: dict[str, int]
    labels: dict[str, int]

    def __len__(self) -> int:
        return len(self.answers)

    @cached_property
    def accuracy(self) -> Proportion:
        """The share of right answers."""
        return self.share_right(np.array(list(self.answers.values())))

    def share_right(self, answers: NDArray[Any]) -> Proportion:
        """The share of these answers, (n,), that are right, with the interval for as many answers as there are different digits."""
        share, count = (answers == np.array(list(self.labels.values()))).mean(), min(self.different, len(self))
        return intervals.wilson(round(share * count), count)


class Stage:
    """The platform on which the story happens, its time and what it found; a context manager of the connection."""

    def __init__(self, platform: Platform, plan: Plan) -> None:
        self.platform, self.plan, self.settings = platform, plan, platform.settings
        self.console = Console(highlight=False, markup=False)
        self.random = np.random.default_rng(plan.seed)
        self.client = endpoint.open_client(self.settings)
        self.started, self.chapter = time.monotonic(), 0
        self.rows: list[tuple[str, str, str]] = []
        test = plan.dataset.test
        self.labelled, self.held_out = splitting.draw(test, min(0.5, MAX_HELD_OUT / len(test)), seed=0)

    @contextmanager
    def opened(self) -> "Iterator[Stage]":
        with self.client:
            try:
                yield self
            except KeyboardInterrupt:
                self.say("The story ends here. The platform goes on; what was added stays.")
                raise

    # What the reader sees

    @property
    def time(self) -> str:
        minutes, seconds = divmod(round(time.monotonic() - self.started), 60)
        return f"{minutes:2}:{seconds:02}"

    def begin(self, title: str) -> None:
        self.chapter += 1
        self.console.print(f"\n{self.time}  {self.chapter}. {title}", style="bold", soft_wrap=True)

    def say(self, text: str) -> None:
        self.console.print(f"{self.time}     {text}", soft_wrap=True)

    def note(self, what: str, link: str) -> None:
        """A row of the table at the end."""
        self.rows.append((str(self.chapter), what, link))

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """Show on a terminal that something takes time."""
        columns = TextColumn(f"{self.time}     {{task.description}} …"), SpinnerColumn(), TimeElapsedColumn()
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            progress.add_task(what, total=None)
            yield

    def print_summary(self) -> None:
        self.console.print(f"\n{self.time}  What happened, and where to see it\n", style="bold")
        urls = self.settings.service_url, local_url(self.settings.private_host, self.settings.reports_port)
        pages = [
            ("", "draw a digit", f"{urls[0]}/"),
            ("", "label more answers", f"{urls[0]}/label"),
            ("", "history of the drift", urls[1]),
        ]
        for chapter, what, link in [*self.rows, *pages]:
            self.console.print(f"{chapter:2} {what}\n   {link}", soft_wrap=True)
        print("\n`digits status` shows the logins of MLflow and Prefect, `digits ledger` every decision.")

    # What the platform does

    @cached_property
    def registry(self) -> Any:
        return self.platform.registry

    def send(
        self,
        digits: Split,
        count: int,
        by_hand: Callable[[Images, np.random.Generator], Images] = lambda images, _: images,
        audited: int = 0,
        most: int = MAX_CHANGED,
    ) -> Sent:
        """Send at least so many digits, and on until so many are in the audit sample, or to the most."""
        sent = Sent(datetime.now(UTC), len(digits), str(self.platform.models.registry.version()), [], {}, {})
        with self.busy("digits are sent"):
            for number, part in enumerate(_shuffled(digits, self.random)):
                if len(sent) >= most or (len(sent) >= count and self._has_audited(sent, audited, number)):
                    break
                images = by_hand(part.images, self.random)
                answers = traffic.classify_batch(self.client, images, CLIENT)
                sent.answers.update(answers)
                sent.labels.update(zip(answers, part.labels.tolist(), strict=True))
                sent.images.append(images)
            traffic.wait_until_logged(self.platform.engine, sent.since, len(sent))
        return sent

    def _has_audited(self, sent: Sent, audited: int, number: int) -> bool:
        """Whether the audit sample has so many of them; looked at only after every tenth request."""
        return not audited or (number % 10 == 0 and len(self.audit_sample(sent)) >= audited)

    def audit_sample(self, sent: Sent) -> list[str]:
        """The ids of those that were drawn for the audit sample and have no label of an auditor yet."""
        drawn = feedback.unlabelled_audit(self.platform.engine, sent.since)
        return [id for id, _ in drawn if id in sent.answers]

    def monitor(self, since: datetime) -> "tuple[MonitoringVerdict, str]":
        """Run the flow on the answers since then; returns its verdict and the address of its report."""
        from monitoring import reports

        with self.busy("monitoring compares them with what is normal"):
            run_flow("monitor", since.isoformat())
        prefix = reports.folder_name(since, since, "").partition("--")[0]
        newest = max(
            self.settings.home.glob(f"reports/{prefix}--*/{reports.VERDICT}"), key=lambda path: path.stat().st_mtime
        )
        report = newest.with_name(reports.REPORT)
        verdict = reports.MonitoringVerdict.model_validate_json(newest.read_bytes())
        return verdict, (report if report.exists() else newest).as_uri()

    def wait_until_serving(self, version: str) -> None:
        """Raises TimeoutError."""
        deadline = time.monotonic() + SERVING_TIMEOUT_SECONDS
        with self.busy(f"the endpoint loads digits v{version}"):
            while (serving := endpoint.call(self.client, "GET", "/about")["model_version"]) != version:
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"the endpoint still serves digits v{serving}; read its log with `digits status`"
                    )
                time.sleep(0.2)

    def accuracy_of(self, version: str, sent: Sent) -> Proportion:
        """What another version would have answered to the same images."""
        model = self.platform.models.fetch_version(version)
        return sent.share_right(model.predict_proba(np.concatenate(sent.images)).argmax(axis=1))

    # Figures and addresses

    def test_accuracy(self, run: "Run") -> Proportion:
        count = len(self.plan.dataset.test)
        return intervals.wilson(round(run.metrics["test_accuracy"] * count), count)

    def upper_bound(self, version: str | None) -> float:
        """Of a version's test accuracy; 0 for none."""
        from models import runs

        return runs.find(self.registry, version).metrics["test_accuracy_high"] if version else 0.0

    def lead(self, run: "Run", other: "Run") -> str:
        """By how many test digits a run is ahead of another one."""
        best, next_best = self.test_accuracy(run), self.test_accuracy(other)
        ahead = f"{best.right - next_best.right} of {best.count:,} test digits ahead of {other.params['name']}"
        return f"{ahead}, which may be chance" if best.low <= next_best.high else ahead


def _accuracy_message(verdict: "MonitoringVerdict") -> str:
    """The accuracy on the audit sample, shorter than in the report."""
    found = verdict.accuracy
    if found.newest is None or found.verdict == "not enough labels":
        return found.message
    new = found.newest
    share = (
        f"{100 * new.value:.2f} % [{100 * new.low:.2f}, {100 * new.high:.2f}] of {new.labels} audited answers are right"
    )
    verdict_words = f"{found.verdict} than expected" if found.verdict == "worse" else found.verdict
    return f"Accuracy is {verdict_words}: {share}, at least {100 * found.least:.2f} % are expected."


def _shuffled(digits: Split, random: np.random.Generator) -> Iterator[Split]:
    """All digits in a random order, again and again, at most `BATCH` at a time."""
    while True:
        order = random.permutation(len(digits))
        for rows in np.array_split(order, math.ceil(len(order) / BATCH)):
            yield Split(digits.images[rows], digits.labels[rows])


def _require_servers(settings: Settings) -> None:
    """Raises ConnectionError, or ValueError for an API key that is refused, before anything is printed."""
    with endpoint.open_client(settings) as client:
        endpoint.call(client, "GET", "/about")
    for name, url in (
        ("Prefect", f"{settings.prefect_api_url}/health"),
        ("MLflow", f"{settings.mlflow_tracking_uri}/health"),
    ):
        if not processes.get(url, timeout_seconds=60).is_success:
            raise ConnectionError(f"{name} does not answer at {url}; start it with `digits up`")


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Leave what flows log to Prefect; only warnings are shown."""
    handlers = logging.getLogger("digits").handlers[:]
    levels = [handler.level for handler in handlers]
    try:
        for handler in handlers:
            handler.setLevel(logging.WARNING)
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
