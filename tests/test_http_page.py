"""docs/http.md cannot lie: its clients run against the service, and its tables name every route, field, status and metric."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serving import Service

from services import api_document, schemas
from services.classifier import DigitClassifier

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "http.md").read_text()
CLIENTS = {
    "bash": ["bash", "-c"],
    "python": [sys.executable, "-c"],
    "js": ["node", "--input-type=module", "--eval"],
}


def first_cells(heading: str) -> str:
    """The first column of the first table after a heading."""
    table = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("language", CLIENTS)
def test_the_clients_run_as_they_stand(language: str, service: Service) -> None:
    if shutil.which(CLIENTS[language][0]) is None:
        pytest.skip(f"{CLIENTS[language][0]} is not installed")
    (program,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)
    program = program.replace("http://127.0.0.1:3000", str(service.client.base_url).rstrip("/"))
    done = subprocess.run([*CLIENTS[language], program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if language == "bash":
        assert json.loads(done.stdout)["digit"] in range(10)
    else:
        assert re.match(r"\d 0\.\d+", done.stdout), done.stdout


def test_every_route_is_there() -> None:
    routes = first_cells("Routes")
    for path in api_document.document(DigitClassifier.apis, 1000)["paths"]:
        assert f" {path}`" in routes, path


def test_every_field_of_an_answer_is_there() -> None:
    fields = first_cells("Routes") + PAGE.split("| field | means |")[1].split("\n\n")[0]
    for name in schemas.Prediction.model_fields:
        assert f"`{name}`" in fields, name


def test_every_status_is_there() -> None:
    statuses = first_cells("When something is wrong")
    answered = {
        status
        for item in api_document.document(DigitClassifier.apis, 1000)["paths"].values()
        for operation in item.values()
        for status in operation["responses"]
    }
    assert answered - {"200"} <= set(re.findall(r"\d{3}", statuses))


def test_every_metric_is_there_and_none_that_is_not(service: Service) -> None:
    service.client.post("/classify", json={"images": [[0] * 28] * 28})
    text = service.client.get("/metrics").text
    real = set(re.findall(r"^# TYPE (digits_\w+) ", text, re.M))
    documented = set(re.findall(r"`(digits_\w+)`", first_cells("Metrics")))
    assert real == documented
