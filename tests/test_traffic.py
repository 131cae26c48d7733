"""`digits traffic`: the test digits arrive as they are, by either route, from as many clients as named."""

import numpy as np
import pytest
from serving import Service

from digits import reference
from digits.images import Split
from digits.settings import Settings
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
