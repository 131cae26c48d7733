"""The Evidently UI as `digits up` starts it: it shows the reports, and processes nothing that its pages do not send for that."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import find_free_port, get, post, wait_for
from monitored import held_out, reference, window
from selenium.webdriver.common.by import By
from test_page import CHROMEDRIVER, CHROMIUM, start

from bench import harness
from digits.data import perturbations
from digits.settings import Settings
from monitoring import dashboard, reports
from ops import process_environment, processes

SECRET = {"evidently-secret": "known to this test"}
FOREIGN = [
    {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "same-site"},
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report in the workspace of a DIGITS_HOME."""
    home = tmp_path_factory.mktemp("home")
    images, labels = held_out()
    traffic = window(perturbations.shift(images[:300], 2), labels[:300])
    return reports.write(home / "reports", home / "workspace", reference(), traffic)[1]


@pytest.fixture(scope="module")
def ui(report: Path) -> Iterator[str]:
    """The URL of the running UI."""
    with started(report.parent.parent) as url:
        yield url


@contextmanager
def started(home: Path) -> Iterator[str]:
    """The URL of the UI of a DIGITS_HOME, as `digits up` starts it."""
    settings = Settings(home=home, reports_port=find_free_port())
    (process,) = (process for process in processes.processes(settings) if process.name == "reports")
    environment = {**process_environment.of_servers(settings), "EVIDENTLY_SECRET": SECRET["evidently-secret"]}
    ready = partial(harness.answers, process.health)
    with harness.running(process.command, settings.home / "reports.log", ready, environment):
        yield process.url


@pytest.fixture(scope="module")
def points(ui: str) -> str:
    """The path to which Evidently's page sends what it wants to draw."""
    (project,) = get(f"{ui}/api/projects").json()
    return f"/api/v2/snapshots/{project['id']}/data_series_batch"


def filters(count: int = 1) -> dict[str, object]:
    series = {"tags": [], "metadata": {}, "metric": "*", "metric_labels": {}}
    return {"series_filter": [series] * count}


@pytest.mark.parametrize("headers", [{}, *FOREIGN])
def test_what_evidently_processes_without_its_secret_does_not_reach_it(ui: str, headers: dict[str, str]) -> None:
    template = get(f"{ui}/api/llm_judges/templates").json()[0]["template"]
    # Such a width makes a text of 200 MB.
    template["instructions_template"] = "{__scoring__:>200000000}{__categories__}"
    for content_type in ("text/plain", "application/json"):
        sent = {**headers, "Content-Type": content_type}
        body = json.dumps({"template": template})
        refused = post(f"{ui}/api/llm_judges/prompt_template", content=body, headers=sent)
        assert refused.status_code == 403 and len(refused.content) < 100


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_than_get_and_head_need_the_secret(ui: str, method: str) -> None:
    statuses = [
        httpx.request(method, f"{ui}/api/none", headers=headers).status_code
        for headers in ({}, {"evidently-secret": "wrong"}, {"evidently-secret": ""}, SECRET)
    ]
    assert statuses[:3] == [403] * 3 and statuses[3] != 403


def test_who_knows_the_secret_writes(ui: str) -> None:
    project = {"name": "written", "description": ""}
    assert post(f"{ui}/api/projects", json=project).status_code == 403
    written = post(f"{ui}/api/projects", json=project, headers=SECRET)
    assert written.is_success
    removed = httpx.delete(f"{ui}/api/projects/{written.json()}", headers=SECRET)
    assert removed.is_success and len(get(f"{ui}/api/projects").json()) == 1


def test_points_are_for_the_own_page_and_other_programs(ui: str, points: str) -> None:
    for own in ({}, {"Origin": ui, "Sec-Fetch-Site": "same-origin"}):
        assert post(ui + points, json=filters(), headers=own).json()["series"]
    for foreign in FOREIGN:
        assert post(ui + points, json=filters(), headers=foreign).status_code == 403


def test_a_request_for_points_has_a_known_and_limited_length(ui: str, points: str) -> None:
    body = json.dumps(filters()).encode()
    assert post(ui + points, content=body.ljust(8192)).is_success
    assert post(ui + points, content=body.ljust(8193)).status_code == 403
    assert post(ui + points, content=iter([body])).status_code == 403
    assert post(f"{ui}{points}/more", content=body).status_code == 403


in_chromium = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="there is no chromium with chromedriver on the PATH"
)


@pytest.mark.browser
@in_chromium
def test_before_any_traffic_the_dashboard_says_what_it_waits_for(tmp_path: Path) -> None:
    with started(tmp_path) as url:
        (project,) = get(f"{url}/api/projects").json()
        assert project["name"] == dashboard.PROJECT
        browser = start(tmp_path, 1300, 1000)
        try:
            browser.get(f"{url}/projects/{project['id']}")
            panels = [panel for panel in dashboard.panels() if panel.tab == "Monitoring"]
            body = partial(browser.find_element, By.TAG_NAME, "body")
            wait_for(lambda: all(panel.title in body().text for panel in panels))
            assert all(panel.description in body().text for panel in panels)
        finally:
            browser.quit()
        images, _ = held_out()
        reports.write(tmp_path / "first", tmp_path / "workspace", reference(), window(images[:150]))
        # The running UI sees the first report without a restart.
        wait_for(lambda: len(get(f"{url}/api/projects/{project['id']}/snapshots").json()) == 1)
        series = post(f"{url}/api/v2/snapshots/{project['id']}/data_series_batch", json=filters()).json()["series"]
        assert series


@pytest.mark.browser
@in_chromium
def test_the_dashboard_and_a_report_are_drawn(ui: str, points: str, report: Path, tmp_path: Path) -> None:
    project = points.split("/")[4]
    browser = start(tmp_path, 1300, 1000)
    try:
        browser.get(f"{ui}/projects/{project}")
        wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "svg circle"))
        assert "Share of drifted columns" in browser.find_element(By.TAG_NAME, "body").text
        browser.get(f"{ui}{reports.ui_path(report.parent, report.parent.parent / 'workspace')}")
        wait_for(lambda: "stroke_width" in browser.find_element(By.TAG_NAME, "body").text)
        wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "svg image"))
        picture = browser.find_element(By.CSS_SELECTOR, "svg image")
        assert picture.size["width"] > 900 and picture.size["height"] > 300
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    finally:
        browser.quit()
    sent = [m["params"]["request"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    answered = [m["params"]["response"] for m in messages if m["method"] == "Network.responseReceived"]
    # Evidently's pages send no other request with a body, and none is refused.
    assert {urlsplit(r["url"]).path for r in sent if r["method"] != "GET"} == {points}
    assert not [r["url"] for r in answered if r["url"].startswith(ui) and r["status"] >= 400]
