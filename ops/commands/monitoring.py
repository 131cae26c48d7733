"""`digits monitor` and `audit`: drift, accuracy and labels of logged predictions."""

from pathlib import Path
from typing import Annotated

import typer

from ops.commands.options import Since
from ops.flow_runs import run_flow
from ops.tables import print_table


def monitor(
    since: Since = "24h",
    begin: Annotated[
        str | None, typer.Option("--from", help="Start (UTC) of past windows to report again, each as long as --since.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="End (UTC) of the past windows, exclusive.")] = None,
    power: Annotated[bool, typer.Option("--power", help="Report which changes the drift test detects.")] = False,
) -> None:
    """Report drift and accuracy of recent predictions compared with the champion's reference sample."""
    if power:
        from ops.detection_power import measure

        count, rows = measure(since)
        print(f"windows of {count} answers")
        return print_table(("perturbation", "description", "detected", "windows"), rows)
    if (begin is None) != (end is None):
        raise ValueError("--from and --to go together; give both, or neither for the latest answers")
    if begin:
        run_flow("backfill", begin, end, since)
    else:
        run_flow("monitor", since)


def baseline(
    reason: Annotated[str, typer.Option("--reason", help="Why this traffic is normal, for the ledger.")],
    since: Since = "24h",
) -> None:
    """Accept the traffic since then as normal: drift is what changes after it. Recorded in the ledger."""
    from datetime import UTC, datetime

    from models.connections import Platform
    from monitoring import baseline
    from monitoring.windows import parse_since

    platform, until = Platform(), datetime.now(UTC)
    version = platform.models.registry.version()
    if version is None:
        raise LookupError("there is no champion yet; `digits train` and `digits promote` make one")
    accepted = baseline.accept(platform.engine, version, parse_since(since, until), until, reason)
    print(f"the traffic from {accepted.period} UTC is normal for digits v{version}")


def audit(
    folder: Annotated[Path | None, typer.Argument(show_default="`audit` in DIGITS_HOME")] = None,
    since: Since = "7d",
    n: Annotated[int, typer.Option("-n", min=1, help="Maximum number of unlabelled images in FOLDER.")] = 200,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Include quarantined feedback.")] = False,
) -> None:
    """Write images of the audit sample into FOLDER; images moved into its sub-folders 0 to 9 or no-digit are labelled by the next call."""
    from datetime import UTC, datetime

    from digits.storage import feedback
    from models.connections import Platform
    from monitoring.windows import parse_since
    from ops import audit

    platform = Platform()
    folder = folder or platform.settings.home / "audit"
    labelled = audit.collect(platform.engine, folder)
    answers = feedback.unlabelled_audit(platform.engine, parse_since(since, datetime.now(UTC)))
    if quarantine:
        answers += feedback.quarantined(platform.engine)
    waiting = audit.write_images(answers, folder, n)
    print(f"images labelled by the sub-folders of {folder}: {labelled}; images without a label: {waiting}")
    if waiting:
        print("move each image into the sub-folder of its digit, then run this command again")
