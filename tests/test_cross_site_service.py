"""A page of another origin in a real Chromium tries `fetch`, a form and DNS rebinding on the service: nothing is answered, logged or labelled."""

import re
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome
from serving import Service, classify
from test_page import CHROMEDRIVER, CHROMIUM, start

from digits.reference import Reference

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="there is no chromium with chromedriver on the PATH"),
]

# Both names stand for this machine, as an attacker's DNS server can say.
NAMES = "--host-resolver-rules=MAP evil.example 127.0.0.1, MAP rebound.example 127.0.0.1"
# A browser asks for permission before it sends other types or headers to another origin.
FETCH = """
const [address, body, mode, type, done] = arguments;
fetch(address, { method: "POST", mode, headers: { "Content-Type": type }, body: new Uint8Array(body) })
    .then(async (response) => done([response.type, response.status, await response.text()]), (error) => done(["error", 0, `${error}`]));
"""
FORM = """
const [address, pixels, done] = arguments;
const form = document.createElement("form");
form.method = "POST";
form.enctype = "multipart/form-data";
form.action = address;
form.target = "answer";
const file = document.createElement("input");
file.type = "file";
file.name = "file";
const canvas = document.createElement("canvas");
canvas.width = canvas.height = 28;
canvas.getContext("2d").fillRect(12, 4, 4, 20);
const frame = document.createElement("iframe");
frame.name = "answer";
form.append(file);
document.body.append(form, frame);
canvas.toBlob((blob) => {
    const chosen = new DataTransfer();
    chosen.items.add(new File([blob], "digit.png", { type: "image/png" }));
    file.files = chosen.files;
    frame.onload = () => done("sent");
    form.submit();
});
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    browser = start(tmp_path_factory.mktemp("chromium"), 800, 600, flags=(NAMES,))
    browser.set_script_timeout(20)
    yield browser
    browser.quit()


def refused(service: Service, route: str, status: int) -> float:
    """How many requests to the route were refused with this status: that the browser did send them."""
    text = service.client.get("/metrics").text
    found = re.search(rf'^digits_requests_total{{route="{route}",status="{status}"}} (\S+)', text, re.M)
    return float(found[1]) if found else 0.0


def logged(service: Service, sample: Reference) -> int:
    """The number of logged predictions, all that were made before included, and one more."""
    service.client.get(f"/predictions/{classify(service, sample.images[0])['id']}")  # waits until it is written
    return len(service.window())


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1"])
def test_a_page_of_another_origin_is_not_answered(
    host: str, browser: Chrome, foreign_page: int, service: Service, sample: Reference
) -> None:
    """Neither one of another site nor one of another port of this machine."""
    before, address = logged(service, sample), str(service.client.base_url)
    counts = {route: refused(service, route, 403) for route in ("/classify_bulk", "/classify_file")}
    browser.get(f"http://{host}:{foreign_page}/")
    pixels = sample.images[0].flatten().tolist()
    # sent without asking for permission, but the page may not read the response
    browser.execute_async_script(FETCH, f"{address}/classify_bulk", pixels, "no-cors", "text/plain")
    assert browser.execute_async_script(FORM, f"{address}/classify_file", pixels) == "sent"
    for mode in ("cors", "no-cors"):
        kind, status, _ = browser.execute_async_script(FETCH, f"{address}/classify", pixels, mode, "application/json")
        assert (kind, status) in (("error", 0), ("opaque", 0))
    service.wait_for(lambda: refused(service, "/classify_file", 403) == counts["/classify_file"] + 1, 10)
    assert refused(service, "/classify_bulk", 403) == counts["/classify_bulk"] + 1
    assert logged(service, sample) == before + 1


def test_dns_rebinding_reaches_nothing(browser: Chrome, service: Service, sample: Reference) -> None:
    """To the browser, the attacker's page and the service are of one origin: it may send and read everything."""
    id, port = classify(service, sample.images[0])["id"], service.client.base_url.port
    before = logged(service, sample)
    browser.get(f"http://rebound.example:{port}/docs")
    word = f'{{"id": "{id}", "digit": 5, "source": "audit"}}'.encode()
    pixels = sample.images[0].tobytes()
    for path, body, kind in (
        ("/feedback", word, "application/json"),
        ("/withdraw", word, "application/json"),
        ("/classify_bulk", pixels, "application/octet-stream"),
    ):
        address = f"http://rebound.example:{port}{path}"
        _, status, text = browser.execute_async_script(FETCH, address, list(body), "cors", kind)
        assert status == 421 and "rebound.example" in text and "is not served here" in text
    assert service.client.get(f"/predictions/{id}").json()["label"] is None
    assert logged(service, sample) == before + 1


def test_the_page_and_the_interface_of_the_service_itself_go_on_working(
    browser: Chrome, service: Service, sample: Reference
) -> None:
    """Under each of its names; the tests of the page draw on it."""
    pixels = sample.images[0].flatten().tolist()
    for name in ("127.0.0.1", "localhost"):
        address = f"http://{name}:{service.client.base_url.port}"
        browser.get(f"{address}/docs")
        kind, status, _ = browser.execute_async_script(
            FETCH, f"{address}/classify_bulk", pixels, "cors", "application/octet-stream"
        )
        assert (kind, status) == ("basic", 200)
