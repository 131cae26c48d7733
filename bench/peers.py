"""The servers that the service is compared with, each as its users would write it.

python -m bench.peers bare model.onnx 8001     # Starlette and ONNX Runtime, nothing else: no checks, no log, no metrics
python -m bench.peers keras model.keras 8002   # FastAPI and Keras's model.predict
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np


def bare(path: Path) -> Any:
    """The minimum: parse, run, answer."""
    import onnxruntime
    import orjson
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    async def classify(request: Request) -> Response:
        image = np.array(orjson.loads(await request.body())["images"], np.uint8)
        probabilities = session.run(["probabilities"], {name: image[None]})[0][0]
        digit = int(probabilities.argmax())
        answer = {"digit": digit, "probability": probabilities[digit], "probabilities": probabilities}
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    return Starlette(routes=[Route("/classify", classify, methods=["POST"])])


def keras(path: Path) -> Any:
    """As in a tutorial."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    from models import backend

    model = backend.load()[0].models.load_model(path)
    application = FastAPI()

    class Request(BaseModel):
        images: list[list[int]]

    @application.post("/classify")
    def classify(request: Request) -> dict[str, Any]:
        probabilities = model.predict(np.array([request.images], np.uint8), verbose=0)["probabilities"][0]
        digit = int(probabilities.argmax())
        return {"digit": digit, "probability": float(probabilities[digit]), "probabilities": probabilities.tolist()}

    return application


def main() -> None:
    """Serve one of them on 127.0.0.1."""
    import uvicorn

    kind, path, port = sys.argv[1:]
    application = {"bare": bare, "keras": keras}[kind](Path(path))
    uvicorn.run(application, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
