"""The page for everybody: axe-core (https://github.com/dequelabs/axe-core) finds nothing, by day, by night, on a phone; and a key opens it."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from conftest import Files, serve_registry
from selenium.webdriver.common.by import By
from serving import Service, serving
from test_page import CHROMEDRIVER, CHROMIUM, TWO, Page, start
from test_page_numbers import drop
from test_read import picture, sure

from digits.reference import Reference
from digits.storage import api_keys, database

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()
SIZES = {"desktop": (1300, 1000, False), "phone": (360, 900, True)}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="there is no chromium with chromedriver on the PATH"),
]


@pytest.fixture(scope="module", params=SIZES)
def page(request: pytest.FixtureRequest, service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    browser = start(tmp_path_factory.mktemp("chromium"), *SIZES[request.param])
    yield Page(browser, service)
    browser.quit()


def violations(page: Page) -> list[str]:
    """Of every rule of axe-core, its best practices too: the rule, what it says, where."""
    page.browser.execute_script(AXE)
    found: dict[str, Any] = page.browser.execute_async_script(
        "const done = arguments[arguments.length - 1]; axe.run(document).then(done, (error) => done({ error: String(error) }));"
    )
    assert "error" not in found, found
    assert len(found["passes"]) > 15  # it has looked
    return [
        f"{rule['id']}: {rule['help']}: {', '.join(node['target'][0] for node in rule['nodes'][:5])}"
        for rule in found["violations"]
    ]


def set_scheme(page: Page, scheme: str) -> None:
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_keeps_every_rule_of_axe(page: Page, sample: Reference, scheme: str) -> None:
    set_scheme(page, scheme)
    page.open()
    page.wait_for(lambda: len(page.browser.find_elements(By.CSS_SELECTOR, "#samples button")) == 20)
    assert violations(page) == []
    page.draw(TWO)
    page.answer()
    page.find("#explain").click()
    page.wait_for(lambda: page.find("#map").is_displayed())
    page.browser.execute_script("document.getElementById('key-form').hidden = false")
    assert violations(page) == []  # with an answer, its map, the buttons to correct it, and the question for a key
    drop(page, picture(sure(sample, 3, 1, 4), sample.images[:3]))
    page.wait_for(lambda: len(page.browser.find_elements(By.CSS_SELECTOR, "#number .line")) == 2)
    page.digits()
    page.find("#digits button:nth-child(3)").click()
    page.wait_for(lambda: "it was a 2" in page.text("thanks"))
    assert violations(page) == []  # with boxes over a picture and several lines


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_interface_keeps_every_rule_of_axe(page: Page, scheme: str) -> None:
    set_scheme(page, scheme)
    page.browser.get(f"{page.service.client.base_url}/docs")
    page.wait_for(lambda: page.browser.find_elements(By.CSS_SELECTOR, ".opblock"))
    assert violations(page) == []


@pytest.mark.slow
def test_a_page_without_a_key_asks_for_one_and_goes_on_with_it(champion_files: Files, tmp_path: Path) -> None:
    registry, server = serve_registry()
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    engine = database.connect(f"sqlite:///{tmp_path}/digits.db")
    key = api_keys.create(engine, "page", ["predict", "feedback"])
    with serving(tmp_path, registry, DIGITS_AUTH="required") as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        browser = start(tmp_path / "chromium", *SIZES["desktop"])
        try:
            page = Page(browser, service)
            browser.get(str(service.client.base_url))
            page.wait_for(lambda: page.find("#key-form").is_displayed())
            assert "An API key is needed" in page.text("version")
            page.find("#key").send_keys("digits_wrong0")
            page.find("#key-form button").click()
            page.wait_for(lambda: "no valid API key" in page.text("version"))
            page.find("#key").clear()
            page.find("#key").send_keys(key)
            page.find("#key-form button").click()
            page.wait_for(lambda: "version 1" in page.text("version"))
            assert not page.find("#key-form").is_displayed()
            page.draw(TWO)
            answer = page.answer()
            page.find("#digits button:nth-child(3)").click()
            page.wait_for(lambda: "Noted: it was a 2" in page.text("thanks"))
            auditor = {"X-API-Key": api_keys.create(engine, "auditor", ["feedback"])}
            service.wait_for(lambda: service.client.get("/about", headers=auditor).status_code == 200)
            assert service.client.get(f"/predictions/{answer['id']}", headers=auditor).json()["label"] == 2
        finally:
            browser.quit()
    engine.dispose()
    server.shutdown()
    server.server_close()
