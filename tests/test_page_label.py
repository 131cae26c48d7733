"""The page to label on, in a real Chromium: a hundred digits by keyboard, no digit, undo, skip, keys, a phone, and every rule of axe-core."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Files, Registry, serve_registry
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By
from serving import Service, serving
from test_page import CHROMEDRIVER, CHROMIUM, SECONDS, Page, start
from test_page_access import SIZES, set_scheme, violations

from digits.images import NO_DIGIT
from digits.reference import Reference
from digits.storage import api_keys, database, label_queue, labels, suspected_labels
from digits.storage.labels import AUDITOR
from digits.storage.suspected_labels import Suspect

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="there is no chromium with chromedriver on the PATH"),
]

PIXELS = "return [...document.getElementById('image').getContext('2d').getImageData(0, 0, 28, 28).data]"


@pytest.fixture(scope="module")
def registry(champion_files: Files) -> Iterator[Registry]:
    registry, server = serve_registry()
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    yield registry
    server.shutdown()
    server.server_close()


@pytest.fixture
def sampled(registry: Registry, tmp_path: Path) -> Iterator[Service]:
    """A service of its own, with all answers in the audit sample."""
    with serving(tmp_path, registry, DIGITS_AUDIT_SAMPLE_RATE="1", DIGITS_RETRAIN_LABELS="120") as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        yield service


@pytest.fixture(scope="module", params=SIZES)
def size(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def send(service: Service, sample: Reference, count: int, first: int = 0) -> list[str]:
    """The ids of answers to images of the sample, once they are in the database."""
    images = sample.images[first : first + count]
    answers = service.client.post("/classify", json={"images": images.tolist()}).json()["predictions"]
    ids = [answer["id"] for answer in answers]
    assert service.client.get(f"/predictions/{ids[-1]}").status_code == 200
    return ids


class LabelPage(Page):
    """The page to label on."""

    def open(self) -> None:
        self.browser.get(f"{self.service.client.base_url}/label")
        self.wait_for(lambda: self.find("#image").is_displayed())

    def wait_for(self, condition: object) -> None:
        assert callable(condition)
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{self.text('said')} {self.browser.get_log('browser')}"
            time.sleep(0.02)

    def shown(self, sample: Reference) -> int:
        """The index in the sample of the image that is shown: dark ink on white paper."""
        pixels = np.array(self.browser.execute_script(PIXELS), np.uint8).reshape(28, 28, 4)[..., 0]
        return int(np.flatnonzero((sample.images == 255 - pixels).all((1, 2)))[0])

    def press(self, *keys: str) -> None:
        self.find("body").send_keys(*keys)


@pytest.fixture
def page(sampled: Service, tmp_path: Path, size: str) -> Iterator[LabelPage]:
    browser = start(tmp_path / "chromium", *SIZES[size])
    yield LabelPage(browser, sampled)
    browser.quit()


@pytest.fixture
def desktop(sampled: Service, tmp_path: Path) -> Iterator[LabelPage]:
    browser = start(tmp_path / "chromium", *SIZES["desktop"])
    yield LabelPage(browser, sampled)
    browser.quit()


def test_a_hundred_digits_are_labelled_by_keyboard_alone_and_found_in_the_log(
    desktop: LabelPage, sample: Reference
) -> None:
    service = desktop.service
    ids = send(service, sample, 110)
    desktop.open()
    assert "110" in desktop.text("queues") and "0 of 50 audit labels" in desktop.text("audit-text")
    for _ in range(100):
        desktop.press(str(sample.labels[desktop.shown(sample)]))
    desktop.wait_for(lambda: service.client.get("/label_queue").json()["audit_labels"] == 100)
    window = service.window()
    labelled = [n for n, label in enumerate(window.labels) if label >= 0]
    assert len(labelled) == 100 and window.audited[labelled].all()
    for n in labelled:
        assert window.labels[n] == sample.labels[ids.index(window.ids[n])]
    assert "100 audit labels" in desktop.text("audit-text") and "100 of 120" in desktop.text("retrain-text")
    assert desktop.text("tally") == "100 by you"
    desktop.open()
    assert {desktop.shown(sample)} <= {ids.index(window.ids[n]) for n in range(110)} - {
        ids.index(window.ids[n]) for n in labelled
    }


def test_two_auditors_who_label_at_the_same_time_lose_no_label_and_count_none_twice(
    desktop: LabelPage, sample: Reference, tmp_path: Path
) -> None:
    service = desktop.service
    ids = send(service, sample, 40)
    other = LabelPage(start(tmp_path / "other", *SIZES["desktop"]), service)
    try:
        desktop.open()
        other.open()
        given: dict[int, set[int]] = {}
        while desktop.find("#image").is_displayed() or other.find("#image").is_displayed():
            for page, error in ((desktop, 0), (other, 1)):
                if page.find("#image").is_displayed():
                    index = page.shown(sample)
                    # On one image in eight they differ.
                    label = int(sample.labels[index] + error * (index % 8 == 0)) % 10
                    given.setdefault(index, set()).add(label)
                    page.press(str(label))
        for page in (desktop, other):
            page.wait_for(lambda page=page: "Nothing waits for a label" in page.text("empty"))
        progress = service.client.get("/label_queue").json()
        window = service.window()
        stored = {ids.index(id): int(label) for id, label in zip(window.ids, window.labels, strict=True)}
        assert set(given) == set(range(40)) and all(stored[index] in labels for index, labels in given.items())
        assert progress["audit_labels"] == progress["new_labels"] == 40 and progress["waiting"]["audit"] == 0
        for page in (desktop, other):
            page.wait_for(lambda page=page: "40 of 50 audit labels" in page.text("audit-text"))
            assert page.text("retrain-text").startswith("40 of 120")
    finally:
        other.browser.quit()


def test_an_auditor_is_told_that_somebody_else_gave_the_same_label_and_gets_what_remains(
    desktop: LabelPage, sample: Reference
) -> None:
    service = desktop.service
    ids = send(service, sample, 5)
    desktop.open()
    first = desktop.shown(sample)
    for index in {*range(5)} - {(first + 1) % 5}:
        service.client.post("/feedback", json={"id": ids[index], "digit": 7, "source": AUDITOR})
    assert "5 left" in desktop.text("reason")
    desktop.press("7")
    desktop.wait_for(lambda: "as somebody else did meanwhile" in desktop.text("said"))
    desktop.wait_for(lambda: "1 left" in desktop.text("reason"))
    assert desktop.text("audit-text").startswith("4 of 50") and desktop.text("retrain-text").startswith("4 of 120")
    desktop.press("u")  # nothing of this page's: what the other said stays
    desktop.wait_for(lambda: desktop.shown(sample) == first)
    assert service.client.get(f"/predictions/{ids[first]}").json()["label"] == 7


def test_no_digit_undo_and_skip(desktop: LabelPage, sample: Reference) -> None:
    service = desktop.service
    ids = send(service, sample, 3)
    desktop.open()
    first = desktop.shown(sample)
    desktop.press("7", "n")
    third = desktop.shown(sample)

    def label(index: int) -> tuple[int | None, bool | None]:
        stored = service.client.get(f"/predictions/{ids[index]}").json()
        return stored["label"], stored["label_is_digit"]

    desktop.wait_for(lambda: label(first) == (7, True))
    (second,) = {0, 1, 2} - {first, third}
    desktop.wait_for(lambda: label(second) == (None, False))
    desktop.press(Keys.BACKSPACE)
    assert desktop.shown(sample) == second
    desktop.wait_for(lambda: label(second) == (None, None))
    desktop.press(Keys.SPACE)
    assert desktop.shown(sample) == third
    desktop.press("s")
    desktop.wait_for(lambda: "You skipped 2" in desktop.text("empty"))
    desktop.press("u")
    assert desktop.shown(sample) == third
    desktop.press("u", "u")  # the skipped one, then the first label
    assert desktop.shown(sample) == first
    desktop.wait_for(lambda: label(first) == (None, None))
    assert not desktop.find("#undo").is_enabled()


def test_what_a_failing_service_does_not_take_stays_on_the_page(desktop: LabelPage, sample: Reference) -> None:
    """A proxy's error is JSON of another form. Labels that follow must be sent, and a label that stays must be shown."""
    service, browser = desktop.service, desktop.browser
    ids = send(service, sample, 3)
    desktop.open()
    first = desktop.shown(sample)
    desktop.press("7")
    desktop.wait_for(lambda: service.client.get(f"/predictions/{ids[first]}").json()["label"] == 7)
    second = desktop.shown(sample)
    browser.execute_script(
        "window.working = window.fetch; window.fetch = async () => new Response('{}', { status: 502 });"
    )
    desktop.press("u")
    desktop.wait_for(lambda: "the service answers 502" in desktop.text("said"))
    assert desktop.shown(sample) == second and desktop.text("tally") == "1 by you"
    browser.execute_script("document.querySelector('#queues input[value=uncertain]').click()")
    desktop.wait_for(lambda: "out of order" in desktop.text("said"))
    browser.execute_script("window.fetch = window.working; document.querySelector('#queues input[value=all]').click()")
    desktop.wait_for(lambda: desktop.find("#image").is_displayed())
    shown = desktop.shown(sample)
    desktop.press("4")
    desktop.wait_for(lambda: service.client.get(f"/predictions/{ids[shown]}").json()["label"] == 4)
    desktop.press("u", "u")
    desktop.wait_for(lambda: service.client.get("/label_queue").json()["waiting"]["audit"] == 3)


