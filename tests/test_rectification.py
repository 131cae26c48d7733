"""A drawn or photographed digit becomes the image that MNIST would hold, and anything else is refused in a sentence."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from monitored import held_out
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_digits

from digits.pictures import rectification

Picture = NDArray[np.uint8]


def encode(picture: Picture | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def seven(width: int = 300, height: int = 400, pen: int = 24, left: int = 60, top: int = 70) -> Picture:
    """A large 7 in dark ink on white paper, its stroke ends rounded as a pen leaves them."""
    picture = Image.new("L", (width, height), 255)
    corners = [(left, top), (left + 140, top), (left + 60, top + 200)]
    draw = ImageDraw.Draw(picture)
    draw.line(corners, fill=0, width=pen, joint="curve")
    for x, y in corners:
        draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=0)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(1)))


def likeness(one: Picture, other: Picture) -> float:
    """Cosine of the angle between two images: 1 when they are the same up to the strength of the ink."""
    first, second = one.astype(float).ravel(), other.astype(float).ravel()
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


def mnist_like() -> Picture:
    return rectification.decode(encode(seven()))


def test_a_28_by_28_grey_picture_is_taken_bit_by_bit() -> None:
    image = mnist_like()
    grey = Image.fromarray(image)
    assert np.array_equal(rectification.decode(encode(image)), image)
    for mode in ("RGB", "RGBA", "P"):
        assert np.array_equal(rectification.decode(encode(grey.convert(mode))), image), mode
    assert np.array_equal(rectification.decode(encode(image, "BMP")), image)
    assert np.array_equal(rectification.decode(encode(image, "WEBP", lossless=True)), image)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_the_inverse_of_an_mnist_image_is_inverted(mode: str) -> None:
    image = mnist_like()
    inverse = Image.fromarray(255 - image).convert(mode)
    assert np.array_equal(rectification.decode(encode(inverse)), image)


@pytest.mark.parametrize("columns", [-3, 3])
def test_a_small_drawing_elsewhere_is_centred(columns: int) -> None:
    drawn = 255 - np.roll(mnist_like(), columns, axis=1)
    found = rectification.decode(encode(drawn))
    assert likeness(found, mnist_like()) > 0.9 and not np.array_equal(found, 255 - drawn)


def test_every_held_out_digit_comes_through_as_it_is_in_either_polarity() -> None:
    images, _ = held_out()
    for image in images[:40]:
        for picture in (image, 255 - image):
            assert np.array_equal(rectification.decode(encode(picture)), image)


def test_a_drawing_is_fitted_into_twenty_pixels_around_its_centre_of_mass() -> None:
    image = mnist_like().astype(float)
    rows, columns = np.flatnonzero(image.sum(1)), np.flatnonzero(image.sum(0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    for axis in (0, 1):
        centre = (image.sum(1 - axis) * np.arange(28)).sum() / image.sum()
        assert 13.5 <= centre <= 14.5
    assert image.max() > 230 and np.median(image) == 0


def lit_from_the_left(picture: Picture) -> Picture:
    """The same paper photographed in a light that falls to a third from left to right, with the camera's noise."""
    light = np.linspace(1, 0.35, picture.shape[1])
    noise = np.random.default_rng(0).normal(0, 4, picture.shape)
    return np.clip((40 + picture * (200 / 255)) * light + noise, 0, 255).astype(np.uint8)


ARRIVALS: dict[str, Callable[[], bytes]] = {
    "light on dark": lambda: encode(255 - seven()),
    "elsewhere on larger paper": lambda: encode(seven(900, 700, left=600, top=400)),
    "faint pencil": lambda: encode((200 + seven() * (40 / 255)).astype(np.uint8)),
    "uneven light": lambda: encode(lit_from_the_left(seven()), "JPEG", quality=85),
    "16 bits": lambda: encode(Image.fromarray(seven().astype(np.uint16) * 257)),
    "CMYK": lambda: encode(Image.fromarray(seven()).convert("CMYK"), "JPEG", quality=95),
    "palette": lambda: encode(Image.fromarray(seven()).convert("P")),
    "black on transparent": lambda: encode(
        Image.merge("LA", [Image.new("L", (300, 400), 0), Image.fromarray(255 - seven())])
    ),
    "white on transparent": lambda: encode(
        Image.merge("LA", [Image.new("L", (300, 400), 255), Image.fromarray(255 - seven())])
    ),
    "turned, with EXIF": lambda: encode(
        Image.fromarray(seven()).rotate(90, expand=True),
        "JPEG",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    ),
    "a large photo": lambda: encode(Image.fromarray(seven()).resize((2400, 3200)), "JPEG"),
    "dust": lambda: encode(np.where(np.random.default_rng(1).random((400, 300)) < 0.0002, 0, seven()).astype(np.uint8)),
    "WebP": lambda: encode(seven(), "WEBP"),
    "BMP": lambda: encode(seven(), "BMP"),
}


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_the_same_digit_arrives_the_same_however_it_is_sent(arrival: str) -> None:
    assert likeness(rectification.decode(ARRIVALS[arrival]()), mnist_like()) > 0.93


@pytest.mark.parametrize("pen", [5, 10, 40, 56])
def test_a_fine_and_a_broad_pen_come_out_with_a_stroke_as_in_mnist(pen: int) -> None:
    ink = rectification.decode(encode(seven(pen=pen))).astype(float) / 255
    outline = np.abs(np.diff(ink, axis=0)).sum() + np.abs(np.diff(ink, axis=1)).sum()
    assert 1.5 < 2 * ink.sum() / (outline * np.pi / 4) < 4.8  # the 1 % and 99 % of MNIST's test digits


