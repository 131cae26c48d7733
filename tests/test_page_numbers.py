"""The page reads whole numbers, in a real Chromium: boxes over the digits, each corrected in its place, copied, explained."""

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from serving import Service
from test_page import CHROMEDRIVER, CHROMIUM, TWO, ZERO, Page, start
from test_read import picture, sure

from digits.images import Images
from digits.reference import Reference

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="there is no chromium with chromedriver on the PATH"),
]
SIZES = {"desktop": (1300, 1000, False), "phone": (360, 900, True)}
TARGET = 44  # CSS pixels that a finger hits


@pytest.fixture(scope="module", params=SIZES)
def either(
    request: pytest.FixtureRequest, service: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    browser = start(tmp_path_factory.mktemp("chromium"), *SIZES[request.param])
    yield Page(browser, service)
    browser.quit()


@pytest.fixture(scope="module")
def desktop(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    browser = start(tmp_path_factory.mktemp("chromium"), *SIZES["desktop"])
    yield Page(browser, service)
    browser.quit()


@pytest.fixture
def page(desktop: Page) -> Page:
    desktop.open()
    return desktop


def boxes(page: Page) -> list[dict[str, float]]:
    """Left, top, width and height of each box in CSS pixels of the window."""
    found: list[dict[str, float]] = page.browser.execute_script(
        "return [...document.querySelectorAll('#boxes button')].map((box) => box.getBoundingClientRect().toJSON())"
    )
    return found


def press(page: Page, index: int) -> None:
    """Press the mouse in the middle of a box, which the next preview may be about to replace."""

    def pressed() -> bool:
        box = page.browser.find_elements(By.CSS_SELECTOR, "#boxes button")[index]
        with suppress(StaleElementReferenceException):
            ActionChains(page.browser, duration=10).move_to_element(box).click().perform()
            return True
        return False

    page.wait_for(pressed)


def drop(page: Page, content: bytes) -> None:
    """Drop a picture on the page."""
    page.browser.execute_script(
        """const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(arguments[0])], "number.png", { type: "image/png" }));
        document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));""",
        list(content),
    )


def dark_pixels(page: Page) -> int:
    """How many pixels of the canvas have ink."""
    count: int = page.browser.execute_script(
        "const canvas = document.getElementById('canvas');"
        "const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
        "return data.filter((value, index) => index % 4 === 0 && value < 60).length"
    )
    return count


def two_lines(sample: Reference) -> bytes:
    return picture(sure(sample, 3, 1, 4), sure(sample, 2, 7))


def draw_three(page: Page) -> list[dict[str, Any]]:
    for stroke, middle in ((TWO, 0.18), (ZERO, 0.5), (TWO, 0.82)):
        page.draw(stroke, middle=middle)
    digits = page.digits()
    page.wait_for(lambda: len(boxes(page)) == 3)
    return digits


def test_three_digits_drawn_side_by_side_are_read_and_the_correction_of_one_is_in_the_log(page: Page) -> None:
    digits = draw_three(page)
    assert len(digits) == 3 and len(page.readings()) == 1
    canvas = page.find("#canvas").rect
    middles = [(box["x"] + box["width"] / 2 - canvas["x"]) / canvas["width"] for box in boxes(page)]
    np.testing.assert_allclose(middles, [0.18, 0.5, 0.82], atol=0.05)
    press(page, 1)
    assert page.find("#boxes button:nth-child(2)").get_dom_attribute("aria-checked") == "true"
    assert page.text("which").startswith("Digit 2 of 3")
    ActionChains(page.browser).send_keys("7").perform()
    page.wait_for(lambda: page.text("thanks") == "Noted: it was a 7. Thank you.")
    assert [page.label(digit["id"]) for digit in digits] == [None, 7, None]
    window = page.service.window()
    assert window.labels[window.ids.index(digits[1]["id"])] == 7
    assert page.text("number")[1] == "7" and page.find("#boxes button:nth-child(2)").text == "7 ✓"
    assert page.text("tally").startswith("you judged 1")


def test_by_keyboard_a_digit_is_chosen_and_corrected(page: Page) -> None:
    digits = draw_three(page)
    page.find("#canvas").send_keys(Keys.TAB)
    page.browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    page.browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    focused = page.browser.switch_to.active_element
    chosen = page.find("#boxes [aria-checked=true]")
    assert focused == chosen
    position = int((chosen.get_dom_attribute("aria-label") or "").split()[1]) - 1
    focused.send_keys("5")
    page.wait_for(lambda: "it was a 5" in page.text("thanks"))
    assert page.label(digits[position]["id"]) == 5
    # it can go on from there
    assert page.browser.switch_to.active_element == page.find("#boxes [aria-checked=true]")


def test_a_digit_that_was_chosen_stays_chosen_when_the_final_answer_comes(page: Page) -> None:
    for stroke, middle in ((TWO, 0.18), (ZERO, 0.5), (TWO, 0.82)):
        page.draw(stroke, middle=middle)
    page.wait_for(lambda: len(boxes(page)) == 3)
    press(page, 1)
    page.digits()
    assert page.text("which").startswith("Digit 2 of 3")


def test_a_tap_on_a_box_chooses_and_a_stroke_through_it_draws(page: Page) -> None:
    draw_three(page)
    ink = dark_pixels(page)
    press(page, 2)
    assert page.text("which").startswith("Digit 3 of 3") and dark_pixels(page) == ink
    page.draw([(0.3, 0.5), (0.7, 0.5)], middle=0.5)
    assert dark_pixels(page) > ink


def test_the_boxes_stand_over_the_digits_of_a_picture_of_any_size(either: Page, sample: Reference) -> None:
    either.open()
    for scale in (2, 12):
        digits: Images = sure(sample, 3, 1, 4)
        drop(either, picture(digits, scale=scale))
        either.wait_for(lambda: len(boxes(either)) == 3 and either.find("#digits button").is_enabled())
        rect = either.browser.execute_script(
            "return document.getElementById('canvas').getBoundingClientRect().toJSON()"
        )
        pixel = rect["width"] / (3 * 28 + 20)  # of a digit's image; the paper around has 10
        for index, (box, image) in enumerate(zip(boxes(either), digits, strict=True)):
            columns, rows = (np.flatnonzero((image > 100).any(axis)) for axis in (0, 1))
            expected = (
                rect["x"] + pixel * (10 + 28 * index + (columns[0] + columns[-1] + 1) / 2),
                rect["y"] + pixel * (14 + (rows[0] + rows[-1] + 1) / 2),
            )
            middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            np.testing.assert_allclose(middle, expected, atol=2 * pixel)
            assert box["height"] >= pixel * (rows[-1] - rows[0])
        either.find("#clear").click()
        either.wait_for(lambda: not boxes(either))


def test_several_lines_are_shown_as_lines_and_copied_with_their_correction(page: Page, sample: Reference) -> None:
    page.browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    drop(page, two_lines(sample))
    digits = page.digits()
    assert len(digits) == 5
    lines = page.browser.find_elements(By.CSS_SELECTOR, "#number .line")
    assert [line.text.split()[0] for line in lines] == page.readings()[0]["text"].split("\n") == ["314", "27"]
    assert all("%" in line.text for line in lines) and page.text("message").startswith("2 lines, 5 digits")
    assert lines[0].rect["y"] + lines[0].rect["height"] <= lines[1].rect["y"] + 1
    press(page, 4)
    page.find("#digits button:nth-child(2)").click()
    page.wait_for(lambda: "it was a 1" in page.text("thanks"))
    assert page.label(digits[4]["id"]) == 1
    page.find("#copy").click()
    page.wait_for(lambda: page.text("copy") == "Copied")
    copied = page.browser.execute_async_script("navigator.clipboard.readText().then(arguments[0], arguments[0])")
    assert copied == "314\n21"


def test_a_number_of_the_session_is_shown_again_with_its_correction(page: Page, sample: Reference) -> None:
    drop(page, two_lines(sample))
    page.digits()
    press(page, 0)
    page.find("#digits button:nth-child(9)").click()
    page.wait_for(lambda: "it was an 8" in page.text("thanks"))
    page.browser.refresh()
    page.wait_for(lambda: page.browser.find_elements(By.CSS_SELECTOR, "#history button"))
    page.find("#history button").click()
    page.wait_for(lambda: len(boxes(page)) == 5)
    assert page.text("number").startswith("814") and page.find("#boxes button").text == "8 ✓"
    assert dark_pixels(page) > 200


def test_a_reading_of_a_picture_that_the_browser_cannot_decode_is_shown_again(page: Page, sample: Reference) -> None:
    drop(page, picture(sure(sample, 3, 1)))
    page.wait_for(lambda: page.text("number") == "31")
    page.browser.execute_script(
        "const readings = JSON.parse(sessionStorage.readings);"
        "readings.forEach((reading) => { delete reading.width; delete reading.height; });"
        "sessionStorage.readings = JSON.stringify(readings); location.reload()"
    )
    page.wait_for(
        lambda: page.browser.find_elements(By.CSS_SELECTOR, "#history button") and not page.text("number")[1:]
    )
    page.browser.find_element(By.CSS_SELECTOR, "#history button").click()
    page.wait_for(lambda: page.text("number") == "31")
    assert page.browser.execute_script("return document.getElementById('canvas').width") > 0
    assert boxes(page) == []


def test_a_picture_without_a_digit_is_refused_in_a_sentence(page: Page) -> None:
    buffer = io.BytesIO()
    Image.new("L", (300, 200), 240).save(buffer, "PNG")
    drop(page, buffer.getvalue())
    page.wait_for(lambda: "Looking" not in page.text("message") and "Write" not in page.text("message"))
    message = page.text("message")
    assert message[0].isupper() and message.endswith(".") and "blank" in message
    assert page.text("number") == "?" and not boxes(page) and not page.find("#copy").is_displayed()
    assert not page.find("#digits button").is_enabled() and not page.find("#explain").is_enabled()


def test_the_map_shows_which_pixels_spoke_for_the_answer(page: Page) -> None:
    page.draw(TWO)
    page.label(page.answer()["id"])  # waits until it is written
    before = len(page.service.window())
    page.find("#explain").click()
    page.wait_for(lambda: page.find("#map").is_displayed() and page.text("map-text"))
    assert "a 2" in page.text("map-text")
    pixels = page.browser.execute_script(
        "return [...document.getElementById('map').getContext('2d').getImageData(0, 0, 28, 28).data]"
    )
    colours = np.array(pixels).reshape(28, 28, 4)[..., :3]
    assert (colours[..., 0] != colours[..., 2]).sum() > 20  # more than grey ink
    page.find("#clear").click()
    assert not page.find("#map").is_displayed()
    assert len(page.service.window()) == before


def test_what_is_no_digit_or_left_out_is_said(page: Page, sample: Reference) -> None:
    drop(page, picture(sure(sample, 3, 1)))
    page.digits()

    def described(changes: str) -> dict[str, str]:
        script = f"""const done = arguments[arguments.length - 1];
        const reading = JSON.parse(sessionStorage.getItem("readings"))[0];
        const digits = reading.lines[0].digits;
        {changes}
        import("/page/reading.js").then((module) => done(module.describe(reading, 0.95)), (error) => done(String(error)));"""
        found: dict[str, str] = page.browser.execute_async_script(script)
        return found

    one = described(
        "reading.lines[0].text = '3'; digits.pop(); digits[0].is_digit = false; digits[0].uncertain = true;"
    )
    assert one["message"] == "That is no digit." and one["note"].startswith("It looks most like a 3")
    shown = page.browser.execute_async_script(
        """const done = arguments[arguments.length - 1];
        const reading = JSON.parse(sessionStorage.getItem("readings"))[0];
        Object.assign(reading.lines[0], { text: "3", digits: [{ ...reading.lines[0].digits[0], is_digit: false }] });
        import("/page/number.js").then((module) => done(module.show(reading)));"""
    )
    assert shown is None and page.text("number") == "?" and not page.find("#copy").is_displayed()
    many = described("digits[1].is_digit = false; reading.left_out = 2;")
    assert "not sure" in many["message"] and "marked with “?”" in many["note"]
    assert many["note"].endswith("2 pieces of ink were left out: they are no digits.")


def test_a_phone_has_a_camera_and_targets_that_a_finger_hits(either: Page, sample: Reference) -> None:
    either.open()
    either.wait_for(lambda: len(either.browser.find_elements(By.CSS_SELECTOR, "#samples button")) == 20)
    is_phone = either.browser.execute_script("return innerWidth") == 360
    camera = either.find("#camera")
    assert (camera.get_dom_attribute("capture"), camera.get_dom_attribute("accept")) == ("environment", "image/*")
    assert either.find(".camera").is_displayed() == is_phone
    drop(either, two_lines(sample))
    either.digits()
    small = [
        (target.text or target.get_dom_attribute("aria-label"), target.size)
        for target in either.browser.find_elements(By.CSS_SELECTOR, "button, .button, .choice label, input[type=range]")
        if target.is_displayed() and target.get_dom_attribute("role") != "radio"
        if min(target.size.values()) < TARGET - 0.5
    ]
    assert not small
    width = either.browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= either.browser.execute_script("return innerWidth")
    if is_phone:  # a finger beside a small box still finds the nearest
        box = boxes(either)[2]
        either.browser.execute_script("document.getElementById('canvas').scrollIntoView({ block: 'center' })")
        either.tap("#boxes button:nth-child(3)", lambda: either.text("which").startswith("Digit 3 of 5"))
        assert box["width"] < 360


def test_a_photo_is_taken_from_the_camera(page: Page, sample: Reference, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(two_lines(sample))
    page.find("#camera").send_keys(str(tmp_path / "photo.png"))
    assert len(page.digits()) == 5
