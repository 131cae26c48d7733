"""Monitoring reports: a verdict for programs, Evidently's report for people, and its history as a dashboard."""

import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from digits.files import replacing, write_atomically
from digits.intervals import Proportion
from digits.reference import Reference
from digits.storage.predictions import Window
from monitoring import _evidently, accuracy, drift, drift_images, image_statistics
from monitoring.image_statistics import STATISTICS, Columns

PROJECT = "digits"  # in the Evidently workspace
REPORT = "report.html"
VERDICT = "verdict.json"
IMAGES = "drift_images.png"

_RUN = "workspace_run"  # the file in a report's folder that names its run in the workspace
_TIME = "%Y-%m-%dT%H-%M-%SZ"
# our scores, under the names that Evidently knows them by
_DISTANCE = "digits_distance"
_SHARE_CHANGE = "digits_share_change"
# columns with the same value in every row, of which the dashboard shows the mean: accuracies, and the share of drifted columns
_CORRECT = "correct"
_AUDITED = "audit_correct"
_DRIFTED = "drifted_share"


class MonitoringVerdict(BaseModel):
    """The drift and the accuracy of one window."""

    model_config = ConfigDict(frozen=True)

    since: datetime | None  # first and last prediction, UTC; None for an empty window
    until: datetime | None
    count: int
    versions: tuple[str, ...]  # that answered in this window
    drift: drift.Drift
    accuracy: accuracy.Accuracy
    message: str
    recommendations: tuple[str, ...]


@dataclass(frozen=True)
class ReportFiles:
    """The files on one window; without enough data there is a verdict only."""

    verdict: Path
    html: Path | None = None
    images: Path | None = None
    run: str | None = None  # its id in the Evidently workspace


def assess(
    reference: Reference, window: Window, policy: drift.DriftPolicy | None = None, labelled: Window | None = None
) -> MonitoringVerdict:
    """Drift and accuracy of a window, against the reference sample of the version that answered it.

    `labelled` holds all labelled predictions of that time where the window is a sample.
    """
    found = drift.detect(reference, window, policy)
    accurate = accuracy.assess(reference, window, labelled)
    return MonitoringVerdict(
        since=min(window.at, default=None),
        until=max(window.at, default=None),
        count=len(window),
        versions=tuple(sorted(set(window.versions))),
        drift=found,
        accuracy=accurate,
        message=f"{found.message} {accurate.message}",
        recommendations=_recommendations(found, accurate),
    )


def _recommendations(found: drift.Drift, accurate: accuracy.Accuracy) -> tuple[str, ...]:
    """What to do, each thing once; without drift no image statistic shows why accuracy fell."""
    recommendations = tuple(dict.fromkeys(explanation.recommendation for explanation in found.explanations))
    if accurate.verdict == "worse" and not recommendations:
        return ("Check the labels and the wrongly classified digits; then retrain with the labelled ones.",)
    return recommendations


def folder_name(since: datetime, until: datetime, version: str) -> str:
    """The name of a window's folder, UTC: the same for the same window; names sort by time."""
    start, end = (f"{time.astimezone(UTC):{_TIME}}" for time in (since, until))
    return f"{start}--{end}-v{version}"


