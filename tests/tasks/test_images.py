"""Pictures as a viewer shows them; right values are written out or come from the 8-bit twin of a picture."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from contextlora.tasks import images
from contextlora.tasks.faults import TaskSetError
from contextlora.tasks.images import ImageCheck, read_image

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.fixture
def seen(tmp_path):
    """(array or image, name, settings of save) -> pixels as they are read back."""

    def read(image, name, **settings):
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(tmp_path / name, **settings)
        return np.asarray(read_image(tmp_path / name))

    return read


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_sixteen_bits_look_like_eight(seen, name):
    assert (seen(GREY.astype(np.uint16) * 257, name) == GREY[..., None]).all()
    assert (seen(GREY.astype(np.uint16) * 257 - (GREY > 0) * np.uint16(100), name) == GREY[..., None]).all()


def test_big_endian_sixteen_bits_look_like_eight(tmp_path):
    high = GREY.astype(">u2") * 257
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 65535\n" + high.tobytes())
    assert (np.asarray(read_image(tmp_path / "a.pgm")) == GREY[..., None]).all()


def test_floats_of_known_range_are_scaled_and_others_refused(seen):
    assert (seen(GREY.astype(np.float32) / 255, "a.tiff") == GREY[..., None]).all()
    for values in (GREY.astype(np.float32), GREY.astype(np.float32) * np.nan, GREY.astype(np.int32) * 1000):
        with pytest.raises(TaskSetError, match="must have 8 or 16 bits a channel, or floats from 0 to 1"):
            seen(values, "b.tiff")


def test_exif_turns_the_picture(seen):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, 8:] = 255
    turned = seen(picture, "a.png", exif=exif)
    assert turned.shape == (16, 8, 3) and turned[:8].max() == 0 and turned[8:].min() == 255


def test_transparent_pixels_are_white_not_the_colour_they_hide(seen):
    for mode in ("RGBA", "LA"):
        layer = Image.new(mode, (4, 4), (0,) * len(mode))
        assert seen(layer, f"{mode}.png").min() == 255
    assert seen(Image.new("RGBA", (4, 4), (0, 0, 0, 127)), "half.png")[0, 0].tolist() == [128] * 3
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9, 7, 7, 7])
    assert seen(palette, "p.png", transparency=0).min() == 255
    assert seen(palette, "opaque.png").max() == 9
    assert seen(np.full((4, 4, 3), 5, np.uint8), "key.png", transparency=(5, 5, 5)).min() == 255


def _png_of(width, height):
    """A PNG whose header alone is there, with a size of our choice."""
    parts = (
        b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00",
        b"IDAT" + bytes(9),
    )
    chunks = [(len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big") for part in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _gif_of(canvas, frame):
    """A GIF of one frame that may be larger than its canvas."""
    head = b"GIF89a" + struct.pack("<HH", *canvas) + b"\x80" + bytes(8)
    return head + b"," + bytes(4) + struct.pack("<HH", *frame) + b"\0\2\2D\1\0;"


def _looped_tiff():
    """A TIFF of 4 x 4 pixels whose first page says that it is also the next one."""
    tags = ((256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, 4), (279, 16))
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags]
    return (b"II*\0\x08\0\0\0\x09\0" + b"".join(entries) + b"\x08\0\0\0").ljust(216, b"\0")


@pytest.mark.parametrize("quick", [False, True])
def test_what_cannot_be_shown_is_refused_before_training(tmp_path, monkeypatch, quick):
    monkeypatch.setattr(images, "_DECODED_PIXELS", 0 if quick else 1 << 26)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("png", "jpg", "tiff", "bmp", "gif", "webp"):
        noise.save(tmp_path / f"whole.{kind}")
        data = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(data[: len(data) // 2])
    noise.save(tmp_path / "flip.png")
    data = bytearray((tmp_path / "flip.png").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "flip.png").write_bytes(data)
    (tmp_path / "bomb.png").write_bytes(_png_of(60_000, 60_000))
    (tmp_path / "large.png").write_bytes(_png_of(10_000, 9_000))
    (tmp_path / "thin_large.png").write_bytes(_png_of(1, 80_000_000))  # a gigabyte of pointers to its rows
    (tmp_path / "zero.png").write_bytes(_png_of(0, 5))
    (tmp_path / "zero.gif").write_bytes(_gif_of((0, 0), (0, 0)))
    (tmp_path / "frame_large.gif").write_bytes(_gif_of((1, 1), (65_535, 65_535)))
    for kind in ("jpg", "png", "gif"):
        Image.new("L", (3, 1)).save(tmp_path / f"whole_tiny.{kind}")
    frames = [Image.new("L", (4, 4), number) for number in range(256)]
    frames[0].save(tmp_path / "whole_frames.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "whole_loop.tiff").write_bytes(_looped_tiff())
    (tmp_path / "noise.tiff").write_bytes(b"II*\0" + noise.tobytes())
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.png").write_text("<html>")
    os.mkfifo(tmp_path / "pipe.png")
    check = ImageCheck(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        fault = check.fault(path.name)
        assert bool(fault) != path.name.startswith("whole"), (path.name, fault)
        assert "\n" not in fault and len(fault) < 200
        assert ("pixels" in fault) == path.stem.endswith(("bomb", "large")), fault


def test_images_lie_in_the_folder_of_the_set(tmp_path):
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    for path in (tmp_path / "out.png", folder / "in.png"):
        Image.new("RGB", (2, 2)).save(path)
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    (folder / "images" / "link.png").symlink_to("../in.png")
    (folder / "loop.png").symlink_to("loop.png")
    (tmp_path / "alias").symlink_to(folder)
    for name in ("in.png", "images/../in.png", "images/link.png", str(folder / "in.png")):
        assert ImageCheck(folder).fault(name) == "" == ImageCheck(tmp_path / "alias").fault(name)
    for name in ("../out.png", str(tmp_path / "out.png"), "link.png", "images/../../out.png"):
        assert "must lie in the task set's folder" in ImageCheck(folder).fault(name)
    for name, fault in (("no.png", "not found"), ("images", "ordinary file"), ("a\0b", "null byte")):
        assert fault in ImageCheck(folder).fault(name)
    for name in ("loop.png", "x" * 5000):
        assert "cannot be read" in ImageCheck(folder).fault(name)


def test_a_damaged_tiff_says_nothing_on_stderr(tmp_path, capfd):
    rows = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(rows).save(tmp_path / "a.tiff", compression="tiff_lzw")
    content = bytearray((tmp_path / "a.tiff").read_bytes())
    content[20:60] = b"\xff" * 40
    (tmp_path / "a.tiff").write_bytes(content)
    with pytest.raises(TaskSetError, match="cannot be read"):
        read_image(tmp_path / "a.tiff")
    assert capfd.readouterr().err == ""


def _tiff(values, sample_format, photometric):
    """A grey TIFF of one strip; Pillow itself writes neither of the two tags as we need them."""
    bits = 8 * values.itemsize
    tags = ((256, 16), (257, 16), (258, bits), (259, 1), (262, photometric), (273, 122), (277, 1), (279, values.nbytes))
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in (*tags, (339, sample_format))]
    return b"II*\0\x08\0\0\0\x09\0" + b"".join(entries) + bytes(4) + values.tobytes()


@pytest.mark.parametrize("values", [GREY, GREY.astype("<u2") * 257, GREY.astype("<f4") / 255])
def test_where_white_is_zero_the_picture_is_not_inverted(tmp_path, values):
    sample_format = 3 if values.dtype.kind == "f" else 1
    for photometric, expected in ((1, GREY), (0, 255 - GREY)):
        (tmp_path / "a.tiff").write_bytes(_tiff(values, sample_format, photometric))
        assert (np.asarray(read_image(tmp_path / "a.tiff")) == expected[..., None]).all()


@pytest.mark.parametrize(("kind", "rule"), [("i1", "numbers from 0 on"), ("<i2", "8 or 16"), ("<i4", "8 or 16")])
def test_signed_numbers_are_refused(tmp_path, kind, rule):
    (tmp_path / "a.tiff").write_bytes(_tiff(GREY.astype(kind), 2, 1))
    with pytest.raises(TaskSetError, match=f"must have {rule}"):
        read_image(tmp_path / "a.tiff")


@pytest.mark.parametrize(("depth", "colour", "width"), [(8, 2, 30), (16, 6, 80), (1, 0, 2), (8, 3, 10)])
def test_a_png_that_lacks_rows_is_refused_and_one_that_ends_black_is_not(tmp_path, depth, colour, width):
    """Ten columns, `width` bytes a row."""
    head = struct.pack(">IIBBBBB", 10, 16, depth, colour, 0, 0, 0)
    for num_rows, black in ((16, 4), (12, 0)):
        pixels = b"".join(b"\0" + bytes([1 if row < 16 - black else 0]) * width for row in range(num_rows))
        parts = [b"IHDR" + head, b"PLTE" + bytes(6), b"IDAT" + zlib.compress(pixels), b"IEND"]
        chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
        (tmp_path / f"{num_rows}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    read_image(tmp_path / "16.png")
    with pytest.raises(TaskSetError, match="ends before its last row"):
        read_image(tmp_path / "12.png")
