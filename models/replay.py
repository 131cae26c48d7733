"""A recorded training done again, to prove that recipe, data and seed give these weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from digits.data import datasets
from digits.data.datasets import Storage
from models import candidates, provenance, run_diff, runs, training
from models.registry import RegistryWriter
from models.runs import Run
from models.training import Recipe


@dataclass(frozen=True)
class Recorded:
    """What a run left behind to be trained again from."""

    run: Run
    recipe: Recipe
    dataset: str  # fingerprint
    weights_hash: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Replay:
    """The outcome of a replay."""

    title: str  # of the run
    recorded_hash: str
    weights_hash: str
    differences: list[str]  # of code and environment, between then and now

    @property
    def identical(self) -> bool:
        return self.weights_hash == self.recorded_hash

    @property
    def sentence(self) -> str:
        """The outcome, and where the weights differ, what may be the reason."""
        if self.identical:
            return f"{self.title}: trained again, the weights are identical ({self.weights_hash[:16]})"
        hashes = f"{self.recorded_hash[:16]} → {self.weights_hash[:16]}"
        start = f"{self.title}: trained again, the weights differ ({hashes})"
        if not self.differences:
            return f"{start}, though nothing that was recorded about code and environment does"
        return f"{start}; what else differs: {'; '.join(self.differences)}"


def look_up(registry: RegistryWriter, run: str) -> Recorded:
    """A version or run with all that it was trained from; raises LookupError or ValueError when it lacks something."""
    found = runs.find(registry, run)
    for tag in ("dataset", "weights_hash"):
        if tag not in found.tags:
            ended = f"it ended as {found.status}"
            raise LookupError(f"{found.title} has no tag {tag}, {ended}: there is nothing to compare with")
    return Recorded(
        run=found,
        recipe=_recipe(registry, found),
        dataset=found.tags["dataset"],
        weights_hash=found.tags["weights_hash"],
        environment=runs.read_json(registry, found, "environment.json"),
    )


def train_again(recorded: Recorded, storage: Storage) -> Replay:
    """The same training on the stored data set; raises BadData when the data set is not stored here any more."""
    dataset = datasets.load(storage, recorded.dataset)
    trained = training.fit(recorded.recipe, candidates.split(dataset, recorded.recipe))
    commits = recorded.run.tags.get("git_commit"), provenance.git_commit().get("git_commit")
    code = run_diff.differing_code(*commits, sides=("the run", "this checkout"))
    environment = run_diff.differing(recorded.environment, provenance.environment())
    differences = [*(f"code: {line}" for line in code), *environment]
    return Replay(recorded.run.title, recorded.weights_hash, trained.weights_hash, differences)


def _recipe(registry: RegistryWriter, run: Run) -> Recipe:
    fields: dict[str, Any] = runs.read_json(registry, run, "recipe.json")
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        commit = run.tags.get("git_commit", "another commit")[:8]
        problem = f"has a recipe of {commit} that this code cannot train: {name}: {first['msg']}"
        raise ValueError(f"{run.title} {problem}") from error
