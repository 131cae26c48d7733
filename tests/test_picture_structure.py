"""Files that would keep a decoder busy are refused by the number of their parts, and those that cameras and programs write are not."""

import io
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from test_rectification import encode, seven

from bench import attack
from digits.pictures import picture_structure, rectification


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(chunks: bytes) -> bytes:
    """A 7 as PNG with more chunks behind its header."""
    body = encode(seven())
    return body[:33] + chunks + body[33:]


def jpeg_with(segments: bytes, **options: Any) -> bytes:
    body = encode(seven(), "JPEG", **options)
    return body[:2] + segments + body[2:]


def exif(tags: int) -> bytes:
    """A segment whose directory has so many tags."""
    content = (
        b"Exif\0\0II*\0\x08\0\0\0"
        + struct.pack("<H", tags)
        + b"".join(struct.pack("<HHII", 1_000 + tag, 7, 60_000, 8) for tag in range(tags))
    )
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def run_length_bmp() -> bytes:
    """A BMP whose 1,000,000 runs of one pixel Pillow would read in a loop of Python."""
    runs, palette = b"\1\7" * 1_000_000, bytes(1_024)
    head = struct.pack("<IiiHHIIiiII", 40, 4_800, 4_800, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(palette) + len(runs), 0, 0, 54 + len(palette)) + head + palette + runs


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


FILL_BYTES = b"\xff\xd8\xff" + b"\xff" * 16_000_000 + b"\0"
# Both have 23 million pixels and Pillow decodes them, while what stands where the only header should be says less.
PIXELS = chunk(b"IDAT", zlib.compress(bytes(4_801 * 4_800))) + chunk(b"IEND", b"")
WRAPPED_PNGS = [
    b"\x89PNG\r\n\x1a\n" + first + header(4_800, 4_800) + PIXELS
    for first in (chunk(b"tEXt", struct.pack(">II", 28, 28)), header(28, 28))
]
PROFILE = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000)))
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans": (lambda: attack.jpeg_of_scans(4_890, 100_000), "JPEG file has more than 30 scans"),
    "segments": (lambda: jpeg_with(b"\xff\xef\0\2" * 500_000), "more than 1,000 segments"),
    "segments behind an end": (lambda: jpeg_with(b"\xff\xd9" + b"\xff\xef\0\2" * 500_000), "more than 1,000 segments"),
    "fill bytes": (lambda: jpeg_with(b"\xff" * 4_000_000), "more than 10,000 bytes between its segments"),
    "fill bytes up to the end": (lambda: FILL_BYTES, "more than 10,000 bytes between its segments"),
    "restart markers": (lambda: jpeg_with(b"\xff\xd0" * 2_000_000), "more than 10,000 bytes between its segments"),
    "EXIF segments": (lambda: jpeg_with(exif(5_000) * 20), "more than 2 EXIF segments"),
    "colour profiles": (lambda: png_with(PROFILE * 2_000), "PNG file has more than 100 metadata chunks"),
    "texts": (lambda: png_with(chunk(b"tEXt", b"a\0") * 200_000), "more than 100 metadata chunks"),
    "empty chunks of pixels": (lambda: png_with(chunk(b"IDAT", b"") * 200_000), "more than 20,000 chunks"),
    "a text before the header": (lambda: WRAPPED_PNGS[0], "PNG file does not begin with its only IHDR chunk"),
    "a second header": (lambda: WRAPPED_PNGS[1], "PNG file does not begin with its only IHDR chunk"),
    "Photoshop blocks": (lambda: attack.jpeg_of_blocks(240), "JPEG file has more than 1,000 Photoshop blocks"),
    "run lengths": (run_length_bmp, "the BMP file is run-length encoded; save it without compression, or as PNG"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name: str) -> None:
    body, sentence = BOMBS[name][0](), BOMBS[name][1]
    began = time.process_time()
    with pytest.raises(ValueError, match=sentence):
        rectification.decode(body)
    assert time.process_time() - began < 0.3


def test_a_webp_of_more_than_half_the_pixels_is_refused() -> None:
    body = encode(Image.new("L", (200, 101), 255), "WEBP")
    with pytest.raises(ValueError, match="the WEBP picture has 200 x 101 pixels; send one of at most 20,000"):
        rectification.decode(body, max_pixels=40_000)


def motion_photo() -> bytes:
    """A JPEG with a video behind it, in which every two bytes occur."""
    return encode(seven(), "JPEG") + np.random.default_rng(0).integers(0, 256, 4_000_000).astype(np.uint8).tobytes()


def described() -> bytes:
    texts = PngImagePlugin.PngInfo()
    for number in range(60):
        texts.add_text(f"key {number}", "text")
    return encode(seven(), pnginfo=texts, icc_profile=bytes(3_000))


ORDINARY: dict[str, Callable[[], bytes]] = {
    "progressive": lambda: encode(Image.fromarray(seven()).convert("RGB"), "JPEG", progressive=True, optimize=True),
    "with restart markers": lambda: encode(seven(), "JPEG", restart_marker_blocks=1),
    "with a profile and EXIF": lambda: jpeg_with(exif(30), icc_profile=bytes(400_000)),
    "motion photo": motion_photo,
    "Photoshop": lambda: jpeg_with(
        b"\xff\xed" + struct.pack(">H", 616) + b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 50
    ),
    "PNG with texts": described,
    "BMP": lambda: encode(seven(), "BMP"),
}


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
@pytest.mark.parametrize("name", ORDINARY)
def test_what_cameras_and_programs_write_is_taken(name: str) -> None:
    assert picture_structure.refusal(ORDINARY[name]()) is None
    found = rectification.decode(ORDINARY[name]()).astype(int)
    assert np.abs(found - rectification.decode(encode(seven()))).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
