"""The project of the Evidently workspace: its dashboard, which is there before the first report, and the runs on it."""

import fcntl
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from monitoring import drift
from monitoring.image_statistics import STATISTICS

PROJECT = "digits"  # in the Evidently workspace
# Columns with the same value in every row, of which the dashboard shows the mean.
CORRECT, AUDITED, DRIFTED, PIXEL_CHANGE = "correct", "audit_correct", "drifted_share", "pixel_change"

_FIRST = "Points come with the first report."
_GUIDE = (
    f"Each point is a report on the champion's answers. The first one needs {drift.MIN_COUNT} different images; then the flow monitor writes one "
    "every hour, and the command digits monitor at any time. Each report shows the mean images of then and now, their difference, and the distributions."
)


class Panel(NamedTuple):
    """A panel of the dashboard, known by its title."""

    tab: str
    title: str
    description: str  # what it shows, or what it waits for while it is empty
    column: str | None = None  # whose mean is shown; "" is the number of rows, None a panel of text


def panels() -> list[Panel]:
    """The dashboard's panels in their order."""
    pixel = f"In mean grey levels, 0 to 255; the reports show where. {_FIRST}"
    monitoring = (
        ("What the panels show", _GUIDE),
        ("Share of drifted columns", f"0 unless a column differs by more than chance. {_FIRST}", DRIFTED),
        ("Largest change of a pixel", pixel, PIXEL_CHANGE),
        ("Accuracy on labelled predictions", "Points come with the first labels in a window.", CORRECT),
        ("Accuracy on the audit sample", "Points come with the first labels of the audit sample in a window.", AUDITED),
        ("Mean confidence", _FIRST, drift.CONFIDENCE),
        (
            "Share of images that show no digit",
            "Points come with reports on versions that have a digit score.",
            drift.NO_DIGIT_COLUMN,
        ),
        ("Predictions in the window", f"Each different image once. {_FIRST}", ""),
    )
    statistics = ((f"{name}: {one.unit}", f"Mean of a window. {_FIRST}", name) for name, one in STATISTICS.items())
    return [*(Panel("Monitoring", *panel) for panel in monitoring), *(Panel("Images", *panel) for panel in statistics)]


def open_project(workspace: Path) -> tuple[Any, Any]:
    """The Evidently workspace and our project in it, created where it is missing, with every panel of this version of the platform."""
    with warnings.catch_warnings(action="ignore"):
        from monitoring import _evidently  # 4 to 8 s, with many warnings

    opened = _evidently.UnreadWorkspace(workspace)
    # Two processes that start together would each create a project.
    with (workspace / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = opened.search_project(PROJECT) or [opened.create_project(PROJECT, "Digits in production")]
        _add_panels(opened, found[0], workspace / f".panels-{found[0].id}")
    return opened, found[0]


def _add_panels(opened: Any, project: Any, added: Path) -> None:
    """Add every panel that the dashboard has not had yet, and every description; the file `added` has the titles of those that it had.

    So what a user adds, renames or deletes stays as it is.
    """
    from evidently.sdk.models import DashboardTabModel

    dashboard = project.dashboard.model()
    before = dashboard.copy(deep=True)
    tabs = {tab.title: tab for tab in dashboard.tabs}
    known = {panel.title: panel for panel in dashboard.panels}
    had = set(added.read_text().splitlines()) if added.exists() else set()
    for panel in panels():
        tab = tabs.setdefault(panel.tab, DashboardTabModel(title=panel.tab, panels=[]))
        if panel.title in known:
            known[panel.title].subtitle = known[panel.title].subtitle or panel.description
            continue
        if panel.title in had:
            continue
        new = _evidently_panel(panel)
        dashboard.panels.append(new)
        tab.panels.insert(0 if panel.column is None else len(tab.panels), new.id)
    dashboard.tabs = list(tabs.values())
    if dashboard != before:
        opened.save_dashboard(project.id, dashboard)
    if titles := {panel.title for panel in panels()} - had:
        added.write_text("\n".join(sorted(had | titles)))


def _evidently_panel(panel: Panel) -> Any:
    from evidently.sdk.models import PanelMetric
    from evidently.sdk.panels import line_plot_panel, text_panel

    if panel.column is None:
        return text_panel(title=panel.title, description=panel.description)
    metric, labels = ("MeanValue", {"column": panel.column}) if panel.column else ("RowCount", {})
    value = PanelMetric(metric=metric, metric_labels=labels, legend=panel.title)
    return line_plot_panel(title=panel.title, description=panel.description, size="half", values=[value])


def delete_runs(markers: Iterable[Path], opened: Any, project: Any) -> None:
    """Delete the runs that these files name, where they are still there."""
    runs = {UUID(marker.read_text()) for marker in markers if marker.exists()}
    for run in runs.intersection(opened.list_runs(project.id)):
        opened.delete_run(project.id, run)
