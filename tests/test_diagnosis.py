import numpy as np
import pytest
from monitored import held_out, reference, window

from digits.data import perturbations
from digits.images import Images
from monitoring import drift

QUICK = drift.DriftPolicy(resamples=200)


def judged(images: Images) -> drift.Drift:
    return drift.compare(reference(), window(images), QUICK)


@pytest.mark.parametrize(
    ("change", "kind", "amount", "message"),
    [
        (lambda images: perturbations.shift(images, 2), "shift", 2.0, "px right"),
        (lambda images: perturbations.shift(images, -1, 1.5), "shift", -1.0, "px left and 1.5 px down"),
        (lambda images: perturbations.dim(images, 0.6), "dim", 0.6, "dimmer: ink at 60%"),
        (perturbations.thicken, "thicken", 1.0, "strokes thicker by about 1 px"),
        (perturbations.thin, "thin", 1.0, "strokes thinner by about 1 px"),
        (lambda images: perturbations.noise(images, 20), "noise", 20.0, "noisier"),
        (lambda images: perturbations.blur(images, 1), "blur", 1.0, "blurred by about 1 px"),
        (perturbations.invert, "invert", 1.0, "polarity inverted"),
        (lambda images: perturbations.grey_paper(images, 60), "grey_paper", 60.0, "paper is grey"),
        (perturbations.mirror, "mirror", 1.0, "mirrored"),
        (perturbations.transpose, "transpose", 1.0, "transposed"),
        (lambda images: perturbations.scale(images, 0.75), "scale", 0.75, "% smaller"),
    ],
)
def test_the_cause_is_named_with_its_amount(change, kind: str, amount: float, message: str) -> None:  # type: ignore[no-untyped-def]
    found = judged(change(held_out()[0][:300]))
    assert found.verdict == "drift"
    first = found.causes[0]
    assert first.kind == kind, found.message
    assert first.amount == pytest.approx(amount, rel=0.25, abs=0.05)
    assert message.lower() in found.message.lower()
    assert first.explains > 0.8 and len(first.recommendations) > 20


@pytest.mark.parametrize("degrees", [-15, 15])
def test_turned_or_slanted_digits_are_said_to_lean(degrees: float) -> None:
    for change in (perturbations.rotate, perturbations.slant):
        first = judged(change(held_out()[0][:500], degrees)).causes[0]
        assert first.kind in ("rotate", "slant")
        assert np.sign(first.amount) == np.sign(degrees) and 7 <= abs(first.amount) <= 25


def test_several_changes_at_once_are_told_apart() -> None:
    images = perturbations.shift(perturbations.thicken(held_out()[0][:500]), 2)
    found = judged(images)
    assert {cause.kind for cause in found.causes} == {"thicken", "shift"}, found.message


@pytest.mark.parametrize("digit", [0, 3, 7])
def test_a_changed_mix_names_the_digit_and_its_shares(digit: int) -> None:
    images, labels = held_out()
    pick = perturbations.more_of(labels, digit, 2.5, 500, np.random.default_rng(digit))
    found = judged(images[pick])
    assert [cause.kind for cause in found.causes] == ["mix"], found.message
    assert f"more {digit}s than before" in found.message.lower()
    assert 0.08 < found.causes[0].amount < 0.25


def test_inverted_digits_are_not_called_a_change_of_the_mix() -> None:
    found = judged(perturbations.invert(held_out()[0][:300]))
    assert "digit" in {column.name for column in found.columns if column.drifted}
    assert [cause.kind for cause in found.causes] == ["invert"]


def test_a_change_we_do_not_know_is_called_unknown_with_what_moved() -> None:
    images = held_out()[0][:300].copy()
    images[:, 10:12, :] = 255  # a ruled line
    found = judged(images)
    assert [cause.kind for cause in found.causes] == ["unknown"]
    assert "in a way we do not know" in found.message and "→" in found.message
