import io
import os
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, TiffImagePlugin

from ivl.errors import RequestError
from ivl.pages.reader import load_image, load_pages, open_pages


def noise(width, height, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels(source, **options):
    image = load_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    array = noise(30, 20)
    path = tmp_path / "bild ä.png"
    path.write_bytes(encoded(Image.fromarray(array), "PNG"))
    image = Image.open(path)
    with path.open("rb") as file:
        file.seek(5)
        sources = [path, str(path), path.read_bytes(), file, image, io.BytesIO(path.read_bytes())]
        for source in sources:
            np.testing.assert_array_equal(pixels(source), array)
        assert not file.closed


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_read(tmp_path):
    pipe, array = tmp_path / "pipe", noise(30, 20)
    os.mkfifo(pipe)
    writer = threading.Thread(
        target=lambda: pipe.write_bytes(encoded(Image.fromarray(array), "PNG"))
    )
    writer.start()
    np.testing.assert_array_equal(pixels(pipe), array)
    writer.join()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(file_format, orientation):
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("red", (0, 0, 16, 8))
    upright.paste("blue", (16, 8, 32, 16))
    # What a camera held that way stores: the inverse of what a viewer does.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.rotate(180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.rotate(90, expand=True),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.rotate(-90, expand=True),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"subsampling": 0, "quality": 100}}
    data = encoded(stored, file_format, exif=exif, **options.get(file_format, {}))
    expected = np.asarray(upright).astype(int)
    assert np.abs(pixels(data) - expected).max() <= 4
    opened = Image.open(io.BytesIO(data))
    opened.load()  # Pillow turns a TIFF here, and only a TIFF
    before = opened.size
    assert np.abs(pixels(opened) - expected).max() <= 4
    assert opened.size == before, "the caller's image stays as it is"


def test_damaged_exif_does_not_stop_a_sound_picture():
    array = noise(16, 8)
    data = encoded(Image.fromarray(array), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    with pytest.warns(UserWarning, match="EXIF"):
        np.testing.assert_array_equal(pixels(data), array)


def test_cmyk_is_converted_as_pillow_does():
    cmyk = Image.fromarray(noise(24, 16, 4), mode="CMYK")
    data = encoded(cmyk, "TIFF")
    np.testing.assert_array_equal(pixels(data), np.asarray(cmyk.convert("RGB")))
    red = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.abs(pixels(red).astype(int) - (255, 0, 0)).max() <= 4


def test_an_opaque_alpha_channel_changes_nothing():
    array = noise(24, 16)
    rgba = Image.fromarray(array).convert("RGBA")
    np.testing.assert_array_equal(pixels(encoded(rgba, "PNG")), array)


def test_transparent_ground_is_white_unless_alpha_is_dropped():
    drawing = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (2, 2, 4, 4))
    drawing.paste((0, 0, 0, 51), (6, 6, 8, 8))
    data = encoded(drawing, "PNG")
    shown = pixels(data)
    assert tuple(shown[0, 0]) == (255, 255, 255)
    assert tuple(shown[3, 3]) == (0, 0, 0)
    assert tuple(shown[7, 7]) == (204, 204, 204)
    assert tuple(pixels(data, background=(10, 20, 30))[0, 0]) == (10, 20, 30)
    official = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(pixels(data, background=None), official)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBa"])
def test_other_modes_with_alpha_are_shown_on_white(mode):
    clear = Image.new("LA", (4, 4), (0, 0))
    clear.paste((0, 255), (0, 0, 2, 4))
    image = clear.convert({"LA": "LA", "La": "La", "PA": "RGBA", "RGBa": "RGBA"}[mode])
    image = image.convert(mode) if mode == "RGBa" else image
    if mode == "PA":
        image = image.convert("P").convert("PA")
        image.putalpha(clear.getchannel("A"))
    shown = pixels(image)
    assert (shown[:, :2] == 0).all()
    assert (shown[:, 2:] == 255).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_is_shown_on_white(mode):
    image = Image.new("RGB", (4, 4), "white" if mode == "1" else "black")
    image.paste("black" if mode == "1" else (90, 90, 90), (0, 0, 2, 4))
    image = image.convert(mode)
    clear = {"P": image.getpixel((3, 3)), "RGB": (0, 0, 0), "1": 1}.get(mode, 0)
    shown = pixels(encoded(image, "PNG", transparency=clear))
    assert (shown[:, :2] < 110).all()
    assert (shown[:, 2:] == 255).all()


def test_a_palette_gives_its_colours():
    image = Image.fromarray(noise(24, 16)).quantize(16)
    np.testing.assert_array_equal(pixels(encoded(image, "GIF")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(file_format):
    grey = noise(32, 16, 1)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    shown = pixels(encoded(deep, file_format))
    np.testing.assert_array_equal(shown, np.repeat(grey[..., None], 3, axis=2))


def test_big_endian_sixteen_bit_grey_is_scaled():
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 65535, 32896))
    assert pixels(image)[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[7_000_000, 8_000_000]], np.int32), [0, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 127.6, 255]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 1, np.inf]], np.float32), [0, 255, 0]),
        (np.array([[-3.0, -3.0]], np.float32), [0, 0]),
    ],
)
def test_deep_samples_are_scaled_to_8_bits(samples, expected):
    shown = pixels(encoded(Image.fromarray(samples), "TIFF"))
    assert shown[0, :, 0].tolist() == expected


