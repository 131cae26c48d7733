"""A service under mixed requests for a minute stays as it is, and one that leaks is noticed."""

import math
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Files, Registry
from serving import Service, serving

from bench import soak
from bench.soak import Mixed
from digits.reference import Reference


@pytest.fixture
def service(tmp_path: Path, registry: Registry, champion_files: Files) -> Iterator[Service]:
    registry.versions["1"] = champion_files
    registry.aliases["champion"] = "1"
    with serving(tmp_path, registry) as service:
        service.wait_for(lambda: service.status("/readyz") == 200)
        yield service


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(400)
def test_nothing_grows_in_a_minute(service: Service, sample: Reference) -> None:
    mixed = Mixed(str(service.client.base_url), sample.images, rate=100)
    found = soak.watch(psutil.Process(service.process.pid), mixed, 60)
    # SQLite on a disk that other tests keep busy may be locked for longer than feedback waits; it is told to come again
    assert [wrong for wrong in mixed.wrong if wrong != "_feedback: 503 instead of 200"] == []
    assert len(mixed.wrong) < 0.1 * mixed.answered["feedback"] + 10
    assert min(mixed.answered.values()) > 50 and len(mixed.answered) == 5
    # the other tests that run meanwhile make the latency a matter of chance
    assert [str(drift) for drift in found if not drift.is_flat and drift.name != "latency (ms)"] == []


@pytest.mark.parametrize(
    ("name", "start", "per_sample"),
    [("memory (MB)", 200.0, 0.5), ("open files", 30.0, 0.1), ("threads", 20.0, 0.1), ("latency (ms)", 2.0, 0.1)],
)
def test_a_leak_is_noticed_and_a_wave_is_none(name: str, start: float, per_sample: float) -> None:
    steps = range(soak.SAMPLES)
    (leak,) = soak.drifts({name: [start + per_sample * step for step in steps]})
    assert not leak.is_flat and "GROWS" in str(leak)
    (wave,) = soak.drifts({name: [start * (1 + 0.02 * math.sin(step)) for step in steps]})
    assert wave.is_flat
    warm_up = [start * (0.5 + 0.5 * min(1, step / 20)) for step in steps]
    assert soak.drifts({name: warm_up})[0].is_flat
