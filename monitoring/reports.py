"""What monitoring leaves behind: a verdict other programs read, Evidently's report for people, and its history as a dashboard."""

import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from digits.files import replacing, write_atomically
from digits.intervals import Proportion
from digits.reference import Reference
from digits.storage.predictions import Window
from monitoring import accuracy, drift, drift_images
from monitoring.image_statistics import UNITS, Columns

PROJECT = "digits"  # in the Evidently workspace
REPORT = "report.html"
VERDICT = "verdict.json"
PICTURES = "pictures.png"

_DISTANCE = "digits_distance"  # our scores under the names Evidently knows them by
_SHARE_CHANGE = "digits_share_change"
_CORRECT = "correct"  # share of the labelled answers: the same in every row, see _metrics
_AUDITED = "audit_correct"  # of those that belong to the audit sample
_RUN = "workspace_run"  # the file that names the run of a folder
_MOMENT = "%Y-%m-%dT%H-%M-%SZ"
_DRIFTED = "drifted_share"  # of the columns


_SHOWN = [_DRIFTED, drift.CONFIDENCE, *UNITS]  # means that the dashboard shows over time


class MonitoringVerdict(BaseModel):
    """Everything monitoring has to say about one window."""

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
class Written:
    """Where the report of one window is; without enough data there is a verdict only."""

    verdict: Path
    html: Path | None
    pictures: Path | None
    run: str | None  # its id in the Evidently workspace


def judge(
    reference: Reference, window: Window, policy: drift.DriftPolicy | None = None, labelled: Window | None = None
) -> MonitoringVerdict:
    """Drift and accuracy of a window, against the reference sample of the version that answered it.

    `labelled` holds all labelled answers of that time where the window is a sample.
    """
    found = drift.compare(reference, window, policy)
    right = accuracy.assess(reference, window, labelled)
    return MonitoringVerdict(
        since=min(window.at, default=None),
        until=max(window.at, default=None),
        count=len(window),
        versions=tuple(sorted(set(window.versions))),
        drift=found,
        accuracy=right,
        message=f"{found.message} {right.message}",
        recommendations=_recommendations(found, right),
    )


def _recommendations(found: drift.Drift, right: accuracy.Accuracy) -> tuple[str, ...]:
    """What to do, each thing once; a loss of accuracy without drift has causes that no image statistic shows."""
    recommendations = tuple(dict.fromkeys(cause.recommendations for cause in found.causes))
    if right.verdict == "worse" and not recommendations:
        return ("Look at the labels and at the digits that are answered wrongly; then retrain with the labelled ones.",)
    return recommendations


def folder_name(since: datetime, until: datetime, version: str) -> str:
    """The name of a window's folder, UTC: the same window has the same one, and names sort by time."""
    start, end = (f"{moment.astimezone(UTC):{_MOMENT}}" for moment in (since, until))
    return f"{start}--{end}-v{version}"


