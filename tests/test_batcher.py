"""Waiting requests share one call of the model, and each gets its own part of the result; the model learns who sent each image."""

import asyncio

import numpy as np
import pytest

from digits import logs
from digits.images import Images
from services.batcher import Batcher, BatchResult


class Model:
    """Predicts the digit that is the value of the first pixel, and records the batch sizes."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, images: Images, clients: list[str]) -> BatchResult:
        self.batches.append(len(images))
        digits = images[:, 0, 0]
        if (digits > 9).any():
            raise ValueError(f"{digits.max()} is no digit")
        probabilities = np.eye(10, dtype=np.float32)[digits]
        return BatchResult(
            "1",
            digits,
            probabilities,
            [[digit] for digit in digits.tolist()],
            digits == 9,
            digits != 8,
            digits.astype(np.float32),
            [f"id of {digit} from {client}" for digit, client in zip(digits, clients, strict=True)],
        )


def showing(*digits: int) -> Images:
    images = np.zeros((len(digits), 28, 28), np.uint8)
    images[:, 0, 0] = digits
    return images


def test_each_request_gets_its_own_part_of_one_call() -> None:
    model, requests = Model(), {"ann": (3,), "bob": (1, 4, 9), "": (5,)}

    async def ask() -> list[BatchResult]:
        batcher = Batcher(model.predict)
        return await asyncio.gather(*(batcher.predict(showing(*digits), client) for client, digits in requests.items()))

    one, three, last = asyncio.run(ask())
    assert model.batches == [5]
    assert one.digits.tolist() == [3] and one.ids == ["id of 3 from ann"]
    assert three.digits.tolist() == [1, 4, 9] and three.ids == [f"id of {digit} from bob" for digit in (1, 4, 9)]
    assert three.probabilities.argmax(1).tolist() == [1, 4, 9] and three.prediction_sets == [[1], [4], [9]]
    assert three.uncertain.tolist() == [False, False, True] and three.version == "1"
    assert last.digits.tolist() == [5] and last.ids == ["id of 5 from "]


def test_a_request_alone_is_a_batch_of_one() -> None:
    model = Model()

    async def ask() -> None:
        batcher = Batcher(model.predict)
        for digit in (3, 1, 4):
            assert (await batcher.predict(showing(digit), "")).digits.tolist() == [digit]

    asyncio.run(ask())
    assert model.batches == [1, 1, 1]


@pytest.mark.parametrize("digit", [5, 200])
def test_a_cancelled_request_leaves_the_others_their_results(digit: int) -> None:
    async def ask() -> BatchResult | BaseException:
        batcher = Batcher(Model().predict)
        given_up = asyncio.create_task(batcher.predict(showing(3), ""))
        other = asyncio.create_task(batcher.predict(showing(digit), ""))
        await asyncio.sleep(0)
        given_up.cancel()
        (result,) = await asyncio.wait_for(asyncio.gather(other, return_exceptions=True), 5)
        return result

    result = asyncio.run(ask())
    assert str(result) == "200 is no digit" if isinstance(result, ValueError) else result.digits.tolist() == [5]


def test_an_error_of_the_model_reaches_every_request_of_the_batch_and_none_after_it() -> None:
    model = Model()

    async def ask() -> None:
        batcher = Batcher(model.predict)
        results = await asyncio.gather(
            *(batcher.predict(showing(digit), "") for digit in (3, 200)), return_exceptions=True
        )
        assert [str(result) for result in results] == ["200 is no digit"] * 2
        assert (await batcher.predict(showing(7), "")).digits.tolist() == [7]

    asyncio.run(ask())


def test_the_model_runs_outside_of_the_context_of_the_request_that_came_first() -> None:
    seen: list[str] = []

    def predict(images: Images, clients: list[str]) -> BatchResult:
        seen.append(logs.request_id.get())
        return Model().predict(images, clients)

    async def run() -> None:
        logs.request_id.set("first")
        await Batcher(predict).predict(showing(1), "a")

    asyncio.run(run())
    assert seen == [""]