def write(
    folder: Path, workspace: Path, reference: Reference, window: Window, verdict: MonitoringVerdict
) -> ReportFiles:
    """Write the files of a window into the folder, and its run into the workspace that the Evidently UI shows.

    A second call for the same folder replaces the files and the run, so a window can be recomputed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, html, images, marker = (folder / name for name in (VERDICT, REPORT, IMAGES, _RUN))
    write_atomically(path, verdict.model_dump_json(indent=2).encode())
    if not verdict.drift.columns:
        return ReportFiles(path)
    write_atomically(images, drift_images.render(reference.images, window.images, window.digits.tolist()))
    if marker.exists():
        _delete_runs({marker.read_text()}, workspace)
    with _quiet():
        snapshot = _run(reference, window, verdict)
        with replacing(html) as part:
            snapshot.save_html(str(part))
        run = _add_run(workspace, snapshot)
    write_atomically(marker, run.encode())
    return ReportFiles(path, html, images, run)


def remove_old(reports: Path, workspace: Path, before: datetime) -> list[str]:
    """Remove the reports on windows that ended before this time, with their runs in the workspace; returns their names.

    The run is removed first, so that a failure leaves the folder that names it. Folders with other names are left alone.
    """
    names = [path.name for path in sorted(reports.glob("*--*-v*")) if (end := _end_of(path.name)) and end < before]
    runs = [reports / name / _RUN for name in names]
    _delete_runs({run.read_text() for run in runs if run.exists()}, workspace)
    for name in names:
        shutil.rmtree(reports / name)
    return names


def _end_of(name: str) -> datetime | None:
    found = re.fullmatch(r".+--(.+)-v[^-]+", name)
    try:
        return datetime.strptime(found[1], _TIME).replace(tzinfo=UTC) if found else None
    except ValueError:
        return None


def _delete_runs(runs: set[str], workspace: Path) -> None:
    if not runs:
        return
    with _quiet():
        from evidently.ui.workspace import Workspace  # 3 to 8 s with its own imports

        opened = Workspace.create(str(workspace))
        for project in opened.search_project(PROJECT):
            for run in opened.list_runs(project.id):
                if str(run) in runs:
                    opened.delete_run(project.id, run)


def markdown(version: str, verdict: MonitoringVerdict, files: ReportFiles, history: str) -> str:
    """The verdict as a page; `history` is the address of the Evidently UI."""
    recommendations = "".join(f"- {sentence}\n" for sentence in verdict.recommendations)
    rows = "".join(_row(column) for column in verdict.drift.columns if column.drifted)
    header = "| column | reference | current | unit | score | threshold |\n|---|---|---|---|---|---|\n"
    links = f"[history in the Evidently UI]({history}), `{files.html or files.verdict}`"
    title = f"# digits v{version}: {verdict.drift.verdict}"
    table = header + rows if rows else ""
    parts = [title, verdict.message, recommendations, _accuracy_table(verdict.accuracy), table, links]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _row(column: drift.Column) -> str:
    means = f"{column.reference:.3g} | {column.current:.3g} | {column.unit}"
    return f"| {column.name} | {means} | {column.score:.3f} | {column.threshold:.3f} |\n"


def _accuracy_table(found: accuracy.Accuracy) -> str:
    shares = {"expected": found.expected, "labelled predictions": found.labelled, "audit sample": found.audited}
    digits = {f"labelled {digit}s": share for digit, share in sorted(found.per_digit.items())}
    rows = [f"| {name} | {share} | {share.count} |\n" for name, share in (shares | digits).items() if share]
    if found.estimate is not None:
        rows.append(f"| estimate from the confidence | {100 * found.estimate:.2f} % | {found.count} |\n")
    return "| accuracy | share | of |\n|---|---|---|\n" + "".join(rows)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the deprecation warnings of Evidently's own imports, and without Plotly's theme.

    The theme is repeated in every figure: with two figures for each of 37 columns it adds 0.5 MB of HTML.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import plotly.io  # type: ignore[import-untyped]  # ships no types; comes with Evidently, 3 to 8 s to import

        theme, plotly.io.templates.default = plotly.io.templates.default, "none"
        try:
            yield
        finally:
            plotly.io.templates.default = theme


def _run(reference: Reference, window: Window, verdict: MonitoringVerdict) -> Any:
    """Evidently's snapshot of the window: every column by our own score and threshold. It sends nothing anywhere."""
    from evidently import DataDefinition, Dataset, Report  # 3 to 8 s

    expected, current = drift.tables(reference, window)
    numeric = [*(name for name in expected if name != drift.DIGIT), _CORRECT, _AUDITED, _DRIFTED]
    definition = DataDefinition(numerical_columns=numeric, categorical_columns=[drift.DIGIT])
    known = verdict.accuracy
    measured = _frame(current, known.labelled, known.audited, verdict.drift.drifted_share)
    frames = (measured, _frame(expected, known.expected, known.expected, 0.0))
    datasets = (Dataset.from_pandas(frame, data_definition=definition) for frame in frames)
    report = Report(_metrics(verdict), include_tests=True)
    metadata = {"versions": ", ".join(verdict.versions), "verdict": verdict.drift.verdict, "message": verdict.message}
    return report.run(*datasets, timestamp=verdict.until, metadata=metadata, tags=["monitor"])