def write(folder: Path, workspace: Path, reference: Reference, window: Window, verdict: MonitoringVerdict) -> Written:
    """`verdict.json`, `report.html` and `pictures.png` in the folder, and the run in the workspace that the Evidently UI shows.

    Written again for the same folder, the files and the run are replaced, so a window can be recomputed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, html, shown, marker = (folder / name for name in (VERDICT, REPORT, PICTURES, _RUN))
    write_atomically(path, verdict.model_dump_json(indent=2).encode())
    if not verdict.drift.columns:
        return Written(path, None, None, None)
    write_atomically(shown, drift_images.render(reference.images, window.images, window.digits.tolist()))
    with _quiet():
        snapshot = _run(reference, window, verdict)
        with replacing(html) as part:
            snapshot.save_html(str(part))
        run = _add(workspace, snapshot, marker.read_text() if marker.exists() else None)
    write_atomically(marker, run.encode())
    return Written(path, html, shown, run)


def remove_old(reports: Path, workspace: Path, before: datetime) -> list[str]:
    """Remove the reports on windows that ended before a moment, with their runs in the workspace; their names.

    The run goes first: a folder that is still there leads to it once more. Folders with other names are left alone.
    """
    names = [path.name for path in sorted(reports.glob("*--*-v*")) if (end := _end_of(path.name)) and end < before]
    runs = [reports / name / _RUN for name in names]
    _forget({run.read_text() for run in runs if run.exists()}, workspace)
    for name in names:
        shutil.rmtree(reports / name)
    return names


def _end_of(name: str) -> datetime | None:
    found = re.fullmatch(r".+--(.+)-v[^-]+", name)
    try:
        return datetime.strptime(found[1], _MOMENT).replace(tzinfo=UTC) if found else None
    except ValueError:
        return None


def _forget(runs: set[str], workspace: Path) -> None:
    if not runs:
        return
    with _quiet():
        from evidently.ui.workspace import Workspace  # 3 to 8 s with its own imports

        opened = Workspace.create(str(workspace))
        for project in opened.search_project(PROJECT):
            for run in opened.list_runs(project.id):
                if str(run) in runs:
                    opened.delete_run(project.id, run)


def markdown(version: str, verdict: MonitoringVerdict, written: Written, history: str) -> str:
    """The verdict as a page: words, advice, accuracy, what drifted; `history` is the address of the Evidently UI."""
    recommendations = "".join(f"- {sentence}\n" for sentence in verdict.recommendations)
    rows = "".join(_row(column) for column in verdict.drift.columns if column.drifted)
    table = (
        f"| column | before | now | unit | distance | threshold |\n|---|---|---|---|---|---|\n{rows}" if rows else ""
    )
    links = f"[history in the Evidently UI]({history}), `{written.html or written.verdict}`"
    right = _accuracies(verdict.accuracy)
    parts = [f"# digits v{version}: {verdict.drift.verdict}", verdict.message, recommendations, right, table, links]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _row(column: drift.Column) -> str:
    numbers = f"{column.before:.3g} | {column.now:.3g} | {column.unit} | {column.score:.3f} | {column.threshold:.3f}"
    return f"| {column.name} | {numbers} |\n"


def _accuracies(found: accuracy.Accuracy) -> str:
    """What is known of the accuracy, one row each."""
    shares = {"expected": found.expected, "labelled predictions": found.labelled, "audit sample": found.audited}
    digits = {f"labelled {digit}s": share for digit, share in sorted(found.per_digit.items())}
    rows = [f"| {name} | {share} | {share.count} |\n" for name, share in (shares | digits).items() if share]
    if found.estimate is not None:
        rows.append(f"| by confidence alone | {100 * found.estimate:.2f} % | {found.count} |\n")
    return "| accuracy | share | of |\n|---|---|---|\n" + "".join(rows)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the deprecation warnings of Evidently's own imports, and without Plotly's theme.

    The theme is repeated in every figure: two figures for each of 37 columns take 0.5 MB of HTML with it.
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

    before, now = drift.tables(reference, window)
    numeric = [name for name in before if name != drift.DIGIT]
    definition = DataDefinition(
        numerical_columns=[*numeric, _CORRECT, _AUDITED, _DRIFTED], categorical_columns=[drift.DIGIT]
    )
    right = verdict.accuracy
    frames = (
        _frame(now, right.labelled, right.audited, verdict.drift.drifted_share),
        _frame(before, right.expected, right.expected, 0.0),
    )
    current, then = (Dataset.from_pandas(frame, data_definition=definition) for frame in frames)
    report = Report(_metrics(verdict), include_tests=True)
    metadata = {"versions": ", ".join(verdict.versions), "verdict": verdict.drift.verdict, "message": verdict.message}
    return report.run(current, then, timestamp=verdict.until, metadata=metadata, tags=["monitor"])


def _frame(columns: Columns, labelled: Proportion | None, audited: Proportion | None, drifted_share: float) -> Any:
    import pandas as pd  # 1.4 s

    frame = pd.DataFrame(columns)
    frame[drift.DIGIT] = frame[drift.DIGIT].astype(int).astype(str)
    frame[_CORRECT], frame[_AUDITED] = (np.nan if share is None else share.value for share in (labelled, audited))
    frame[_DRIFTED] = drifted_share
    return frame


def _metrics(verdict: MonitoringVerdict) -> list[Any]:
    """The dashboard's numbers first, then a panel per column, the most exceeding first.

    One drifted column is drift: the thresholds hold for all columns together. Evidently's dashboard draws one line for each set
    of a metric's parameters, and the thresholds differ in every run: over time it shows means, which have none.
    """
    from evidently.metrics import DriftedColumnsCount, MeanValue, RowCount, ValueDrift

    _register()
    methods = {column.name: _method(column.name) for column in verdict.drift.columns}
    limits = {column.name: column.threshold for column in verdict.drift.columns}
    count = DriftedColumnsCount(
        columns=list(methods),
        per_column_method=methods,
        per_column_threshold=limits,
        drift_share=0.5 / len(methods),
    )
    known = [_CORRECT] * (verdict.accuracy.labelled is not None) + [_AUDITED] * (verdict.accuracy.audited is not None)
    means = [MeanValue(column=name, tests=[]) for name in [*known, *_SHOWN]]
    drifts = [ValueDrift(column=name, method=methods[name], threshold=limits[name]) for name in methods]
    return [count, RowCount(tests=[]), *drifts, *means]


def _method(name: str) -> str:
    return _SHARE_CHANGE if name == drift.DIGIT else _DISTANCE


def _register() -> None:
    """Makes our two scores Evidently's: its own K-S test reports p-values, which at our thresholds all print as 0.00.

    Doing it again replaces the same entries.
    """
    from evidently.legacy.calculations.stattests import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    def scored(column: str) -> Any:
        def judged(reference: Any, current: Any, _type: Any, threshold: float) -> tuple[float, bool]:
            score = drift.score(column, reference.to_numpy().astype(float), current.to_numpy().astype(float))
            return score, score > threshold

        return judged

    distance = StatTest(_DISTANCE, "Kolmogorov-Smirnov distance", [ColumnType.Numerical])
    change = StatTest(_SHARE_CHANGE, "largest change of one digit's share", [ColumnType.Categorical])
    register_stattest(distance, scored("any numeric column"))
    register_stattest(change, scored(drift.DIGIT))


def _add(workspace: Path, snapshot: Any, replaced: str | None) -> str:
    """The run's id, once it is in the workspace in place of the one it replaces."""
    from evidently.ui.workspace import Workspace  # another second

    opened = Workspace.create(str(workspace))
    found = opened.search_project(PROJECT)
    project = found[0] if found else _project(opened)
    if replaced and replaced in {str(run) for run in opened.list_runs(project.id)}:
        opened.delete_run(project.id, replaced)
    return str(opened.add_run(project.id, snapshot, include_data=False).id)


