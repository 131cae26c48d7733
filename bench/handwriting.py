"""How well a champion reads handwriting that is not MNIST's, and which images it classifies as digits, through the HTTP endpoint.

    DIGITS_MNIST=/path/to/mnist.npz python -m bench.handwriting --recipe convolutional
    DIGITS_MNIST=/path/to/mnist.npz python -m bench.handwriting --url http://127.0.0.1:3000

Trains the recipe and serves it in a temporary home, or asks the champion of a running platform, where nothing is logged: all pictures are
previews. They are made of MNIST's test digits, but for scikit-learn's bundled digits and the letters.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import cv2
import httpx
import numpy as np
from numpy.typing import NDArray

from bench import drawings, harness, number_pictures
from digits import intervals
from digits.images import Split
from digits.pictures import negatives
from models import recipes

CLIENTS = 2
LEVELS = 16  # of grey of the bundled digits

Pictures = Iterator[tuple[bytes, str]]  # files and what is written in them


def main() -> None:
    """Print one row after the other: how many are right, and how many are taken for no digit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    champion = parser.add_mutually_exclusive_group(required=True)
    champion.add_argument("--recipe", choices=recipes.RECIPES)
    champion.add_argument("--url", help="of a running platform's service")
    parser.add_argument("--epochs", type=int, help="of the recipe")
    parser.add_argument(
        "--count", type=int, default=200, help="numbers of each kind; five times as many drawings and photographs"
    )
    arguments = parser.parse_args()
    with _service(arguments) as url, httpx.Client(base_url=url, timeout=60) as client:
        about = client.get("/about").json()
        print(f"version {about['model_version']}, recipe {about['recipe']['name']}")
        print(f"{'':34} {'right':26} {'no digit':>9} {'pictures':>9}")
        test = harness.data().test
        for name, pictures in _single_digits(test, 5 * arguments.count):
            _print_digits(client, name, pictures)
        for name, draw in number_pictures.KINDS.items():
            random = np.random.default_rng(1)
            pictures = ((one.content, one.text) for one in (draw(test, random) for _ in range(arguments.count)))
            texts = [(answer and answer["text"]) == text for answer, text in _answers(client, "/read", pictures)]
            print(_row(f"numbers, {name}", len(texts), right=sum(texts)), flush=True)


@contextmanager
def _service(arguments: argparse.Namespace) -> Iterator[str]:
    """The address of the service that is measured."""
    if arguments.url:
        yield arguments.url
        return
    recipe = recipes.find(arguments.recipe)
    if arguments.epochs:
        recipe = recipe.model_copy(update={"epochs": arguments.epochs})
    with harness.home() as settings, harness.mlflow(settings):
        harness.register(settings, recipe, harness.data())
        with harness.service(settings):
            yield settings.service_url


def _single_digits(test: Split, count: int) -> Iterator[tuple[str, Pictures]]:
    """The kinds of pictures with one digit, or with a letter, whose text is not a digit."""
    random = np.random.default_rng(0)
    chosen = random.choice(len(test), count, replace=False)
    some = Split(test.images[chosen], test.labels[chosen])
    yield (
        "MNIST test",
        ((harness.png(image), str(label)) for image, label in zip(test.images, test.labels, strict=True)),
    )
    yield "bundled digits, 8 x 8", ((harness.png(digit), label) for digit, label in _bundled())
    yield "bundled digits, on paper x 8", ((harness.png(_on_paper(digit)), label) for digit, label in _bundled())
    for pen in drawings.PENS:
        drawn = (
            (harness.png(drawings.draw(image, pen, random)), str(label))
            for image, label in zip(some.images, some.labels, strict=True)
        )
        yield f"drawings, pen of {pen} pixels", drawn
    photographs = (number_pictures.photographed_digit(test, random) for _ in range(count))
    yield "photographs", ((one.content, one.text) for one in photographs)
    yield "letters of other fonts", _letters()


def _bundled() -> Iterator[tuple[NDArray[np.uint8], str]]:
    """The 1,797 digits of 8 x 8 pixels, light on dark, and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for image, label in zip(found.images, found.target, strict=True):
        yield np.rint(image * (255 / LEVELS)).astype(np.uint8), str(label)


def _on_paper(digit: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Dark on white paper, with a margin, eight times as large."""
    return np.asarray(cv2.resize(255 - np.pad(digit, 4), None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC), np.uint8)


def _letters() -> Pictures:
    """Each letter that is unlike a digit in fonts that no training has seen, dark on white paper."""
    for font in negatives.evaluation_fonts():
        for letter in negatives.LETTERS:
            yield harness.png(255 - negatives.printed(letter, font)), letter


def _answers(client: httpx.Client, route: str, pictures: Pictures) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """What the service says of each picture, None where it refuses one, and what is written in it."""

    def ask(one: tuple[bytes, str]) -> tuple[dict[str, Any] | None, str]:
        content, text = one
        headers = {"Content-Type": "application/octet-stream"}
        answer = client.post(route, content=content, params={"preview": "true"}, headers=headers)
        if answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            return None, text
        return answer.raise_for_status().json(), text

    with ThreadPoolExecutor(CLIENTS) as pool:
        yield from pool.map(ask, pictures)


def _print_digits(client: httpx.Client, name: str, pictures: Pictures) -> None:
    answers = list(_answers(client, "/classify_file", pictures))
    flagged = sum(answer is None or not answer["is_digit"] for answer, _ in answers)
    are_digits = answers[0][1].isdigit()
    right = sum(answer is not None and str(answer["digit"]) == text for answer, text in answers) if are_digits else None
    print(_row(name, len(answers), right, flagged), flush=True)


def _row(name: str, count: int, right: int | None = None, flagged: int | None = None) -> str:
    shares = [
        "" if right is None else str(intervals.wilson(right, count)),
        "" if flagged is None else f"{flagged / count:.2%}",
    ]
    return f"{name:34} {shares[0]:26} {shares[1]:>9} {count:9,}"


if __name__ == "__main__":
    main()
