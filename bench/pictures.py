"""The pictures in docs/, taken in Chromium: of the page while digits are drawn on it, of MLflow, and of two platforms and their pages.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.pictures page --recipe augmented
    python -m bench.pictures tutorial
    DIGITS_MNIST=/path/to/mnist.npz python -m bench.pictures mlflow
    DIGITS_MNIST=/path/to/mnist.npz python -m bench.pictures platform

`page` writes docs/page.png (1300 pixels wide, light) and docs/page-phone.png (dark); `mlflow` trains the recipes of
the five projects for five epochs at most and writes docs/mlflow.png; `tutorial` goes the long way of the tutorial on the bundled
digits and writes docs/first-*.png, which show each page before any traffic, docs/compare.png and docs/approve.png; `platform` runs
`digits demo` and writes docs/label.png, docs/drift.png, docs/dashboard.png, docs/prefect.png and docs/card.png. Needs Debian's
chromium and chromium-driver.
"""

import argparse
import io
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from bench import harness, loop
from digits.settings import load_settings, local_url
from models import recipes, saved_view
from models.registry_reader import MODEL_NAME, RegistryReader
from models.training import Recipe

DOCS = Path(__file__).parent.parent / "docs"
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

SEED_RECIPES = ("kaggle-sgd", "classic", "adam", "compact", "sigmoid")
MAX_EPOCHS = 5
# Of a picture; pages have few colours, and a palette takes a third of the bytes.
MAX_COLOURS = 128

Stroke = list[tuple[float, float]]  # through these points, across and down, from 0 to 1

NINE: list[Stroke] = [[(0.63, 0.3), (0.5, 0.2), (0.37, 0.31), (0.44, 0.46), (0.6, 0.4), (0.63, 0.29), (0.62, 0.52), (0.57, 0.8)]]  # fmt: skip
FOUR: list[Stroke] = [[(0.46, 0.16), (0.38, 0.36), (0.3, 0.54), (0.5, 0.53), (0.72, 0.52)], [(0.62, 0.36), (0.59, 0.6), (0.57, 0.84)]]  # fmt: skip
SEVEN: list[Stroke] = [[(0.3, 0.24), (0.5, 0.22), (0.68, 0.21), (0.58, 0.45), (0.46, 0.82)]]
THREE: list[Stroke] = [[(0.36, 0.26), (0.5, 0.17), (0.63, 0.28), (0.57, 0.43), (0.46, 0.47), (0.61, 0.54), (0.66, 0.69), (0.53, 0.83), (0.35, 0.77)]]  # fmt: skip
TWO: list[Stroke] = [[(0.34, 0.33), (0.4, 0.21), (0.53, 0.17), (0.63, 0.28), (0.58, 0.46), (0.45, 0.64), (0.32, 0.79), (0.5, 0.77), (0.69, 0.79)]]  # fmt: skip


