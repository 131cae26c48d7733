"""The view `recipes by accuracy` of MLflow's page of runs: the figures and charts that compare recipes, the most accurate first.

MLflow keeps a saved view as a tag of the experiment. What the page reads from it is not documented; a page that reads something else
ignores the tag. `mlflow/demo/generators/saved_views.py` writes such a tag for another page.
"""

import base64
import json
import time
import zlib
from typing import Any

NAME = "recipes by accuracy"
KEY = "digits"  # in the address of the view
TAG = f"mlflow.sharedViewState.{KEY}"
COLUMNS = (
    *("attributes.`Models`", "attributes.`Duration`"),
    *(f"metrics.`test_accuracy{end}`" for end in ("", "_low", "_high")),
    *("metrics.`test_log_loss`", "metrics.`test_ece`", "metrics.`corruption_accuracy`", "metrics.`parameters`"),
)
_SECTION = "recipes"


def content() -> str:
    """The value of the tag, of at most 5,000 characters."""
    state = {
        "orderByKey": "metrics.`test_accuracy`",
        "orderByAsc": False,
        "selectedColumns": COLUMNS,
        "compareRunSections": [{"uuid": _SECTION, "name": "Recipes", "display": True, "isReordered": False}],
        "compareRunCharts": [_chart("BAR", "test_accuracy"), _chart("BAR", "corruption_accuracy"), _learning_curves()],
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(time.time() * 1000)
    return json.dumps({"name": NAME, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"})


def _chart(kind: str, metric: str) -> dict[str, Any]:
    placed = {"uuid": metric, "metricSectionId": _SECTION, "deleted": False, "isGenerated": False}
    return {**placed, "type": kind, "metricKey": metric, "runsCountToCompare": 10}


def _learning_curves() -> dict[str, Any]:
    axes = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "selectedXAxisMetricKey": ""}
    y_axis = {"yAxisKey": "metric", "selectedYAxisMetricKey": "", "yAxisExpressions": []}
    limits = {"range": dict.fromkeys(("xMin", "xMax", "yMin", "yMax"))}
    smoothing = {"lineSmoothness": 0, "useGlobalLineSmoothing": True, "useGlobalXaxisKey": True}
    metrics = {"selectedMetricKeys": ["val_accuracy"]}
    return {**_chart("LINE", "val_accuracy"), **metrics, **axes, **y_axis, **limits, **smoothing}