def test_a_dark_deep_ppm_stays_dark():
    shown = pixels(encoded(Image.fromarray(np.full((2, 2), 257, np.uint16)), "PPM"))
    assert (shown == 1).all()


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_frame_is_shown_unless_another_is_asked_for(file_format):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    first, *rest = [Image.new("RGB", (16, 16), colour) for colour in colours]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(first, file_format, save_all=True, append_images=rest, **options)
    assert len(open_pages(data)) == 3
    assert (pixels(data) == colours[0]).all()
    assert (pixels(data, frame=2) == colours[2]).all()
    for missing in (3, -1):
        with pytest.raises(RequestError, match="no frame"):
            load_image(data, frame=missing)


def png_header(width, height):
    """A PNG that claims a size and has a few bytes of pixels."""

    def chunk(name, data):
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


@pytest.mark.parametrize("size", [(20_000, 10_001), (60_000, 60_000)])
def test_a_decompression_bomb_is_refused_from_its_header(size):
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(RequestError, match="more than 200 megapixels") as caught:
        load_image(png_header(*size))
    assert caught.value.hint
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_limit_of_pixels_can_be_set_and_holds_for_images_in_memory():
    image = Image.new("RGB", (100, 100))
    assert load_image(image, max_pixels=10_000).size == (100, 100)
    for source in (image, encoded(image, "PNG")):
        with pytest.raises(RequestError, match="megapixels"):
            load_image(source, max_pixels=9_999)


def test_a_photo_between_pillows_limit_and_ours_is_read_without_a_warning(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    data = encoded(Image.fromarray(noise(100, 100)), "PNG")
    assert load_image(data).size == (100, 100)
    assert not recwarn.list


def test_a_page_that_is_too_large_is_refused_when_it_is_reached():
    pages = [Image.new("RGB", (8, 8)), Image.new("RGB", (200, 200))]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert load_image(data, max_pixels=1_000).size == (8, 8)
    with pytest.raises(RequestError, match="megapixels"):
        load_image(data, frame=1, max_pixels=1_000)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("note.png", b"Dear all,\nthis is no picture.\n", "is a text file"),
        ("umlaut.jpg", "Grüße\n".encode(), "is a text file"),
        ("empty.png", b"", "is empty"),
        ("zeros.jpg", bytes(100), "is not an image"),
        ("page.png", b"%PDF-1.7\n%\xe2\xe3", "is a PDF"),
        ("logo.png", b'<?xml version="1.0"?><svg width="1"/>', "is an SVG"),
        ("photo.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC image"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is a text file"),
    ],
)
def test_files_that_are_no_images_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RequestError, match=message) as caught:
        load_image(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.png", "There is no file"),
        (".", "is a directory"),
        ("a\0b.png", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
        ("https://example.org/a.png", "is an address"),
        (io.StringIO("text"), "is open as text"),
        (None, "NoneType"),
        (42, "int"),
        (Image.new("RGB", (0, 5)), "no pixels"),
    ],
)
def test_sources_that_cannot_be_read_are_refused(source, message):
    with pytest.raises(RequestError, match=message):
        load_image(source)


