"""Image files of every mode, orientation and state of repair to square RGB arrays."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image, ImageOps

from scdd.datasets.image_decoding import (
    decode_in_threads,
    fit_square,
    read_square,
    require_memory,
)
from scdd.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (8, 8), dtype=np.uint16)


def read(image: Image.Image, path: Path, **options) -> np.ndarray:
    """Save `image` and return what is read from the file as `[8, 8, 3]`."""
    image.save(path, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_square(path, 8).transpose(1, 2, 0)


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


@pytest.mark.parametrize("ending", ["png", "bmp", "ppm", "tif", "webp"])
def test_rgb_comes_back_unchanged_from_lossless_formats(tmp_path, ending):
    options = {"lossless": True} if ending == "webp" else {}
    assert np.array_equal(read(Image.fromarray(RGB), tmp_path / f"a.{ending}", **options), RGB)


def test_grey_becomes_three_equal_channels(tmp_path):
    assert np.array_equal(read(Image.fromarray(GREY), tmp_path / "a.png"), three(GREY))


def test_black_and_white_becomes_0_and_255(tmp_path):
    bits = GREY > 127
    expected = three(bits.astype(np.uint8) * 255)
    assert np.array_equal(read(Image.fromarray(bits), tmp_path / "a.png"), expected)


def test_a_palette_is_looked_up(tmp_path):
    colours = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(GREY)
    image.putpalette(colours.tobytes())
    assert image.mode == "P"
    assert np.array_equal(read(image, tmp_path / "a.png"), colours[GREY])


def test_a_palette_with_alpha_is_looked_up_without_a_warning(tmp_path):
    colours = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(GREY)
    image.putpalette(colours.tobytes())
    found = read(image, tmp_path / "a.png", transparency=bytes(range(256)))
    assert np.array_equal(found, colours[GREY])


@pytest.mark.parametrize("colour", ["RGBA", "LA"])
def test_alpha_is_dropped(tmp_path, colour):
    alpha = Image.fromarray(GREY)
    base = RGB if colour == "RGBA" else GREY
    image = Image.fromarray(base)
    image.putalpha(alpha)
    assert image.mode == colour
    expected = RGB if colour == "RGBA" else three(GREY)
    assert np.array_equal(read(image, tmp_path / "a.png"), expected)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, ending):
    expected = np.floor(DEEP / 257 + 0.5).astype(np.uint8)
    assert len(np.unique(expected)) > 40
    found = read(Image.fromarray(DEEP), tmp_path / f"a.{ending}")
    assert np.array_equal(found, three(expected))


@pytest.mark.parametrize(
    ("ink", "colour"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 0, 0), (255, 0, 255)),
        ((0, 0, 255, 0), (255, 255, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
    ],
)
@pytest.mark.parametrize("ending", ["tif", "jpg"])
def test_cmyk_inks_become_their_colours(tmp_path, ink, colour, ending):
    found = read(Image.new("CMYK", (8, 8), ink), tmp_path / f"a.{ending}")
    assert np.abs(found.astype(int) - colour).max() <= 2


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_grey_of_unknown_range_is_refused(tmp_path, mode):
    Image.fromarray(GREY).convert(mode).save(tmp_path / "deep.tif")
    with pytest.raises(DataError, match=r"deep\.tif.*32-bit grey.*8 or 16 bits"):
        read_square(tmp_path / "deep.tif", 8)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(37, 53, 16), (53, 37, 16), (64, 64, 16), (16, 16, 32), (9, 30, 20), (40, 201, 24)],
)
def test_resize_and_crop_equal_torchvision_on_tensors(height, width, size):
    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = tv.center_crop(tv.resize(whole, [size], antialias=True), [size, size])
    found = torch.from_numpy(fit_square(Image.fromarray(pixels), size).copy())
    assert (found.int() - expected.int()).abs().max() <= 1


def test_a_fine_checkerboard_reduces_to_grey_and_not_to_moire():
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = fit_square(Image.fromarray(three(board)), 12)
    assert np.abs(small[:, 1:-1, 1:-1].astype(int) - 127.5).max() < 8


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1)])
def test_the_centre_of_a_strip_is_found_without_resizing_all_of_it(shape):
    height, width = shape
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    middle = (slice(None), slice(49_990, 50_010)) if width > 1 else (slice(49_990, 50_010),)
    pixels[middle] = 200
    # Whole, the strip would be resized to 1024 x 102,400,000 pixels: 300 GB.
    assert (fit_square(Image.fromarray(pixels), 1024) == 200).all()


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_set_upright(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = RNG.integers(0, 256, (6, 10, 3), dtype=np.uint8)
    options = {"lossless": True} if ending == "webp" else {}
    path = tmp_path / f"a.{ending}"
    Image.fromarray(pixels).save(path, exif=exif, **options)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    assert (upright.size == (6, 10)) == (orientation >= 5)
    assert np.array_equal(read_square(path, 6), fit_square(upright, 6))


def test_damaged_exif_does_not_cost_the_image(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=b"Exif\0\0not exif at all", quality=95)
    Image.fromarray(RGB).save(tmp_path / "b.jpg", quality=95)
    assert np.array_equal(read_square(tmp_path / "a.jpg", 8), read_square(tmp_path / "b.jpg", 8))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


def encoded(path: Path) -> bytes:
    Image.fromarray(np.tile(RGB, (8, 8, 1))).save(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("half.jpg", lambda whole: whole[: len(whole) // 2]),
        ("half.png", lambda whole: whole[: len(whole) // 2]),
        ("empty.png", lambda whole: b""),
        ("text.jpg", lambda whole: b"this is no image"),
        ("flipped.png", lambda whole: whole[:60] + bytes([whole[60] ^ 255]) + whole[61:]),
        ("bomb.png", lambda whole: png_claiming(10_000, 10_000)),
        ("huge_bomb.png", lambda whole: png_claiming(100_000, 100_000)),
    ],
)
def test_an_unreadable_image_is_named(tmp_path, name, contents):
    path = tmp_path / name
    path.write_bytes(contents(encoded(path)))
    with pytest.raises(DataError, match=rf"{name}: cannot be read as an image \(.+\); repair or"):
        decode_in_threads(lambda at: read_square(path, 8), 1, 8, "decode")


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        read_square(tmp_path / "a.png", 8)


def test_threads_put_every_image_in_its_row():
    def image(at: int) -> np.ndarray:
        return np.full((3, 2, 2), at % 251, dtype=np.uint8)

    decoded = decode_in_threads(image, 2500, 2, "decode")
    assert decoded.shape == (2500, 3, 2, 2)
    assert (decoded == (torch.arange(2500) % 251)[:, None, None, None]).all()


def test_of_several_unreadable_images_the_first_is_named():
    def image(at: int) -> np.ndarray:
        if at in (70, 71, 900):
            raise DataError(f"image {at}")
        return np.zeros((3, 2, 2), dtype=np.uint8)

    with pytest.raises(DataError, match=r"image 70$"):
        decode_in_threads(image, 1000, 2, "decode")


def test_more_images_than_memory_are_refused_with_both_sizes():
    with pytest.raises(DataError, match=r"1281167 images at 224 px take 179\.6 GiB.*8\.0 GiB"):
        require_memory(1_281_167, 224, 8 * 2**30)
    require_memory(1000, 224, 8 * 2**30)
    require_memory(1_281_167, 224, None)
