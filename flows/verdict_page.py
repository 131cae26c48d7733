"""What Prefect shows of the gate's verdict: the reasons, a table of the evaluation sets, links, and the evidence."""

from collections.abc import Mapping, Sequence

from flows.tasks import publish
from models import gate
from models.connections import Platform
from models.gate import GateVerdict

NARROW = ("set", "images", "champion", "candidate", "p")  # columns that a form in the Prefect UI has room for


def publish_verdict(platform: Platform, version: str, verdict: GateVerdict) -> None:
    """Show the verdict on the page of the flow run: in full, the evaluation sets as a table, and the version in MLflow."""
    title, url = f"digits v{version}: {verdict.decision}", platform.settings.version_url(version)
    publish(
        "gate",
        title,
        in_full(version, verdict),
        table=gate.table(verdict.evidence),
        links={"mlflow": (f"digits v{version} in MLflow", url)},
    )


def in_full(version: str, verdict: GateVerdict) -> str:
    """The verdict as Markdown with all evidence."""
    rows = [{"evidence": name.replace("_", " "), "": f"{value:.6g}"} for name, value in verdict.evidence.items()]
    return f"# digits v{version}: {verdict.decision}\n\n{summary(verdict.reasons, verdict.evidence)}{_table(rows)}\n"


def summary(reasons: Sequence[str], evidence: Mapping[str, float], columns: Sequence[str] = ()) -> str:
    """The reasons of a verdict and a table of the evaluation sets with these columns, by default all, as Markdown."""
    sets = [{column: row[column] for column in columns or row} for row in gate.table(evidence)]
    return "\n".join(f"- {reason}" for reason in reasons) + "\n\n" + (f"{_table(sets)}\n\n" if sets else "")


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    header = [list(rows[0]), ["---"] * len(rows[0])] if rows else []
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [*header, *(list(row.values()) for row in rows)])
