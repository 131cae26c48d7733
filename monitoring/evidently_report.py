"""Evidently's report on a window, for people. Its numbers are those of the verdict, so that nothing is computed twice."""

import base64
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from monitoring import dashboard, drift
from monitoring.drift import Column, Drift, Tables
from monitoring.image_statistics import STATISTICS, Values

if TYPE_CHECKING:
    from monitoring.reports import MonitoringVerdict

MAX_OTHER_FIGURES = 5  # of drifted blocks and axes
BINS = 30  # of a histogram
RANGE = 0.001, 0.999  # quantiles of both samples between which the bins lie; what is outside counts in the outer ones

_SCORE = (
    "The score of a column is the Kolmogorov-Smirnov distance of its distributions, of `digit` the largest change of a digit's share. "
    "A score above its threshold is drift."
)
_COLOURS = {"expected": "#a0a8b0", "window": "#ed0400"}


def run(tables: Tables, verdict: "MonitoringVerdict", picture: bytes, pixel_change: float) -> Any:
    """Evidently's snapshot of the window with the picture (PNG); it sends nothing anywhere.

    `pixel_change` is the largest change of a pixel's mean, in grey levels.
    """
    with warnings.catch_warnings(action="ignore"):
        import pandas as pd  # 1.4 s
        from evidently import DataDefinition, Dataset, Report  # 4 to 8 s, with many warnings
        from evidently.metrics import RowCount
        from evidently.tests import lte

        from monitoring import _evidently

        definition = DataDefinition(categorical_columns=[drift.DIGIT])
        expected, current = (
            Dataset.from_pandas(pd.DataFrame({drift.DIGIT: table[drift.DIGIT].astype(int).astype(str)}), definition)
            for table in tables
        )
        drifts = [
            _evidently.known(_evidently.KnownDrift(column=one.name, tests=[lte(one.threshold)]), one.score)
            for one in verdict.drift.columns
        ]
        means = _means(tables, verdict, pixel_change).items()
        known = [_evidently.known(_evidently.KnownMean(column=name, tests=[]), value) for name, value in means]
        report = Report(
            [_evidently.Page(widgets=_widgets(tables, verdict, picture)), RowCount(tests=[]), *drifts, *known]
        )
        metadata = {
            "versions": ", ".join(verdict.versions),
            "verdict": verdict.drift.verdict,
            "message": verdict.message,
        }
        return report.run(current, expected, timestamp=verdict.until, metadata=metadata, tags=["monitor"])


def _means(tables: Tables, verdict: "MonitoringVerdict", pixel_change: float) -> dict[str, float]:
    """What the dashboard plots. Only means, because of scores Evidently would draw a line for each threshold."""
    shares = {dashboard.CORRECT: verdict.accuracy.labelled, dashboard.AUDITED: verdict.accuracy.audited}
    return {
        dashboard.DRIFTED: verdict.drift.drifted_share,
        dashboard.PIXEL_CHANGE: pixel_change,
        **{name: share.value for name, share in shares.items() if share},
        **{name: float(values.mean()) for name, values in tables[1].items() if name != drift.DIGIT},
    }


def _widgets(tables: Tables, verdict: "MonitoringVerdict", picture: bytes) -> list[Any]:
    """The verdict, the picture, all columns in a table, and the distributions of some."""
    from monitoring import _evidently

    advice = "".join(f"\n- {sentence}" for sentence in verdict.recommendations)
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    rows = [
        [one.name, f"{one.reference:.3g}", f"{one.current:.3g}", one.unit, f"{one.score:.3f}", f"{one.threshold:.3f}"]
        for one in verdict.drift.columns
    ]
    return [
        _evidently.text(f"## {verdict.drift.verdict.capitalize()}\n\n{verdict.message}\n{advice}\n\n{_SCORE}"),
        _evidently.picture(f"Mean images of the {verdict.against} and of the window, and their difference", url),
        _evidently.table(
            "All columns, those that drifted most first",
            ["column", f"mean of the {verdict.against}", "mean of the window", "unit", "score", "threshold"],
            rows,
        ),
        *(_figure(one, tables, verdict.against) for one in _columns_shown(verdict.drift)),
    ]


def _columns_shown(found: Drift) -> list[Column]:
    """The columns with a figure: those with a unit, and of the others those that drifted most."""
    named = {*STATISTICS, *drift.ANSWER_UNITS, drift.DIGIT}
    others = [column.name for column in found.columns if column.drifted and column.name not in named]
    return [column for column in found.columns if column.name in named.union(others[:MAX_OTHER_FIGURES])]


def _figure(column: Column, tables: Tables, against: str) -> Any:
    """Both distributions of a column, as shares of the images."""
    from monitoring import _evidently

    expected, current = (table[column.name] for table in tables)
    edges = _edges(expected, current) if column.name != drift.DIGIT else np.linspace(-0.5, 9.5, 11)
    bars = [
        {
            "type": "bar",
            "name": name,
            "x": ((edges[:-1] + edges[1:]) / 2).round(4).tolist(),
            "y": _shares(values, edges).round(4).tolist(),
            "marker": {"color": colour},
        }
        for name, values, colour in ((against, expected, _COLOURS["expected"]), ("window", current, _COLOURS["window"]))
    ]
    drifted = "drift" if column.drifted else "no drift"
    title = f"{column.name}: {drifted}, score {column.score:.3f}, threshold {column.threshold:.3f}"
    layout = {
        "xaxis": {"title": {"text": column.unit}, **({"dtick": 1} if column.name == drift.DIGIT else {})},
        "yaxis": {"title": {"text": "share of the images"}, "tickformat": ".0%"},
        "legend": {"orientation": "h", "y": 1.1},
        "bargap": 0.1,
        "margin": {"l": 60, "r": 20, "t": 30, "b": 60},
    }
    return _evidently.figure(title, bars, layout, half=True)


def _edges(expected: Values, current: Values) -> Values:
    low, high = np.quantile(np.concatenate([expected, current]), RANGE)
    return np.linspace(low, max(high, low + 1e-6), BINS + 1)


def _shares(values: Values, edges: Values) -> Values:
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    return counts / len(values)
