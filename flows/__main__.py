"""`python -m flows`: the command line without the console script."""

from flows.cli import main

main()
