import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monitored import START, held_out, reference, window

from digits.data import perturbations
from digits.images import NO_DIGIT
from monitoring import accuracy, dashboard, reports, samples
from monitoring.image_statistics import STATISTICS, Statistic

ROOT = Path(__file__).parent.parent
PANELS = dashboard.panels()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("reports")


def written(home: Path, name: str, traffic: Any) -> tuple[reports.MonitoringVerdict, Path]:
    return reports.write(home / name, home / "workspace", reference(), traffic)


def run_of(report: Path) -> str:
    """The id of the report's run in the workspace."""
    return report.with_name("workspace_run").read_text()


@pytest.fixture(scope="module")
def drifted(home: Path) -> tuple[reports.MonitoringVerdict, Path]:
    images, labels = held_out()
    return written(home, "drifted", window(perturbations.shift(images[:300], 2), labels[:300]))


def test_the_verdict_file_says_everything(drifted: tuple[reports.MonitoringVerdict, Path]) -> None:
    verdict, report = drifted
    path = report.with_name(reports.VERDICT)
    assert reports.MonitoringVerdict.model_validate_json(path.read_text()) == verdict
    found = json.loads(path.read_text())
    assert found["drift"]["verdict"] == "drift" and found["drift"]["explanations"][0]["perturbation"] == "shift"
    assert found["count"] == 300 and found["versions"] == ["7"]
    assert found["since"] == START.isoformat().replace("+00:00", "Z")
    assert found["accuracy"]["labelled"]["count"] == 300
    assert "px right" in found["message"] and found["recommendations"]


def test_the_report_is_one_page_of_at_most_four_and_a_half_megabytes(
    drifted: tuple[reports.MonitoringVerdict, Path],
) -> None:
    verdict, report = drifted
    page = report.read_text()
    assert page.lstrip().startswith("<") and "centre_x: drift" in page and "Kolmogorov-Smirnov distance" in page
    assert verdict.recommendations[0] in page
    assert 1e6 < report.stat().st_size <= 4.5e6


def test_the_report_and_the_run_hold_the_picture_of_the_mean_images(
    home: Path, drifted: tuple[reports.MonitoringVerdict, Path]
) -> None:
    _, report = drifted
    picture = base64.b64encode(report.with_name(reports.IMAGES).read_bytes()).decode()
    (run,) = (home / "workspace").glob(f"*/snapshots/{run_of(report)}.json")
    for page in (report.read_text(), run.read_text()):
        assert page.count(picture) == 1


def test_a_run_is_small_because_the_ui_keeps_all_in_memory(
    home: Path, drifted: tuple[reports.MonitoringVerdict, Path]
) -> None:
    (run,) = (home / "workspace").glob(f"*/snapshots/{run_of(drifted[1])}.json")
    assert run.stat().st_size < 300_000


def test_evidently_agrees_with_the_verdict_column_by_column(
    home: Path, drifted: tuple[reports.MonitoringVerdict, Path]
) -> None:
    from evidently.ui.workspace import Workspace

    verdict, report = drifted
    workspace = Workspace.create(str(home / "workspace"))
    (project,) = workspace.search_project(dashboard.PROJECT)
    run = workspace.get_run(project.id, run_of(report))
    scores, alarms, means = {}, {}, {}
    for result in run.metric_results.values():
        metric = result.metric_value_location.metric.params
        if metric["type"].endswith("ValueDrift"):
            scores[metric["column"]] = result.value
            alarms[metric["column"]] = result.tests[0].status.value == "FAIL"
        elif metric["type"].endswith("MeanValue"):
            means[metric["column"]] = result.value
    columns = {column.name: column for column in verdict.drift.columns}
    assert scores == pytest.approx({name: column.score for name, column in columns.items()})
    assert alarms == {name: column.drifted for name, column in columns.items()}
    assert set(scores) > {*STATISTICS, "confidence", "digit"}
    assert any(alarms.values()) and not all(alarms.values())
    numeric = {name: column.current for name, column in columns.items() if name != "digit"}
    assert {name: means[name] for name in numeric} == pytest.approx(numeric)
    assert means[dashboard.DRIFTED] == verdict.drift.drifted_share and 20 < means[dashboard.PIXEL_CHANGE] < 255
    panels = {panel.column for panel in dashboard.panels() if panel.column}
    assert panels - means.keys() == {"no_digit"}  # this version has no digit score


