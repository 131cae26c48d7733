"""A page of another site in a real Chromium, against Prefect, MLflow and the Evidently UI as `digits up` starts them.

The page tries `fetch`, a form and DNS rebinding: its own name then points to 127.0.0.1, so that the browser takes the server for its origin.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx
import pytest
from conftest import find_free_port, get, post, put_migrated_databases, wait_for
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from test_page import CHROMEDRIVER, CHROMIUM, start

from bench import harness
from digits.settings import Settings
from ops import process_environment, processes

# The browser finds both at 127.0.0.1. MLflow's own default takes the second for a private address.
NAMES = ("evil.example", "10.evil.example")
CREATE = {
    "prefect": "/api/flows/",
    "mlflow": "/api/2.0/mlflow/experiments/create",
    "reports": "/api/projects",
}
READ = {
    "prefect": "/api/admin/version",
    "mlflow": "/api/2.0/mlflow/experiments/get?experiment_id=0",
    "reports": "/api/projects",
}
# Evidently's projects need a description, and Prefect refuses fields that it does not know.
SEND = """
const [url, name, done] = arguments
const more = url.includes('/projects') ? {description: ''} : {}
const body = how => JSON.stringify({name: `${name}, ${how}`, ...more})
const json = {'Content-Type': 'application/json'}
const tries = [
  {mode: 'no-cors', headers: {'Content-Type': 'text/plain'}, body: body('as text')},
  {mode: 'no-cors', body: new Blob([body('without a type')])},
  {headers: json, body: body('as JSON')},
]
Promise.all(tries.map(one => fetch(url, {method: 'POST', ...one}).then(() => 0, () => 0))).then(done)
"""
FORM = """
const [url, name] = arguments
const form = document.createElement('form'), input = document.createElement('input')
Object.assign(form, {method: 'POST', enctype: 'text/plain', action: url})
// The browser writes an equals sign between the two.
Object.assign(input, {name: `{"description": "", "name": "${name}, by a form`, value: '"}'})
form.append(input)
document.body.append(form)
form.submit()
"""
# A run in Prefect may bring its own command.
RUN = """
const [api, command, done] = arguments
const post = (path, body) => fetch(api + path, {
  method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body),
}).then(response => response.json())
post('/flows/', {name: 'evil run'})
  .then(flow => post('/flow_runs/', {flow_id: flow.id, job_variables: {command: command}}))
  .then(run => done(run.id || 'refused'), () => done('refused'))
"""
STATUS = "const [url, done] = arguments; fetch(url).then(response => done(response.status), () => done('refused'))"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="there is no chromium with chromedriver on the PATH"),
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The three servers run with these settings."""
    ports: dict[str, Any] = {f"{name}_port": find_free_port() for name in CREATE}
    mlflow, prefect = (f"http://127.0.0.1:{ports[f'{name}_port']}" for name in ("mlflow", "prefect"))
    home = tmp_path_factory.mktemp("home")
    urls: dict[str, Any] = {"mlflow_tracking_uri": mlflow, "prefect_api_url": f"{prefect}/api"}
    settings = Settings(home=home, prefect_api_auth_string=None, **urls, **ports)
    for folder in ("mlflow/artifacts", "workspace"):
        (home / folder).mkdir(parents=True)
    put_migrated_databases(home)
    process_environment.generate_logins(settings)
    with ExitStack() as running:
        for process in processes.processes(settings):
            if process.name in CREATE:
                ready, log = partial(harness.answers, process.health), home / f"{process.name}.log"
                environment = process_environment.of_servers(settings)
                running.enter_context(harness.running(process.command, log, ready, environment))
        yield settings


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    rules = ", ".join(f"MAP {name} 127.0.0.1" for name in NAMES)
    browser = start(tmp_path_factory.mktemp("chromium"), 800, 600, flags=(f"--host-resolver-rules={rules}",))
    yield browser
    browser.quit()


def url_of(settings: Settings, server: str) -> str:
    return f"http://127.0.0.1:{getattr(settings, f'{server}_port')}"


def created(settings: Settings, server: str) -> list[str]:
    """The names that a server holds of what a page created, as its user sees them."""
    url = url_of(settings, server)
    if server == "prefect":
        prefect_login = process_environment.prefect_login(settings)
        assert prefect_login is not None
        found = post(f"{url}/api/flows/filter", json={}, auth=httpx.BasicAuth(*prefect_login.split(":"))).json()
    elif server == "mlflow":
        search = {"max_results": 100}
        login = process_environment.mlflow_login(settings)
        found = post(f"{url}/api/2.0/mlflow/experiments/search", json=search, auth=login).json()["experiments"]
    else:
        found = get(f"{url}/api/projects").json()
    return [one["name"] for one in found if "evil" in one["name"]]


@pytest.mark.parametrize("server", CREATE)
def test_a_page_of_another_site_writes_nothing(
    settings: Settings, browser: Chrome, foreign_page: int, server: str
) -> None:
    target = url_of(settings, server) + CREATE[server]
    for name in NAMES:
        browser.get(f"http://{name}:{foreign_page}/")
        browser.execute_async_script(SEND, target, name)
        browser.execute_script(FORM, target, name)
        time.sleep(2)  # the browser leaves the page for the server's answer
    assert created(settings, server) == []


@pytest.mark.parametrize("server", CREATE)
def test_a_page_whose_name_points_to_this_machine_reads_and_writes_nothing(
    settings: Settings, browser: Chrome, server: str
) -> None:
    port = getattr(settings, f"{server}_port")
    for name in NAMES:
        browser.get(f"http://{name}:{port}/nothing")
        assert browser.execute_async_script(STATUS, READ[server]) in (400, 401, 403)
        browser.execute_async_script(SEND, CREATE[server], name)
    assert created(settings, server) == []


def test_no_page_starts_a_run_with_a_command_of_its_own(settings: Settings, browser: Chrome, foreign_page: int) -> None:
    api = url_of(settings, "prefect") + "/api"
    for origin, target in ((foreign_page, api), (settings.prefect_port, "/api")):
        browser.get(f"http://{NAMES[0]}:{origin}/nothing")
        assert browser.execute_async_script(RUN, target, "touch evil") == "refused"
    assert created(settings, "prefect") == []


def test_the_printed_password_opens_prefects_page(settings: Settings, browser: Chrome) -> None:
    browser.get(url_of(settings, "prefect"))
    wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "input"))
    browser.find_element(By.CSS_SELECTOR, "input").send_keys(
        process_environment.prefect_login(settings) or "", Keys.ENTER
    )
    wait_for(lambda: browser.find_elements(By.PARTIAL_LINK_TEXT, "Deployments"))
    assert not browser.find_elements(By.CSS_SELECTOR, "input[type=password]")


def test_the_printed_name_and_password_open_mlflows_page(settings: Settings, browser: Chrome) -> None:
    login = process_environment.mlflow_login(settings)
    assert login is not None
    # As the browser sends them once its dialog has been filled in.
    browser.get(url_of(settings, "mlflow").replace("//", "//" + ":".join(login) + "@"))
    browser.get(url_of(settings, "mlflow") + "/#/experiments?workflowType=machine_learning")
    wait_for(lambda: browser.find_elements(By.PARTIAL_LINK_TEXT, "Default"))
