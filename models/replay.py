"""A recorded training done again, to prove that recipe, data and seed give these weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from digits.data import datasets
from digits.data.datasets import DatasetStore
from models import candidates, provenance, run_diff, runs, training
from models.registry import RegistryWriter
from models.runs import Run
from models.training import Recipe


@dataclass(frozen=True)
class Recorded:
    """What a run left behind to be trained again from."""

    run: Run
    recipe: Recipe
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
        differences = "; ".join(self.differences) or "nothing that was recorded about code and environment"
        return f"{self.title}: trained again, the weights differ ({hashes}); what else differs: {differences}"


def look_up(registry: RegistryWriter, run: str) -> Recorded:
    """A version or run with all that it was trained from; raises LookupError or ValueError when it lacks something."""
    found = runs.find(registry, run)
    if missing := [tag for tag in ("dataset", "weights_hash") if tag not in found.tags]:
        ended = f"it ended as {found.status}"
        raise LookupError(f"{found.title} has no tag {missing[0]}, {ended}: there is nothing to compare with")
    try:
        recipe = Recipe.model_validate(runs.read_json(registry, found, "recipe.json"))
    except ValidationError as error:
        first, commit = error.errors()[0], found.tags.get("git_commit", "another commit")[:8]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ValueError(f"{found.title} has a recipe of {commit} that this code cannot train: {problem}") from error
    return Recorded(found, recipe, runs.read_json(registry, found, "environment.json"))


def train_again(recorded: Recorded, storage: DatasetStore) -> Replay:
    """The same training on the stored data set; raises BadData when the data set is not stored here any more."""
    run, dataset = recorded.run, datasets.load(storage, recorded.run.tags["dataset"])
    trained = training.fit(recorded.recipe, candidates.split(dataset, recorded.recipe))
    commits = run.tags.get("git_commit"), provenance.git_commit().get("git_commit")
    code = run_diff.differing_code(*commits, sides=("the run", "this checkout"))
    environment = run_diff.differing(recorded.environment, provenance.environment())
    differences = [*(f"code: {line}" for line in code), *environment]
    return Replay(run.title, run.tags["weights_hash"], trained.weights_hash, differences)
