"""Evidently still does what `monitoring/_evidently.py` expects of it; fails when Evidently changes that."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def snapshot() -> Any:
    """A snapshot with a mean and two scores that are known, and a page of every widget."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import RowCount
    from evidently.tests import lte

    from monitoring import _evidently

    scores = {"a": 0.25, "b": 0.5}
    metrics = [
        _evidently.known(_evidently.KnownDrift(column=column, tests=[lte(0.3)]), score)
        for column, score in scores.items()
    ]
    mean = _evidently.known(_evidently.KnownMean(column="not in the data", tests=[]), 7.0)
    url = "data:image/png;base64,AAAA"
    page = _evidently.Page(
        widgets=[
            _evidently.text("a **text**"),
            _evidently.table("a table", ["column"], [["a cell"]]),
            _evidently.figure("a figure", [{"type": "bar", "x": [1], "y": [2]}], {}, half=True),
            _evidently.picture("a picture", url),
        ]
    )
    data = Dataset.from_pandas(pd.DataFrame({"c": ["1", "2"]}), DataDefinition(categorical_columns=["c"]))
    return Report([page, *metrics, mean, RowCount(tests=[])]).run(data, data)


def test_known_values_are_stored_as_evidently_stores_its_own(snapshot: Any) -> None:
    from evidently import Dataset, Report
    from evidently.metrics import MeanValue, ValueDrift

    data = Dataset.from_pandas(pd.DataFrame({"a": [1.0, 2.0, 3.0]}))
    its = Report([ValueDrift(column="a"), MeanValue(column="a", tests=[])]).run(data, data)
    drift, mean = (stored(its, name)[0] for name in ("ValueDrift", "MeanValue"))
    assert {one["params"]["column"]: one["value"] for one in stored(snapshot, "ValueDrift")} == {"a": 0.25, "b": 0.5}
    (ours,) = stored(snapshot, "MeanValue")
    assert ours["value"] == 7
    assert ours["params"].keys() == mean["params"].keys()
    # Evidently's own method and threshold would be two more parameters, of which each pair has a line of its own.
    assert stored(snapshot, "ValueDrift")[0]["params"].keys() - {"tests"} == drift["params"].keys() - {
        "tests",
        "method",
        "threshold",
    }


def stored(snapshot: Any, metric: str) -> list[dict[str, Any]]:
    """Value and parameters of the metrics of this name."""
    results = json.loads(snapshot.dumps())["metric_results"].values()
    found = [(one["value"], one["metric_value_location"]["metric"]["params"]) for one in results if "value" in one]
    return [
        {"value": value, "params": params}
        for value, params in found
        if params["type"] == f"evidently:metric_v2:{metric}"
    ]


def test_each_score_is_tested_against_its_threshold(snapshot: Any) -> None:
    tests = [test for result in snapshot.metric_results.values() for test in result.tests]
    assert [test.status.value for test in tests] == ["SUCCESS", "FAIL"]


def test_known_values_draw_nothing_and_the_page_is_stored_once(snapshot: Any) -> None:
    content = snapshot.dumps()
    assert content.count("a picture") == content.count("data:image/png;base64,AAAA") == 1
    widgets = [widget["type"] for widget in json.loads(content)["widgets"]]
    assert widgets == ["text", "table", "big_graph", "big_graph", "counter", "counter"]  # the counters are the rows


def test_a_run_is_read_without_our_classes(snapshot: Any, tmp_path: Path) -> None:
    from monitoring import _evidently

    workspace = _evidently.UnreadWorkspace(tmp_path / "workspace")
    project = workspace.create_project("digits", "")
    run = workspace.add_run(project.id, snapshot, include_data=False).id
    code = (
        "from evidently.ui.workspace import Workspace\n"
        f"workspace = Workspace.create({str(tmp_path / 'workspace')!r})\n"
        "(project,) = workspace.search_project('digits')\n"
        f"print(len(workspace.get_run(project.id, '{run}').metric_results), len(workspace.list_runs(project.id)))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["4", "1"], done.stderr


def test_opening_a_workspace_reads_no_run(snapshot: Any, tmp_path: Path) -> None:
    """Evidently's own reads all, though projects, dashboards and runs need none; if it stops, ours can go."""
    from evidently.ui.workspace import Workspace

    from monitoring import _evidently

    workspace = _evidently.UnreadWorkspace(tmp_path)
    project = workspace.create_project("digits", "")
    for _ in range(3):
        run = workspace.add_run(project.id, snapshot, include_data=False).id
    path = tmp_path / str(project.id) / "snapshots" / f"{run}.json"
    path.write_text("no run")
    (opened,) = _evidently.UnreadWorkspace(tmp_path).search_project("digits")
    assert len(_evidently.UnreadWorkspace(tmp_path).list_runs(opened.id)) == 3
    with pytest.raises(json.JSONDecodeError):
        Workspace.create(str(tmp_path))


def test_only_one_file_imports_evidently_legacy() -> None:
    imports = {
        path.name
        for path in (ROOT / "monitoring").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("evidently.legacy")
    }
    assert imports == {"_evidently.py"}
