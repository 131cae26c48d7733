"""Honest clients while others use up the service's connections, memory and time for decoding.

    python -m bench.attack --seconds 10

Eight clients send images as JSON and as PNG files, each over a new connection: first quietly, then during each attack. Prints a line for each, and ends
with 1 if a request failed, if p99 is above 5 × the quiet one, or if a worker takes more than 400 MB.
"""

import argparse
import io
import multiprocessing
import resource
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from itertools import count
from multiprocessing.synchronize import Event
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import orjson
import psutil
from numpy.typing import NDArray
from PIL import Image

from bench import harness
from bench.faults import workers
from digits.images import Images
from digits.storage.predictions import new_ids
from models.recipes import COMPACT

CLIENTS = 8
# Requests per second of a client: a load that leaves the service idle most of the time, so that what takes longer is the attack's doing.
RATE = 8
MAX_P99_RATIO = 5.0
MAX_MEMORY_MB = 400
TIMEOUT_SECONDS = 20

Address = tuple[str, int]
Attack = Callable[[Address, Event], None]


@dataclass(frozen=True)
class Figures:
    """What honest clients saw, and the most memory that a worker took meanwhile."""

    name: str
    latencies_ms: list[float]
    failed: list[str]
    memory_mb: float

    @property
    def p99_ms(self) -> float:
        return float(np.quantile(self.latencies_ms, 0.99)) if self.latencies_ms else float("inf")

    def faults(self, quiet: "Figures", max_ratio: float = MAX_P99_RATIO) -> list[str]:
        """What is out of bounds, compared with the figures of the quiet service."""
        ratio = self.p99_ms / quiet.p99_ms
        return [
            *([f"{len(self.failed)} failed: {self.failed[0]}"] if self.failed else []),
            *([f"p99 {ratio:.1f} × the quiet one"] if ratio > max_ratio else []),
            *([f"{self.memory_mb:.0f} MB"] if self.memory_mb > MAX_MEMORY_MB else []),
        ]

    def __str__(self) -> str:
        requests = f"{len(self.latencies_ms):5,} requests, {len(self.failed)} failed"
        return f"{self.name:42} {requests}, p99 {self.p99_ms:6.1f} ms, worker {self.memory_mb:4.0f} MB"


