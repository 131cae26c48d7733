"""Steps of the demo by themselves: a better champion from before comes back, other hands, intervals."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flows import promote
from ops import demo


def stage(before: str | None, accuracy: float, now: str) -> Any:
    """A stage on which the present champion is more accurate than 98.3 % with a probability of 2.5 %."""
    registry = SimpleNamespace(version=lambda: now)
    return SimpleNamespace(
        platform=SimpleNamespace(models=SimpleNamespace(registry=registry)),
        plan=SimpleNamespace(champion=before, accuracy=accuracy),
        upper_bound=lambda version: 0.983,
        say=lambda text: None,
    )


@pytest.mark.parametrize(
    ("before", "accuracy", "now", "promoted"),
    [("2", 0.995, "5", ["2"]), ("1", 0.981, "5", []), (None, 0.0, "5", []), ("2", 0.995, "2", [])],
    ids=["better", "as good", "none before", "still the champion"],
)
def test_only_a_better_champion_comes_back(
    monkeypatch: pytest.MonkeyPatch, before: str | None, accuracy: float, now: str, promoted: list[str]
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(promote, "by_hand", lambda _, version, reason: calls.append(version))
    with pytest.raises(KeyboardInterrupt), demo.better_champion_kept(stage(before, accuracy, now)):
        raise KeyboardInterrupt
    assert calls == promoted


def test_other_hands_slant_each_digit_by_its_own_angle() -> None:
    stroke = np.zeros((1, 28, 28), np.uint8)
    stroke[:, 4:24, 13:15] = 255
    written = demo.by_other_hands(np.repeat(stroke, 20, axis=0), np.random.default_rng(0))
    columns = np.arange(28)
    tops, bottoms = (
        (written[:, rows] * columns).sum((1, 2)) / written[:, rows].sum((1, 2)) for rows in (slice(5, 8), slice(20, 23))
    )
    angles = np.degrees(np.arctan((tops - bottoms) / 15))
    assert abs(angles.mean() - 38) < 3 and len(np.unique(written, axis=0)) == 20


def test_intervals_count_each_digit_once() -> None:
    labels = {str(n): n % 10 for n in range(400)}
    sent = demo.Sent(since=None, different=100, version="1", images=[], answers=dict(labels), labels=labels)  # type: ignore[arg-type]
    assert (sent.accuracy.right, sent.accuracy.count) == (100, 100)
    half = np.array([digit if n < 200 else (digit + 1) % 10 for n, digit in enumerate(labels.values())])
    assert (sent.share_right(half).right, sent.share_right(half).count) == (50, 100)