def main() -> None:
    """Take the pictures of the page, of MLflow, of the tutorial or of the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("page", "mlflow", "tutorial", "platform"))
    parser.add_argument("--recipe", default="compact", choices=recipes.RECIPES)
    arguments = parser.parse_args()
    if arguments.what == "page":
        photograph_page(recipes.find(arguments.recipe))
    elif arguments.what == "mlflow":
        photograph_mlflow()
    elif arguments.what == "tutorial":
        photograph_tutorial()
    else:
        photograph_platform()


def photograph_page(recipe: Recipe) -> None:
    """Train, serve, draw, and take the pictures."""
    with harness.home() as settings, harness.mlflow(settings):
        harness.register(settings, recipe, harness.data())
        with harness.service(settings):
            with page(settings.service_url, 1300, 950, 1, "light") as browser:
                use_page(browser, NINE, FOUR, SEVEN, TWO)
                save_screenshot(browser, "page.png")
            with page(settings.service_url, 412, 915, 2, "dark") as browser:
                use_page(browser, NINE, THREE, FOUR)
                save_screenshot(browser, "page-phone.png")


def photograph_mlflow() -> None:
    """The saved view that compares recipes."""
    with harness.home() as settings, harness.mlflow(settings):
        for name in SEED_RECIPES:
            recipe = recipes.find(name)
            short = recipe.model_copy(update={"epochs": min(recipe.epochs, MAX_EPOCHS)})
            harness.register(settings, short, harness.data())
        experiment = RegistryReader(settings.registry_uri).experiment_id()
        view = f"&viewStateShareKey={saved_view.KEY}&compareRunsMode=CHART"
        # The browser keeps the login; a page whose own address holds one may not fetch anything.
        with page(settings.registry_uri, 1300, 800, 1, "light") as browser:
            browser.get(f"{settings.experiment_url(str(experiment))}{view}")
            WebDriverWait(browser, 60).until(lambda page: page.find_elements(By.CLASS_NAME, "barlayer"))
            time.sleep(8)
            # MLflow's assistant, and the note that the view is shared.
            for button in browser.find_elements(By.XPATH, "//button[@aria-label='Close']"):
                browser.execute_script("arguments[0].click()", button)
            time.sleep(4)
            save_screenshot(browser, "mlflow.png")


def photograph_tutorial() -> None:
    """The long way of the tutorial, where a person is asked before a promotion."""
    own = {"DIGITS_RETRAIN_LABELS": "200"}
    with (
        tempfile.TemporaryDirectory(prefix="digits-pictures-") as folder,
        loop.running_platform(Path(folder), "compact", "bundled", 1, "ask", own) as platform,
    ):
        photograph_first_sight(platform)
        print(platform.run("train", "--recipe", "classic"), platform.run("leaderboard"), flush=True)
        photograph_compare(platform)
        population, since = loop.changed(loop.divide("bundled", 300).traffic), datetime.now(UTC)
        platform.send(population, 300, seed=1)
        platform.label(population, since)
        print(platform.run("monitor", "--since", since.isoformat()), flush=True)
        platform.wait("a run that asks for approval", platform.waiting_runs)
        photograph_approval(platform)


def photograph_first_sight(platform: loop.Platform) -> None:
    """Each page after `digits up`, before any traffic."""
    settings, registry = platform.settings, RegistryReader(platform.settings.registry_uri)
    with page(f"{settings.service_url}/label", 1300, 830, 1, "light") as browser:
        save_screenshot(browser, "first-label.png")
    with page(dashboard_url(platform), 1300, 500, 1, "light") as browser:
        time.sleep(8)
        save_screenshot(browser, "first-dashboard.png")
    with prefect_page(platform, "/deployments", 800) as browser:
        save_screenshot(browser, "first-prefect.png")
    with mlflow_page(platform, settings.experiment_url(str(registry.experiment_id())), 500) as browser:
        save_screenshot(browser, "first-runs.png")
    with mlflow_page(platform, settings.version_url(platform.version()), 800) as browser:
        save_screenshot(browser, "first-card.png")


def photograph_compare(platform: loop.Platform) -> None:
    """MLflow's comparison of the runs of two versions: where they differ, without the charts above."""
    from models.registry import RegistryWriter  # MLflow takes 4 s to import

    registry = RegistryWriter(platform.settings.registry_uri)
    runs = [registry.client.get_model_version(MODEL_NAME, version).run_id for version in ("1", "2")]
    with mlflow_page(platform, platform.settings.compare_url(registry.experiment_id, runs), 1020) as browser:
        for closed in ("Visualizations", "Run details"):
            wait_for(browser, f"//*[@role='button'][contains(., '{closed}')]").click()
        for table in ("Parameters", "Metrics"):
            wait_for(browser, f"//button[@aria-label='{table} - Show diff only']").click()
        time.sleep(2)
        save_screenshot(browser, "compare.png")


def photograph_approval(platform: loop.Platform) -> None:
    """The form of the run that asks whether the new version becomes the champion."""
    (run,) = platform.waiting_runs()
    with prefect_page(platform, f"/runs/flow-run/{run['id']}", 1000) as browser:
        wait_for(browser, "//button[contains(., 'Resume')]").click()
        wait_for(browser, "//*[@role='dialog']//button")
        time.sleep(2)
        save_screenshot(browser, "approve.png")


def photograph_platform() -> None:
    """A platform on which `digits demo` has told its story."""
    mnist = load_settings().mnist
    with tempfile.TemporaryDirectory(prefix="digits-pictures-") as folder:
        home, source = Path(folder), "mnist" if mnist else "bundled"
        # An event that retrains meanwhile is another story.
        own = {"DIGITS_RETRAIN_COOLDOWN_HOURS": "12", "DIGITS_RETRAIN_LABELS": "200", "DIGITS_MNIST": str(mnist or "")}
        with loop.running_platform(home, "compact", source, 0.02, "automatic", own) as platform:
            print(platform.run("demo"), flush=True)
            photograph_service(platform)
            photograph_evidently(platform)
            photograph_prefect(platform)
            photograph_card(platform)


def photograph_service(platform: loop.Platform) -> None:
    """The page on which answers are labelled."""
    with page(f"{platform.settings.service_url}/label", 1300, 830, 1, "light") as browser:
        time.sleep(2)
        save_screenshot(browser, "label.png")


def photograph_evidently(platform: loop.Platform) -> None:
    """The report of the changed handwriting, and the dashboard."""
    found = sorted((platform.home / "reports").glob("*--*/verdict.json"))
    drifted = next(path for path in found if json.loads(path.read_bytes())["drift"]["verdict"] == "drift")
    with page(drifted.with_name("report.html").as_uri(), 1300, 1000, 1, "light") as browser:
        time.sleep(8)
        save_screenshot(browser, "drift.png")
    with page(dashboard_url(platform), 1300, 1100, 1, "light") as browser:
        time.sleep(8)
        save_screenshot(browser, "dashboard.png")


