"""Dynamic batching: the small JSON requests that one turn of the event loop brings are answered together.

One call of the model, one record in the journal and one count for all of them. Nothing waits for a batch to fill: who comes alone is
answered alone, and the busier a worker is, the less an answer costs it (`python -m bench.serving`).
"""

import asyncio
from collections.abc import Callable

import numpy as np

from digits.images import Images
from services.responses import Reply


class Batcher:
    """Answers with `answer`, which is given the images (n, 28, 28) of one or more requests."""

    def __init__(self, answer: Callable[[Images], Reply]) -> None:
        self._answer = answer
        self._waiting: list[tuple[Images, asyncio.Future[Reply]]] = []

    async def answer(self, images: Images) -> Reply:
        """The reply on these images (n, 28, 28) alone; raises what `answer` raised on the batch they were in."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._run)
        self._waiting.append((images, future))
        return await future

    def _run(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            whole = self._answer(np.concatenate([images for images, _ in waiting]))
        except Exception as error:  # whatever it is, every request of the batch has to hear of it
            for _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        end = 0
        for images, future in waiting:
            start, end = end, end + len(images)
            if not future.done():  # its request was given up
                future.set_result(whole.part(start, end))
