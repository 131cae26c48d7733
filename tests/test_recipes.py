"""The recipes are frozen, refuse unknown fields, and build what the projects they reproduce describe."""

import pytest
from pydantic import ValidationError

from models import recipes, training

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
        recipes.Recipe.model_validate({"name": "x", "hidden": [8], "epochs": 1, "learning_rat": 0.1})
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
    for recipe in recipes.RECIPES.values():
        assert recipes.Recipe.model_validate_json(recipe.model_dump_json()) == recipe
