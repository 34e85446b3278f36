from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from mpt_bihalf.data import DataError
from mpt_bihalf.data.decoding import image_endings, read_image
from tests.reference import one_line_error

RAMP = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
COLOURS = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
ORIENTATION = 0x112


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(read_image("file", content))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def grey(content: bytes) -> np.ndarray:
    """What is decoded, of which all channels must be alike."""
    pixels = decoded(content)
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0]


def scaled(values: np.ndarray, highest: int = 65535) -> np.ndarray:
    """v * 255 / highest, rounded, in whole numbers."""
    return (values.astype(int) * 510 + highest) // (2 * highest)


def png(size: tuple[int, int], bits: int, colour: int, rows: Sequence[bytes], key: Sequence[int] = ()) -> bytes:
    """A PNG by its specification. colour: 0 grey, 2 RGB. key: the transparent colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0))
    transparent = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + transparent + data + chunk(b"IEND", b"")


def tiff(
    size: tuple[int, int], bits: int, data: bytes, order: str = "<", white_is_0: bool = False, sample_format: int = 1
) -> bytes:
    """An uncompressed grey TIFF by its specification. sample_format: 1 unsigned, 2 signed, 3 floating point."""
    tags = [(256, size[0]), (257, size[1]), (258, bits), (259, 1), (262, int(not white_is_0)), (273, 8), (277, 1)]
    tags += [(278, size[1]), (279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(data))
    return start + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def test_grey_of_16_bits_is_scaled() -> None:
    size, expected = (30, 20), scaled(RAMP)
    assert len(np.unique(expected)) == 256
    assert np.array_equal(grey(png(size, 16, 0, [row.astype(">u2").tobytes() for row in RAMP])), expected)
    assert np.array_equal(grey(tiff(size, 16, RAMP.astype("<u2").tobytes())), expected)
    assert np.array_equal(grey(tiff(size, 16, RAMP.astype(">u2").tobytes(), ">")), expected)
    assert np.array_equal(grey(tiff(size, 16, RAMP.astype("<u2").tobytes(), white_is_0=True)), 255 - expected)
    assert np.array_equal(grey(encoded(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw")), expected)


def test_a_tiff_of_12_bits_is_scaled_by_the_highest_of_12_bits() -> None:
    values = RAMP >> 4
    first, second = values.reshape(-1, 2).T.astype(np.uint8), (values.reshape(-1, 2).T >> 4).astype(np.uint8)
    data = np.stack([second[0], (first[0] << 4) | (second[1] >> 4), first[1]], axis=1)
    assert np.array_equal(grey(tiff((30, 20), 12, data.tobytes())), scaled(values, 4095))


def test_a_pgm_is_scaled_by_its_highest() -> None:
    values = RAMP >> 6
    got = grey(b"P5 30 20 1023\n" + values.astype(">u2").tobytes())
    assert np.array_equal(got, scaled(values, 1023))


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow without JPEG 2000")
def test_jpeg_2000_of_16_bits_is_scaled() -> None:
    assert np.array_equal(grey(encoded(Image.fromarray(RAMP), "JPEG2000")), scaled(RAMP))


def test_colour_of_16_bits_a_channel_is_within_1() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, 3))
    got = decoded(png((30, 20), 16, 2, [row.astype(">u2").tobytes() for row in values]))
    assert np.abs(got - scaled(values)).max() <= 1


@pytest.mark.parametrize(
    ("bits", "dtype", "sample_format"), [(32, "<u4", 1), (32, "<i4", 2), (32, "<f4", 3), (16, "<i2", 2)]
)
def test_values_of_no_known_range_are_told_in_one_line(bits: int, dtype: str, sample_format: int) -> None:
    content = tiff((3, 2), bits, np.arange(6).astype(dtype).tobytes(), sample_format=sample_format)
    with pytest.raises(DataError) as fault:
        read_image("a/b.tif", content)
    message = str(fault.value)
    assert message.startswith("cannot read image a/b.tif (TIFF with values of no known range") and "\n" not in message
    assert "8 or 16 bits" in message


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[:, :, None] / 255
    return colours * share + 255 * (1 - share)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_laid_over_white(kind: str) -> None:
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("Pillow without WebP")
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    alpha = np.arange(128, dtype=np.uint8).reshape(8, 16) * 2
    image = Image.fromarray(np.dstack([COLOURS, alpha]))
    assert np.abs(decoded(encoded(image, kind, **options)) - over_white(COLOURS, alpha)).max() <= 1
    image.putalpha(255)
    assert np.array_equal(decoded(encoded(image, kind, **options)), COLOURS)
    image.putalpha(0)
    assert (decoded(encoded(image, kind, **options)) == 255).all()


def test_transparent_grey_is_laid_over_white() -> None:
    levels, alpha = COLOURS[:, :, 0], COLOURS[:, :, 1]
    image = Image.merge("LA", (Image.fromarray(levels), Image.fromarray(alpha)))
    assert np.abs(grey(encoded(image, "PNG")) - over_white(levels[:, :, None], alpha)[:, :, 0]).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_colours_of_a_palette_are_white(kind: str) -> None:
    image = Image.fromarray(np.array([[0, 1, 2, 1]], dtype=np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = [[10, 20, 30], [40, 50, 60], [70, 80, 90], [40, 50, 60]]
    assert decoded(encoded(image, kind)).tolist() == [expected]
    expected[1] = expected[3] = [255, 255, 255]
    assert decoded(encoded(image, kind, transparency=1)).tolist() == [expected]
    if kind == "PNG":  # an alpha each
        got = decoded(encoded(image, kind, transparency=bytes([255, 0, 51]))).tolist()
        assert got == [[expected[0], expected[1], [218, 220, 222], expected[3]]]  # 255 - (255 - v) / 5


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_white_and_no_other(bits: int) -> None:
    values = np.array([0, 1, 2**bits // 2, 2**bits - 1])
    digits = "".join(format(value, f"0{bits}b") for value in values)
    row = int(digits.ljust(-(-len(digits) // 8) * 8, "0"), 2).to_bytes(-(-len(digits) // 8), "big")
    for key in values:
        expected = np.where(values == key, 255, scaled(values, 2**bits - 1))
        assert np.array_equal(grey(png((4, 1), bits, 0, [row], [key]))[0], expected), key


@pytest.mark.parametrize("bits", [8, 16])
def test_the_transparent_colour_of_a_png_is_white_and_no_other(bits: int) -> None:
    key, other = ([18, 86, 154], [52, 120, 188]) if bits == 8 else ([0x1234, 0x5678, 0x9ABC], [0x3412, 0x7856, 0xBC9A])
    row = np.array([key, other]).astype(f">u{bits // 8}").tobytes()
    assert decoded(png((2, 1), bits, 2, [row], key)).tolist() == [[[255, 255, 255], [52, 120, 188]]]
    # Its lower bytes are those of the transparent colour, its upper ones are not.
    assert decoded(png((2, 1), bits, 2, [row], [5, 6, 7])).tolist() == [[[18, 86, 154], [52, 120, 188]]]


# Where EXIF's specification has the first row and the first column, turned back to top and left.
TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    image, exif = Image.fromarray(COLOURS), Image.Exif()
    exif[ORIENTATION] = orientation
    plain = decoded(encoded(image, kind))
    assert np.array_equal(decoded(encoded(image, kind, exif=exif)), TURNED[orientation](plain))


def test_orientation_and_transparency_and_16_bits_go_together() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    alpha = COLOURS[:, :, 0]
    clear = encoded(Image.fromarray(np.dstack([COLOURS, alpha])), "PNG", exif=exif)
    assert np.abs(decoded(clear) - np.rot90(over_white(COLOURS, alpha), -1)).max() <= 1
    assert np.array_equal(grey(encoded(Image.fromarray(RAMP), "PNG", exif=exif)), np.rot90(scaled(RAMP), -1))


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag, kind, count) + value


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Tag data larger")
@pytest.mark.parametrize(
    ("entries", "orientation"),
    [
        ([entry(ORIENTATION, 3, 1, b"\6\0\0\0")], 6),
        ([entry(ORIENTATION, 3, 1, b"\6\0\0\0"), entry(0x100, 2, 4, b"abc\0")], 6),  # text in place of a width
        ([entry(ORIENTATION, 3, 1, b"\6\0\0\0"), entry(0x10F, 2, 99, b"\xff\xff\xff\x7f")], 6),  # beyond the end
        ([entry(ORIENTATION, 3, 1, b"\6")], 1),  # cut off
        ([entry(ORIENTATION, 3, 1, b"\x09\0\0\0")], 1),  # of no meaning
        ([entry(ORIENTATION, 2, 2, b"6\0\0\0")], 1),
        ([b"\xff" * 12], 1),
        ([], 1),
    ],
)
def test_damaged_metadata_are_no_error(entries: list[bytes], orientation: int) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    if entries and len(entries[0]) < 12:
        exif = exif[:-4]
    image = Image.fromarray(COLOURS)
    expected = TURNED[orientation](decoded(encoded(image, "JPEG")))
    assert np.array_equal(decoded(encoded(image, "JPEG", exif=exif)), expected)


@pytest.mark.parametrize("exif", [b"Exif\0\0something else", b"Exif\0\0II", b"Exif\0\0II+\0\x08\0\0\0"])
def test_metadata_of_another_kind_are_no_error(exif: bytes) -> None:
    assert np.array_equal(decoded(encoded(Image.fromarray(COLOURS), "PNG", exif=exif)), COLOURS)


def test_of_several_frames_it_is_the_first() -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    for kind in ("GIF", "TIFF", "PNG"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert Image.open(io.BytesIO(content)).n_frames == 3  # type: ignore[attr-defined]
        assert (decoded(content) == (200, 0, 0)).all()


MODES = {"PNG": "RGB L 1 P", "JPEG": "RGB L CMYK", "BMP": "RGB L 1 P", "TIFF": "RGB L 1 P CMYK", "GIF": "RGB L P"}
MODES["PPM"] = "RGB L 1"


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes.split()])
def test_other_images_are_as_pillow_converts_them(kind: str, mode: str, tmp_path: Path) -> None:
    file = tmp_path / "image"
    Image.fromarray(COLOURS).convert(mode).save(file, kind)
    expected = np.asarray(Image.open(file).convert("RGB"))
    assert np.array_equal(np.asarray(read_image(str(file))), expected)
    assert np.array_equal(decoded(file.read_bytes()), expected)


@pytest.mark.parametrize("content", [b"", b"text", encoded(Image.fromarray(COLOURS), "PNG")[:80]])
def test_what_cannot_be_read_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(content)
    for given in (None, content):
        with pytest.raises(DataError, match=rf"^cannot read image {re.escape(str(file))} \(.*replace or remove it$"):
            read_image(str(file), given)
    with pytest.raises(DataError, match="of no format that Pillow reads"):
        read_image("file", b"text")


def test_endings_are_those_of_files_that_pillow_reads_by_itself() -> None:
    assert {
        ".bmp",
        ".gif",
        ".jfif",
        ".jpeg",
        ".jpg",
        ".mpo",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
    } <= image_endings()
    assert not {"", ".eps", ".h5", ".mpg", ".pdf", ".txt", ".wmf"} & image_endings()


@pytest.mark.timeout(60)
def test_a_pipe_that_took_the_place_of_an_image_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with one_line_error(r"x\.png .* is no file"):
        read_image(str(tmp_path / "x.png"))
