"""Requests that come together are answered together, each with its own answers, whatever becomes of the others."""

import asyncio

import numpy as np
import pytest

from digits.images import Images
from services.batcher import Batcher
from services.responses import Reply


class Model:
    """Answers every image with the digit that its first pixel holds, and remembers how many it was given at once."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def answer(self, images: Images) -> Reply:
        self.batches.append(len(images))
        digits = images[:, 0, 0]
        if (digits > 9).any():
            raise ValueError(f"{digits.max()} is no digit")
        probabilities = np.eye(10, dtype=np.float32)[digits]
        return Reply("1", digits, probabilities, probabilities > 0, digits == 9, [f"id of {digit}" for digit in digits])


def showing(*digits: int) -> Images:
    images = np.zeros((len(digits), 28, 28), np.uint8)
    images[:, 0, 0] = digits
    return images


def test_each_request_gets_its_own_part_of_one_call() -> None:
    model = Model()

    async def ask() -> list[Reply]:
        batcher = Batcher(model.answer)
        return await asyncio.gather(*(batcher.answer(showing(*digits)) for digits in [(3,), (1, 4, 9), (5,)]))

    one, three, last = asyncio.run(ask())
    assert model.batches == [5]
    assert one.digits.tolist() == [3] and one.ids == ["id of 3"]
    assert three.digits.tolist() == [1, 4, 9] and three.ids == ["id of 1", "id of 4", "id of 9"]
    assert three.probabilities.argmax(1).tolist() == [1, 4, 9] and three.sets.sum(1).tolist() == [1, 1, 1]
    assert three.uncertain.tolist() == [False, False, True] and three.version == "1"
    assert last.digits.tolist() == [5]


def test_who_comes_alone_is_answered_alone() -> None:
    model = Model()

    async def ask() -> None:
        batcher = Batcher(model.answer)
        for digit in (3, 1, 4):
            assert (await batcher.answer(showing(digit))).digits.tolist() == [digit]

    asyncio.run(ask())
    assert model.batches == [1, 1, 1]


@pytest.mark.parametrize("digit", [5, 200])
def test_a_request_that_was_given_up_takes_nothing_from_the_others(digit: int) -> None:
    async def ask() -> Reply | BaseException:
        batcher = Batcher(Model().answer)
        given_up = asyncio.create_task(batcher.answer(showing(3)))
        other = asyncio.create_task(batcher.answer(showing(digit)))
        await asyncio.sleep(0)
        given_up.cancel()
        (reply,) = await asyncio.wait_for(asyncio.gather(other, return_exceptions=True), 5)
        return reply

    reply = asyncio.run(ask())
    assert str(reply) == "200 is no digit" if isinstance(reply, ValueError) else reply.digits.tolist() == [5]


def test_what_the_model_raises_reaches_every_request_of_the_batch_and_none_after_it() -> None:
    model = Model()

    async def ask() -> None:
        batcher = Batcher(model.answer)
        replies = await asyncio.gather(*(batcher.answer(showing(digit)) for digit in (3, 200)), return_exceptions=True)
        assert [str(reply) for reply in replies] == ["200 is no digit"] * 2
        assert (await batcher.answer(showing(7))).digits.tolist() == [7]

    asyncio.run(ask())
