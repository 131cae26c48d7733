"""Opens uploaded pictures: PNG, JPEG, WebP and BMP files become upright grey pixels, with bounds on memory and time."""

import io
import struct
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageChops, ImageStat, UnidentifiedImageError

from digits.errors import READ_ERRORS, quote
from digits.pictures import picture_structure

MAX_PIXELS = 24_000_000  # of an uploaded picture: a phone's photo has 12 million
# Of a side, as in JPEG: Pillow needs memory for each row, 250 MB for 24 million rows of one pixel.
MAX_SIDE = 65_535
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")

# What undoes each orientation (EXIF 2.3, section 4.6.4, tag 274); the first is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Rows of a large picture that is reduced strip by strip, after the reduction.
_STRIP_ROWS = 64
# Of pictures whose pixels may have been repeated; no digit has fewer rows.
MIN_SIDE = 6
# Entries read of an EXIF directory; cameras write some 20.
MAX_TAGS = 200

Grey = NDArray[np.uint8]  # (height, width), 0 = black, 255 = white


class Picture(NamedTuple):
    """A decoded picture, upright, and the width and height that it has in the file."""

    image: Image.Image
    size: tuple[int, int]


def open_upright(body: bytes, max_side: int, max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture; the image of a JPEG much larger than `max_side` pixels may be smaller than its size, but not below that.

    Raises ValueError when the body is no readable picture or has more than `max_pixels`.
    """
    if not body:
        raise ValueError("the file is empty; send a PNG, JPEG, WebP or BMP picture")
    if refusal := picture_structure.refusal(body):
        raise ValueError(refusal)
    kind = "picture"
    try:
        picture = Image.open(io.BytesIO(body), formats=FORMATS)
        kind = f"{picture.format} file"
        refusal = _refusal(picture, max_pixels)
        if refusal is None:
            size = picture.size
            picture.draft("L", (max_side, max_side))  # lets a large JPEG be decoded at a fraction of its size
            picture.load()
            turned = _upright(picture)
            is_on_its_side = turned.size != picture.size
            return Picture(turned, size[::-1] if is_on_its_side else size)
    except UnidentifiedImageError:
        found = f"the file begins with {quote(body.lstrip()[:12].decode('latin-1'))} and is no picture"
        raise ValueError(f"{found}; send a PNG, JPEG, WebP or BMP file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        refusal = f"the picture has too many pixels; send one of at most {max_pixels:,}"
    except READ_ERRORS as error:
        raise ValueError(f"the {kind} cannot be read to its end ({quote(str(error))}); send it again") from error
    raise ValueError(refusal)


def _refusal(picture: Image.Image, max_pixels: int) -> str | None:
    """Why a picture that can be read is not accepted; None for one that is."""
    width, height = picture.size
    if max(width, height) > MAX_SIDE:
        return f"the picture has {width:,} x {height:,} pixels; send one of at most {MAX_SIDE:,} a side"
    # libwebp keeps two more copies of the picture.
    limit = max_pixels // 2 if picture.format == "WEBP" else max_pixels
    if width * height > limit:
        kind = "WEBP picture" if picture.format == "WEBP" else "picture"
        return f"the {kind} has {width:,} x {height:,} pixels; send one of at most {limit:,}"
    # A phone's JPEG may hold a second picture (depth, gain map) and is no animation.
    frames = getattr(picture, "n_frames", 1)
    if picture.format in ("PNG", "WEBP") and frames > 1:
        return f"the {picture.format} file is an animation of {frames} frames; send one still picture"
    return None


def _upright(picture: Image.Image) -> Image.Image:
    """The picture turned as the orientation in its first EXIF directory says.

    Pillow's own reader looks at all tags, and takes half a second for 64 kB.
    """
    exif = picture.info.get("exif", b"").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return picture
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    if start + 2 > len(exif):
        return picture
    (count,) = struct.unpack_from(f"{order}H", exif, start)
    for place in range(start + 2, min(start + 12 * min(count, MAX_TAGS), len(exif) - 12) + 1, 12):
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, place)
        if tag == ExifTags.Base.Orientation:
            return picture.transpose(_TURNS[value]) if value in _TURNS else picture
    return picture


def to_grey(picture: Image.Image, max_side: int) -> Grey:
    """Brightness, alpha composited; the longest side of a larger picture is reduced to less than twice `max_side` pixels."""
    if picture.mode in ("1", "P", "PA"):
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would clip
        values = np.asarray(picture)
        flat = Image.fromarray((values >> 8 if values.max() > 255 else values).astype(np.uint8))
    elif picture.has_transparency_data:
        flat = _composite(_reduced(picture, max_side).convert("RGBA"))
    else:
        flat = _reduced(picture, max_side).convert("L")
    return np.asarray(_reduced(flat, max_side))


def is_colourless(picture: Image.Image) -> bool:
    """Whether all pixels are grey."""
    red, green, blue = picture.convert("RGB").split()
    return red.tobytes() == green.tobytes() == blue.tobytes()


def unrepeated(grey: Grey) -> Grey:
    """The picture with each block of equal pixels reduced to one, where pixels were repeated to enlarge it, as on a screenshot."""
    rows = _starts(grey)
    if np.diff(rows).min(initial=2) < 2:
        return grey
    columns = _starts(grey.T)
    runs = np.concatenate([np.diff(rows), np.diff(columns)])
    if not runs.size or runs.min() < 2:
        return grey
    side = runs[runs < 1.5 * runs.min()].mean()
    if (np.abs(runs - side * np.rint(runs / side)) > side / 8).any():
        return grey
    places = [_middles(starts, length, side) for starts, length in zip((rows, columns), grey.shape, strict=True)]
    return grey[np.ix_(*places)] if max(map(len, places)) >= MIN_SIDE else grey


def _starts(grey: Grey) -> NDArray[np.int64]:
    """The rows that differ from the one above."""
    return np.flatnonzero((grey[1:] != grey[:-1]).any(axis=1)) + 1


def _middles(starts: NDArray[np.int64], length: int, side: float) -> NDArray[np.int64]:
    """The middle of each enlarged pixel, of those that are `side` pixels long between the places where one starts."""
    found = []
    for start, end in pairwise([0, *starts.tolist(), length]):
        count = max(1, round((end - start) / side))
        found += [start + int((2 * index + 1) * (end - start) / (2 * count)) for index in range(count)]
    return np.array(found)


def _reduced(picture: Image.Image, max_side: int) -> Image.Image:
    """A whole fraction of a large picture, its longest side still at least `max_side` pixels."""
    factor = max(picture.size) // max_side
    if factor <= 1:
        return picture
    width, height = picture.size
    small = Image.new(picture.mode, (-(-width // factor), -(-height // factor)))
    # the colour that is transparent
    small.info = picture.info
    # Pillow copies a transparent picture to reduce it: strip by strip, the copies are small.
    for top in range(0, height, strip := _STRIP_ROWS * factor):
        part = picture.crop((0, top, width, min(top + strip, height)))
        small.paste(part.reduce(factor), (0, top // factor))
    return small


def _composite(picture: Image.Image) -> Image.Image:
    """A transparent picture on paper: that of its opaque part, or else white for dark ink and black for light ink."""
    alpha, light = picture.getchannel("A"), picture.convert("L")
    opacity = ImageStat.Stat(alpha).mean[0]
    if opacity == 0:
        raise ValueError("the picture is fully transparent; send one on opaque paper")
    opaque = np.asarray(alpha) > 127
    if opaque.mean() > 0.5:
        paper = int(np.median(np.asarray(light)[opaque]))
    else:
        paper = 0 if ImageStat.Stat(ImageChops.multiply(light, alpha)).mean[0] > opacity / 2 else 255
    return Image.composite(light, Image.new("L", picture.size, paper), alpha)