def test_the_dashboard_shows_each_number_once(home: Path, drifted: tuple[reports.MonitoringVerdict, Path]) -> None:
    (dashboard,) = (json.loads(path.read_text()) for path in (home / "workspace").glob("*/dashboard.json"))
    assert [tab["title"] for tab in dashboard["tabs"]] == ["Monitoring", "Images"]
    for tab in dashboard["tabs"]:
        assert len(set(tab["panels"])) == len(tab["panels"])
    assert [panel["title"] for panel in dashboard["panels"]] == [panel.title for panel in PANELS]


def test_every_panel_says_what_it_shows_or_waits_for() -> None:
    assert all(re.search("Points come with|Each point is", panel.description) for panel in PANELS)
    assert len({panel.title for panel in PANELS}) == len(PANELS) == 8 + len(STATISTICS)


def test_the_project_is_there_before_any_report_and_panels_of_a_new_version_come_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evidently.sdk.panels import text_panel

    old = [panel for panel in PANELS if panel.title not in ("What the panels show", "Mean confidence")]
    monkeypatch.setattr(dashboard, "panels", lambda: old)
    workspace, project = dashboard.open_project(tmp_path / "workspace")
    project.dashboard.add_panel(text_panel(title="mine", description="kept"), tab="Images")
    before = project.dashboard.model()
    before.panels[0].subtitle = None  # as of a version without descriptions
    workspace.save_dashboard(project.id, before)
    monkeypatch.undo()
    workspace, again = dashboard.open_project(tmp_path / "workspace")
    assert (again.id, len(workspace.list_projects())) == (project.id, 1)
    after = again.dashboard.model()
    titles = [panel.title for panel in after.panels]
    assert sorted(titles) == sorted([*(panel.title for panel in PANELS), "mine"])
    assert after.panels[0].subtitle == old[0].description
    assert next(panel for panel in after.panels if panel.title == "mine").subtitle == "kept"
    by_id = {panel.id: panel.title for panel in after.panels}
    tabs = {tab.title: [by_id[id] for id in tab.panels] for tab in after.tabs}
    assert tabs["Monitoring"][0] == "What the panels show" and tabs["Monitoring"][-1] == "Mean confidence"
    assert tabs["Images"][-1] == "mine"
    (path,) = (tmp_path / "workspace").glob("*/dashboard.json")
    written = path.stat().st_mtime_ns
    dashboard.open_project(tmp_path / "workspace")
    assert path.stat().st_mtime_ns == written


def test_processes_that_start_together_create_one_project(tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path; from monitoring import dashboard; dashboard.open_project(Path({str(tmp_path)!r}))"
    )
    started = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    assert [process.wait(120) for process in started] == [0, 0]
    assert len(list(tmp_path.glob("*/dashboard.json"))) == 1


def test_a_new_statistic_is_one_function_and_its_entry_and_existing_projects_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = held_out()[0]
    written(tmp_path, "before", window(images[:150]))
    (path,) = (tmp_path / "workspace").glob("*/dashboard.json")
    before = json.loads(path.read_text())
    top_half = Statistic(lambda chunk: chunk.pixels[:, :14].mean(axis=(1, 2)), "grey levels")
    monkeypatch.setitem(STATISTICS, "top_half", top_half)
    verdict, report = written(tmp_path, "after", window(perturbations.shift(images[:300], 0, 3)))
    (column,) = [column for column in verdict.drift.columns if column.name == "top_half"]
    assert column.drifted and column.current < column.reference
    after = json.loads(path.read_text())
    assert [panel for panel in after["panels"] if panel not in before["panels"]] == after["panels"][-1:]
    assert after["panels"][-1]["title"] == "top_half: grey levels"
    assert after["tabs"][1]["panels"] == [*before["tabs"][1]["panels"], after["panels"][-1]["id"]]
    snapshot = (path.parent / "snapshots" / f"{run_of(report)}.json").read_text()
    assert '"top_half"' in snapshot and "top_half" in report.read_text()