def test_keys_can_be_switched_off_and_space_skips_after_a_queue_was_chosen(
    desktop: LabelPage, sample: Reference
) -> None:
    send(desktop.service, sample, 3)
    desktop.open()
    desktop.find("#queues input[value=audit]").send_keys(Keys.SPACE)
    desktop.wait_for(lambda: desktop.find("#image").is_displayed())
    first = desktop.shown(sample)
    desktop.browser.switch_to.active_element.send_keys(Keys.SPACE)
    second = desktop.shown(sample)
    assert second != first
    desktop.find("summary").click()
    desktop.find("#shortcuts").click()
    desktop.press("7", "s", "n", Keys.SPACE)
    assert desktop.shown(sample) == second and desktop.text("tally") == ""
    desktop.find("#shortcuts").click()
    desktop.press("7")
    assert desktop.text("tally") == "1 by you"


def test_after_a_click_space_does_not_label_the_next_image(desktop: LabelPage, sample: Reference) -> None:
    ids = send(desktop.service, sample, 3)
    desktop.open()
    first = desktop.shown(sample)
    desktop.find("#digits button:nth-child(5)").click()
    desktop.press(Keys.SPACE)
    desktop.wait_for(lambda: desktop.service.client.get("/label_queue").json()["audit_labels"] == 1)
    window = desktop.service.window()
    assert [(id, int(label)) for id, label in zip(window.ids, window.labels, strict=True) if label >= 0] == [
        (ids[first], 4)
    ]


