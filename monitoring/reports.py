"""Monitoring reports: a verdict for programs, Evidently's report for people, and its history as a dashboard."""

import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from digits.files import replacing, write_atomically
from digits.images import NO_DIGIT
from digits.reference import Reference
from digits.storage.predictions import PredictionWindow
from monitoring import _evidently, accuracy, drift, drift_images, image_statistics, samples
from monitoring.accuracy import History
from monitoring.drift import Drift, Tables
from monitoring.image_statistics import STATISTICS, Columns
from monitoring.samples import Repeats, Sample
from monitoring.traffic import Traffic

PROJECT = "digits"  # in the Evidently workspace
REPORT = "report.html"
VERDICT = "verdict.json"
IMAGES = "drift_images.png"
MAX_OTHER_FIGURES = 5  # of drifted blocks and axes in the report
MIN_REPEATED_SHARE = 0.05  # of all answers, from which the message tells of one image that is sent again and again

_RUN = "workspace_run"  # the file in a report's folder that names its run in the workspace
_TIME = "%Y-%m-%dT%H-%M-%SZ"
_SCORE = "digits_score"  # the name under which Evidently knows our scores
# Columns with the same value in every row, of which the dashboard shows the mean.
_CORRECT, _AUDITED, _DRIFTED = "correct", "audit_correct", "drifted_share"


@dataclass(frozen=True, eq=False)
class Expected:
    """What a window is compared with, and what the reader must know about it."""

    training: Sample  # images that the version was tested on, with its answers
    baseline: Sample | None = None  # traffic that is normal, with its answers; None where that is the training sample
    notes: tuple[str, ...] = ()  # sentences
    digit_threshold: float | None = None  # digit score below which an image of the window is no digit


class MonitoringVerdict(BaseModel, frozen=True):
    """The drift and the accuracy of one window, and the traffic before its end."""

    since: datetime | None  # first and last prediction, UTC; None for an empty window
    until: datetime | None
    count: int
    versions: tuple[str, ...]  # that answered in this window
    drift: Drift  # since the baseline: what alarms
    training_drift: Drift  # how unlike training the window is; the same where there is no baseline
    has_baseline: bool
    repeats: Repeats
    accuracy: accuracy.Accuracy
    traffic: Traffic | None  # None for past windows
    message: str
    notes: tuple[str, ...] = ()  # on the window and on what it is compared with
    recommendations: tuple[str, ...]  # what to do, each thing once

    @property
    def against(self) -> str:
        """What the window is compared with for `drift`."""
        return "baseline" if self.has_baseline else "reference"


def assess(
    reference: Reference,
    window: PredictionWindow,
    labelled: PredictionWindow | None = None,
    expected: Expected | None = None,
    tables: Tables | None = None,
    history: History | None = None,
    traffic: Traffic | None = None,
) -> MonitoringVerdict:
    """Drift and accuracy of a window, against what is expected: the reference sample of the version unless given.

    `labelled` holds all labelled predictions of that time where the window is a sample; `tables` are those of the drift, and
    `history` is what is known of the version's accuracy at all times.
    """
    expected = expected or Expected(samples.of_reference(reference))
    current, repeats = samples.distinct(samples.of_window(window, expected.digit_threshold))
    if expected.baseline is None:
        found = unlike_training = drift.detect(expected.training, current, tables)
    else:
        found = drift.detect(expected.baseline, current, tables, "baseline")
        unlike_training = drift.detect(expected.training, current)
    # The estimate is calibrated on the reference sample, also where a baseline says what is normal.
    drifted = "drift" in (found.verdict, unlike_training.verdict)
    accurate = accuracy.assess(reference, window, labelled, history, drifted, expected.digit_threshold)
    messages = [traffic.message if traffic else "", found.message, _share_without_digit(found)]
    if expected.baseline is not None and unlike_training.columns:
        messages.append(f"Compared with training: {unlike_training.message[0].lower()}{unlike_training.message[1:]}")
    notes = (*expected.notes, *_repeats_note(repeats, len(window)))
    return MonitoringVerdict(
        since=min(window.at, default=None),
        until=max(window.at, default=None),
        count=len(window),
        versions=tuple(sorted(set(window.versions))),
        drift=found,
        training_drift=unlike_training,
        has_baseline=expected.baseline is not None,
        repeats=repeats,
        accuracy=accurate,
        traffic=traffic,
        message=" ".join(filter(None, [*messages, accurate.message, *notes])),
        notes=notes,
        recommendations=_recommendations(found, accurate),
    )