def test_the_share_of_images_without_a_digit_is_in_the_report_and_on_the_dashboard(tmp_path: Path) -> None:
    images, sent = reference().images, window(held_out()[0][:150])
    training = samples.of_images(images, reference().probabilities, no_digit=np.arange(len(images)) % 100 == 0)
    sent = replace(sent, digit_scores=np.where(np.arange(150) % 50 == 0, -1, 1).astype(np.float32))
    expected = reports.Expected(training, digit_threshold=0.0)
    verdict, report = reports.write(tmp_path / "a", tmp_path / "workspace", reference(), sent, None, expected)
    assert re.search(r"2\.0% of the images show no digit, expected: [01]\.\d%\.", verdict.message)
    snapshot = next((tmp_path / "workspace").glob("*/snapshots/*.json")).read_text()
    assert '"no_digit"' in snapshot and "no_digit" in report.read_text()


def test_a_panel_that_a_user_renames_or_deletes_does_not_come_back(tmp_path: Path) -> None:
    workspace, project = dashboard.open_project(tmp_path / "workspace")
    mine = project.dashboard.model()
    deleted = next(panel for panel in mine.panels if panel.title == "Mean confidence")
    mine.panels.remove(deleted)
    for tab in mine.tabs:
        tab.panels = [id for id in tab.panels if id != deleted.id]
    mine.panels[1].title = "Drift"
    workspace.save_dashboard(project.id, mine)
    _, again = dashboard.open_project(tmp_path / "workspace")
    assert [panel.title for panel in again.dashboard.model().panels] == [panel.title for panel in mine.panels]


def test_a_second_report_adds_no_panel_twice(tmp_path: Path) -> None:
    images = held_out()[0]
    for name in ("first", "second"):
        written(tmp_path, name, window(images[:150]))
    (path,) = (tmp_path / "workspace").glob("*/dashboard.json")
    titles = [panel["title"] for panel in json.loads(path.read_text())["panels"]]
    assert len(set(titles)) == len(titles) == len(PANELS)


def test_a_window_written_again_replaces_its_run(home: Path) -> None:
    images = held_out()[0]
    before = len(list((home / "workspace").glob("*/snapshots/*.json")))
    first, second = (run_of(written(home, "again", window(images[:150]))[1]) for _ in range(2))
    assert first != second
    names = {path.stem for path in (home / "workspace").glob("*/snapshots/*.json")}
    assert len(names) == before + 1 and second in names and first not in names
    assert sorted(path.name for path in (home / "again").iterdir()) == [
        reports.IMAGES,
        reports.REPORT,
        reports.VERDICT,
        "workspace_run",
    ]


def test_too_few_predictions_leave_a_verdict_and_no_report(home: Path) -> None:
    for count in (0, 40):
        verdict, path = written(home, f"few{count}", window(held_out()[0][:count]))
        assert verdict.drift.verdict == "not enough data" and verdict.count == count
        assert list(path.parent.iterdir()) == [path]
        assert reports.MonitoringVerdict.model_validate_json(path.read_text()) == verdict


def test_worse_accuracy_without_drift_has_a_recommendation_too() -> None:
    images, labels = held_out()
    wrong = (labels[:300].astype(int) + (np.arange(300) % 3 == 0)) % 10
    verdict = reports.assess(reference(), window(images[:300], wrong))
    assert (verdict.drift.verdict, verdict.accuracy.verdict) == ("no drift", "worse")
    assert len(verdict.recommendations) == 1


