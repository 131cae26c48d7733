"""The service: `python -m services --port 3000` is `bentoml serve` with a worker that dies replaced within a second.

BentoML has Circus look at the workers every ten seconds, and no option changes that; with one worker nobody answers meanwhile.
"""

import sys
from functools import partial

from bentoml._internal.utils import circus
from bentoml_cli.cli import cli

LOOK_SECONDS = 1


def main() -> None:
    """Serve, with the options of `bentoml serve`."""
    circus.create_standalone_arbiter = partial(circus.create_standalone_arbiter, check_delay=LOOK_SECONDS)
    cli(["serve", "services.classifier:DigitClassifier", *sys.argv[1:]])


if __name__ == "__main__":
    main()