SAMPLES = {
    "JPEG": encoded(Image.fromarray(noise(40, 30)), "JPEG"),
    "PNG": encoded(Image.fromarray(noise(40, 30)).quantize(16), "PNG"),
    "WEBP": encoded(Image.fromarray(noise(40, 30)), "WEBP"),
    "GIF": encoded(Image.fromarray(noise(40, 30)), "GIF"),
    "TIFF": encoded(Image.fromarray(noise(40, 30)), "TIFF", compression="tiff_lzw"),
    "BMP": encoded(Image.fromarray(noise(40, 30)), "BMP"),
}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_half_a_file_is_refused(file_format):
    data = SAMPLES[file_format]
    with pytest.raises(RequestError, match=r"damaged or incomplete|not an image"):
        load_image(data[: len(data) // 2])


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(
    file_format=st.sampled_from(sorted(SAMPLES)),
    keep=st.floats(0.01, 1),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
)
def test_damage_never_raises_anything_else(file_format, keep, changes):
    data = bytearray(SAMPLES[file_format])
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        image = load_image(bytes(data[: max(1, int(keep * len(data)))]), max_pixels=1_000_000)
    except RequestError:
        return
    assert image.mode == "RGB"


def test_the_callers_image_is_left_alone():
    image = Image.fromarray(noise(8, 8))
    before = image.tobytes()
    loaded = load_image(image)
    loaded.paste((0, 0, 0), (0, 0, 8, 8))
    assert image.tobytes() == before


def test_the_package_needs_no_torch():
    code = "import sys, ivl.pages.reader, ivl.prompt.tiles; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def letters(*colours, ground=(0, 0, 0, 0)):
    """Words in these colours, one below the other, without a background."""
    image = Image.new("RGBA", (120, 30 * len(colours)), ground)
    draw = ImageDraw.Draw(image)
    for row, colour in enumerate(colours):
        draw.text((4, 30 * row + 4), "Total 12.50", fill=colour, font_size=18)
    return image


@pytest.mark.parametrize(
    ("colours", "ground"),
    [
        (["black"], 255),
        (["navy", "darkred"], 255),
        (["white"], 0),
        (["ivory"], 0),
        (["yellow", "white"], 0),
        (["white", "black"], 128),
    ],
)
@pytest.mark.parametrize("under", [(0, 0, 0, 0), (255, 255, 255, 0)])
def test_letters_without_a_background_get_one_on_which_they_show(colours, ground, under):
    shown = pixels(encoded(letters(*colours, ground=under), "PNG"))
    assert (shown[0, 0] == ground).all()
    for row in range(len(colours)):
        line = shown[30 * row : 30 * row + 30].astype(int)
        assert np.abs(line - ground).max() >= 100


def test_white_on_transparent_is_seen_in_a_palette_too():
    image = letters("white").quantize(8)
    assert (pixels(encoded(image, "PNG"))[0, 0] == 0).all()


def test_a_cut_out_photograph_stays_on_white():
    photo = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    photo.paste(Image.fromarray(noise(32, 32) // 2 + 128), (16, 16))
    assert (pixels(photo)[0, 0] == 255).all()


def test_a_white_card_with_round_corners_stays_on_white():
    card = Image.new("RGBA", (200, 100), (0, 0, 0, 0))
    ImageDraw.Draw(card).rounded_rectangle((0, 0, 199, 99), 20, fill="white")
    ImageDraw.Draw(card).text((20, 20), "Total 12.50\nTip 1.00\nSum 13.50", fill="black")
    assert (pixels(card)[0, 0] == 255).all()


def test_a_picture_whose_pixels_are_all_transparent_shows_what_is_under_them():
    array = noise(8, 8)
    image = Image.fromarray(array).convert("RGBA")
    image.putalpha(0)
    np.testing.assert_array_equal(pixels(encoded(image, "PNG")), array)


@pytest.mark.parametrize(("colour", "ground"), [("white", 0), ("black", 255)])
def test_a_large_drawing_is_judged_as_a_small_one(colour, ground):
    assert (pixels(letters(colour).resize((4800, 1200)))[0, 0] == ground).all()


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP", "PNG"])
def test_all_pages_are_loaded_and_none_is_passed_over(file_format, tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    first, *rest = [Image.new("RGB", (16, 16), colour) for colour in colours]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(first, file_format, save_all=True, append_images=rest, **options)
    path = tmp_path / "scan"
    path.write_bytes(data)
    for source in (data, path, io.BytesIO(data)):
        pages = load_pages(source)
        assert [page.getpixel((3, 3)) for page in pages] == colours
        assert {page.mode for page in pages} == {"RGB"}
    with pytest.raises(RequestError, match="has 3 pages, and one picture is wanted"):
        load_image(data, frame=None)
    with pytest.raises(RequestError, match="has 3 pages; at most 2"):
        load_pages(data, most=2)
    assert [page.size for page in load_pages(data, max_pixels=3 * 256)] == [(16, 16)] * 3
    with pytest.raises(RequestError, match="3 pages together"):
        load_pages(data, max_pixels=3 * 256 - 1)


def tiff(*pages):
    """A TIFF of pages, each with tags of its own."""
    buffer = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(buffer) as writer:
        for image, tags in pages:
            image.save(writer, "TIFF", tiffinfo=tags)
            writer.newFrame()
    return buffer.getvalue()


def test_pages_of_a_scan_have_sizes_and_orientations_of_their_own():
    upright = [Image.fromarray(noise(20 + n, 10)) for n in range(3)]
    turned = [upright[0], upright[1].rotate(90, expand=True), upright[2].rotate(180)]
    data = tiff(*((image, {0x0112: n}) for image, n in zip(turned, (1, 6, 3), strict=True)))
    for page, (number, image) in zip(load_pages(data), enumerate(upright), strict=True):
        np.testing.assert_array_equal(np.asarray(page), np.asarray(image))
        np.testing.assert_array_equal(pixels(data, frame=number), np.asarray(image))


def test_a_picture_of_one_page_is_one_page():
    for data in (*SAMPLES.values(), encoded(Image.fromarray(noise(9, 9)), "ICO", sizes=[(9, 9)])):
        assert len(load_pages(data)) == len(open_pages(data)) == 1
        load_image(data, frame=None)


def test_smaller_versions_of_a_page_are_no_pages():
    page, small = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (8, 8), "red")
    data = tiff((page, {254: 0}), (small, {254: 1}), (page, {254: 2}), (small, {254: 1}))
    assert [image.size for image in load_pages(data)] == [(64, 64), (64, 64)]
    assert len(open_pages(data)) == 2
    assert load_image(data, frame=1).size == (64, 64)


def test_a_photo_with_a_gain_map_is_one_picture():
    photo, gain_map = Image.fromarray(noise(32, 16)), Image.fromarray(noise(8, 4))
    data = encoded(photo, "MPO", save_all=True, append_images=[gain_map])
    assert [image.size for image in load_pages(data)] == [(32, 16)]
    assert load_image(data, frame=None).size == (32, 16)


def test_a_pillow_image_is_the_picture_that_it_shows_now():
    colours = [(255, 0, 0), (0, 255, 0)]
    first, second = (Image.new("RGB", (16, 16), colour) for colour in colours)
    image = Image.open(io.BytesIO(encoded(first, "TIFF", save_all=True, append_images=[second])))
    image.seek(1)
    [page] = load_pages(image)
    assert page.getpixel((3, 3)) == load_image(image, frame=None).getpixel((3, 3)) == colours[1]
    assert len(open_pages(image)) == 1


RGB = noise(30, 20)
GREY = noise(30, 20, 1)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RGB, RGB),
        (GREY, GREY),
        (GREY[..., None], GREY),
        (RGB[::-1, ::2], RGB[::-1, ::2]),
        (RGB.astype(np.int64), RGB),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float32), RGB),
        (RGB.astype(np.uint16) * 257, RGB),
        (np.array([[True, False]]), np.array([[255, 0]])),
        (np.array([[0.0, 1.0]]), np.array([[0, 255]])),
        (np.dstack([RGB, np.full((20, 30), 255, np.uint8)]), RGB),
        (np.dstack([RGB // 2, np.zeros((20, 30), np.uint8)]), RGB // 2),
    ],
)
def test_numpy_arrays_are_images(array, expected):
    before = array.copy()
    expected = np.repeat(expected[..., None], 3, axis=2) if expected.ndim == 2 else expected
    np.testing.assert_array_equal(pixels(array), expected)
    np.testing.assert_array_equal(array, before)
    assert len(load_pages(array)) == len(open_pages(array)) == 1


@pytest.mark.parametrize(
    ("array", "hint"),
    [
        (RGB.transpose(2, 0, 1), "transpose"),
        (np.zeros((2, 30, 20, 3), np.uint8), "list"),
        (np.zeros((30, 20, 2), np.uint8), "RGBA"),
        (np.zeros(30, np.uint8), "RGB"),
        (np.zeros((0, 5), np.uint8), ""),
        (RGB.astype(np.float32), "0 to 1"),
        (np.full((4, 4), -1), "0 to 255"),
        (np.full((4, 4), np.nan), "0 to 1"),
        (np.full((4, 4), "a"), "uint8"),
    ],
)
def test_other_arrays_are_refused_with_what_helps(array, hint):
    with pytest.raises(RequestError) as caught:
        load_image(array)
    assert hint in caught.value.hint


def test_a_tensor_is_refused_with_what_helps():
    torch = pytest.importorskip("torch")
    with pytest.raises(RequestError, match="torch tensor") as caught:
        load_image(torch.zeros(3, 8, 8))
    assert "permute" in caught.value.hint


def test_an_image_that_is_a_git_lfs_pointer_is_called_so(tmp_path):
    path = tmp_path / "scan.png"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(RequestError, match=r"scan\.png is a Git LFS pointer"):
        load_image(path)


@pytest.mark.parametrize(
    "name", ["~/a b.png", "file://{home}/a%20b.png", "file://localhost{home}/a b.png"]
)
def test_a_home_and_a_file_address_are_found(name, isolated_home):
    Image.fromarray(noise(9, 9)).save(isolated_home / "a b.png")
    assert load_image(name.format(home=isolated_home)).size == (9, 9)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_heic_without_the_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    for data in (HEIC, HEIC.replace(b"ftypheic", b"ftypmif1")):
        with pytest.raises(RequestError, match="is a HEIC image") as caught:
            load_image(data)
        assert "pip install 'ivl[heif]'" in caught.value.hint


def test_heic_is_read_with_the_extra():
    pillow_heif = pytest.importorskip("pillow_heif")
    picture = Image.linear_gradient("L").convert("RGB").resize((64, 48))
    buffer = io.BytesIO()
    pillow_heif.from_pillow(picture).save(buffer, quality=-1)
    shown = pixels(buffer.getvalue()).astype(int)
    assert shown.shape == (48, 64, 3)
    assert np.abs(shown - np.asarray(picture)).max() <= 8
    with pytest.raises(RequestError, match="damaged"):
        load_image(HEIC)