def test_folders_are_named_by_the_window_and_sort_by_time() -> None:
    hour = timedelta(hours=1)
    first = reports.folder_name(START, START + hour, "7")
    assert first == "2026-01-05T08-00-00Z--2026-01-05T09-00-00Z-v7"
    assert (
        first < reports.folder_name(START, START + 2 * hour, "7") < reports.folder_name(START + hour, START + hour, "7")
    )


def test_old_reports_go_with_their_runs_and_nothing_else_does(tmp_path: Path) -> None:
    ends = [START + timedelta(days=day) for day in range(3)]
    names = [reports.folder_name(end - timedelta(days=1), end, "7") for end in ends]
    for name in names:
        written(tmp_path, name, window(held_out()[0][:120]))
    (tmp_path / "notes").mkdir()
    kept = (tmp_path / names[2] / "workspace_run").read_text()
    assert reports.remove_old(tmp_path, tmp_path / "workspace", ends[2]) == names[:2]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([names[2], "notes", "workspace"])
    assert [path.stem for path in (tmp_path / "workspace").glob("*/snapshots/*.json")] == [kept]
    assert reports.remove_old(tmp_path, tmp_path / "workspace", ends[2]) == []


def test_the_page_names_the_drifted_columns_and_the_accuracy(
    drifted: tuple[reports.MonitoringVerdict, Path],
) -> None:
    verdict, report = drifted
    page = reports.markdown("7", verdict, report, "http://127.0.0.1:8000")
    assert page.startswith("# digits v7: drift\n\n" + verdict.message)
    for column in verdict.drift.columns:
        assert (f"| {column.name} |" in page) == column.drifted
    assert f"| labelled predictions | {verdict.accuracy.labelled} | 300 |" in page
    assert f"| audit sample | {verdict.accuracy.audited} | 300 |" in page
    assert "(http://127.0.0.1:8000)" in page and str(report) in page
    assert all(f"- {recommendations}" in page for recommendations in verdict.recommendations)


def test_the_page_tells_images_of_no_digit_apart(drifted: tuple[reports.MonitoringVerdict, Path]) -> None:
    images, labels = held_out()
    told = np.where(np.arange(len(labels)) < 12, NO_DIGIT, labels.astype(int))
    page = reports.markdown("7", reports.assess(reference(), window(images, told)), drifted[1], "")
    assert f"| audit sample | {accuracy.assess(reference(), window(images[12:], labels[12:])).audited} |" in page
    assert re.search(r"\| labelled no digit \| 0\.00.*\| 12 \|", page)


def test_an_accepted_baseline_unlike_training_brings_no_estimate_back() -> None:
    images = perturbations.shift(held_out()[0], 3)
    usual, _ = samples.distinct(samples.of_window(window(images[::2])))
    expected = reports.Expected(samples.of_reference(reference()), usual)
    verdict = reports.assess(reference(), window(images[1::2]), expected=expected)
    assert (verdict.drift.verdict, verdict.training_drift.verdict) == ("no drift", "drift")
    assert verdict.accuracy.estimate is not None and "estimate" not in verdict.message


def test_a_report_is_found_by_its_name_and_nothing_else_is(tmp_path: Path) -> None:
    """The name comes with an event, which anyone who reaches Prefect can emit."""
    folder = tmp_path / "reports" / reports.folder_name(START, START + timedelta(hours=1), "7")
    assert reports.find(tmp_path / "reports", folder.name) is None
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<h1>drift</h1>")
    assert reports.find(tmp_path / "reports", folder.name) == folder
    (tmp_path / "report.html").write_text("not a report")
    for name in ("", ".", "..", "../reports", str(tmp_path), f"../{folder.name}", f"{folder.name}/..", "{{ event }}"):
        assert reports.find(tmp_path / "reports", name) is None