def _frame(columns: Columns, labelled: Proportion | None, audited: Proportion | None, drifted_share: float) -> Any:
    import pandas as pd  # 1.4 s

    frame = pd.DataFrame(columns)
    frame[drift.DIGIT] = frame[drift.DIGIT].astype(int).astype(str)
    frame[_CORRECT], frame[_AUDITED] = (np.nan if share is None else share.value for share in (labelled, audited))
    frame[_DRIFTED] = drifted_share
    return frame


def _metrics(verdict: MonitoringVerdict) -> list[Any]:
    """The dashboard's numbers first, then the drift of each column by score over threshold.

    One drifted column is drift: the thresholds hold for all columns together. Evidently's dashboard draws one line for each set
    of a metric's parameters, and the thresholds differ in every run: over time it shows means, which have no parameters.
    """
    from evidently.metrics import DriftedColumnsCount, MeanValue, RowCount, ValueDrift

    change = partial(drift.score, drift.DIGIT)
    _evidently.register_score(_DISTANCE, "Kolmogorov-Smirnov distance", True, image_statistics.distance)
    _evidently.register_score(_SHARE_CHANGE, "largest change of one digit's share", False, change)
    columns = verdict.drift.columns
    methods = {column.name: _SHARE_CHANGE if column.name == drift.DIGIT else _DISTANCE for column in columns}
    limits = {column.name: column.threshold for column in columns}
    parameters = {"columns": list(methods), "per_column_method": methods, "per_column_threshold": limits}
    count = DriftedColumnsCount(**parameters, drift_share=0.5 / len(methods))
    known = [_CORRECT] * (verdict.accuracy.labelled is not None) + [_AUDITED] * (verdict.accuracy.audited is not None)
    means = [MeanValue(column=name, tests=[]) for name in [*known, _DRIFTED, drift.CONFIDENCE, *STATISTICS]]
    drifts = [ValueDrift(column=name, method=methods[name], threshold=limits[name]) for name in methods]
    return [count, RowCount(tests=[]), *drifts, *means]


def _add_run(workspace: Path, snapshot: Any) -> str:
    """Add the run to the workspace and to its dashboard the panels that it lacks; returns the run's id."""
    from evidently.ui.workspace import Workspace  # another second

    opened = Workspace.create(str(workspace))
    found = opened.search_project(PROJECT)
    project = found[0] if found else opened.create_project(PROJECT, "Digits in production against the reference")
    opened.save_dashboard(project.id, _with_panels(project.dashboard.model()))
    return str(opened.add_run(project.id, snapshot, include_data=False).id)


def _with_panels(dashboard: Any) -> Any:
    """The dashboard with every panel that it lacks; panels are known by their titles, and those of a user stay."""
    from evidently.sdk.models import DashboardTabModel, PanelMetric
    from evidently.sdk.panels import line_plot_panel

    panels = [
        ("Monitoring", "Share of drifted columns", "MeanValue", _DRIFTED),
        ("Monitoring", "Accuracy on labelled predictions", "MeanValue", _CORRECT),
        ("Monitoring", "Accuracy on the audit sample", "MeanValue", _AUDITED),
        ("Monitoring", "Mean confidence", "MeanValue", drift.CONFIDENCE),
        ("Monitoring", "Predictions in the window", "RowCount", None),
        *(("Images", f"{name}: {one.unit}", "MeanValue", name) for name, one in STATISTICS.items()),
    ]
    tabs = {tab.title: tab for tab in dashboard.tabs}
    titles = {panel.title for panel in dashboard.panels}
    for tab, title, metric, column in panels:
        if title not in titles:
            labels = {"column": column} if column else {}
            value = PanelMetric(metric=metric, metric_labels=labels, legend=title)
            panel = line_plot_panel(title=title, size="half", values=[value])
            dashboard.panels.append(panel)
            if tab not in tabs:
                tabs[tab] = DashboardTabModel(title=tab, panels=[])
                dashboard.tabs.append(tabs[tab])
            tabs[tab].panels.append(panel.id)
    return dashboard
