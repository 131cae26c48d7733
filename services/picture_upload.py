"""Reads an uploaded picture and the options beside it from a request: the picture is a form field, or the body."""

from bentoml.exceptions import UnprocessableEntity
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

# Of a form field other than the file.
MAX_FIELD_BYTES = 1_000
PICTURE_TYPES = ("image/", "application/octet-stream")


async def read(request: Request) -> tuple[bytes, dict[str, str]]:
    """The uploaded file, and the other fields in the form and the query."""
    fields = dict(request.query_params)
    content_type = request.headers.get("content-type", "application/octet-stream").lower()
    if content_type.startswith(PICTURE_TYPES):
        return request.state.body, fields
    if not content_type.startswith("multipart/form-data"):
        advice = 'send a picture as the form field "file" or with its own type'
        raise HTTPException(415, f'the content type is "{content_type[:80]}"; {advice}')
    # Python decodes some character sets, such as Punycode, in a time that grows with the square of the length.
    if "charset" in content_type.replace("charset=utf-8", "", 1).replace('charset="utf-8"', "", 1):
        raise HTTPException(415, f'the content type is "{content_type[:80]}"; send the form in UTF-8')
    async with request.form(max_files=1, max_fields=8, max_part_size=MAX_FIELD_BYTES) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise UnprocessableEntity('the form has no file named "file"; send one, as in curl -F file=@digit.png')
        texts = {name: value for name, value in form.items() if isinstance(value, str)}
        return await file.read(), fields | texts


def read_preview(request: Request, fields: dict[str, str]) -> bool:
    """The option `preview`: the answer is not logged. Remembered in the state of the request; raises UnprocessableEntity for another value."""
    preview = fields.get("preview", "false")
    if preview not in ("true", "false"):
        raise UnprocessableEntity(f'preview is "{preview[:40]}"; expected true or false')
    request.state.is_preview = preview == "true"
    return preview == "true"
