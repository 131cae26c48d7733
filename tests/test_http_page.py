"""The reference of the HTTP API is true: its clients run against the service, and its tables name every route, field and status."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serving import Service
from test_platform_state import KNOWN, MEASURED, NOON, result

from services.platform_state import PlatformCollector, PlatformState

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reference" / "http.md").read_text()
METRICS = (ROOT / "docs" / "reference" / "metrics.md").read_text()
LANGUAGES = {
    "bash": ["bash", "-c"],
    "python": [sys.executable, "-c"],
    "js": ["node", "--input-type=module", "--eval"],
}
CLIENTS = re.findall(r"^```(bash|python|js)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def first_cells(heading: str) -> str:
    """The first column of the first table after a heading."""
    table = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))


def test_there_are_clients_in_three_languages_and_bentomls() -> None:
    assert [language for language, _ in CLIENTS] == ["bash", "bash", "python", "python", "js"]
    assert "SyncHTTPClient" in CLIENTS[3][1] and all("/read" in CLIENTS[index][1] for index in (1, 2, 4))


@pytest.mark.parametrize(("language", "program"), CLIENTS, ids=["curl", "curl-read", "httpx", "bentoml", "fetch"])
def test_the_clients_run_as_they_stand(language: str, program: str, service: Service) -> None:
    if shutil.which(LANGUAGES[language][0]) is None:
        pytest.skip(f"{LANGUAGES[language][0]} is not installed")
    program = program.replace("http://127.0.0.1:3000", str(service.client.base_url).rstrip("/"))
    done = subprocess.run([*LANGUAGES[language], program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if language == "bash":
        answer = json.loads(done.stdout)
        assert len(answer["text"]) == 3 if "/read" in program else answer["digit"] in range(10)
    else:
        assert re.match(r"\d 0\.\d+", done.stdout), done.stdout


def test_every_route_is_there(service: Service) -> None:
    routes = first_cells("Routes")
    for path in service.client.get("/openapi.json").json()["paths"]:
        assert f" {path}`" in routes, path


def test_every_field_of_an_answer_is_there(service: Service) -> None:
    fields = first_cells("Routes") + PAGE.split("| field | meaning |")[1].split("\n\n")[0]
    answer = service.client.post("/classify", json={"images": [[0] * 28] * 28}).json()
    assert "uncertain" in answer
    for name in answer:
        assert f"`{name}`" in fields, name


def test_every_field_of_a_reading_is_there(service: Service) -> None:
    fields = PAGE.split("### Reading numbers")[1].split("\n## ")[0]
    picture = (ROOT / "docs" / "number.png").read_bytes()
    answer = service.client.post("/read?preview=true", content=picture).json()
    (line,) = answer["lines"]
    for name in answer.keys() - {"model_version"} | line.keys() | {"box"}:
        assert f"| `{name}`" in fields, name


def test_the_new_names_of_about_are_there(service: Service) -> None:
    about = service.client.get("/about").json()
    for name in ("model_version", "warning", "run_url", "version_url", "conformal"):
        assert name in about and f"`{name}`" in PAGE, name


def test_every_status_is_there(service: Service) -> None:
    statuses = first_cells("Errors")
    answered = {
        status
        for item in service.client.get("/openapi.json").json()["paths"].values()
        for operation in item.values()
        for status in operation["responses"]
    }
    assert answered - {"200"} <= set(re.findall(r"\d{3}", statuses))


def test_every_metric_is_on_its_page_and_none_that_is_not(service: Service) -> None:
    service.client.post("/classify", json={"images": [[0] * 28] * 28})
    text = service.client.get("/metrics").text
    real = set(re.findall(r"^# TYPE (digits_\w+) ", text, re.M))
    # These are exported once the flows have stored something.
    state = PlatformState("3", result(**KNOWN, **MEASURED), NOON, NOON, NOON, 3)
    real |= {family.name for family in PlatformCollector(lambda: state).collect()}
    cells = re.findall(r"^\| (`digits_[^|]+) \|", METRICS, re.M)
    documented = {name for cell in cells for name in re.findall(r"`(digits_\w+)`", cell)}
    assert real | {"digits_no_digit_answers_total"} == documented