def _project(opened: Any) -> Any:
    """The project with its dashboard: drift, accuracy, confidence and traffic over time, and what the images look like."""
    from evidently.sdk.models import PanelMetric
    from evidently.sdk.panels import line_plot_panel

    def panel(title: str, metric: str, labels: dict[str, str]) -> Any:
        value = PanelMetric(metric=metric, metric_labels=labels, legend=title)
        return line_plot_panel(title=title, size="half", values=[value])

    project = opened.create_project(PROJECT, "Handwritten digits in production against what the version was tested on")
    for title, name in (
        ("Share of columns that drifted", _DRIFTED),
        ("Accuracy on labelled predictions", _CORRECT),
        ("Accuracy on the audit sample", _AUDITED),
        ("Mean confidence", drift.CONFIDENCE),
    ):
        project.dashboard.add_panel(panel(title, "MeanValue", {"column": name}), tab="Monitoring")
    project.dashboard.add_panel(panel("Predictions in the window", "RowCount", {}), tab="Monitoring")
    for name, unit in UNITS.items():
        project.dashboard.add_panel(panel(f"{name}: {unit}", "MeanValue", {"column": name}), tab="Images")
    dashboard = project.dashboard.model()
    for tab in dashboard.tabs:
        tab.panels = list(
            dict.fromkeys(tab.panels)
        )  # Evidently 0.7.23 lists the second and later panels of a tab twice
    opened.save_dashboard(project.id, dashboard)
    return project
