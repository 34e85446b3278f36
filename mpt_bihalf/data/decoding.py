"""Image files: which they are, and what is made of each, as RGB."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from ..files import read_bytes
from .dataset import DataError
from .digest import LARGEST_IMAGE

# Formats that Pillow knows but cannot decode by itself: it needs another program or library, or only tells what it is.
UNDECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
# Where a mode of more than 8 bits stands for unsigned 16 bits.
SIXTEEN_BITS = {
    "JPEG2000": ("I;16",),
    "PNG": ("I;16", "I;16B", "I"),
    "PPM": ("I",),
    "TIFF": ("I;16", "I;16L", "I;16B", "I;16N"),
}
TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262
# By Pillow's raw mode, how many levels of a grey PNG's pixel one of its transparent grey stands for.
KEY_LEVELS = {"L;2": 85, "L;4": 17}
# By EXIF's orientation: what brings the first row to the top and the first column to the left.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@cache
def image_endings() -> frozenset[str]:
    """The endings, in lower case, of the files that Pillow decodes, e.g. .jpg, .png, .gif, .tif, .webp."""
    endings = Image.registered_extensions()
    return frozenset(
        ending for ending, kind in endings.items() if (kind in Image.OPEN or kind == "MPO") and kind not in UNDECODED
    )


def image_bytes(file: str) -> bytes:
    """The content of an image's file. Raises DataError, naming the file, where it cannot be read or is none."""
    try:
        return read_bytes(Path(file), LARGEST_IMAGE)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot read image {file} ({reason}): replace or remove it") from error


def read_image(file: str, content: bytes | None = None) -> Image.Image:
    """The image as RGB, as a viewer shows it on a white page.

    content: the bytes of the file, if they are at hand. Of several frames or pages it is the first. Colours of a
    palette are looked up, transparency is laid over white, and the image is turned as its orientation (EXIF) says.
    Grey of 16 bits is scaled to 8 and rounded; of 16 bits a channel Pillow keeps the upper 8.

    Raises DataError, naming the file, where it cannot be read, and for values of no known range: 32-bit integers,
    floating point, signed 16 bits.
    """
    try:
        with Image.open(io.BytesIO(image_bytes(file) if content is None else content)) as image:
            _scale_key(image)
            image.load()
            return _as_rgb(image)
    except DataError:
        raise
    except UnidentifiedImageError as error:  # its own words name an object in memory
        raise DataError(f"cannot read image {file} (of no format that Pillow reads): replace or remove it") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise DataError(f"cannot read image {file} ({error}): replace or remove it") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    upright = _upright(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _eight_bits(upright, image).convert("RGB")
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "RGBa"):
        shown = Image.new("RGBA", upright.size, "white")
        shown.alpha_composite(upright.convert("RGBA"))
        upright = shown
    return upright.convert("RGB")


def _scale_key(image: Image.Image) -> None:
    """Bring the transparent colour of a PNG to 8 bits, as its pixels are: Pillow leaves it in the bits of the file."""
    key = image.info.get("transparency")
    if key is None or not isinstance(image, PngImageFile):
        return
    raw_mode = image.tile[0][3]
    if raw_mode in KEY_LEVELS:
        image.info["transparency"] = key * KEY_LEVELS[raw_mode]
    elif raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _upright(image: Image.Image) -> Image.Image:
    """The image turned and mirrored as its orientation says."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata say nothing
        return image
    # Pillow's own exif_transpose writes all the metadata anew, and fails where one of them is damaged.
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image, source: Image.Image) -> Image.Image:
    """An image of one channel and more than 8 bits, as 8 bits. source: as it was opened."""
    kind = source.format or ""
    if source.mode not in SIXTEEN_BITS.get(kind, ()):
        raise ValueError(
            f"{kind} with values of no known range, Pillow's mode {source.mode}; save it with 8 or 16 bits"
        )
    values = np.asarray(image)
    tags = getattr(source, "tag_v2", {})  # of TIFF
    highest = 2 ** tags.get(TIFF_BITS, (16,))[0] - 1
    grey = (values * (255.0 / highest)).round().clip(0, 255)
    if tags.get(TIFF_PHOTOMETRIC) == 0:  # white is 0
        grey = 255 - grey
    if isinstance(source.info.get("transparency"), int):
        grey[values == source.info["transparency"]] = 255
    return Image.fromarray(grey.astype(np.uint8))
