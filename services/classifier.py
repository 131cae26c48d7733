"""The BentoML service that classifies images of handwritten digits, with a page to draw on.

`python -m services` serves it with Granian, `bentoml serve services.classifier:DigitClassifier` as BentoML does. Its methods are
declared for BentoML's clients, `bentoml.depends` and the OpenAPI document; over HTTP, the routes of the same names answer.
"""

# BentoML's decorators are shipped without types, and turn the class into a Service.
# mypy: disable-error-code="untyped-decorator, attr-defined"

import gc

import bentoml
from starlette.types import ASGIApp

from digits.settings import load_settings
from services import schemas
from services.middleware import RequestMiddleware
from services.openapi import openapi_document
from services.routes import to_json
from services.send_buffers import limit_when_listening
from services.serving_context import ServingContext

# BentoML reads the options when the module is imported, so this entry point reads the settings here.
_settings = load_settings()


# BentoML's traces have no exporter here, and its metrics get a label for every unknown path; each costs a fifth of the requests
# per second. The metrics are our own.
@bentoml.service(
    name="digit_classifier",
    workers=_settings.service_workers,
    # longer than a body may take, so that a late body is answered by its sentence
    traffic={"timeout": _settings.body_timeout_seconds + 5},
    # the middleware logs them, with their ids
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
    metrics={"enabled": False},
)
class DigitClassifier:
    """Classifies images with the champion, follows its alias, and logs the predictions."""

    def __init__(self) -> None:
        self.context = ServingContext(load_settings())
        # Each request leaves a timer of BentoML's; collecting them together with all imported modules took 100 ms a time,
        # and p99 at 8 clients was 100 ms instead of 14.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 20, 20)

    @bentoml.api
    def classify(self, images: schemas.Images) -> schemas.OneOrMany:
        """Classify one image or a list of images; a list gets a list."""
        content = to_json(self.context.classify(images.tolist()))
        return (schemas.Prediction if images.ndim == 2 else schemas.PredictionList).model_validate_json(content)

    @bentoml.api
    def classify_file(self, file: schemas.Picture, preview: schemas.Preview = False) -> schemas.PicturePrediction:
        """Classify a picture of any size; the answer has the 28 x 28 image that was made of it."""
        content = self.context.classify_file(file.read_bytes(), preview)
        return schemas.PicturePrediction.model_validate_json(to_json(content))

    @bentoml.api
    def read(
        self,
        file: schemas.Picture,
        length: schemas.Length = None,
        pattern: schemas.Pattern = None,
        preview: schemas.Preview = False,
    ) -> schemas.ReadPicture:
        """Read the numbers in a picture: its lines from top to bottom, each digit with its place."""
        content = self.context.read(file.read_bytes(), preview, pattern, length)
        return schemas.ReadPicture.model_validate_json(to_json(content))

    @bentoml.api
    def explain(self, image: schemas.ExplainedImage) -> schemas.Explanation:
        """Show which pixels speak for the most probable digit: how much its probability falls where paper covers them. Nothing is logged."""
        return schemas.Explanation.model_validate_json(to_json(self.context.explain(image.tolist())))

    @bentoml.api
    def classify_bulk(self, pixels: schemas.Pixels, /) -> schemas.BulkPredictions:
        """Classify raw uint8 pixels, 784 bytes for each image, row by row: the fastest way for many images."""
        return schemas.BulkPredictions.model_validate_json(to_json(self.context.classify_bulk(pixels)))

    @bentoml.api
    def feedback(
        self,
        id: schemas.Id,
        digit: schemas.LabelledDigit = None,
        source: schemas.Source = "api",
        is_digit: schemas.LabelIsDigit = True,
    ) -> schemas.Feedback:
        """Report the true digit of an earlier prediction, or that its image shows none; the most recent label wins."""
        # This process may have made the prediction just now.
        self.context.prediction_log.flush()
        return schemas.Feedback.model_validate_json(to_json(self.context.labels.feedback(id, digit, source, is_digit)))

    @bentoml.api
    def withdraw(
        self, id: schemas.Id, source: schemas.Source = "api", label_number: schemas.LabelNumber = None
    ) -> schemas.Withdrawal:
        """Take back a label that this source gave to a prediction, before a retraining ingests it."""
        return schemas.Withdrawal.model_validate_json(to_json(self.context.labels.withdraw(id, source, label_number)))

    @bentoml.api
    def about(self) -> schemas.About:
        """The version that is served, its recipe, metrics and run, and the state of the prediction log."""
        return schemas.About.model_validate_json(to_json(self.context.about()))

    def __is_ready__(self) -> bool:
        return self.context.is_ready

    @bentoml.on_shutdown
    def close(self) -> None:
        """Write what waits in the prediction log; called on SIGTERM."""
        self.context.close()


_document = openapi_document(DigitClassifier.apis, _settings.batch_limit)
DigitClassifier.add_asgi_middleware(RequestMiddleware, document=_document, settings=_settings)


def application() -> ASGIApp:
    """The service for Granian: our middleware comes before BentoML's layers, which cost a sixth of the requests per second."""
    limit_when_listening(_settings.service_port)
    return RequestMiddleware(DigitClassifier.to_asgi(), _document, _settings)
