"""How much significance the next judgement may use, so that a long stream of candidates does not promote one by chance.

The rule is LORD++ (Ramdas, Yang, Wainwright and Jordan 2017, "Online control of the false discovery rate with decaying memory",
building on Javanmard and Montanari 2018). A promotion is a discovery. The stream begins with half of its level, spends a part of it on
each judgement, and each promotion earns more. The rate is controlled at the level where the p-values of equally good candidates are
independent of those before. Candidates of one champion share test images, so theirs are not; there the union bound still holds: between
two promotions, the levels add up to no more than was earned.
"""

from collections.abc import Mapping, Sequence

# Spending falls as j ** -1.6 (Ramdas, Zrnic, Wainwright and Jordan 2018, "SAFFRON"): of the sequences that they compare it begins
# with the largest share, and the first candidate after a change matters most here.
DECAY = 1.6
TOTAL = 2.2857656  # the sum of j ** -1.6 over j = 1, 2, …


def level(promoted: Sequence[bool], stream_level: float) -> float:
    """The significance of the next judgement, after judgements that promoted their candidate or not, oldest first.

    Without a promotion, all levels together are at most half of `stream_level`, the share of promotions that may be false.
    """
    number, initial = len(promoted) + 1, stream_level / 2
    promotions = [position for position, was_promoted in enumerate(promoted, start=1) if was_promoted]
    earned = [stream_level - initial, *[stream_level] * len(promotions)]
    returned = sum(amount * share(number - at) for amount, at in zip(earned, promotions, strict=False))
    return initial * share(number) + returned


def share(number: int) -> float:
    """The share of an amount that the `number`-th judgement, from 1, after it was earned may use."""
    return float(number**-DECAY) / TOTAL


def smallest_p_value(evidence: Mapping[str, float]) -> float:
    """The smallest p-value of a gain in the evidence of a judgement, times their number (Bonferroni); 1 where there is none.

    Those of corruptions are about harm.
    """
    names = [name for name in evidence if name.endswith(": p-value") and not name.startswith("corruption ")]
    p_values = [evidence[name] for name in names]
    return min([1.0, *(len(p_values) * value for value in p_values)])
