"""`make audit`: the SBOM lists every locked package and is valid, and the audit fails where something is known, or nothing could be asked."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import find_free_port

ROOT = Path(__file__).parent.parent
UV = shutil.which("uv") or shutil.which(str(ROOT / ".uv" / "bin" / "uv"))
LOCKED = [("bentoml", "1.4.39"), ("numpy", "2.4.6"), ("numpy", "2.5.5")]


def advisory(id: str, alias: str, package: str) -> dict[str, Any]:
    """One of OSV's; it is fixed in 2.10.1."""
    fixed = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.10.1"}]}
    affected = {"package": {"name": package, "ecosystem": "PyPI"}, "ranges": [fixed]}
    return {"id": id, "aliases": [alias], "summary": "sandbox escape", "affected": [affected]}


class Database:
    """A stand-in for OSV (https://google.github.io/osv.dev/post-v1-query/) that knows a few versions."""

    def __init__(self) -> None:
        self.known = {("jinja2", "2.10"): [advisory("PYSEC-2019-217", "CVE-2019-10906", "jinja2")]}
        self.asked: list[tuple[str, str]] = []
        database = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                package = (query["package"]["name"], query["version"])
                database.asked.append(package)
                found = database.known.get(package, [])
                body = json.dumps({"vulns": found} if found else {}).encode()
                self.send_response(200)
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


@pytest.fixture(scope="module")
def audit() -> Any:
    """The module `.ci/audit.py`."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def run(folder: Path, url: str, exceptions: str = "") -> "subprocess.CompletedProcess[str]":
    """The audit of the locked packages with these exceptions."""
    components = [{"name": name, "version": version} for name, version in LOCKED]
    (folder / "sbom.json").write_text(json.dumps({"components": components}))
    (folder / "exceptions.toml").write_text(exceptions)
    command = [sys.executable, ROOT / ".ci" / "audit.py", folder / "sbom.json", "--osv-url", url]
    command += ["--exceptions", folder / "exceptions.toml"]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_nothing_known_passes_and_every_version_was_asked_for(database: Database, tmp_path: Path) -> None:
    done = run(tmp_path, database.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 locked packages have no known vulnerability" in done.stdout
    assert sorted(database.asked) == sorted([*LOCKED, ("jinja2", "2.10")])


def test_a_known_vulnerability_fails_unless_an_exception_holds(database: Database, tmp_path: Path) -> None:
    database.known["bentoml", "1.4.39"] = [advisory("PYSEC-2026-1", "CVE-2026-0001", "bentoml")]
    done = run(tmp_path, database.url)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "audit: bentoml 1.4.39 has PYSEC-2026-1, CVE-2026-0001, fixed in 2.10.1\n"
    exception = '[[exceptions]]\nid = "CVE-2026-0001"\nreason = "not called"\nuntil = 9999-12-31\n'
    assert run(tmp_path, database.url, exception).returncode == 0


def test_an_exception_holds_to_its_last_day_and_for_its_vulnerability_only(audit: Any) -> None:
    vulnerability = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-0001"], "fix_versions": []}
    findings = [{"name": "bentoml", "version": "1.4.39", "vulns": [vulnerability]}]
    for id in ("PYSEC-2026-1", "CVE-2026-0001"):
        accepted = [audit.AcceptedVulnerability(id, "not called", date(2026, 1, 31))]
        assert audit.judge(findings, accepted, date(2026, 1, 31)) == []
        (problem,) = audit.judge(findings, accepted, date(2026, 2, 1))
        assert problem.endswith("fixed in no version; its exception ended on 2026-01-31")
    other = [audit.AcceptedVulnerability("CVE-2026-0002", "not called", date(2026, 1, 31))]
    assert len(audit.judge(findings, other, date(2026, 1, 31))) == 1


@pytest.mark.parametrize(
    "entry",
    [
        'id = "CVE-2026-1"',
        'id = "CVE-2026-1"\nreason = ""\nuntil = 2026-01-31',
        'id = "CVE-2026-1"\nreason = "later"\nuntil = "some day"',
    ],
)
def test_an_exception_needs_a_reason_and_a_date(audit: Any, tmp_path: Path, entry: str) -> None:
    (tmp_path / "exceptions.toml").write_text(f"[[exceptions]]\n{entry}\n")
    with pytest.raises(ValueError, match="give it an id, a reason and a date `until`"):
        audit.read_exceptions(tmp_path / "exceptions.toml")


def test_the_exceptions_of_the_repository_are_valid(audit: Any) -> None:
    explained = audit.EXCEPTIONS.read_text().replace("# ", "").replace("#\n", "\n")
    example = explained[explained.index("[[exceptions]]") :]
    assert tomllib.loads(example)["exceptions"][0].keys() == {"id", "reason", "until"}
    assert all(one.reason for one in audit.read_exceptions(audit.EXCEPTIONS))


def test_a_package_that_was_not_looked_up_fails(audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip-audit skips all of them where it reaches an index without vulnerability data, and ends with 0."""
    skipped = [{"name": name, "skip_reason": "not found"} for name, _ in LOCKED]
    monkeypatch.setattr(audit, "ask", lambda packages, osv_url: skipped)
    with pytest.raises(RuntimeError, match=r"could not be asked about 4 packages, among them jinja2 2\.10"):
        audit.look_up(LOCKED, "http://127.0.0.1:1/")


def test_a_database_without_data_does_not_pass(database: Database, tmp_path: Path) -> None:
    database.known = {}
    done = run(tmp_path, database.url)
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
