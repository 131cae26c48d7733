import numpy as np
import pytest
from monitored import held_out, reference, window

from digits.data import perturbations
from digits.images import Images
from monitoring import drift, label_shift, samples


def detected(images: Images) -> drift.Drift:
    return drift.detect(samples.of_reference(reference()), samples.of_window(window(images)))


@pytest.mark.parametrize(
    ("perturb", "name", "amount", "message"),
    [
        (lambda images: perturbations.shift(images, 2), "shift", 2.0, "px right"),
        (lambda images: perturbations.shift(images, -1, 1.5), "shift", -1.0, "px left and 1.5 px down"),
        (lambda images: perturbations.dim(images, 0.6), "dim", 0.6, "ink at 60% of its level"),
        (perturbations.thicken, "thicken", 1.0, "strokes 1 px thicker"),
        (perturbations.thin, "thin", 1.0, "strokes 1 px thinner"),
        (lambda images: perturbations.noise(images, 20), "noise", 20.0, "grey levels"),
        (lambda images: perturbations.blur(images, 1), "blur", 1.0, "blurred by 1 px"),
        (perturbations.invert, "invert", 1.0, "inverted"),
        (lambda images: perturbations.grey_paper(images, 60), "grey_paper", 60.0, "paper at grey level"),
        (perturbations.mirror, "mirror", 1.0, "mirrored"),
        (perturbations.transpose, "transpose", 1.0, "transposed"),
        (lambda images: perturbations.quarter_turn(images, 3), "quarter_turn", 3.0, "by 3 quarter turns"),
        (lambda images: perturbations.scale(images, 0.75), "scale", 0.75, "of the size"),
    ],
)
def test_the_perturbation_is_named_with_its_amount(perturb, name: str, amount: float, message: str) -> None:  # type: ignore[no-untyped-def]
    found = detected(perturb(held_out()[0][:300]))
    assert found.verdict == "drift"
    first = found.explanations[0]
    assert first.perturbation == name, found.message
    assert first.amount == pytest.approx(amount, rel=0.25, abs=0.05)
    assert message.lower() in found.message.lower()
    assert first.explained_share > 0.8 and len(first.recommendation) > 20


@pytest.mark.parametrize("degrees", [-15, 15])
def test_turned_or_slanted_digits_are_said_to_lean(degrees: float) -> None:
    for perturb in (perturbations.rotate, perturbations.slant):
        first = detected(perturb(held_out()[0][:500], degrees)).explanations[0]
        assert first.perturbation in ("rotate", "slant")
        assert np.sign(first.amount) == np.sign(degrees) and 7 <= abs(first.amount) <= 25


def test_several_perturbations_at_once_are_told_apart() -> None:
    images = perturbations.shift(perturbations.thicken(held_out()[0][:500]), 2)
    found = detected(images)
    assert {one.perturbation for one in found.explanations} == {"thicken", "shift"}, found.message


@pytest.mark.parametrize("digit", [0, 3, 7])
def test_a_label_shift_names_the_digit_and_its_shares(digit: int) -> None:
    images, labels = held_out()
    pick = label_shift.oversample(labels, digit, 2.5, 500, np.random.default_rng(digit))
    found = detected(images[pick])
    assert [one.perturbation for one in found.explanations] == ["label_shift"], found.message
    assert f"more {digit}s than in the reference" in found.message.lower()
    assert 0.08 < found.explanations[0].amount < 0.25


def test_inverted_digits_are_not_called_a_label_shift() -> None:
    found = detected(perturbations.invert(held_out()[0][:300]))
    assert "digit" in {column.name for column in found.columns if column.drifted}
    assert [one.perturbation for one in found.explanations] == ["invert"]


def test_an_unknown_change_is_called_unknown_and_the_message_names_columns() -> None:
    images = held_out()[0][:300].copy()
    images[:, 10:12, :] = 255  # a ruled line
    found = detected(images)
    assert [one.perturbation for one in found.explanations] == ["unknown"]
    assert "no known perturbation explains" in found.message and "→" in found.message
