"""The loop in the field: data sets that change, traffic that is not independent, labels that come slowly; with known truth.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.field
    DIGITS_MNIST=/path/to/mnist.npz python -m bench.field --rows 1 2 --repetitions 20

Each scenario prints what a naive rule does, what the rule in use does, and what the guard costs in power. The command fails where
a rule does not do what it promises.
"""

import argparse
import time

from bench.field import challenger, gate
from bench.field.scenario import Scenario

SCENARIOS: tuple[Scenario, ...] = (*gate.SCENARIOS, *challenger.SCENARIOS)


def main() -> None:
    """Run the scenarios and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", help="only these scenarios")
    parser.add_argument("--repetitions", type=int, default=200)
    arguments = parser.parse_args()
    failed = []
    for scenario in SCENARIOS:
        if arguments.rows and scenario.row not in arguments.rows:
            continue
        started = time.monotonic()
        finding = scenario.run(arguments.repetitions)
        print(f"{scenario.row:2}. {scenario.title} ({time.monotonic() - started:.0f} s)")
        print(f"    without the guard  {finding.naive}")
        print(f"    with the guard     {finding.guarded}")
        if finding.cost:
            print(f"    its cost           {finding.cost}")
        print("    holds" if finding.passed else "    DOES NOT HOLD", flush=True)
        failed += [] if finding.passed else [scenario.row]
    if failed:
        raise SystemExit(f"scenarios {', '.join(map(str, failed))} do not hold")


if __name__ == "__main__":
    main()
