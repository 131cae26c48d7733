"""Keeps the output of a benchmark on the page of benchmarks, with the command, the machine and the date.

    python -m bench.serving | python -m bench.page "bench.serving"

Prints its input, and puts it into docs/benchmarks.md in the place of the earlier output of the same command. The table at the top of that
page is written by hand; `tests/test_benchmarks.py` fails while a figure of it differs from the outputs below.
"""

import argparse
import platform
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import psutil

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def main() -> None:
    """Read the output from standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", help="the command that printed it, without `python -m`")
    arguments = parser.parse_args()
    lines = []
    for line in sys.stdin:
        print(line, end="", flush=True)
        lines.append(line)
    if not lines:
        raise SystemExit("the benchmark printed nothing; the page stays as it is")
    PAGE.write_text(replaced(PAGE.read_text(), arguments.command, "".join(lines)))


def replaced(page: str, command: str, output: str) -> str:
    """The page with this output in the command's section; a new section is added at the end."""
    machine = f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    section = f"## python -m {command}\n\n{machine}\n\n```text\n{output.rstrip()}\n```\n"
    place = re.compile(rf"^## python -m {re.escape(command)}\n.*?(?=^## |\Z)", re.M | re.S)
    if place.search(page):
        return place.sub(lambda found: section + ("\n" if found.end() < len(page) else ""), page)
    return f"{page.rstrip()}\n\n{section}"


def processor() -> str:
    """Name of the processor, if the system tells."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.M) if path.exists() else None
    return found[1] if found else platform.processor()


if __name__ == "__main__":
    main()