def dashboard_url(platform: loop.Platform) -> str:
    """Evidently's dashboard of the platform."""
    from monitoring import dashboard  # Evidently takes 7 s to import

    _, project = dashboard.open_project(platform.settings.workspace)
    return f"{local_url(platform.settings.private_host, platform.settings.reports_port)}/projects/{project.id}"


def photograph_prefect(platform: loop.Platform) -> None:
    """The runs of all flows."""
    with prefect_page(platform, "/runs", 950) as browser:
        save_screenshot(browser, "prefect.png")


def photograph_card(platform: loop.Platform) -> None:
    """The model card of the champion in MLflow."""
    with mlflow_page(platform, platform.settings.version_url(platform.version()), 1150) as browser:
        save_screenshot(browser, "card.png")


@contextmanager
def prefect_page(platform: loop.Platform, path: str, height: int) -> Iterator[Chrome]:
    """A page of Prefect's UI after the login."""
    url = platform.settings.prefect_api_url.removesuffix("/api")
    with page(f"{url}/runs", 1300, height, 1, "light") as browser:
        wait_for(browser, "//input").send_keys(platform.prefect_login, Keys.ENTER)
        time.sleep(6)
        # The messages of the time before the login go.
        browser.get(f"{url}{path}")
        browser.refresh()
        time.sleep(10)
        yield browser


def wait_for(browser: Chrome, path: str) -> WebElement:
    """The first element of this XPath, as soon as it is there."""
    return WebDriverWait(browser, 60).until(lambda page: page.find_element(By.XPATH, path))


@contextmanager
def mlflow_page(platform: loop.Platform, url: str, height: int) -> Iterator[Chrome]:
    """A page of MLflow's UI, without its assistant."""
    # The browser keeps the login; a page whose own address holds one may not fetch anything.
    with page(platform.settings.registry_uri, 1300, height, 1, "light") as browser:
        browser.get(url)
        time.sleep(8)
        for button in browser.find_elements(By.XPATH, "//button[@aria-label='Close']"):
            browser.execute_script("arguments[0].click()", button)
        time.sleep(2)
        yield browser


@contextmanager
def page(url: str, width: int, height: int, ratio: int, scheme: str) -> Iterator[Chrome]:
    """The page in a browser of this size."""
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with tempfile.TemporaryDirectory() as folder:
        for flag in (*FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        if ratio > 1:
            metrics = {"width": width, "height": height, "pixelRatio": ratio, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        browser = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
        try:
            if ratio == 1:
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
            browser.get(url)
            time.sleep(2)
            yield browser
        finally:
            browser.quit()


def use_page(browser: Chrome, first: list[Stroke], *number: list[Stroke]) -> None:
    """Draw a digit and confirm the answer, then a number, of which the first digit is explained."""
    draw(browser, first, 0.5)
    time.sleep(2.5)
    answered = browser.find_element(By.ID, "number").text
    browser.find_element(By.CSS_SELECTOR, f"#digits button:nth-child({int(answered) + 1})").click()
    time.sleep(0.5)
    browser.find_element(By.ID, "clear").click()
    for index, digit in enumerate(number):
        draw(browser, digit, (index + 0.5) / len(number))
    time.sleep(2.5)
    browser.find_element(By.ID, "explain").click()
    time.sleep(1)


def draw(browser: Chrome, strokes: list[Stroke], middle: float) -> None:
    """Draw in a square of the paper's height with its middle at this share of the paper's width."""
    canvas = browser.find_element(By.ID, "canvas")
    side, left = canvas.size["height"], (middle - 0.5) * canvas.size["width"]
    for stroke in strokes:
        chain = ActionChains(browser, duration=8)
        for index, (x, y) in enumerate(curve(stroke)):
            chain.move_to_element_with_offset(canvas, left + (x - 0.5) * side, (y - 0.5) * side)
            if index == 0:
                chain.click_and_hold()
        chain.release().perform()


def curve(points: Stroke, steps: int = 8) -> Stroke:
    """A smooth line through the points: Catmull and Rom's spline."""
    ends = [points[0], *points, points[-1]]
    before, begin, end, after = (np.array(ends[shift : len(points) - 1 + shift])[:, None] for shift in range(4))
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    line = begin + t / 2 * (
        (end - before) + t * (2 * before - 5 * begin + 4 * end - after + t * (3 * (begin - end) + after - before))
    )
    return [*map(tuple, line.reshape(-1, 2).tolist()), points[-1]]


def save_screenshot(browser: Chrome, name: str) -> None:
    browser.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    time.sleep(0.5)
    picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    picture.quantize(MAX_COLOURS, dither=Image.Dither.NONE).save(DOCS / name, optimize=True)
    print(f"docs/{name}", flush=True)


if __name__ == "__main__":
    main()
