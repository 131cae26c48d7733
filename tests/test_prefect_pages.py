"""What the gate and monitoring publish stands on the pages of a real Prefect server, and our links to a flow run open it."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import post, wait_for
from monitored import held_out, reference, window
from prefect import flow
from prefect.runtime import flow_run
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from test_page import CHROMEDRIVER, CHROMIUM, start

from digits.data import perturbations
from digits.settings import Settings
from flows import alerts, channels, monitor, train, verdict_page
from flows.alerts import Alert
from models import gate
from models.connections import Platform
from models.gate import GateVerdict
from monitoring import reports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"), alert_urls=["json://127.0.0.1:1"])


@pytest.fixture(scope="module")
def verdict() -> GateVerdict:
    """Of a candidate with a hundred errors more than the champion."""
    labels = (np.arange(1000) % 10).astype(np.uint8)
    worse = np.where(np.arange(1000) < 100, (labels + 1) % 10, labels).astype(np.uint8)
    facts, policy = gate.ModelFacts(400_000, 0.05), gate.GatePolicy()
    samples = [gate.EvaluationSample("anchor", labels, worse, labels)]
    return gate.judge(samples, facts, facts, policy, policy.significance)


@pytest.fixture(scope="module")
def run(prefect: str, settings: Settings, verdict: GateVerdict) -> dict[str, Any]:
    """The id of a flow run with the results of the gate and of monitoring, its artifacts by key, and our addresses of it."""
    images, labels = held_out()
    shifted = window(perturbations.shift(images[:300], 3), labels[:300])
    found, path = reports.write(settings.home / "reports" / "a", settings.workspace, reference(), shifted)
    facts: dict[str, Any] = {}

    @flow
    def judge_and_monitor() -> None:
        verdict_page.publish_verdict(Platform(settings), "3", verdict)
        monitor.publish(settings, "1", found, path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(channels, "deliver", lambda _urls, _text, sent: facts.update(sent) or [])
            alerts.deliver(settings, Alert("drift", "digits v1", "strokes thicker"))
        facts.update(train.prefect_run(), id=str(flow_run.id))

    judge_and_monitor()
    wanted = {"flow_runs": {"id": {"any_": [facts["id"]]}}}
    artifacts = {row["key"]: row for row in post(f"{prefect}/artifacts/filter", json=wanted).json()}
    return {**facts, "artifacts": artifacts, "report": path}


def link(run: dict[str, Any], key: str) -> tuple[str, str]:
    """Text and address of a link artifact."""
    artifact = run["artifacts"][key]
    assert artifact["type"] == "markdown"
    (found,) = re.findall(r"^\[(.+)\]\((\S+)\)$", artifact["data"])
    return found


def table(run: dict[str, Any], key: str) -> list[dict[str, str]]:
    artifact = run["artifacts"][key]
    assert artifact["type"] == "table"
    rows: list[dict[str, str]] = json.loads(artifact["data"])
    return rows


def test_the_gate_leaves_its_reasons_a_table_and_a_link(
    run: dict[str, Any], settings: Settings, verdict: GateVerdict
) -> None:
    assert verdict.reasons[0] in run["artifacts"]["gate"]["data"]
    assert run["artifacts"]["gate"]["description"] == "digits v3: hold"
    (row,) = table(run, "gate-table")
    assert (row["set"], row["images"], row["champion"], row["candidate"]) == ("anchor", "1,000", "1.0000", "0.9000")
    assert link(run, "gate-mlflow") == ("digits v3 in MLflow", settings.version_url("3"))


def test_monitoring_leaves_its_picture_a_table_and_links(run: dict[str, Any], settings: Settings) -> None:
    rows = {row["question"]: row for row in table(run, "drift-table")}
    assert rows["drift"]["verdict"] == "drift" and " columns, " in rows["drift"]["figures"]
    assert rows["answers"]["verdict"] == "300"
    assert run["artifacts"]["drift-pictures"]["type"] == "image"
    assert link(run, "drift-mlflow") == ("digits v1 in MLflow", settings.version_url("1"))
    report = reports.ui_path(Path(run["report"]).parent, settings.workspace)
    url = f"http://127.0.0.1:{settings.reports_port}{report}"
    assert link(run, "drift-evidently") == ("report in the Evidently UI", url)


@pytest.mark.browser
@pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="there is no chromium with chromedriver on the PATH")
def test_the_links_of_a_training_and_of_an_alert_open_the_run_with_its_results(
    run: dict[str, Any], tmp_path: Path
) -> None:
    assert run["prefect_run"] == run["run_url"]
    browser = start(tmp_path, 1600, 1200)
    try:
        browser.get(run["run_url"])
        wait_for(lambda: "judge-and-monitor" in text(browser) and "Artifacts" in text(browser))
        assert browser.current_url.startswith(run["run_url"])  # no redirection
        browser.find_element(By.XPATH, "//*[contains(@class, 'tab')][normalize-space()='Artifacts']").click()
        wait_for(lambda: {"gate", "gate-table", "drift", "drift-table"} <= set(text(browser).split()))
        for key, cell in (("gate-table", "anchor"), ("drift-table", "drift")):
            shown(browser, run, key, By.XPATH, f"//td[normalize-space()='{cell}']")
        for key in ("gate-mlflow", "drift-mlflow", "drift-evidently"):
            title, url = link(run, key)
            assert shown(browser, run, key, By.LINK_TEXT, title).get_attribute("href") == url
    finally:
        browser.quit()


def shown(browser: Chrome, run: dict[str, Any], key: str, by: str, what: str) -> WebElement:
    """An element of the artifact's page."""
    browser.get(f"{run['run_url'].split('/runs/')[0]}/artifacts/artifact/{run['artifacts'][key]['id']}")
    wait_for(lambda: browser.find_elements(by, what))
    return browser.find_element(by, what)


def text(browser: Chrome) -> str:
    found: str = browser.execute_script("return document.body.innerText")
    return found
