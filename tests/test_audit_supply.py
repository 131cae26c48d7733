"""`make audit`: the SBOM lists every locked package and is valid, and the audit fails where something is known, or nothing could be asked."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import find_free_port

ROOT = Path(__file__).parent.parent
UV = shutil.which("uv") or shutil.which(str(ROOT / ".uv" / "bin" / "uv"))
CONTROL = {
    "id": "PYSEC-2019-217",
    "aliases": ["CVE-2019-10906"],
    "summary": "sandbox escape",
    "affected": [
        {
            "package": {"name": "jinja2", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.10.1"}]}],
        }
    ],
}
KNOWN = {**CONTROL, "id": "PYSEC-2026-1", "aliases": ["CVE-2026-0001"]}
KNOWN["affected"] = [{**CONTROL["affected"][0], "package": {"name": "bentoml", "ecosystem": "PyPI"}}]  # type: ignore[index]
LOCKED = {"bentoml": "1.4.39", "numpy": "2.4.6"}


class Database:
    """A stand-in for OSV (https://google.github.io/osv.dev/post-v1-query/) that knows a few versions; `status` is what it answers with."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], list[dict[str, Any]]] = {("jinja2", "2.10"): [CONTROL]}
        self.asked: list[tuple[str, str]] = []
        self.status = 200
        database = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                package = (query["package"]["name"], query["version"])
                database.asked.append(package)
                found = database.known.get(package, [])
                body = json.dumps({"vulns": found} if found else {}).encode()
                self.send_response(database.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/query"


@pytest.fixture
def database() -> Iterator[Database]:
    database = Database()
    thread = threading.Thread(target=database.server.serve_forever, daemon=True)
    thread.start()
    yield database
    database.server.shutdown()
    database.server.server_close()
    thread.join()


Audit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def audit(database: Database, tmp_path: Path) -> Audit:
    """Runs the audit of two packages, one of them in two versions, with these exceptions."""
    components = [{"name": name, "version": version} for name, version in [*LOCKED.items(), ("numpy", "2.5.5")]]
    (tmp_path / "sbom.json").write_text(json.dumps({"components": components}))

    def run(exceptions: str = "", url: str = database.url) -> "subprocess.CompletedProcess[str]":
        (tmp_path / "exceptions.toml").write_text(exceptions)
        command = [sys.executable, ROOT / ".ci" / "audit.py", tmp_path / "sbom.json", "--osv-url", url]
        command += ["--exceptions", tmp_path / "exceptions.toml"]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    return run


def test_nothing_known_passes_and_every_version_was_asked_for(audit: Audit, database: Database) -> None:
    done = audit()
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 locked packages have no known vulnerability" in done.stdout
    assert sorted(database.asked) == [("bentoml", "1.4.39"), ("jinja2", "2.10"), ("numpy", "2.4.6"), ("numpy", "2.5.5")]


def test_a_known_vulnerability_fails_unless_an_exception_holds_today(audit: Audit, database: Database) -> None:
    database.known["bentoml", "1.4.39"] = [KNOWN]
    done = audit()
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "audit: bentoml 1.4.39 has PYSEC-2026-1, CVE-2026-0001, fixed in 2.10.1\n"
    exception = '[[exceptions]]\nid = "{}"\nreason = "not called"\nuntil = {}\n'
    for id in ("PYSEC-2026-1", "CVE-2026-0001"):
        assert audit(exception.format(id, "9999-12-31")).returncode == 0
    assert audit(exception.format("CVE-2026-0002", "9999-12-31")).returncode == 1
    done = audit(exception.format("CVE-2026-0001", "2026-01-31"))
    assert done.returncode == 1 and "its exception ended on 2026-01-31" in done.stderr


@pytest.mark.parametrize("entry", ['id = "CVE-2026-1"', 'id = "CVE-2026-1"\nreason = "later"\nuntil = "some day"'])
def test_an_exception_needs_a_reason_and_a_date(audit: Audit, entry: str) -> None:
    done = audit(f"[[exceptions]]\n{entry}\n")
    assert done.returncode == 1
    assert "give it an id, a reason and a date `until`" in done.stderr


def test_without_an_answer_it_says_so_and_fails(audit: Audit, database: Database) -> None:
    nowhere = f"http://127.0.0.1:{find_free_port()}/v1/query"
    done = audit(url=nowhere)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"audit: the vulnerability database {nowhere} gave no answer, so nothing was audited")
    assert len(done.stderr.splitlines()) == 1
    database.status = 503
    done = audit()
    assert done.returncode == 1 and "gave no answer, so nothing was audited" in done.stderr


def test_a_database_without_data_does_not_pass(audit: Audit, database: Database) -> None:
    database.known = {}
    done = audit()
    assert done.returncode == 1 and done.stdout == ""
    assert "has no data and nothing was audited" in done.stderr


@pytest.mark.skipif(UV is None, reason="uv is neither on the PATH nor in .uv")
def test_make_audit_writes_a_valid_sbom_of_every_locked_package_and_ends_in_a_sentence(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "uv.lock", ".ci"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    nowhere = f"http://127.0.0.1:{find_free_port()}/"
    command = ["make", "--silent", "audit", f"UV={UV}", f"OSV_URL={nowhere}"]
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0 and done.stdout == ""
    assert f"audit: the vulnerability database {nowhere} gave no answer" in done.stderr
    sbom = (tmp_path / "var" / "sbom.cdx.json").read_text()
    assert_valid(sbom)
    listed = {(one["name"], one["version"]) for one in json.loads(sbom)["components"]}
    locked = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    assert listed == {(one["name"], one["version"]) for one in locked if "registry" in one["source"]}
    assert len(listed) > 300 and {one["name"] for one in locked} - {name for name, _ in listed} == {"digits"}


def assert_valid(sbom: str) -> None:
    """By the schema of CycloneDX 1.5, which a changed SBOM does not keep."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator = JsonStrictValidator(SchemaVersion.V1_5)
    assert validator.validate_str(sbom) is None
    assert validator.validate_str(sbom.replace('"version": 1,', '"version": "one",')) is not None


def test_every_action_of_a_workflow_is_pinned_by_commit_and_may_only_read() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        uses = re.findall(r"uses: (\S+)(.*)", path.read_text())
        assert uses
        for action, version in uses:
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", version), action


def test_ci_audits_every_change_and_every_day() -> None:
    text = (ROOT / ".github" / "workflows" / "audit.yml").read_text()
    workflow = yaml.safe_load(text)
    assert workflow[True].keys() == {"push", "pull_request", "schedule"}  # YAML reads the key `on` as true
    assert "run: make audit" in text and "continue-on-error" not in text