SCANS = [np.rint(scan * 255 / 16).astype(np.uint8) for scan in load_digits().images[:60]]


def enlarged(scan: Picture, factor: int, method: Image.Resampling) -> Picture:
    return np.asarray(Image.fromarray(scan).resize((factor * scan.shape[1], factor * scan.shape[0]), method))


TINY: dict[str, Callable[[Picture], Picture]] = {
    "light on dark": lambda scan: scan,
    "dark on light": lambda scan: 255 - scan,
    "in paper": lambda scan: 255 - np.pad(scan, 5),
    "repeated pixels": lambda scan: enlarged(scan, 10, Image.Resampling.NEAREST),
    "repeated pixels in paper": lambda scan: 255 - np.pad(enlarged(scan, 8, Image.Resampling.NEAREST), 21),
}


@pytest.mark.parametrize("form", TINY)
def test_a_scan_of_eight_rows_is_read_alike_with_and_without_paper_and_repeated_pixels(form: str) -> None:
    for scan in SCANS:
        expected = rectification.decode(encode(np.pad(scan, 2)))
        assert likeness(rectification.decode(encode(TINY[form](scan))), expected) > 0.9


@pytest.mark.parametrize("method", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_a_scan_of_eight_rows_keeps_its_form_when_it_was_enlarged(method: Image.Resampling) -> None:
    for scan in SCANS:
        expected = rectification.decode(encode(np.pad(scan, 2)))
        assert likeness(rectification.decode(encode(255 - enlarged(np.pad(scan, 2), 8, method))), expected) > 0.8


def test_an_mnist_image_with_repeated_pixels_is_taken_bit_by_bit() -> None:
    image = mnist_like()
    assert np.array_equal(rectification.decode(encode(enlarged(image, 10, Image.Resampling.NEAREST))), image)


def header(width: int, height: int) -> bytes:
    """A PNG that claims an extent and holds no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    extent = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + extent + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def animation(kind: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.fromarray(seven()), Image.fromarray(255 - seven())]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def bars(*boxes: tuple[int, int, int, int]) -> bytes:
    picture = Image.new("L", (400, 300), 255)
    for box in boxes:
        ImageDraw.Draw(picture).rectangle(box, fill=0)
    return encode(picture)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "the file is empty"),
    "text": (lambda: b"hello world", 'begins with "hello world" and is no picture'),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is no picture; send a PNG, JPEG, WebP or BMP"),
    "GIF": (lambda: encode(seven(), "GIF"), 'begins with "GIF8'),
    "truncated PNG": (lambda: encode(seven())[:400], "PNG file cannot be read to its end"),
    "truncated JPEG": (lambda: encode(seven(), "JPEG")[:900], "JPEG file cannot be read to its end"),
    "animated WebP": (lambda: animation("WEBP"), "animation of 2 frames"),
    "animated PNG": (lambda: animation("PNG"), "animation of 2 frames"),
    "a bomb": (lambda: header(50_000, 50_000), "too many pixels"),
    "25 million pixels": (lambda: header(5_000, 5_000), "5,000 x 5,000 pixels"),
    "white": (lambda: encode(np.full((300, 400), 255, np.uint8)), "blank"),
    "black 28 x 28": (lambda: encode(np.zeros((28, 28), np.uint8)), "blank"),
    "grainy paper": (
        lambda: encode(np.random.default_rng(0).normal(200, 5, (300, 300)).astype(np.uint8)),
        "with more contrast",
    ),
    "fully transparent": (lambda: encode(Image.new("RGBA", (50, 50))), "transparent"),
    "noise": (lambda: encode(np.random.default_rng(0).integers(0, 255, (300, 300)).astype(np.uint8)), "no digit"),
    "a dash": (lambda: bars((40, 140, 340, 160)), "times as wide as high"),
    "a blob": (lambda: bars((100, 60, 280, 240)), "solid blob"),
    "two digits": (lambda: bars((60, 60, 90, 240), (250, 60, 280, 240)), "2 digits side by side"),
    "one pixel": (lambda: encode(np.zeros((1, 1), np.uint8)), "blank"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_single_digit_is_refused_in_a_sentence(name: str) -> None:
    body, sentence = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        rectification.decode(body())
    assert sentence in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_files_never_raise_anything_but_a_sentence() -> None:
    random = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        whole = np.frombuffer(encode(seven(), kind), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[random.integers(0, min(len(whole), 400), 6)] = random.integers(0, 256, 6)
            try:
                image = rectification.decode(damaged.tobytes())
            except ValueError as error:
                assert str(error)
            else:
                assert image.shape == (28, 28) and image.dtype == np.uint8


def test_most_handwritten_digits_are_taken_and_still_look_themselves() -> None:
    """scikit-learn's 8 x 8 digits, enlarged and dark on light: nothing is refused as blank, blob or several."""
    taken = 0
    for small in load_digits().images[:200]:
        ink = Image.fromarray((small / 16 * 255).astype(np.uint8)).resize((160, 160), Image.Resampling.BICUBIC)
        picture = Image.new("L", (260, 300), 255)
        picture.paste(Image.eval(ink, lambda value: 255 - value), (30, 60))
        try:
            taken += rectification.decode(encode(picture)).max() > 200
        except ValueError:
            continue
    assert taken >= 190
