"""Our links open what they name in MLflow's UI: the runs with the figures that compare them, a run, and a version with its model card."""

from collections.abc import Iterator

import pytest
from conftest import Runs, wait_for
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from test_page import CHROMEDRIVER, CHROMIUM, start

from digits.settings import Settings
from models import runs, saved_view
from models.registry import RegistryWriter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="there is no chromium with chromedriver on the PATH"),
]


@pytest.fixture(scope="module")
def writer(trained_runs: Runs) -> RegistryWriter:
    return RegistryWriter(trained_runs.uri)


@pytest.fixture(scope="module")
def settings(trained_runs: Runs) -> Settings:
    return Settings(home=trained_runs.home, mlflow_tracking_uri=trained_runs.uri)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    browser = start(tmp_path_factory.mktemp("browser"), 1600, 1000)
    yield browser
    browser.quit()


def shown(browser: Chrome, *texts: str) -> None:
    """Wait until the page shows all texts, and says that it is about training models."""

    def text() -> str:
        found: str = browser.execute_script("return document.body.innerText")
        return found

    wait_for(lambda: all(one in text() for one in (*texts, "Model registry")))
    assert "AI Gateway" not in text()


def columns(browser: Chrome) -> set[str]:
    found = browser.execute_script(
        "return [...document.querySelectorAll('[role=columnheader]')].map(cell => cell.innerText)"
    )
    return set(found)


def test_the_experiment_opens_on_its_runs(browser: Chrome, settings: Settings, writer: RegistryWriter) -> None:
    browser.get(settings.experiment_url(writer.experiment_id))
    shown(browser, "Runs", "sigmoid", "bundled-train")


def test_the_saved_view_shows_the_figures_and_charts_that_compare_recipes(
    browser: Chrome, settings: Settings, writer: RegistryWriter
) -> None:
    url = f"{settings.experiment_url(writer.experiment_id)}&viewStateShareKey={saved_view.KEY}"
    browser.get(url)
    shown(browser, saved_view.NAME, "Sort: test_accuracy")
    wait_for(lambda: {"test_accuracy", "corruption_accuracy", "parameters"} <= columns(browser))
    assert "Dataset" not in columns(browser)
    browser.get("about:blank")
    browser.get(f"{url}&compareRunsMode=CHART")
    shown(browser, "Recipes\n(3)", "test_accuracy", "corruption_accuracy", "val_accuracy")


def test_a_run_opens_with_its_metrics_and_data(
    browser: Chrome, settings: Settings, writer: RegistryWriter, trained_runs: Runs
) -> None:
    run = runs.find(writer, trained_runs.first)
    browser.get(settings.run_url(writer.experiment_id, run.id))
    shown(browser, "train_loss", "val_accuracy", "bundled-train", "Finished")


def test_the_comparison_opens_with_the_runs_that_it_names(
    browser: Chrome, settings: Settings, writer: RegistryWriter, trained_runs: Runs
) -> None:
    compared = [runs.find(writer, version) for version in (trained_runs.first, trained_runs.other_seed)]
    browser.get(settings.compare_url(writer.experiment_id, [run.id for run in compared]))
    shown(browser, "Comparing 2 Runs from 1 Experiment", *(run.id for run in compared), "corruption_accuracy")


def test_a_version_opens_with_its_model_card(browser: Chrome, settings: Settings, trained_runs: Runs) -> None:
    browser.get(settings.version_url(trained_runs.first))
    shown(browser, f"digits v{trained_runs.first}", "expected calibration error", "Schema")
    assert "Per digit" in {title.text for title in browser.find_elements(By.TAG_NAME, "h2")}
    rows = browser.find_elements(By.XPATH, "//h2[.='Per digit']/following-sibling::table[1]//tbody/tr")
    assert [row.text.split()[0] for row in rows] == list("0123456789")


def test_the_view_of_a_person_is_kept(writer: RegistryWriter) -> None:
    own = saved_view.content().replace(saved_view.NAME, "mine")
    writer.client.set_experiment_tag(writer.experiment_id, saved_view.TAG, own)
    RegistryWriter(writer.uri)
    assert writer.client.get_experiment(writer.experiment_id).tags[saved_view.TAG] == own
    writer.client.set_experiment_tag(writer.experiment_id, saved_view.TAG, saved_view.content())
