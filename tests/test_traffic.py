"""`digits traffic`: the test digits arrive as they are, by either route, from as many clients as named."""

from datetime import UTC, datetime

import numpy as np
import pytest
from serving import Service

from digits import reference
from digits.images import Split
from digits.settings import Settings
from digits.storage import database, labels
from digits.storage.labels import AUDITOR
from ops import traffic


def sent(service: Service, test: Split, route: traffic.Route, clients: int) -> tuple[str, list[int]]:
    """What the command prints for 30 requests, and their places in the log."""
    known = set(service.window().ids)
    settings = Settings(home=service.home, service_port=service.client.base_url.port)
    printed = traffic.send(settings, test, 30, seed=1, label_share=1.0, route=route, clients=clients)
    window = service.window()
    return printed, [place for place, id in enumerate(window.ids) if id not in known]


@pytest.mark.parametrize(("route", "clients"), [("classify", 0), ("classify_file", 4)])
def test_digits_arrive_unchanged_from_so_many_clients(
    service: Service, sample: reference.Reference, route: traffic.Route, clients: int
) -> None:
    test = Split(sample.images, sample.labels)
    printed, places = sent(service, test, route, clients)
    window = service.window()
    known = {image.tobytes() for image in test.images}
    assert printed.startswith("30 answers, ") and printed.endswith(", 30 labelled") and len(places) == 30
    assert {window.routes[place] for place in places} == {f"/{route}"}
    assert {window.images[place].tobytes() for place in places} <= known
    assert (window.labels[places] >= 0).all() and len(np.unique(window.labels[places])) > 4
    names = {window.clients[place] for place in places}
    assert names == ({f"client-{number}" for number in range(1, clients + 1)} or {""})


def test_a_batch_is_logged_for_its_client_and_labelled_by_an_auditor(
    service: Service, sample: reference.Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    since, engine = datetime.now(UTC), database.connect(f"sqlite:///{service.home}/digits.db")
    answers = traffic.classify_batch(service.client, sample.images[:5], "a-demo")
    traffic.wait_until_logged(engine, since, 5)
    traffic.give_labels(service.client, dict(zip(list(answers)[:2], sample.labels[:2], strict=True)))
    window = service.window()
    rows = [window.ids.index(id) for id in answers]
    assert np.array_equal(window.images[rows], sample.images[:5])
    assert window.digits[rows].tolist() == list(answers.values())
    assert {window.clients[row] for row in rows} == {"a-demo"}
    assert window.labels[rows].tolist() == [*sample.labels[:2].tolist(), -1, -1, -1]
    with engine.connect() as connection:
        assert {row.source for row in labels.read(connection, list(answers)).values()} == {AUDITOR}
    monkeypatch.setattr(traffic, "LOG_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(TimeoutError, match="only 5 of 6 answers are logged"):
        traffic.wait_until_logged(engine, since, 6)
    engine.dispose()