def test_a_training_image_is_decided_on_and_the_models_answer_is_nowhere(desktop: LabelPage, sample: Reference) -> None:
    engine = database.connect(f"sqlite:///{desktop.service.home}/digits.db")
    suspected_labels.replace(engine, "0" * 16, [Suspect(sample.images[5].tobytes(), 4, 9, 0.01)])
    send(desktop.service, sample, 2)
    desktop.open()
    assert desktop.text("reason").startswith("Audit sample")
    desktop.find("#queues input[value=suspected]").send_keys(Keys.SPACE)
    desktop.wait_for(lambda: "Suspected wrong labels" in desktop.text("reason"))
    assert desktop.shown(sample) == 5
    queue = desktop.service.client.get("/label_queue").json()
    assert all(set(image) == {"id", "queue", "image"} for image in queue["images"])
    desktop.browser.switch_to.active_element.send_keys("9")
    desktop.wait_for(lambda: suspected_labels.corrections(engine) == {sample.images[5].tobytes(): 9})
    desktop.wait_for(lambda: "Nothing waits in this queue" in desktop.text("empty"))
    engine.dispose()


def test_a_training_image_that_the_next_check_no_longer_suspects_goes(desktop: LabelPage, sample: Reference) -> None:
    engine = database.connect(f"sqlite:///{desktop.service.home}/digits.db")
    suspects = [Suspect(sample.images[n].tobytes(), 4, 9, 0.01 * n) for n in (5, 6)]
    suspected_labels.replace(engine, "0" * 16, suspects)
    desktop.open()
    shown = desktop.shown(sample)
    suspected_labels.replace(engine, "1" * 16, [one for one in suspects if one.image != sample.images[shown].tobytes()])
    desktop.press("9")
    desktop.wait_for(lambda: "Not stored: " in desktop.text("said"))
    desktop.wait_for(lambda: desktop.shown(sample) == 11 - shown)
    desktop.press("3")
    desktop.wait_for(lambda: suspected_labels.corrections(engine) == {sample.images[11 - shown].tobytes(): 3})
    engine.dispose()


