"""`python -m ops`: the command line without the console script."""

from ops.cli import main

main()
