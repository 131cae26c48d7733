"""The training of the recipe of the scheduled retraining in the background, once a first champion serves."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from rich.console import RenderableType
from rich.text import Text

from digits.data import datasets
from digits.settings import Settings
from models import recipes
from models.registry_reader import RegistryReader
from ops import processes


def is_needed(settings: Settings) -> bool:
    """Whether the recipe is another than the first one, and no version of it was trained on the current data set.

    Data sets that grew from the same one by the inbox and by feedback count as one: on these the scheduled retraining goes on.
    """
    if settings.recipe == settings.first_recipe:
        return False
    storage, current = settings.datasets, datasets.current(settings.datasets)
    with closing(RegistryReader(settings.registry_uri)) as registry:
        versions = registry.tagged("recipe", settings.recipe).values()
    trained = {tags["dataset"] for tags in versions if "dataset" in tags}
    if current is None or current in trained:
        return not trained
    known = set(datasets.lineage(storage, current))
    return all(known.isdisjoint(datasets.lineage(storage, other)) for other in trained)


def is_running(settings: Settings) -> bool:
    """Whether the platform on this machine trains in the background."""
    return processes.state(settings, processes.background_training().name) in ("STARTING", "RUNNING")


@contextmanager
def paused(settings: Settings) -> Iterator[None]:
    """Stop the training in the background, if it runs, and start it anew after the block."""
    was_running, process = is_running(settings), processes.background_training()
    if was_running:
        processes.end(settings, process)
    try:
        yield
    finally:
        # Nothing is started on a platform that was stopped meanwhile.
        if was_running and processes.process_info(settings):
            processes.start(settings, process)


def minutes(settings: Settings) -> int:
    """About how long a training on the current data set takes on two cores."""
    preset, current = recipes.RECIPES[settings.recipe], datasets.current(settings.datasets)
    images = datasets.manifest(settings.datasets, current)["images"] if current else {"train": recipes.MNIST_SIZE}
    return preset.minutes(sum(count for name, count in images.items() if name != "test"))


def rows(settings: Settings) -> list[tuple[RenderableType, ...]]:
    """The line of the address table while the training runs or after it has failed; otherwise none."""
    process = processes.background_training()
    found = processes.process_info(settings).get(process.name, {})
    if is_running(settings):
        about = f"{settings.recipe}, about {minutes(settings)} min; off with DIGITS_RECIPE={settings.first_recipe}"
        then = process.description if settings.promotion == "automatic" else "in training, waits for approval if better"
        return [(then, f"{settings.prefect_api_url.removesuffix('/api')}/runs", about)]
    if found.get("statename") == "EXITED" and found["exitstatus"]:
        return [("training in the background", str(processes.log_path(settings, process.name)), Text("failed", "red"))]
    return []
