"""`digits ingest`: data sets."""

from digits.settings import load_settings
from ops.commands.options import Source


def ingest(data: Source = "mnist") -> None:
    """Read, check and store a data set, and make it the current one, which the next retraining uses."""
    from ops import flow_runs

    flow_runs.silence_prefect()
    from flows.ingest import start_from

    print(start_from.fn(data, load_settings()))
