"""`digits ingest`: data sets."""

from ops.commands.options import Source


def ingest(data: Source = "mnist") -> None:
    """Read, check and store a data set, and make it the current one, which the next retraining uses."""
    from ops import flow_runs

    flow_runs.silence_prefect()
    from flows.connections import Platform
    from flows.ingest import set_source

    print(set_source(Platform(), data))
