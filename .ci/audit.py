"""Looks the packages of an SBOM up in a vulnerability database (OSV) and fails on a known vulnerability that no dated exception covers.

`make audit`, or `python .ci/audit.py SBOM [--exceptions FILE] [--osv-url URL]`, where SBOM is a CycloneDX file. It also fails where the
database cannot be asked about every package, because pip-audit would call that "No known vulnerabilities found".
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

EXCEPTIONS = Path(__file__).parent / "vulnerability-exceptions.toml"
OSV_URL = "https://api.osv.dev/v1/query"
# Sandbox escape, CVE-2019-10906. A database that does not know it has no data.
CONTROL = ("jinja2", "2.10")

Package = tuple[str, str]  # name and version


@dataclass(frozen=True)
class AcceptedVulnerability:
    """An exception; `until` is the last day on which it holds."""

    id: str
    reason: str
    until: date


def main() -> None:
    """Exit with 0 only if the database knows of nothing that is not excepted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sbom", type=Path)
    parser.add_argument("--exceptions", type=Path, default=EXCEPTIONS)
    parser.add_argument("--osv-url", default=OSV_URL)
    arguments = parser.parse_args()
    try:
        exceptions = read_exceptions(arguments.exceptions)
        packages = read_packages(arguments.sbom)
        findings = look_up(packages, arguments.osv_url)
    except (OSError, ValueError, RuntimeError) as error:
        raise SystemExit(f"audit: {error}") from error
    problems = judge(findings, exceptions, date.today())
    if problems:
        raise SystemExit("\n".join(f"audit: {problem}" for problem in problems))
    print(f"audit: {len(packages)} locked packages have no known vulnerability without an exception")


def read_exceptions(path: Path) -> list[AcceptedVulnerability]:
    """The entries of the file; raises ValueError for one without id, reason or date."""
    exceptions = []
    for entry in tomllib.loads(path.read_text()).get("exceptions", []):
        if set(entry) != {"id", "reason", "until"} or type(entry["until"]) is not date or not entry["reason"]:
            raise ValueError(f"{path.name} has the entry {entry}; give it an id, a reason and a date `until`")
        exceptions.append(AcceptedVulnerability(**entry))
    return exceptions


def read_packages(sbom: Path) -> list[Package]:
    """The components of a CycloneDX file."""
    components = json.loads(sbom.read_text()).get("components", [])
    if not components:
        raise ValueError(f"{sbom} lists no components; write it with `make audit`")
    return [(component["name"], component["version"]) for component in components]


def look_up(packages: list[Package], osv_url: str) -> list[dict[str, Any]]:
    """pip-audit's entry of each package; raises RuntimeError if the database did not answer for all of them."""
    asked = [CONTROL, *packages]
    audited = [entry for layer in layers(asked) for entry in ask(layer, osv_url)]
    answered = {(entry["name"], entry["version"]): entry for entry in audited if "version" in entry}
    missing = [" ".join(package) for package in asked if package not in answered]
    if missing:
        raise RuntimeError(f"{osv_url} could not be asked about {len(missing)} packages, among them {missing[0]}")
    if not answered[CONTROL]["vulns"]:
        raise RuntimeError(
            f"{osv_url} does not know that jinja2 2.10 is vulnerable, so it has no data and nothing was audited"
        )
    return [answered[package] for package in packages]


def layers(packages: list[Package]) -> list[list[Package]]:
    """The packages in lists that name each once; pip-audit refuses two versions, and a lock has one for each version of Python."""
    result: list[dict[str, Package]] = []
    for name, version in packages:
        layer = next((layer for layer in result if name not in layer), None)
        if layer is None:
            result.append(layer := {})
        layer[name] = (name, version)
    return [list(layer.values()) for layer in result]


def ask(packages: list[Package], osv_url: str) -> list[dict[str, Any]]:
    """pip-audit's entries; raises RuntimeError with the last line of its error if it did not get to an end."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write("".join(f"{name}=={version}\n" for name, version in packages))
        requirements.flush()
        command = [sys.executable, "-m", "pip_audit", "-r", requirements.name, "--no-deps", "--disable-pip"]
        options = ["-s", "osv", "--osv-url", osv_url, "--format", "json", "--progress-spinner", "off"]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
    try:
        entries: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        # pip-audit's traceback ends with the error of its library, often several in one another.
        said = re.sub(r"^[\w.]+: ", "", (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
        raise RuntimeError(
            f"the vulnerability database {osv_url} gave no answer, so nothing was audited; set OSV_URL to a mirror that this "
            f"machine reaches (pip-audit: {said[:200]})"
        ) from None
    return entries


def judge(findings: list[dict[str, Any]], exceptions: list[AcceptedVulnerability], today: date) -> list[str]:
    """A sentence for every vulnerability that no exception covers today."""
    accepted = {one.id: one for one in exceptions}
    problems = []
    for package in findings:
        for vulnerability in package["vulns"]:
            ids = [vulnerability["id"], *vulnerability.get("aliases", [])]
            exception = next((accepted[id] for id in ids if id in accepted), None)
            if exception and today <= exception.until:
                continue
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
            expired = f"; its exception ended on {exception.until}" if exception else ""
            problems.append(f"{package['name']} {package['version']} has {', '.join(ids)}, fixed in {fixed}{expired}")
    return problems


if __name__ == "__main__":
    main()