def _share_without_digit(found: Drift) -> str:
    """A sentence where the version tells what is no digit."""
    shares = [column for column in found.columns if column.name == drift.NO_DIGIT]
    return "".join(f"{one.current:.1%} of the images show no digit, expected: {one.reference:.1%}." for one in shares)


def _recommendations(found: Drift, accurate: accuracy.Accuracy) -> tuple[str, ...]:
    recommendations = tuple(dict.fromkeys(explanation.recommendation for explanation in found.explanations))
    if accurate.verdict == "worse" and not recommendations:
        return ("Check the labels and the wrongly classified digits; then retrain with the labelled ones.",)
    return recommendations


def _repeats_note(repeats: Repeats, count: int) -> tuple[str, ...]:
    if repeats.share < MIN_REPEATED_SHARE or repeats.most < 2:
        return ()
    times = f"{repeats.most:,} of {count:,}"
    return (
        f"One image makes up {repeats.share:.0%} of the answers ({times}) and counts once, like every repeated image.",
    )


def folder_name(since: datetime, until: datetime, version: str) -> str:
    """The name of a window's folder, UTC: the same for the same window; names sort by time."""
    start, end = (f"{time.astimezone(UTC):{_TIME}}" for time in (since, until))
    return f"{start}--{end}-v{version}"


def write(
    folder: Path,
    workspace: Path,
    reference: Reference,
    window: PredictionWindow,
    labelled: PredictionWindow | None = None,
    expected: Expected | None = None,
    history: History | None = None,
    traffic: Traffic | None = None,
) -> tuple[MonitoringVerdict, Path]:
    """Assess a window, write its report into the folder, and its run into the workspace that the Evidently UI shows.

    Returns the verdict and the path of the report, or of the verdict file where there is too little data for a report. A
    second call for the same folder replaces the files and the run, so a window can be recomputed.
    """
    expected = expected or Expected(samples.of_reference(reference))
    before, (current, _) = (
        expected.baseline or expected.training,
        samples.distinct(samples.of_window(window, expected.digit_threshold)),
    )
    tables = drift.measure(before, current) if len(current) else None
    verdict = assess(reference, window, labelled, expected, tables, history, traffic)
    folder.mkdir(parents=True, exist_ok=True)
    path, html, marker = (folder / name for name in (VERDICT, REPORT, _RUN))
    write_atomically(path, verdict.model_dump_json(indent=2).encode())
    if tables is None or not verdict.drift.columns:
        return verdict, path
    digits = current.probabilities.argmax(axis=1)
    unusual = {int(index): str(digits[index]) for index in drift_images.unusual(*tables)}
    write_atomically(folder / IMAGES, drift_images.render(before.images, current.images, unusual, verdict.against))
    with _project(workspace) as (opened, project):
        _delete_runs([marker], opened, project)
        snapshot = _run(*tables, verdict)
        with replacing(html) as part:
            snapshot.save_html(str(part))
        _add_panels(opened, project)
        run = opened.add_run(project.id, snapshot, include_data=False).id
    write_atomically(marker, str(run).encode())
    return verdict, html


def ui_path(folder: Path, workspace: Path) -> str:
    """The path of a folder's report in the Evidently UI; of the project's dashboard where the window has no report."""
    marker = folder / _RUN
    with _project(workspace) as (_, project):
        return f"/projects/{project.id}" + (f"/reports/{marker.read_text()}" if marker.exists() else "")


def remove_old(reports: Path, workspace: Path, before: datetime) -> list[str]:
    """Remove the reports on windows that ended before this time, with their runs in the workspace; returns their names.

    The run is removed first, so that a failure leaves the folder that names it. Folders with other names are left alone.
    """
    names = sorted(path.name for path in reports.glob("*Z--*Z-v*"))
    old = [name for name in names if name.partition("--")[2] < f"{before.astimezone(UTC):{_TIME}}"]
    if old:
        with _project(workspace) as (opened, project):
            _delete_runs([reports / name / _RUN for name in old], opened, project)
    for name in old:
        shutil.rmtree(reports / name)
    return old


