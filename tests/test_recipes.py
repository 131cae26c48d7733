"""The recipes are frozen, refuse unknown fields, and build what the projects they reproduce describe."""

from typing import Any

import pytest
from pydantic import ValidationError

from models import recipes, training
from models.architectures import Convolutional

WIDTHS = {
    "kaggle-sgd": (128, 256),
    "classic": (128, 256),
    "adam": (512, 512),
    "compact": (128, 64),
    "sigmoid": (),
    "augmented": (1024, 1024),
}


def test_unknown_fields_and_changes_are_refused() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        training.Recipe.model_validate(
            {"name": "x", "architecture": {"kind": "dense", "hidden": [8]}, "epochs": 1, "learning_rat": 0.1}
        )
    with pytest.raises(ValidationError, match="frozen"):
        recipes.COMPACT.epochs = 2  # type: ignore[misc]


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'compct'; choose one of kaggle-sgd, .*compact"):
        recipes.find("compct")


@pytest.mark.parametrize(("name", "widths"), WIDTHS.items())
def test_the_layers_are_those_of_the_projects(name: str, widths: tuple[int, ...]) -> None:
    layers = training.build(recipes.find(name)).layers
    assert tuple(layer.units for layer in layers if layer.__class__.__name__ == "Dense") == (*widths, 10)


def test_compact_has_exactly_the_parameters_it_is_known_for() -> None:
    assert training.build(recipes.COMPACT).count_params() == 109_386


def test_a_recipe_survives_json() -> None:
    convolutional = training.Recipe(
        name="x", architecture=Convolutional(filters=(4,), kernels=(3,), strides=(2,)), epochs=1
    )
    for recipe in (convolutional, *(preset.recipe for preset in recipes.RECIPES.values())):
        assert training.Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_the_architecture_is_chosen_by_its_kind() -> None:
    fields = {"name": "x", "epochs": 1, "architecture": {"kind": "convolutional", "dense": 8}}
    assert training.Recipe.model_validate(fields).architecture == Convolutional(dense=8)
    for architecture, message in (
        ({"kind": "recurrent"}, "recurrent"),
        ({"kind": "convolutional", "hidden": [8]}, "hidden"),
        ({"kind": "convolutional", "filters": [8]}, r"\(1, 5, 5\) entries"),
        (convolutional(kernels=[27, 3]), "a kernel of 3 pixels is larger than the 2 that are left"),
        (convolutional(kernels=[0, 3]), "kernels"),
    ):
        with pytest.raises(ValidationError, match=message):
            training.Recipe.model_validate({**fields, "architecture": architecture})


def convolutional(kernels: list[int]) -> dict[str, Any]:
    """The fields of two convolutions with these kernels."""
    return {"kind": "convolutional", "filters": [8, 8], "kernels": kernels, "strides": [1, 1]}


def test_a_floor_is_known_for_every_name() -> None:
    assert (recipes.floor("sigmoid"), recipes.floor("compact"), recipes.floor("sweep")) == (0.8, 0.9, 0.9)
