"""Dynamic batching: small JSON requests or pictures that are waiting at the same time share one call of the model, log record and metrics update.

No request waits for a batch to fill; the busier a worker is, the larger its batches become (`python -m bench.serving`).
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digits.images import Images, Labels


class BatchResult(NamedTuple):
    """The predictions for n images; every array and list has length n."""

    version: str
    digits: Labels  # (n,)
    probabilities: NDArray[np.float32]  # (n, 10)
    prediction_sets: list[list[int]]
    uncertain: NDArray[np.bool_]  # (n,)
    is_digit: NDArray[np.bool_]  # (n,)
    digit_scores: NDArray[np.float32]  # (n,), NaN where the model has no score
    ids: list[str | None]  # None for a prediction that is not logged

    def part(self, start: int, end: int) -> "BatchResult":
        """The result for the images from `start` up to `end`."""
        return BatchResult(self.version, *(values[start:end] for values in self[1:]))  # type: ignore[arg-type]  # in order


class Batcher:
    """Calls `predict` with the images (n, 28, 28) of all requests that are waiting, and the n clients that sent them."""

    def __init__(self, predict: Callable[[Images, list[str]], BatchResult]) -> None:
        self._predict = predict
        self._waiting: list[tuple[Images, str, asyncio.Future[BatchResult]]] = []

    async def predict(self, images: Images, client: str) -> BatchResult:
        """The result for these images (n, 28, 28) of one client alone; raises what `predict` raised for their batch."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[BatchResult] = loop.create_future()
        if not self._waiting:
            # In a context of its own: a line in the log about a batch belongs to none of its requests.
            loop.call_soon(self._run, context=Context())
        self._waiting.append((images, client, future))
        return await future

    def _run(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            # On the event loop, because handing a few images to a thread takes longer than the model needs for them.
            images = np.concatenate([images for images, _, _ in waiting])
            result = self._predict(images, [client for images, client, _ in waiting for _ in range(len(images))])
        except Exception as error:
            for _, _, future in waiting:
                if not future.done():
                    future.set_exception(error)
            return
        end = 0
        for images, _, future in waiting:
            start, end = end, end + len(images)
            # the future of a cancelled request is done
            if not future.done():
                future.set_result(result.part(start, end))