def markdown(version: str, verdict: MonitoringVerdict, report: Path, history: str) -> str:
    """The verdict as a page; `history` is the address of the Evidently UI."""
    columns = [
        (one.name, f"{one.reference:.3g}", f"{one.current:.3g}", one.unit, f"{one.score:.3f}", f"{one.threshold:.3f}")
        for one in verdict.drift.columns
        if one.drifted
    ]
    parts = [
        f"# digits v{version}: {verdict.drift.verdict}",
        verdict.message,
        "\n".join(f"- {sentence}" for sentence in verdict.recommendations),
        _table(("accuracy", "share", "of"), _accuracies(verdict)),
        _table(("traffic of 24 hours", ""), _traffic(verdict.traffic)) if verdict.traffic else "",
        _table(("column", verdict.against, "current", "unit", "score", "threshold"), columns) if columns else "",
        f"[history in the Evidently UI]({history}), `{report}`",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _accuracies(verdict: MonitoringVerdict) -> list[tuple[str, str, str]]:
    """Name, share with its interval, and number of each accuracy that is known."""
    found, new = verdict.accuracy, verdict.accuracy.newest
    shares = {"held-out images": found.expected, "labelled predictions": found.labelled, "audit sample": found.audited}
    names = {digit: "no digit" if digit == NO_DIGIT else f"{digit}s" for digit in sorted(found.per_digit)}
    digits = {f"labelled {name}": found.per_digit[digit] for digit, name in names.items()}
    rows = [(name, str(share), str(share.count)) for name, share in (shares | digits).items() if share]
    if new:
        interval = f"{100 * new.value:.2f} % [{100 * new.low:.2f}, {100 * new.high:.2f}]"
        rows.insert(0, (f"audit sample from {new.since} to {new.until}", interval, str(new.labels)))
    if found.estimate is not None:
        unreliable = ", which means nothing for drifted images" if found.drifted else ""
        estimate = f"{100 * found.estimate:.2f} %"
        rows.append((f"estimate from the confidence{unreliable}", estimate, str(verdict.count)))
    return rows


def _traffic(found: Traffic) -> list[tuple[str, str]]:
    rows = {
        "requests": f"{found.requests:,}",
        "answered in the same hours of the weeks before": found.usual_requests and f"{found.usual_requests:,.0f}",
        "images": f"{found.images:,}",
        "refused requests": found.refused and str(found.refused),
        "uncertain answers": found.uncertain and str(found.uncertain),
        "hours since the last answer": found.silent_hours,
        "newest audit label": found.last_label and f"{found.last_label:%Y-%m-%d %H:%M}",
    }
    return [(name, str(value)) for name, value in rows.items() if value is not None]


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows))


@contextmanager
def _project(workspace: Path) -> Iterator[tuple[Any, Any]]:
    """Open the Evidently workspace and our project in it, which is created where it is missing.

    The block runs without warnings, of which Evidently's own imports cause many, and without Plotly's theme, which is repeated in
    every figure: with two figures for each column it adds 0.5 MB of HTML.
    """
    with warnings.catch_warnings(action="ignore"):
        import plotly.io  # type: ignore[import-untyped]  # ships no types; comes with Evidently
        from evidently.ui.workspace import Workspace  # 3 to 8 s with its own imports

        opened = Workspace.create(str(workspace))
        found = opened.search_project(PROJECT) or [opened.create_project(PROJECT, "Digits in production")]
        theme, plotly.io.templates.default = plotly.io.templates.default, "none"
        try:
            yield opened, found[0]
        finally:
            plotly.io.templates.default = theme


