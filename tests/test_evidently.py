"""`evidently.legacy` still does what `monitoring/_evidently.py` expects of it; fails when Evidently changes it."""

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monitoring import _evidently

ROOT = Path(__file__).parent.parent


@pytest.mark.filterwarnings("ignore")
def test_a_registered_score_is_the_one_that_evidently_reports() -> None:
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    def difference(reference: np.ndarray, current: np.ndarray) -> float:
        return float(current.mean() - reference.mean())

    _evidently.register_score("test_score", "ten minutes", lambda *_: 10.0, lambda *_: 10.0)
    _evidently.register_score("test_score", "a difference", difference, lambda *_: 7.0)
    definition = DataDefinition(numerical_columns=["x"], categorical_columns=["y"])
    current, reference = (
        Dataset.from_pandas(pd.DataFrame({"x": values, "y": ["1", "2"]}), data_definition=definition)
        for values in ([3.0, 5.0], [1.0, 2.0])
    )
    report = Report([ValueDrift(column=name, method="test_score", threshold=2.0) for name in "xy"], include_tests=True)
    result, of_category = report.run(current, reference).metric_results.values()
    assert result.value == pytest.approx(2.5) and result.tests[0].status.value == "FAIL"
    assert of_category.value == 7
    assert "a difference" in str(result.dict())


def test_only_one_file_imports_evidently_legacy() -> None:
    files = [path for path in (ROOT / "monitoring").glob("*.py") if "evidently.legacy" in path.read_text()]
    imports = [
        path.name
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("evidently.legacy")
    ]
    assert set(imports) == {"_evidently.py"}