# With fewer than two entries, the orientation stands behind the directory.
@pytest.mark.parametrize(("value", "count"), [*((value, 2) for value in range(10)), (6, 1), (6, 0)])
def test_a_picture_is_turned_as_pillow_would(kind: str, order: str, value: int, count: int) -> None:
    head = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}[order]
    tags = struct.pack(f"{order}HHHIIHHIHH", count, 256, 4, 1, 300, 274, 3, 1, value, 0) + bytes(4)
    body = encode(seven(), kind, exif=b"Exif\0\0" + head + tags)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
    expected = rectification.decode(encode(turned.convert("L")))
    assert np.array_equal(rectification.decode(body), expected)


def test_a_damaged_orientation_is_none() -> None:
    for damaged in (
        b"II",
        b"II*\0\x08\0\0\0",
        b"II*\0\x08\0\0\0\1",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"MM\0*\0\0\0\x08\0\x09\1\x12",
    ):
        assert rectification.decode(encode(seven(), exif=b"Exif\0\0" + damaged)).any()


@pytest.mark.parametrize("size", [(1, 2_000_000), (2_000_000, 1), (3, 800_000)])
def test_a_line_of_millions_of_pixels_is_refused_in_a_sentence(size: tuple[int, int]) -> None:
    """Pillow needs 500 MB for an interlaced PNG of 1 x 23,999,999 pixels, which has 47 kB."""
    with pytest.raises(ValueError, match="65,535 a side"):
        rectification.decode(encode(Image.new("L", size, 255)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16"])
def test_a_large_picture_gives_the_image_of_a_small_one(mode: str) -> None:
    large = Image.fromarray(seven()).resize((2_400, 3_200), Image.Resampling.BICUBIC)
    if mode == "I;16":
        large = Image.fromarray(np.asarray(large).astype(np.uint16) * 257)
    found = rectification.decode(encode(large.convert(mode) if mode != "I;16" else large)).astype(int)
    assert np.abs(found - rectification.decode(encode(seven()))).mean() < 4


def test_small_is_what_decodes_in_a_moment() -> None:
    assert picture_structure.is_small(encode(seven())) and picture_structure.is_small(encode(seven(), "JPEG"))
    large = Image.new("L", (2_000, 1_001), 255)
    for kind in ("PNG", "JPEG"):
        assert picture_structure.is_small(encode(large.crop((0, 0, 2_000, 1_000)), kind))
        assert not picture_structure.is_small(encode(large, kind))
    assert not picture_structure.is_small(encode(seven()) + bytes(100_000))
    assert not picture_structure.is_small(encode(seven(), "WEBP"))
    assert not picture_structure.is_small(b"text")
    assert picture_structure.is_small(png_with(chunk(b"tEXt", b"a\0" + bytes(9_000))))
    assert not picture_structure.is_small(png_with(chunk(b"tEXt", b"a\0" + bytes(5_000)) * 2))
    assert len(png_with(PROFILE * 90)) < 100_000 and not picture_structure.is_small(png_with(PROFILE * 90))
    assert len(WRAPPED_PNGS[0]) < 100_000 and not picture_structure.is_small(WRAPPED_PNGS[0])


def test_a_file_without_an_end_of_its_head_is_soon_seen_not_to_be_small() -> None:
    for body in (FILL_BYTES[:99_000] + b"\0", b"\xff\xd8" + b"\xff\xef\0\2" * 24_000):
        began = time.process_time()
        assert not picture_structure.is_small(body)
        assert time.process_time() - began < 0.05


def test_tiny_is_what_does_not_delay_others() -> None:
    grey = Image.new("L", (512, 512), 255)
    assert picture_structure.is_tiny(encode(seven())) and picture_structure.is_tiny(encode(grey))
    assert picture_structure.is_tiny(png_with(chunk(b"tEXt", b"a\0" + bytes(900))))
    for body in (
        encode(Image.new("L", (513, 1), 255)),
        encode(seven(), "JPEG"),
        encode(seven()) + bytes(100_000),
        png_with(PROFILE),
        png_with(chunk(b"IDAT", b"") * 100),
        b"",
    ):
        assert not picture_structure.is_tiny(body)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "I;16"])
def test_a_tiny_picture_is_answered_in_a_moment_whatever_it_shows(mode: str) -> None:
    dots = np.tile(np.random.default_rng(0).random((64, 64)) < 0.2, (8, 8))
    picture = (
        Image.fromarray(dots).convert(mode) if mode != "I;16" else Image.fromarray(dots.astype(np.uint16) * 65_535)
    )
    body, seconds = encode(picture), []
    assert picture_structure.is_tiny(body)
    for _ in range(3):
        began = time.process_time()
        with pytest.raises(ValueError, match="no digit"):
            rectification.decode(body)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.03
