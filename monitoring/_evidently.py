"""All that needs the inside of Evidently 0.7: metrics with values that are known already, a page of our own, and a workspace that is not read.

It is the only use of `evidently.legacy`. Evidently takes 4 to 8 s to import, so this module is imported where it is used.
`tests/test_evidently.py` fails when Evidently changes what is needed here.
"""

from pathlib import Path
from typing import Any, ClassVar

from evidently.core.container import MetricContainer
from evidently.core.metric_types import SingleValueCalculation
from evidently.legacy.renderers.html_widgets import WidgetSize, plotly_data, table_data, text_widget
from evidently.metrics import MeanValue, ValueDrift
from evidently.ui.storage.local.base import LocalState
from evidently.ui.workspace import Workspace


# Evidently's classes ship without types.
class KnownMean(MeanValue):  # type: ignore[misc]
    """A mean that is known, stored as Evidently's `MeanValue`, which would take 80 ms to draw a histogram."""

    _known: float

    class Config:
        type_alias = "evidently:metric_v2:MeanValue"


class KnownCalculation(SingleValueCalculation[KnownMean]):  # type: ignore[misc]
    """The calculation of a metric whose value is known; by its type argument Evidently finds that of `KnownMean`."""

    def display_name(self) -> str:
        return f"{self.metric.type.rpartition(':')[2]} of {self.metric.column}"

    def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
        result = self.result(self.metric._known)
        result.widget = []
        return result


class KnownDrift(ValueDrift):  # type: ignore[misc]
    """A score of our own that is known, stored as Evidently's `ValueDrift`, which would take 50 ms to compute and to draw it."""

    __calculation_type__: ClassVar[type] = KnownCalculation

    _known: float

    class Config:
        type_alias = "evidently:metric_v2:ValueDrift"


def known(metric: Any, value: float) -> Any:
    """A `KnownMean` or `KnownDrift` with its value, which is no field: Evidently draws a line for each set of fields."""
    metric._known = value
    return metric


class Page(MetricContainer):  # type: ignore[misc]
    """Widgets without a metric. A metric's own widgets are stored twice in a run, and the Evidently UI keeps all runs in memory."""

    widgets: list[Any]

    def generate_metrics(self, context: Any) -> list[Any]:
        return []

    def render(self, context: Any, child_widgets: Any = None) -> list[Any]:
        return self.widgets


def text(markdown: str) -> Any:
    return text_widget(text=markdown)


def table(title: str, header: list[str], rows: list[list[str]]) -> Any:
    return table_data(title=title, column_names=header, data=rows)


def figure(title: str, data: list[dict[str, Any]], layout: dict[str, Any], half: bool = False) -> Any:
    """A Plotly figure of the report's width, or of half of it."""
    return plotly_data(title=title, data=data, layout=layout, size=WidgetSize.HALF if half else WidgetSize.FULL)


def picture(title: str, url: str) -> Any:
    """A picture by a data URL, as a figure, because Evidently's Markdown does not show data URLs."""
    place = {"xref": "paper", "yref": "paper", "x": 0, "y": 1, "sizex": 1, "sizey": 1, "sizing": "contain"}
    axis = {"visible": False}
    layout = {"images": [{"source": url, **place}], "xaxis": axis, "yaxis": axis, "margin": dict.fromkeys("lrtb", 0)}
    return figure(title, [], layout)


class UnreadWorkspace(Workspace):  # type: ignore[misc]
    """A workspace of files for projects, dashboards and runs; Evidently's own reads every run first, the 720 of a month in 10 s or more."""

    def __init__(self, path: Path) -> None:
        self.path, self.state = str(path), LocalState(str(path))
        path.mkdir(parents=True, exist_ok=True)