def test_pages_lead_to_each_other(desktop: LabelPage, sample: Reference) -> None:
    send(desktop.service, sample, 1)
    desktop.open()
    desktop.find("nav a").click()
    desktop.wait_for(lambda: desktop.browser.find_elements(By.ID, "canvas"))
    desktop.find("footer a[href='/label']").click()
    desktop.wait_for(lambda: desktop.browser.find_elements(By.ID, "image"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_keeps_every_rule_of_axe(page: LabelPage, sample: Reference, size: str, scheme: str) -> None:
    send(page.service, sample, 5)
    set_scheme(page, scheme)
    page.open()
    assert violations(page) == []
    page.press("3", "n")
    page.browser.execute_script("document.getElementById('key-form').hidden = false")
    page.wait_for(lambda: len(page.browser.find_elements(By.CSS_SELECTOR, "#history li")) == 2)
    assert violations(page) == []  # with labels and the question for a key
    page.browser.execute_script("document.getElementById('key-form').hidden = true")
    width, inner = page.browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner
    if size == "phone":
        for selector in ("#image", "#digits button:nth-child(10)", "#none", "#undo", "#skip"):
            box = page.find(selector).rect
            assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["height"] >= 44, selector
            assert box["y"] + box["height"] < 640, selector  # on a small phone, too
        seen = page.shown(sample)
        page.tap("#skip", lambda: page.shown(sample) != seen)
    page.press("1", "1", "1")
    page.wait_for(lambda: page.find("#empty").is_displayed())
    assert violations(page) == []


@pytest.mark.slow
def test_a_key_needs_the_role_and_an_auditor_is_told_from_others(
    registry: Registry, sample: Reference, tmp_path: Path
) -> None:
    engine = database.connect(f"sqlite:///{tmp_path}/digits.db")
    names = {"page": ["predict"], "nurse": ["predict", "feedback"], "audit": ["predict", "feedback"]}
    keys = {name: api_keys.create(engine, name, roles) for name, roles in names.items()}
    settings = {"DIGITS_AUTH": "required", "DIGITS_AUDIT_SAMPLE_RATE": "1"}
    with serving(tmp_path, registry, **settings) as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        header = {"X-API-Key": keys["audit"]}
        body = {"images": sample.images[:3].tolist()}
        service.wait_for(lambda: service.client.post("/classify", json=body, headers=header).status_code == 200)
        clear = int(np.argmax(sample.probabilities.max(axis=1)))
        body = {"images": sample.images[clear].tolist()}
        sure = service.client.post("/classify", json=body, headers={"X-API-Key": keys["nurse"]}).json()
        assert service.client.get(f"/predictions/{sure['id']}", headers=header).status_code == 200
        label_queue.replace_disagreements(engine, "2", [sure["id"]])
        seen = service.client.get("/label_queue", headers={"X-API-Key": keys["nurse"]}).json()
        assert not seen["is_auditor"] and [one["id"] for one in seen["images"]] == [sure["id"]]  # none of others
        assert len(service.client.get("/label_queue", headers=header).json()["images"]) == 4
        browser = start(tmp_path / "chromium", *SIZES["desktop"])
        try:
            page = LabelPage(browser, service)
            browser.get(f"{service.client.base_url}/label")
            page.wait_for(lambda: page.find("#key-form").is_displayed())
            enter(page, keys["page"])
            page.wait_for(lambda: "needs the role feedback" in page.text("said"))
            enter(page, keys["nurse"])
            page.wait_for(lambda: "not the one named audit" in page.text("standing"))
            assert not page.find("#queues [data-queue=audit]").is_displayed()
            page.find("#queues input[value=disagreement]").send_keys(Keys.SPACE)
            page.wait_for(lambda: page.find("#image").is_displayed() and page.shown(sample) == clear)
            page.press("6")
            page.wait_for(lambda: set(labels.times(engine, "nurse")) == {sure["id"]})
            browser.execute_script("document.getElementById('key-form').hidden = false")
            enter(page, keys["audit"])
            page.wait_for(lambda: "as an auditor" in page.text("standing"))
            page.find("#queues input[value=audit]").send_keys(Keys.SPACE)
            page.wait_for(lambda: page.find("#image").is_displayed())
            page.press("n")
            page.wait_for(lambda: len(labels.times(engine, AUDITOR)) == 1)
            with engine.connect() as connection:
                rows = connection.execute(labels.current()).all()
            assert {(row.label, row.source) for row in rows} == {(6, "nurse"), (NO_DIGIT, AUDITOR)}
        finally:
            browser.quit()
    engine.dispose()


def enter(page: Page, key: str) -> None:
    page.wait_for(lambda: page.find("#key").is_displayed())
    page.find("#key").clear()
    page.find("#key").send_keys(key)
    page.find("#key-form button").click()
