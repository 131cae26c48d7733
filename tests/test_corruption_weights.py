"""The traffic decides how much each corruption weighs."""

import numpy as np
import pytest
from conftest import Files

from digits import reference
from models import evaluation
from models.corruption_weights import CLEAN, PRIOR_IMAGES, corruption_weights, image_statistics


@pytest.fixture(scope="module")
def conditions(champion_files: Files) -> dict[str, np.ndarray]:
    images = reference.from_bytes(champion_files["reference.npz"]).images[:300]
    return {CLEAN: images, **evaluation.corruptions(images)}


def test_without_traffic_all_weigh_the_same(conditions: dict[str, np.ndarray]) -> None:
    assert set(corruption_weights(conditions, None).values()) == {1 / 12}


@pytest.mark.parametrize("name", [CLEAN, "inverted", "noise", "blur", "contrast"])
def test_what_the_traffic_looks_like_weighs_most(
    name: str, conditions: dict[str, np.ndarray], champion_files: Files
) -> None:
    others = reference.from_bytes(champion_files["reference.npz"]).images[300:]
    traffic = {CLEAN: others, **evaluation.corruptions(others)}[name]
    weights = corruption_weights(conditions, traffic)
    assert sum(weights.values()) == pytest.approx(1)
    # The prior has its share; half of the rest at least is recognised.
    certain = len(traffic) / (len(traffic) + PRIOR_IMAGES)
    assert weights[name] > certain / 2 and weights[name] == max(weights.values())


def test_a_blank_image_has_finite_statistics() -> None:
    assert np.isfinite(image_statistics(np.zeros((1, 28, 28), np.uint8))).all()


def test_where_the_conditions_cannot_be_told_apart_all_weigh_the_same(conditions: dict[str, np.ndarray]) -> None:
    """All corruptions are retired, or the set has hardly any image left."""
    traffic = conditions["noise"]
    assert corruption_weights({CLEAN: conditions[CLEAN]}, traffic) == {CLEAN: 1.0}
    few = {name: images[:19] for name, images in conditions.items()}
    assert set(corruption_weights(few, traffic).values()) == {1 / 12}
    enough = {name: images[:20] for name, images in conditions.items()}
    assert sum(corruption_weights(enough, traffic).values()) == pytest.approx(1)