@dataclass
class Honest:
    """Clients that send one request after the other at a steady rate."""

    address: Address
    image: Images
    latencies_ms: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        ended = threading.Event()
        threads = [threading.Thread(target=self._run, args=(number, ended)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def _run(self, number: int, ended: threading.Event) -> None:
        requests = (
            ("/classify", orjson.dumps({"images": self.image.tolist()}), "application/json"),
            ("/classify_file", harness.png(self.image), "image/png"),
        )
        for turn in count(number):
            if ended.wait(1 / RATE):
                return
            started = time.perf_counter()
            if problem := post(self.address, *requests[turn % 2]):
                self.failed.append(problem)
            else:
                self.latencies_ms.append(1_000 * (time.perf_counter() - started))


def post(address: Address, path: str, body: bytes, content_type: str) -> str:
    """Why a request over a new connection was not answered with 200, empty where it was."""
    connection = HTTPConnection(*address, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        text = response.read()
        return "" if response.status == 200 else f"{response.status} {text[:100].decode()}"
    except (OSError, HTTPException) as error:
        return repr(error)
    finally:
        connection.close()


# The attacks; each goes on until the event is set


def never_read(address: Address, ended: Event) -> None:
    """130 connections that send 50 requests for a file of 1.4 MB at once and read no response."""
    request = b"GET /static_content/swagger-ui-bundle.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    _hold(address, ended, 130, request * 50)


def slow_bodies(address: Address, ended: Event) -> None:
    """130 bodies of which a byte arrives every half second."""
    head = (
        "POST /classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 3000\r\n\r\n"
    )
    _hold(address, ended, 130, head.encode(), b" ")


def half_heads(address: Address, ended: Event) -> None:
    """1,100 connections whose head never ends."""
    _hold(address, ended, 1_100, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X")


def idle(address: Address, ended: Event) -> None:
    """1,000 connections that send nothing."""
    _hold(address, ended, 1_000, b"")


def endless_headers(address: Address, ended: Event) -> None:
    """20 connections that send header lines as fast as they can."""
    _hold(address, ended, 20, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X-Padding: " + b"y" * 60_000 + b"\r\n", 0.005)


def brackets(address: Address, ended: Event) -> None:
    """Four clients that send 16 MB of `[],` as JSON."""
    body = b'{"images": [' + b"[]," * 5_300_000 + b"[]]}"
    _repeat(address, ended, 4, "/classify", body, "application/json")


def many_scans(address: Address, ended: Event) -> None:
    """Four clients that send progressive JPEGs of 300 kB with 5,700 empty scans."""
    _repeat(address, ended, 4, "/classify_file", jpeg_of_scans(4_890, 300_000), "image/jpeg")


def large_pictures(address: Address, ended: Event) -> None:
    """Four clients that send pictures of 24 million pixels and leave before they are answered."""
    buffer = io.BytesIO()
    Image.new("RGB", (4_890, 4_890), "white").save(buffer, "PNG")
    body = buffer.getvalue()
    head = f"POST /classify_file HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    while not ended.wait(0.1):
        for connection in [_connection(address) for _ in range(4)]:
            with suppress(OSError):
                connection.sendall(head.encode() + body)
            connection.close()


def colour_profiles(address: Address, ended: Event) -> None:
    """16 clients that send PNGs of 98 kB with 97 profiles of 1 MB."""
    profile = _chunk(b"iCCP", b"k\0\0" + zlib.compress(b"a" * 1_000_000, 9))
    body = png_file((28, 28), header(28, 28) + profile * 97)
    _repeat(address, ended, 16, "/classify_file", body, "image/png")


def two_headers(address: Address, ended: Event) -> None:
    """Six clients that send PNGs of 28 × 28 pixels with a second header of 23 million."""
    body = png_file((5_800, 4_000), header(28, 28) + header(5_800, 4_000))
    _repeat(address, ended, 6, "/classify_file", body, "image/png")


def photoshop_blocks(address: Address, ended: Event) -> None:
    """Four clients that send JPEGs of 16 MB with 1.3 million empty Photoshop blocks."""
    _repeat(address, ended, 4, "/classify_file", jpeg_of_blocks(240), "image/jpeg")


def waiting_pictures(address: Address, ended: Event) -> None:
    """140 clients that send PNGs of 34 kB with 24 million pixels and wait for the response, then for half a second."""
    buffer = io.BytesIO()
    Image.new("L", (4_890, 4_890), 255).save(buffer, "PNG")
    _repeat(address, ended, 140, "/classify_file", buffer.getvalue(), "image/png", 0.5)


def crowded_pages(address: Address, ended: Event) -> None:
    """Four clients that send pages of 900 scribbles, of scribbles that all cross, and of noise."""
    random = np.random.default_rng(0)
    pages = [png_of_scribbles(900, 40, random), png_of_scribbles(40, 1_500, random), png_of_noise(random)]
    turn = count()
    _repeat(address, ended, 4, "/read?preview=true", lambda: pages[next(turn) % len(pages)], "image/png")


def slow_patterns(address: Address, ended: Event) -> None:
    """Four clients whose page has lines of 30 pieces to be matched with nested repetitions."""
    page = np.full((600, 2_400), 255, np.uint8)
    for top in range(60, 540, 120):
        for left in range(60, 2_340, 76):
            cv2.ellipse(page, (left, top), (20, 34), 0, 0, 360, 0, 8)
    path = f"/read?preview=true&pattern={quote('(0|00|(0+)+)+([0-9]+)+[a-z]')}"
    _repeat(address, ended, 4, path, _png(page), "image/png")


def character_sets(address: Address, ended: Event) -> None:
    """Four clients that send forms of 500 kB in Punycode."""
    head = b'--b\r\nContent-Disposition: form-data; name="preview"\r\n\r\n'
    body = head + b"a" * 250_000 + b"-" + b"b" * 250_000 + b"\r\n--b--\r\n"
    _repeat(address, ended, 4, "/classify_file", body, "multipart/form-data; boundary=b; charset=punycode")


def unknown_ids(address: Address, ended: Event) -> None:
    """140 clients that label a prediction that could have been made just now, and wait for half a second."""

    def body() -> bytes:
        return orjson.dumps({"id": new_ids()[0], "digit": 3})

    _repeat(address, ended, 140, "/feedback", body, "application/json", 0.5)


def refused_bodies(address: Address, ended: Event) -> None:
    """A client whose large bodies are refused: a blank picture, JSON with a wrong value, pixels of a wrong length."""
    requests = (
        ("/classify_file", png_file((5_800, 4_000), header(5_800, 4_000)), "image/png"),
        ("/classify", orjson.dumps({"images": [[[1.0] * 28] * 28] * 870 + [[[0.5] * 28] * 28]}), "application/json"),
        ("/classify_bulk", bytes(15_999_999), "application/octet-stream"),
    )
    for turn in count():
        if ended.wait(0.01):
            return
        post(address, *requests[turn % 3])


ATTACKS: dict[str, Attack] = {
    attack.__name__: attack
    for attack in (
        *(never_read, slow_bodies, half_heads, endless_headers, brackets, many_scans, large_pictures),
        *(colour_profiles, two_headers, photoshop_blocks, refused_bodies, idle),
        *(waiting_pictures, crowded_pages, slow_patterns, character_sets, unknown_ids),
    )
}


def png_file(size: tuple[int, int], head: bytes) -> bytes:
    """A PNG with these chunks before the white RGBA pixels of width × height."""
    width, height = size
    pixels = zlib.compress((b"\0" + b"\xff" * (4 * width)) * height, 9)
    return b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def png_of_scribbles(n: int, side: int, random: np.random.Generator) -> bytes:
    """A page of 2,000 × 2,000 pixels with so many lines of eight points, each within a square of `side` pixels."""
    page = np.full((2_000, 2_000), 255, np.uint8)
    for start in random.integers(0, 2_000 - side, (n, 1, 2)):
        cv2.polylines(page, [(start + random.integers(0, side, (8, 2))).astype(np.int32)], False, 0, 4)
    return _png(page)


def png_of_noise(random: np.random.Generator) -> bytes:
    """A page of 2,000 × 2,000 pixels with spots of ink everywhere."""
    return _png(cv2.resize(random.integers(0, 256, (200, 200), np.uint8), (2_000, 2_000)))


def _png(page: NDArray[Any]) -> bytes:
    return cv2.imencode(".png", page)[1].tobytes()


def header(width: int, height: int) -> bytes:
    """The chunk that says that a PNG has so many pixels with red, green, blue and alpha of 8 bits."""
    return _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def jpeg_of_blocks(segments: int) -> bytes:
    """A white JPEG with so many segments of 5,400 empty Photoshop blocks each."""
    content = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\0" * 5_400
    buffer = io.BytesIO()
    Image.new("L", (28, 28), 255).save(buffer, "JPEG")
    picture = buffer.getvalue()
    return picture[:2] + (b"\xff\xed" + (len(content) + 2).to_bytes(2) + content) * segments + picture[2:]


def jpeg_of_scans(side: int, size: int) -> bytes:
    """A white progressive JPEG of side × side pixels, filled up to `size` bytes with scans that each say that all blocks are empty."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 255).save(buffer, "JPEG", progressive=True)
    picture = buffer.getvalue()
    # A Huffman table with one symbol, "the next 16,384 to 32,767 blocks are empty", whose code is the bit 0 (ITU T.81, G.1.2.2).
    table = b"\xff\xc4" + (20).to_bytes(2) + b"\x10\x01" + bytes(15) + b"\xe0"
    runs = -(-(((side + 7) // 8) ** 2) // 32_767)
    bits = ("0" + "1" * 14) * runs
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\x00")
    scan = b"\xff\xda" + (8).to_bytes(2) + b"\x01\x01\x00\x01\x3f\x01" + data
    # before the first scan's header the table, after the first scan all others
    first = picture.index(b"\xff\xda")
    second = picture.index(b"\xff\xc4", first)
    return picture[:second] + table + scan * ((size - second) // len(scan)) + b"\xff\xd9"


def _connection(address: Address) -> socket.socket:
    """One that takes in as little as it can of what it does not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.settimeout(TIMEOUT_SECONDS)
    connection.connect(address)
    connection.setblocking(False)
    return connection


def _hold(address: Address, ended: Event, n: int, begin: bytes, more: bytes = b"", pause: float = 0.5) -> None:
    """Keep n connections open that begin so and send more after every pause; those that the service closes are replaced."""
    connections: list[socket.socket] = []
    while not ended.wait(pause):
        connections = [connection for connection in connections if _goes_on(connection, more)]
        for _ in range(n - len(connections)):
            with suppress(OSError):
                connections.append(_connection(address))
                connections[-1].send(begin)


def _goes_on(connection: socket.socket, more: bytes) -> bool:
    """Send more and look, without reading, whether the service has closed the connection."""
    try:
        if more:
            connection.send(more)
        if connection.recv(1, socket.MSG_PEEK):
            return True
    except BlockingIOError:
        return True
    except OSError:
        pass
    connection.close()
    return False


def _repeat(
    address: Address,
    ended: Event,
    n: int,
    path: str,
    body: bytes | Callable[[], bytes],
    content_type: str,
    pause: float = 0.01,
) -> None:
    """n clients that send the same body, or what a function gives, again and again."""

    def run() -> None:
        while not ended.is_set():
            post(address, path, body() if callable(body) else body, content_type)
            time.sleep(pause)

    threads = [threading.Thread(target=run) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# The measurement


def measure(
    service: psutil.Process, address: Address, image: Images, seconds: float, attack: Attack | None = None
) -> Figures:
    """What honest clients see for so long, during the attack if there is one."""
    honest, memory = Honest(address, image), 0.0
    with _attacking(attack, address), honest.running():
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            memory = max([memory, *(worker.memory_info().rss / 1e6 for worker in workers(service))])
            time.sleep(0.05)
    name = (attack.__doc__ or "").rstrip(".") if attack else "quiet"
    return Figures(name, honest.latencies_ms, honest.failed, memory)


@contextmanager
def _attacking(attack: Attack | None, address: Address) -> Iterator[None]:
    """The attack, in a process of its own so that it does not delay the honest clients themselves."""
    if attack is None:
        yield
        return
    context = multiprocessing.get_context("fork")
    ended = context.Event()
    process = context.Process(target=attack, args=(address, ended))
    process.start()
    try:
        # all its connections are open then
        time.sleep(1)
        yield
    finally:
        ended.set()
        process.join(2 * TIMEOUT_SECONDS)
        process.kill()


def main() -> None:
    """Start a service with a champion and attack it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10, help="duration of each attack")
    parser.add_argument("--only", action="append", choices=ATTACKS, help="an attack; by default, all of them")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    dataset = harness.data()
    faults: list[str] = []
    quiet: Figures | None = None
    with harness.home() as settings, harness.mlflow(settings):
        harness.register(settings, COMPACT.model_copy(update={"epochs": 2}), dataset)
        address, image = (settings.host, settings.service_port), dataset.test.images[0]
        # a service for each, because memory that was used stays with the process
        for attack in (None, *(ATTACKS[name] for name in arguments.only or ATTACKS)):
            with harness.service(settings) as service:
                measure(service, address, image, 2)
                figures = measure(service, address, image, arguments.seconds, attack)
            quiet = quiet or figures
            faults += (found := figures.faults(quiet))
            print(f"{figures}   {'; '.join(found) or 'ok'}", flush=True)
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
