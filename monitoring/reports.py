"""Monitoring reports: a verdict for programs, Evidently's report for people, and its history as a dashboard."""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from digits.files import replacing, write_atomically
from digits.images import NO_DIGIT
from digits.reference import Reference
from digits.storage.predictions import PredictionWindow
from monitoring import accuracy, dashboard, drift, drift_images, evidently_report, samples
from monitoring.accuracy import History
from monitoring.drift import Drift, Tables
from monitoring.samples import Repeats, Sample
from monitoring.traffic import Traffic

REPORT = "report.html"
VERDICT = "verdict.json"
IMAGES = "drift_images.png"
MIN_REPEATED_SHARE = 0.05  # of all answers, from which the message tells of one image that is sent again and again

_RUN = "workspace_run"  # the file in a report's folder that names its run in the workspace
_TIME = "%Y-%m-%dT%H-%M-%SZ"


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
    shares = [column for column in found.columns if column.name == drift.NO_DIGIT_COLUMN]
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


def find(reports: Path, name: str) -> Path | None:
    """The folder of the report with this name; None where the name is not one of a report, or its report is not here."""
    folder = reports / name
    is_name = re.fullmatch(r"[\w-]+Z--[\w-]+Z-v\d+", name, re.ASCII)
    return folder if is_name and (folder / REPORT).is_file() else None


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
    picture, pixel_change = _picture(before, current, tables, verdict.against)
    write_atomically(folder / IMAGES, picture)
    opened, project = dashboard.open_project(workspace)
    dashboard.delete_runs([marker], opened, project)
    snapshot = evidently_report.run(tables, verdict, picture, pixel_change)
    with replacing(html) as part:
        snapshot.save_html(str(part))
    run = opened.add_run(project.id, snapshot, include_data=False).id
    write_atomically(marker, str(run).encode())
    return verdict, html


def ui_path(folder: Path, workspace: Path) -> str:
    """The path of a folder's report in the Evidently UI; of the project's dashboard where the window has no report."""
    marker, (_, project) = folder / _RUN, dashboard.open_project(workspace)
    return f"/projects/{project.id}" + (f"/reports/{marker.read_text()}" if marker.exists() else "")


def _picture(before: Sample, current: Sample, tables: Tables, against: str) -> tuple[bytes, float]:
    """The mean images, their differences and the most unusual images as a PNG, and the largest change of a pixel in grey levels."""
    expected, found = drift_images.mean_images(before), drift_images.mean_images(current)
    digits = current.probabilities.argmax(axis=1)
    unusual = {int(index): str(digits[index]) for index in drift_images.unusual(*tables)}
    largest = float(np.abs(drift_images.change(expected[0], found[0])).max())
    return drift_images.render(expected, found, current.images, unusual, against), largest


def remove_old(reports: Path, workspace: Path, before: datetime) -> list[str]:
    """Remove the reports on windows that ended before this time, with their runs in the workspace; returns their names.

    The run is removed first, so that a failure leaves the folder that names it. Folders with other names are left alone.
    """
    names = sorted(path.name for path in reports.glob("*Z--*Z-v*"))
    old = [name for name in names if name.partition("--")[2] < f"{before.astimezone(UTC):{_TIME}}"]
    if old:
        opened, project = dashboard.open_project(workspace)
        dashboard.delete_runs([reports / name / _RUN for name in old], opened, project)
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
