"""Opens the images that items name, as the 8-bit RGB pictures that a viewer would show."""

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from contextlora.errors import first_line, tail
from contextlora.tasks.faults import TaskSetError

# Not all that Pillow knows: some of its readers start other programs.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
_MOST_PIXELS = 89_000_000  # Pillow's own bound for what may be a bomb
_LONGEST_SIDE = 65_535  # of JPEG and GIF files; Pillow keeps a pointer for each row, and resizes by whole rows
_BACKGROUND = (255, 255, 255)
_SAMPLE_FORMAT, _SIGNED, _PHOTOMETRIC, _WHITE_IS_ZERO = 339, 2, 262, 0  # tags of TIFF files, each with a value
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type of PNG files
_PART_BYTES = 1 << 16  # of compressed pixels, which become a thousand times as many at most
_DECODED_PIXELS = 1 << 26  # a second or two


def read_image(path: Path) -> Image.Image:
    """An image in RGB: turned as its EXIF says, on white where it is transparent, 16 bits and 0.0 to 1.0 as 0 to 255.

    Raises:
        TaskSetError: the file is no image of a known kind, damaged, too large, or of values without a known range.
    """
    return _opened(path)


class ImageCheck:
    """Says of each image whether it can be shown.

    Images are decoded until they come to `_DECODED_PIXELS` together. Of the others PNG files are held against their
    checksums, and JPEG files decoded at an eighth of their size: enough to find damage, in a part of the time.

    Args:
        folder: which all images must lie in, links followed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._real = folder, folder.resolve()
        self._pixels = 0
        self._known: set[str] = set()

    def fault(self, name: str) -> str:
        """What is wrong with an image of this path, or nothing; said once, however many items show it."""
        if name in self._known:
            return ""
        self._known.add(name)
        return self._find(name)

    def _find(self, name: str) -> str:
        try:
            path = self.folder / name
            if not path.resolve().is_relative_to(self._real):
                return "must lie in the task set's folder, links and .. included; copy it there"
            if not path.is_file():
                return (
                    f"not found in {tail(self.folder)}; copy it there"
                    if not path.exists()
                    else "must be an ordinary file"
                )
            image = _opened(path, quick=self._pixels >= _DECODED_PIXELS)
        except TaskSetError as error:
            return str(error)
        except (OSError, RuntimeError, ValueError) as error:  # a name too long, links in a circle, NUL in a path
            return f"cannot be read: {getattr(error, 'strerror', None) or first_line(error)}; rename or replace it"
        self._pixels += image.width * image.height
        return ""


def _opened(path: Path, quick: bool = False) -> Image.Image:
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            path.stat()
            raise TaskSetError("must be an ordinary file")
        with warnings.catch_warnings():
            # Pillow's warnings are about files that are odd; what matters is checked here.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as file:
                if file.width * file.height > _MOST_PIXELS or max(file.size) > _LONGEST_SIDE:
                    most = f"{_MOST_PIXELS} pixels and {_LONGEST_SIDE} a side"
                    raise TaskSetError(f"must have at most {most}, has {file.width} x {file.height}")
                if quick and file.format == "PNG" and file.mode in ("1", "L", "P", "LA", "RGB", "RGBA"):
                    file.verify()
                    return file
                if quick:
                    file.draft("RGB", (max(1, file.width // 8), max(1, file.height // 8)))
                with _without_complaints() if file.format == "TIFF" else nullcontext():
                    return _rgb(file, path)
    except TaskSetError:
        raise
    except Image.DecompressionBombError:
        raise TaskSetError(f"must have at most {_MOST_PIXELS} pixels, has far more; make it smaller") from None
    except Image.UnidentifiedImageError:
        said = f"it is empty, damaged or none of {', '.join(_FORMATS)}"
        raise TaskSetError(f"cannot be read: {said}; save it as one of them") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise TaskSetError(
            f"cannot be read: {getattr(error, 'strerror', None) or first_line(error)}; save it again"
        ) from error


@contextmanager
def _without_complaints() -> Iterator[None]:
    """libtiff writes to the process's stderr by itself what it says again by failing."""
    try:
        kept = os.dup(2)
    except OSError:  # closed by the caller
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    kind, tags = image.format, getattr(image, "tag_v2", {})
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()) and image.mode != "I":  # which is refused for its range
        raise TaskSetError("must have numbers from 0 on, its SampleFormat is 2 (signed); save it with 8 bits a channel")
    image.load()
    # Pillow leaves rows at zero for which there is no data; few pictures end in such a row.
    if kind == "PNG" and _is_zero(image.crop((0, image.height - 1, *image.size))) and _ends_early(path.read_bytes()):
        raise TaskSetError("cannot be read: its data ends before its last row; save it again")
    ImageOps.exif_transpose(image, in_place=True)  # else it makes a copy, whatever the EXIF says
    see_through = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if image.mode == "F" or image.mode.startswith("I"):
        if see_through:
            raise TaskSetError(f"must have 8 bits a channel where it is transparent, its mode is {image.mode}")
        grey = _eight_bits(image, kind)
        # Pillow turns them round itself where they have 8 bits.
        return Image.fromarray(255 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey).convert("RGB")
    if not see_through:
        return image.convert("RGB")
    # Not convert("RGB"): it shows the colours that transparent pixels hide.
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (*_BACKGROUND, 255)), layer).convert("RGB")


def _is_zero(row: Image.Image) -> bool:
    return not np.any(row.getextrema())


def _ends_early(data: bytes) -> bool:
    """Whether the pixels of a PNG, which Pillow could read, end before its last row; False of interlaced ones."""
    width, height, depth, colour, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    at, kind, parts = 8, b"", []
    while kind != b"IEND" and at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            parts.append(data[at + 8 : at + 8 + length])
        at += length + 12
    pixels, inflate = b"".join(parts), zlib.decompressobj()
    # A byte in front of each row says how it is filtered.
    missing = height * (1 + -(-width * _CHANNELS[colour] * depth // 8))
    for start in range(0, len(pixels), _PART_BYTES):
        if missing > 0:
            missing -= len(inflate.decompress(pixels[start : start + _PART_BYTES]))
    return missing > 0 and not is_interlaced


def _eight_bits(image: Image.Image, kind: str | None) -> np.ndarray:
    """Grey values 0 to 255; Pillow's conversion would cut off all that is above 255."""
    values = np.asarray(image).astype(np.float32)
    # In these formats whole numbers have 16 bits, whatever mode Pillow keeps them in.
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        return np.rint(np.divide(values, 257, out=values), out=values).astype(np.uint8)
    if image.mode == "F" and np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1:
        return np.rint(np.multiply(values, 255, out=values), out=values).astype(np.uint8)
    raise TaskSetError(
        f"must have 8 or 16 bits a channel, or floats from 0 to 1; its mode is {image.mode}, "
        f"its values {values.min():.6g} to {values.max():.6g}"
    )