def _run(expected: Columns, current: Columns, verdict: MonitoringVerdict) -> Any:
    """Evidently's snapshot of the window; it sends nothing anywhere.

    The dashboard's numbers come first, then the drift of each column by score over threshold. Each run has its own thresholds,
    and Evidently draws one line per set of parameters; the dashboard therefore plots MeanValue, which has none.
    """
    import pandas as pd  # 1.4 s
    from evidently import DataDefinition, Dataset, Report  # 3 to 8 s
    from evidently.metrics import DriftedColumnsCount, MeanValue, RowCount, ValueDrift

    title = "Kolmogorov-Smirnov distance; for `digit`, the largest change of a share"
    _evidently.register_score(_SCORE, title, image_statistics.distance, partial(drift.score, drift.DIGIT))
    known = verdict.accuracy
    shares = {_CORRECT: known.labelled, _AUDITED: known.audited}
    measured = {name: share.value for name, share in shares.items() if share}
    frame = pd.DataFrame({**current, **measured, _DRIFTED: verdict.drift.drifted_share})
    tested = pd.DataFrame({**expected, **dict.fromkeys(measured, known.expected.value), _DRIFTED: 0.0})
    numeric = [name for name in frame if name != drift.DIGIT]
    definition = DataDefinition(numerical_columns=numeric, categorical_columns=[drift.DIGIT])
    frames = (table.astype({drift.DIGIT: int}).astype({drift.DIGIT: str}) for table in (frame, tested))
    limits = {column.name: column.threshold for column in verdict.drift.columns}
    parameters = {"columns": list(limits), "method": _SCORE, "per_column_threshold": limits}
    # One drifted column is drift, because the thresholds hold for all columns together: half of its share is the limit.
    count = DriftedColumnsCount(**parameters, drift_share=0.5 / len(limits))
    shown = _columns_shown(verdict.drift)
    drifts = [ValueDrift(column=name, method=_SCORE, threshold=limits[name]) for name in limits if name in shown]
    means = [MeanValue(column=column, tests=[]) for *_, column in _panels() if column in frame]
    metadata = {"versions": ", ".join(verdict.versions), "verdict": verdict.drift.verdict, "message": verdict.message}
    report = Report([count, RowCount(tests=[]), *drifts, *means], include_tests=True)
    datasets = (Dataset.from_pandas(table, data_definition=definition) for table in frames)
    return report.run(*datasets, timestamp=verdict.until, metadata=metadata, tags=["monitor"])


def _columns_shown(found: Drift) -> set[str]:
    """The columns with a figure of their own: those with a unit, and of the others those that drifted most.

    Each figure takes Evidently 0.1 s and 0.1 MB; the count of drifted columns is about all of them.
    """
    named = [*STATISTICS, *drift.ANSWER_UNITS, drift.DIGIT]
    others = [column.name for column in found.columns if column.drifted and column.name not in named]
    return {*named, *others[:MAX_OTHER_FIGURES]}


def _panels() -> list[tuple[str, str, str]]:
    """The dashboard's panels: tab, title, and the column whose mean is shown, or "" for the number of rows."""
    return [
        ("Monitoring", "Share of drifted columns", _DRIFTED),
        ("Monitoring", "Accuracy on labelled predictions", _CORRECT),
        ("Monitoring", "Accuracy on the audit sample", _AUDITED),
        ("Monitoring", "Mean confidence", drift.CONFIDENCE),
        ("Monitoring", "Share of images that show no digit", drift.NO_DIGIT),
        ("Monitoring", "Predictions in the window", ""),
        *(("Images", f"{name}: {statistic.unit}", name) for name, statistic in STATISTICS.items()),
    ]


def _delete_runs(markers: Iterable[Path], opened: Any, project: Any) -> None:
    """Delete the runs that these files name, where they are still there."""
    runs = {UUID(marker.read_text()) for marker in markers if marker.exists()}
    for run in runs.intersection(opened.list_runs(project.id)):
        opened.delete_run(project.id, run)


def _add_panels(opened: Any, project: Any) -> None:
    """Add to the dashboard every panel that it lacks; panels are known by their titles, and those of a user stay."""
    from evidently.sdk.models import DashboardTabModel, PanelMetric
    from evidently.sdk.panels import line_plot_panel

    dashboard = project.dashboard.model()
    tabs = {tab.title: tab for tab in dashboard.tabs}
    titles = {panel.title for panel in dashboard.panels}
    for tab, title, column in _panels():
        if title not in titles:
            metric, labels = ("MeanValue", {"column": column}) if column else ("RowCount", {})
            value = PanelMetric(metric=metric, metric_labels=labels, legend=title)
            dashboard.panels.append(line_plot_panel(title=title, size="half", values=[value]))
            tabs.setdefault(tab, DashboardTabModel(title=tab, panels=[])).panels.append(dashboard.panels[-1].id)
    dashboard.tabs = list(tabs.values())
    opened.save_dashboard(project.id, dashboard)
