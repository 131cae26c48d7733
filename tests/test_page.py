"""The page as a person uses it, in a real Chromium: drawn on by mouse, finger and keys, answered, corrected, looked at on a phone."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.interaction import POINTER_TOUCH
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from serving import Service, png

from digits.reference import Reference

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SECONDS = 20

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="there is no chromium with chromedriver on the PATH"),
]

Stroke = list[tuple[float, float]]  # across and down, from 0 to 1

TWO: Stroke = [(0.33, 0.32), (0.4, 0.22), (0.52, 0.2), (0.62, 0.27), (0.64, 0.38), (0.58, 0.5), (0.45, 0.65), (0.32, 0.8), (0.5, 0.79), (0.7, 0.8)]  # fmt: skip
ZERO: Stroke = [
    (0.5 + 0.18 * float(np.cos(t)), 0.5 + 0.28 * float(np.sin(t))) for t in np.linspace(-np.pi / 2, 3 * np.pi / 2, 24)
]
FOUR: list[Stroke] = [
    [(0.5, 0.18), (0.44, 0.32), (0.36, 0.48), (0.32, 0.56), (0.46, 0.56), (0.66, 0.55)],
    [(0.6, 0.4), (0.58, 0.58), (0.56, 0.82)],
]


class Page:
    """The page in a browser, and what a person does with it."""

    def __init__(self, browser: Chrome, service: Service) -> None:
        self.browser, self.service = browser, service

    def open(self) -> None:
        self.browser.get(str(self.service.client.base_url))
        self.browser.execute_script("sessionStorage.clear()")
        self.browser.refresh()
        self.wait_for(lambda: "version 1" in self.text("version"))

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, id: str) -> str:
        return self.find(f"#{id}").text

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, (
                f"{self.text('number')}: {self.text('message')} {self.browser.get_log('browser')}"
            )
            time.sleep(0.05)

    def draw(self, *strokes: Stroke, middle: float = 0.5) -> None:
        """Draw in a square of the paper's height with its middle at this share of the paper's width."""
        canvas = self.find("#canvas")
        side, left = canvas.size["height"], (middle - 0.5) * canvas.size["width"]
        for stroke in strokes:
            chain = ActionChains(self.browser, duration=10)
            for index, (x, y) in enumerate(stroke):
                chain.move_to_element_with_offset(canvas, left + (x - 0.5) * side, (y - 0.5) * side)
                if index == 0:
                    chain.click_and_hold()
            chain.release().perform()

    def touch(self, stroke: Stroke) -> None:
        finger = PointerInput(POINTER_TOUCH, "finger")
        actions = ActionBuilder(self.browser, mouse=finger, duration=10)
        canvas = self.find("#canvas")
        side = canvas.size["height"]
        for index, (x, y) in enumerate(stroke):
            actions.pointer_action.move_to(canvas, int((x - 0.5) * side), int((y - 0.5) * side))
            if index == 0:
                actions.pointer_action.pointer_down()
        actions.pointer_action.pointer_up()
        actions.perform()

    def tap(self, selector: str, done: Callable[[], object]) -> None:
        """Again when nothing comes of it, as a person would: while the page moves, Chromium takes no tap for a click."""

        def tapped() -> bool:
            actions = ActionBuilder(self.browser, mouse=PointerInput(POINTER_TOUCH, "finger"))
            actions.pointer_action.move_to(self.find(selector)).pointer_down().pause(0.05).pointer_up()
            actions.perform()
            time.sleep(1)
            return bool(done())

        self.wait_for(tapped)

    def readings(self) -> list[dict[str, Any]]:
        """What the page remembers of this visit, newest first."""
        kept: str | None = self.browser.execute_script("return sessionStorage.getItem('readings')")
        return json.loads(kept) if kept else []

    def digits(self) -> list[dict[str, Any]]:
        """The digits that were read, once the reading is final and they can be corrected."""
        self.wait_for(lambda: self.find("#digits button").is_enabled())
        return [digit for line in self.readings()[0]["lines"] for digit in line["digits"]]

    def answer(self) -> dict[str, Any]:
        """The answer to a single digit."""
        (digit,) = self.digits()
        return digit

    def label(self, id: str) -> int | None:
        """What the log says it was."""
        label: int | None = self.service.client.get(f"/predictions/{id}").json()["label"]
        return label


def start(folder: Path, width: int, height: int, phone: bool = False, flags: tuple[str, ...] = ()) -> Chrome:
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, *flags, f"--user-data-dir={folder}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if phone:
        metrics = {"width": width, "height": height, "pixelRatio": 2, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    return Chrome(options=options, service=ChromeService(CHROMEDRIVER))


@pytest.fixture(scope="module")
def desktop(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    browser = start(tmp_path_factory.mktemp("chromium"), 1300, 1000)
    yield Page(browser, service)
    browser.quit()


@pytest.fixture(scope="module")
def handheld(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    browser = start(tmp_path_factory.mktemp("chromium"), 360, 900, phone=True)
    yield Page(browser, service)
    browser.quit()


@pytest.fixture
def page(desktop: Page) -> Page:
    desktop.open()
    return desktop


@pytest.fixture
def phone(handheld: Page) -> Page:
    handheld.open()
    return handheld


def test_a_digit_drawn_with_the_mouse_is_answered_and_its_correction_is_in_the_log(page: Page) -> None:
    page.draw(ZERO)
    answer = page.answer()
    assert page.text("number") == "0" and page.text("message").startswith("That is a 0 (9")
    assert re.match(r"All but 0( and \d)? are ruled out; that is right for 9", page.text("note"))
    bars = page.browser.find_elements(By.CSS_SELECTOR, "#bars li")
    assert len(bars) == 10 and "best" in (bars[0].get_dom_attribute("class") or "")
    seen = page.browser.execute_script(
        "return [...document.getElementById('seen').getContext('2d').getImageData(0, 0, 28, 28).data]"
    )
    logged = page.service.client.get(f"/predictions/{answer['id']}").json()
    assert np.array(seen).reshape(28, 28, 4)[..., 0].tolist() == logged["image"] == answer["image"]
    assert (logged["digit"], logged["label"]) == (0, None)
    page.find("#digits button:nth-child(8)").click()
    page.wait_for(lambda: page.text("thanks") == "Noted: it was a 7. Thank you.")
    assert page.label(answer["id"]) == 7
    page.find("#digits button:nth-child(1)").click()  # the last word counts
    page.wait_for(lambda: "it was a 0" in page.text("thanks"))
    assert page.label(answer["id"]) == 0
    assert page.text("tally") == "you judged 1, 1 was right"


def test_a_digit_drawn_by_touch_is_answered_and_corrected(phone: Page) -> None:
    phone.touch(TWO)
    answer = phone.answer()
    assert phone.text("number") == "2" and answer["digit"] == 2
    phone.tap("#digits button:nth-child(3)", lambda: "it was a 2" in phone.text("thanks"))
    assert phone.label(answer["id"]) == 2


def test_by_keyboard_alone_a_digit_is_drawn_and_corrected(page: Page) -> None:
    body = page.find("body")
    for _ in range(10):
        if page.browser.switch_to.active_element == page.find("#canvas"):
            break
        body.send_keys(Keys.TAB)
    assert page.find("#cursor").is_displayed()
    up, down, left, right = Keys.ARROW_UP, Keys.ARROW_DOWN, Keys.ARROW_LEFT, Keys.ARROW_RIGHT
    keys = [
        *[up] * 6,
        Keys.SPACE,
        *[right, down] * 3,
        *[down] * 6,
        *[left, down] * 3,
        *[left, up] * 3,
        *[up] * 6,
        *[right, up] * 3,
        Keys.SPACE,
    ]
    page.browser.switch_to.active_element.send_keys(*keys)
    answer = page.answer()
    assert page.text("number") == "0"
    page.browser.switch_to.active_element.send_keys("0")
    page.wait_for(lambda: "it was a 0" in page.text("thanks"))
    assert page.label(answer["id"]) == 0
    page.browser.switch_to.active_element.send_keys("e", Keys.DELETE)
    page.wait_for(lambda: page.text("number") == "?")
    assert page.find("input[value=eraser]").is_selected() and not page.find("#digits button").is_enabled()


def test_it_says_so_when_it_is_not_sure_and_names_what_it_may_be(page: Page) -> None:
    page.draw(*FOUR)
    answer = page.answer()
    assert answer["uncertain"] and "uncertain" in (page.find("#number").get_dom_attribute("class") or "")
    assert page.text("message").startswith(("I am not sure. It may be a 4", "I cannot tell. At best a 4"))
    marked = page.browser.find_elements(By.CSS_SELECTOR, "#bars li.possible .name")
    assert [int(name.text) for name in marked] == answer["prediction_set"] and len(marked) > 1


def test_more_strokes_of_one_drawing_replace_its_place_in_the_visit(page: Page) -> None:
    page.draw(FOUR[0])
    page.answer()
    page.draw(FOUR[1])
    page.wait_for(lambda: not page.find("#digits button").is_enabled())
    page.answer()
    assert len(page.readings()) == 1
    page.find("#clear").click()
    page.draw(TWO)
    page.answer()
    page.browser.refresh()
    page.wait_for(lambda: len(page.browser.find_elements(By.CSS_SELECTOR, "#history button")) == 2)
    page.browser.find_elements(By.CSS_SELECTOR, "#history button")[0].click()
    page.wait_for(lambda: page.text("number") == "2" and page.find("#digits button").is_enabled())


def test_an_empty_paper_is_no_digit(page: Page) -> None:
    assert page.text("number") == "?" and "Write" in page.text("message")
    page.draw([(0.2, 0.5), (0.8, 0.5)])
    page.find("input[value=eraser]").find_element(By.XPATH, "..").click()
    page.browser.execute_script("document.getElementById('size').value = 70")
    page.draw([(0.02, 0.5), (0.98, 0.5)])
    page.wait_for(lambda: "blank" in page.text("message"))
    assert page.text("number") == "?" and not page.find("#copy").is_displayed()


def test_a_press_without_a_movement_draws_a_dot(page: Page) -> None:
    page.draw([(0.5, 0.5)])
    dark = page.browser.execute_script(
        "const canvas = document.getElementById('canvas');"
        "return canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data[0]"
    )
    assert dark < 128


def test_a_sample_is_answered_from_its_pixels_and_not_logged(page: Page, sample: Reference) -> None:
    before = len(page.service.window())
    page.wait_for(lambda: len(page.browser.find_elements(By.CSS_SELECTOR, "#samples button")) == 20)
    page.find("#samples button:nth-child(4)").click()
    page.wait_for(lambda: page.text("message").endswith("Right: it is a 3."))
    assert page.text("number") == "3" and not page.find("#digits button").is_enabled()
    page.find("#samples button:nth-child(15)").click()
    page.wait_for(lambda: "not sure" in page.text("message") or "cannot tell" in page.text("message"))
    time.sleep(0.6)  # longer than the log's writer waits
    assert len(page.service.window()) == before and page.readings() == []


def test_a_picture_is_taken_from_a_file_and_from_the_clipboard(page: Page, sample: Reference, tmp_path: Path) -> None:
    index = int(np.flatnonzero((sample.labels == 6) & (sample.probabilities[:, 6] > 0.95))[0])
    large = Image.fromarray(255 - sample.images[index]).resize((300, 300), Image.Resampling.BICUBIC)
    large.save(tmp_path / "six.png")
    page.find("#file").send_keys(str(tmp_path / "six.png"))
    assert page.answer()["digit"] == 6 and page.text("number") == "6"
    page.find("#clear").click()
    page.browser.execute_script(
        """const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(arguments[0])], "six.png", { type: "image/png" }));
        document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer }));""",
        list(png(sample.images[index])),
    )
    assert page.answer()["digit"] == 6
    (tmp_path / "text.png").write_text("no picture")
    page.find("#file").send_keys(str(tmp_path / "text.png"))
    page.wait_for(lambda: "is no picture" in page.text("message"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(phone: Page, scheme: str) -> None:
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    phone.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    phone.open()
    width, inner = phone.browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner == 360
    for selector in ("#canvas", "#clear", "#number", "#digits button:nth-child(10)"):
        box = phone.find(selector).rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360, selector
        assert box["y"] + box["height"] < 900, selector  # all of it is seen while one draws
    ground = phone.browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = np.mean([int(value) for value in ground.removeprefix("rgb(").rstrip(")").split(",")])
    assert brightness > 200 if scheme == "light" else brightness < 60


def test_it_asks_no_other_host_and_reports_no_error(page: Page) -> None:
    page.browser.get_log("performance")
    page.browser.get_log("browser")
    page.open()
    page.draw(TWO)
    page.answer()
    page.browser.get(f"{page.service.client.base_url}/docs")
    deadline = time.monotonic() + SECONDS
    while not page.browser.find_elements(By.CSS_SELECTOR, ".opblock"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    events = [json.loads(entry["message"])["message"] for entry in page.browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    hosts = {urlsplit(url).netloc for url in asked if urlsplit(url).scheme in ("http", "https", "ws", "wss")}
    assert hosts == {urlsplit(str(page.service.client.base_url)).netloc} and len(asked) > 8
    complaints = [entry["message"] for entry in page.browser.get_log("browser")]
    assert [line for line in complaints if "422" not in line] == []  # a preview of half a digit may be refused


def test_the_service_away_is_said_and_comes_back(page: Page) -> None:
    page.browser.execute_cdp_cmd("Network.enable", {})
    conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    try:
        page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": True, **conditions})
        page.draw(TWO)
        page.wait_for(lambda: "does not answer" in page.text("message"))
    except WebDriverException as error:
        pytest.skip(f"this Chromium cannot be taken off the network: {error.msg}")
    finally:
        page.browser.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": False, **conditions})
    page.draw([(0.69, 0.8), (0.7, 0.8)])
    assert page.answer()["digit"] == 2
