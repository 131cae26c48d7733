"""The leaderboard: what each recipe reached over its seeds, beside what the project it reproduces reports."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from digits import intervals
from digits.intervals import Proportion
from models import architectures, runs
from models.recipes import RECIPES
from models.registry import RegistryWriter, flatten
from models.runs import Run
from models.training import Recipe

AUGMENTATION = "augmentation"
ARCHITECTURE = "architecture."
MEANS = ("parameters", "train_seconds", "test_log_loss", "test_ece", "corruption_accuracy")


@dataclass(frozen=True)
class HeldOut:
    """The test part of a data set."""

    source: str
    images: int


@dataclass(frozen=True)
class Row:
    """One recipe on one data set; what no run has is None."""

    recipe: str  # its name, and what differs from the recipe of that name
    reported: str  # by the project that the recipe reproduces
    dataset: str | None = None  # fingerprint
    source: str | None = None
    seeds: tuple[int, ...] = ()
    accuracy: Proportion | None = None  # mean over the seeds, on the test images
    best: Proportion | None = None
    best_version: str | None = None  # None where the best run was not registered
    parameters: float | None = None
    train_seconds: float | None = None  # these and the following are means over the seeds
    test_log_loss: float | None = None
    test_ece: float | None = None
    corruption_accuracy: float | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The row in words: recipe, data, seeds, accuracy, best, reported, then the other metrics."""
        version = f" (v{self.best_version})" if self.best_version else ""
        return (
            self.recipe,
            f"{self.source} {self.dataset[:6]}" if self.dataset else "–",
            str(len(self.seeds) or "–"),
            str(self.accuracy or "not trained"),
            f"{100 * self.best.value:.2f} %{version}" if self.best else "–",
            self.reported,
            _number(self.test_log_loss, ".4f"),
            _number(self.test_ece, ".4f"),
            "–" if self.corruption_accuracy is None else f"{100 * self.corruption_accuracy:.2f} %",
            _number(self.parameters, ",.0f"),
            _number(self.train_seconds, ",.1f"),
        )


def read(registry: RegistryWriter) -> list[Row]:
    """The leaderboard of an MLflow server."""
    found = [run for run in runs.finished(registry) if "dataset" in run.tags]
    newest = {run.tags["dataset"]: run for run in reversed(found)}
    manifests = {fingerprint: runs.read_json(registry, run, "dataset.json") for fingerprint, run in newest.items()}
    return rows(found, {name: HeldOut(facts["source"], facts["images"]["test"]) for name, facts in manifests.items()})


def rows(found: Sequence[Run], held_out: Mapping[str, HeldOut]) -> list[Row]:
    """One row per recipe and data set, the data set used last first and on it the most accurate first.

    Runs are given newest first; of several with the same seed the newest counts. Recipes without a run come at the end.
    """
    groups: dict[tuple[str, str], dict[int, Run]] = defaultdict(dict)
    for run in found:
        groups[run.tags["dataset"], _name(run.params)].setdefault(int(run.params["seed"]), run)
    order = list(dict.fromkeys(run.tags["dataset"] for run in found))
    trained = [_row(name, list(seeds.values()), held_out[fingerprint]) for (fingerprint, name), seeds in groups.items()]
    trained.sort(key=lambda row: (order.index(row.dataset or ""), -(row.accuracy.value if row.accuracy else 0)))
    names = {run.params["name"] for run in found}
    return [*trained, *(Row(name, preset.reported) for name, preset in RECIPES.items() if name not in names)]


def _row(name: str, seeds: list[Run], held_out: HeldOut) -> Row:
    """The row of one recipe; its interval counts the test images once, because all seeds share them."""
    accuracies = [run.metrics["test_accuracy"] for run in seeds]
    mean, best = sum(accuracies) / len(seeds), max(accuracies)
    best_run = seeds[accuracies.index(best)]
    return Row(
        recipe=name,
        reported=RECIPES[recipe].reported if (recipe := seeds[0].params["name"]) in RECIPES else "",
        dataset=seeds[0].tags["dataset"],
        source=held_out.source,
        seeds=tuple(sorted(int(run.params["seed"]) for run in seeds)),
        accuracy=intervals.wilson(round(mean * held_out.images), held_out.images),
        best=intervals.wilson(round(best * held_out.images), held_out.images),
        best_version=best_run.version,
        **{metric: _mean(run.metrics[metric] for run in seeds if metric in run.metrics) for metric in MEANS},
    )


def _name(params: Mapping[str, str]) -> str:
    """The recipe's name with what differs from the recipe of that name, or else from the defaults: `compact (epochs 3)`."""
    name = params["name"]
    usual = _usual(name, params["architecture.kind"])
    changed = [
        f"{field.removeprefix(ARCHITECTURE)} {value}"
        for field, value in params.items()
        if field not in ("name", "seed")
        and value != usual.get(field)
        and not (field.startswith(AUGMENTATION) and field not in usual)
    ]
    augmented, usually = (any(field.startswith(f"{AUGMENTATION}.") for field in fields) for fields in (params, usual))
    if augmented != usually:
        changed.append("augmented" if augmented else "not augmented")
    return name + (f" ({', '.join(changed)})" if changed else "")


def _usual(name: str, kind: str) -> dict[str, str]:
    """The fields of the recipe of that name, as MLflow has them; of an unknown name, the fields that have a default."""
    if name in RECIPES:
        return {field: str(value) for field, value in flatten(RECIPES[name].recipe.model_dump(mode="json")).items()}
    return _defaults(Recipe) | _defaults(architectures.kinds()[kind], ARCHITECTURE)


def _defaults(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    fields = model.model_fields.items()
    return {f"{prefix}{name}": str(field.default) for name, field in fields if not field.is_required()}


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None


def _number(value: float | None, format_spec: str) -> str:
    return "–" if value is None else format(value, format_spec)
