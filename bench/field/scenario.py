"""What a scenario is: one way in which the field differs from a benchmark, tried many times."""

from collections.abc import Callable
from typing import NamedTuple


class Finding(NamedTuple):
    """The outcome of a scenario."""

    naive: str  # what a rule without the guard does, measured in the same run
    guarded: str  # what the rule in use does
    cost: str  # what the guard costs in power, or "" where it costs none
    passed: bool  # whether the rule in use does what it promises


class Scenario(NamedTuple):
    """A scenario; `run` takes the number of repetitions, of which a rate needs at least 200."""

    row: int  # its place in the list of scenarios
    title: str
    run: Callable[[int], Finding]
