"""The metrics of one process, rendered in the Prometheus text format."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# In a process of its own, because prometheus_client keeps the metrics of a process.
COUNTING = """
import numpy as np
from services.metrics import Metrics

metrics = Metrics()
for version, is_digit in (("1", [True, True]), ("2", [True, False])):
    metrics.count_answers(version, np.array([3, 5], np.uint8), np.array([False, True]), np.array(is_digit))
print(metrics.render()[0].decode())
"""


def test_answers_are_counted_by_version_with_those_that_are_uncertain_or_show_no_digit() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    lines = subprocess.check_output([sys.executable, "-c", COUNTING], cwd=ROOT, env=environment, text=True).splitlines()
    assert 'digits_answers_total{digit="5",version="2"} 1.0' in lines
    assert [line for line in lines if line.startswith("digits_uncertain_answers_total")] == [
        'digits_uncertain_answers_total{version="1"} 1.0',
        'digits_uncertain_answers_total{version="2"} 1.0',
    ]
    assert [line for line in lines if line.startswith("digits_no_digit_answers_total")] == [
        'digits_no_digit_answers_total{version="1"} 0.0',
        'digits_no_digit_answers_total{version="2"} 1.0',
    ]
