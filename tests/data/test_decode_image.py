import io
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps
from skimage import data

from vistok.data.decode_image import MAX_PIXELS, decode_image, decoder_name
from vistok.data.jpeg_decoders import default_jpeg_decoder, jpeg_decoder
from vistok.data.strict_pillow import strictly

DECODERS = ["simplejpeg", "torchvision", "pillow"]
PHOTOS = {"astronaut": data.astronaut, "coffee": data.coffee, "chelsea": data.chelsea, "rocket": data.rocket}


def encoded(image, kind, **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def by_pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def without_fall_back(jpeg: str, content: bytes) -> np.ndarray:
    with strictly():
        return jpeg_decoder(jpeg)(content)


def png(width: int, height: int, depth: int, color: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG written chunk by chunk: Pillow writes neither 16-bit colour nor claims that are not true."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = (struct.pack(">I", len(c)) + t + c + struct.pack(">I", zlib.crc32(t + c)) for t, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.fixture
def photo() -> np.ndarray:
    return data.astronaut()[:48, :64]


@pytest.mark.parametrize("quality", [30, 90])
@pytest.mark.parametrize("name", PHOTOS)
def test_every_jpeg_decoder_gives_the_pixels_of_pillow(name, quality):
    picture = PHOTOS[name]()
    kinds = [{"subsampling": kind} for kind in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")] + [{"keep_rgb": True}, {"grey": 1}]
    for height, width in [(1, 1), (3, 5), (16, 16), (63, 101), (300, 399)]:
        for kind in kinds:
            crop = Image.fromarray(picture[:height, :width]).convert("L" if "grey" in kind else "RGB")
            options = {key: value for key, value in kind.items() if key != "grey"}
            for progressive in (False, True):
                content = encoded(crop, "JPEG", quality=quality, progressive=progressive, **options)
                expected = by_pillow(content)
                for jpeg in DECODERS:
                    assert np.array_equal(decode_image(content, "p", jpeg=jpeg), expected)
                for jpeg in DECODERS[:2]:
                    assert np.array_equal(without_fall_back(jpeg, content), expected)


def test_unusual_subsamplings_give_the_pixels_of_pillow(photo):
    import simplejpeg

    for kind in ("440", "411", "422", "420", "444"):
        content = simplejpeg.encode_jpeg(np.ascontiguousarray(photo[:41, :37]), 80, "RGB", kind)
        for jpeg in DECODERS:
            assert np.array_equal(decode_image(content, "p", jpeg=jpeg), by_pillow(content))


def test_a_progressive_jpeg_that_ends_early_in_good_order_is_the_same_by_every_decoder(photo):
    content = encoded(photo, "JPEG", progressive=True)
    scans = [at for at in range(len(content)) if content[at : at + 2] == b"\xff\xda"]
    for scan in scans[1:]:
        start_of_tables = content.rfind(b"\xff\xc4", 0, scan)
        cut = content[: start_of_tables if start_of_tables > scans[0] else scan] + b"\xff\xd9"
        one, *others = (decode_image(cut, "p", jpeg=jpeg) for jpeg in DECODERS)
        assert all(np.array_equal(one, other) for other in others)


@pytest.mark.parametrize("jpeg", DECODERS)
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_every_exif_orientation_is_undone_by_every_decoder(photo, orientation, jpeg):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photo, "JPEG", exif=exif)
    assert np.array_equal(decode_image(content, "p", jpeg=jpeg), by_pillow(content))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_every_exif_orientation_is_undone_once_in_every_format(photo, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photo, kind, exif=exif)
    pixels = decode_image(content, "p")
    assert pixels.shape == ((64, 48, 3) if orientation > 4 else (48, 64, 3))
    assert np.array_equal(pixels, by_pillow(content))


def test_exif_that_stands_behind_the_pixels_of_a_png_counts(photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(photo, "PNG", exif=exif)
    start = content.index(b"eXIf") - 4
    chunk = content[start : start + 12 + int.from_bytes(content[start : start + 4], "big")]
    end = content.index(b"IEND") - 4
    moved = content[:start] + content[start + len(chunk) : end] + chunk + content[end:]
    assert decode_image(moved, "p").shape == (64, 48, 3)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"Exif\0\0junk" * 9, b"\xff" * 50])
@pytest.mark.parametrize("jpeg", DECODERS)
def test_broken_exif_is_ignored(photo, exif, jpeg):
    content = encoded(photo, "JPEG", exif=exif, quality=95)
    assert np.array_equal(decode_image(content, "p", jpeg=jpeg), decode_image(encoded(photo, "JPEG", quality=95), "p"))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)])
def test_tiny_pictures_of_every_format_decode(kind, size):
    pixels = decode_image(encoded(np.full((*size, 3), 255, np.uint8), kind), "p")
    assert pixels.shape == (*size, 3) and pixels.min() > 250


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_long_strip_decodes(kind):
    content = encoded(np.tile(data.astronaut()[:10], (1, 40, 1))[:, :20000], kind)
    assert np.array_equal(decode_image(content, "p"), by_pillow(content))
    assert decode_image(content, "p").shape == (10, 20000, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_pixels_are_contiguous_writable_and_own_nothing_of_the_file(photo, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode_image(encoded(photo, kind, exif=exif), "p")
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "RGB", "I;16"])
def test_every_mode_of_png_becomes_rgb(photo, mode):
    pixels = decode_image(
        encoded(Image.fromarray(photo).convert("L" if mode == "I;16" else "RGB").convert(mode), "PNG"), "p"
    )
    assert pixels.shape == (48, 64, 3)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "RGBX", "RGBA", "LA", "1", "L", "P"])
def test_every_mode_of_tiff_becomes_rgb(photo, mode):
    image = Image.fromarray(photo)
    if mode == "LA":
        image = image.convert("L")
    pixels = decode_image(encoded(image.convert(mode), "TIFF"), "p")
    assert pixels.shape == (48, 64, 3)
    if mode in ("CMYK", "RGBX", "RGBA"):
        assert np.array_equal(pixels, photo)


@pytest.mark.parametrize("jpeg", DECODERS)
def test_cmyk_with_the_inversion_of_adobe_keeps_its_colours(jpeg):
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    content = encoded(red, "JPEG", quality=95)
    assert b"Adobe" in content
    pixels = decode_image(content, "p", jpeg=jpeg)
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 4


def test_sixteen_bit_grey_is_scaled_and_rounded():
    deep = np.array([[0, 128, 129, 257 * 100, 65535]], np.uint16)
    for content in (encoded(deep, "PNG"), encoded(deep, "TIFF")):
        assert decode_image(content, "p")[0, :, 0].tolist() == [0, 0, 1, 100, 255]


def test_big_endian_sixteen_bit_grey_is_the_same():
    little = Image.fromarray(np.array([[0, 257 * 100, 65535]], np.uint16))
    content = encoded(Image.frombytes("I;16B", little.size, np.asarray(little).astype(">u2").tobytes()), "TIFF")
    assert decode_image(content, "p")[0, :, 0].tolist() == [0, 100, 255]


def test_sixteen_bit_colour_is_scaled():
    row = b"\0" + struct.pack(">6H", 0, 257 * 100, 65535, 65535, 0, 257 * 7)
    assert decode_image(png(2, 1, 16, 2, row), "p").tolist() == [[[0, 100, 255], [255, 0, 7]]]


def test_the_transparent_value_of_sixteen_bit_grey_becomes_white():
    row = b"\0" + struct.pack(">3H", 0, 257 * 100, 257 * 101)
    pixels = decode_image(png(3, 1, 16, 0, row, (b"tRNS", struct.pack(">H", 257 * 100))), "p")
    assert pixels[0, :, 0].tolist() == [0, 255, 101]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 99.6, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 25700, 65535]], np.int32), [0, 100, 255]),
    ],
)
def test_32_bit_grey_is_scaled_from_the_ranges_in_use(values, expected):
    assert decode_image(encoded(values, "TIFF"), "p")[0, :, 2].tolist() == expected


@pytest.mark.parametrize("values", [[[-1.0, 2]], [[0, 256.0]], [[0, np.nan]], [[0, np.inf]]])
def test_32_bit_grey_of_another_range_is_refused(values):
    with pytest.raises(ValueError, match=r"p.tif: expected 32-bit grey values within 0\.\.255, found"):
        decode_image(encoded(np.array(values, np.float32), "TIFF"), "p.tif")
    with pytest.raises(ValueError, match=r"p.tif: expected 32-bit grey values within 0\.\.65535, found 0 to 70000"):
        decode_image(encoded(np.array([[0, 70000]], np.int32), "TIFF"), "p.tif")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_half_transparent_pixels_are_mixed_with_white(kind):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, [0, 51, 128, 255]
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    opaque = np.array([0, 51, 128, 255]) / 255
    expected = np.rint(opaque * 200 + (1 - opaque) * 255), np.rint((1 - opaque) * 255)
    decoded = decode_image(encoded(pixels, kind, **options), "p")
    assert np.abs(decoded[0, :, 0] - expected[0]).max() <= 1 and np.abs(decoded[0, :, 2] - expected[1]).max() <= 1


def test_a_palette_with_alpha_is_laid_onto_white():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    content = encoded(image, "PNG", transparency=bytes([255, 0, 51]))
    assert decode_image(content, "p").tolist() == [[[255, 0, 0], [255, 255, 255], [204, 204, 255]]]
    assert decode_image(encoded(image, "GIF", transparency=1), "p")[0, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(photo, kind):
    first, second = Image.fromarray(photo).quantize(32).convert("RGB"), Image.new("RGB", (64, 48), "blue")
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(first, kind, save_all=True, append_images=[second, first], **options)
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 3
    assert np.array_equal(decode_image(content, "p"), np.asarray(first))


def test_admit_hears_the_pixels_before_anything_is_decoded(photo):
    content, heard = encoded(photo, "PNG"), []
    cut = content[: len(content) // 2]
    with pytest.raises(ValueError, match="truncated"):
        decode_image(cut, "p", admit=heard.append)
    assert heard == [48 * 64]
    with pytest.raises(ValueError, match="at most 9 pixels"):
        decode_image(content, "p", max_pixels=9, admit=heard.append)
    assert len(heard) == 1


def test_what_admit_raises_passes_through(photo):
    def admit(pixels: int) -> None:
        raise RuntimeError("closed")

    with pytest.raises(RuntimeError, match="^closed$"):
        decode_image(encoded(photo, "PNG"), "p", admit=admit)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"\0" * 4096, "zeros where the header"),
        (b"this is text,\nno picture", r"text that begins 'this is text,\\nno picture'"),
        ("Grüße".encode() * 9, "text that begins 'Grüße"),
        (b"\n<!DOCTYPE html><html>404</html>", "an HTML page"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "ISO media file of the brand 'avif'"),
        (b"%PDF-1.7", "a PDF"),
        (b"\x89PNG\r\n\x1a\n", "a PNG with a broken header"),
        (b"\xff\xd8\xff\x01 broken", "a JPEG with a broken header"),
        (b"\xfe\x01\x02", "unknown bytes that begin fe 01 02"),
    ],
)
def test_what_is_no_picture_is_refused_saying_what_it_is(content, found):
    with pytest.raises(ValueError, match=rf"^a/b\.jpg: expected a picture \(JPEG, .*\), found .*{found}"):
        decode_image(content, "a/b.jpg")


def test_a_picture_of_another_format_is_refused(photo):
    with pytest.raises(ValueError, match=r"^p\.jpg: expected a picture .* found"):
        decode_image(encoded(photo, "PPM"), "p.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_a_truncated_picture_is_an_error_that_names_it(photo, kind, part):
    content = encoded(photo, kind)
    for jpeg in DECODERS if kind == "JPEG" else [None]:
        with pytest.raises(ValueError, match=r"^cut: expected a"):
            decode_image(content[: int(len(content) * part)], "cut", jpeg=jpeg)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_truncation_is_an_error_though_the_process_tolerates_it(photo, kind, monkeypatch):
    content = encoded(photo, kind)
    cut = content[: len(content) * 9 // 10]
    whole = decode_image(content, "p")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match="^cut: "):
        decode_image(cut, "cut", jpeg="pillow")
    assert np.array_equal(decode_image(content, "p", jpeg="pillow"), whole)
    with Image.open(io.BytesIO(cut)) as image:
        assert image.convert("RGB").size == (64, 48)  # as tolerant as before for everybody else


def test_a_damaged_jpeg_that_pillow_can_decode_is_decoded_alike(photo):
    content = encoded(photo, "JPEG")[:-2] + b"stray\xff\xd9"
    with pytest.raises(ValueError, match="Corrupt"):
        without_fall_back("simplejpeg", content)
    for jpeg in DECODERS:
        assert np.array_equal(decode_image(content, "p", jpeg=jpeg), by_pillow(content))


@pytest.mark.parametrize("size", [(60000, 60000), (2**31 - 1, 2**31 - 1), (MAX_PIXELS // 2, 3)])
def test_a_png_that_claims_a_huge_size_is_refused_from_its_header(size, recwarn):
    content = png(*size, 8, 0, b"\0" * 100)
    with pytest.raises(ValueError, match=rf"^bomb: expected at most {MAX_PIXELS} pixels") as caught:
        decode_image(content, "bomb")
    assert str(size[0] * size[1]) in str(caught.value) and not recwarn.list


def test_a_gif_whose_frame_reaches_far_beyond_it_is_refused(recwarn):
    content = bytearray(encoded(Image.new("L", (4, 4)), "GIF"))
    frame = content.index(b",")
    content[frame + 5 : frame + 9] = struct.pack("<HH", 65535, 65535)
    with pytest.raises(ValueError, match="^bomb: expected at most .* pixels"):
        decode_image(bytes(content), "bomb")
    content[frame + 5 : frame + 9] = struct.pack("<HH", 10000, 10000)  # of this size Pillow would only warn
    with pytest.raises(ValueError, match="says 10000 x 10000"):
        decode_image(bytes(content), "bomb")
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "TIFF", "PNG"])
def test_max_pixels_holds_for_every_format(photo, kind):
    content = encoded(photo, kind)
    assert decode_image(content, "p", max_pixels=48 * 64).shape == (48, 64, 3)
    with pytest.raises(ValueError, match=r"^p: expected at most 3071 pixels, its header says 64 x 48 = 3072"):
        decode_image(content, "p", max_pixels=48 * 64 - 1)


def test_a_picture_above_the_limit_of_pillow_decodes_without_a_warning_if_asked_for(photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(encoded(photo, "PNG"), "p").shape == (48, 64, 3)
        with pytest.raises(Image.DecompressionBombWarning):  # everybody else is warned as before
            Image.open(io.BytesIO(encoded(photo, "PNG")))


def test_a_jpeg_of_endless_scans_is_refused(photo):
    content = encoded(photo, "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    bomb = content[:-2] + content[last:-2] * 5000 + b"\xff\xd9"
    for jpeg in DECODERS:
        with pytest.raises(ValueError, match="^bomb: expected a JPEG of at most 100 scans, found 5010"):
            decode_image(bomb, "bomb", jpeg=jpeg)
    decode_image(content + b"a film behind the photograph \xff\xda" * 5000, "p")


def tiff(width: int, height: int, offsets: bytes, **tags: int) -> bytes:
    """A TIFF of 8-bit grey whose tags are what they are said to be."""
    numbers = {"compression": 259, "rows_per_strip": 278, "tile_width": 322, "tile_length": 323}
    entries = {256: (1, width), 257: (1, height), 258: (1, 8), 262: (1, 1), 277: (1, 1)}
    entries |= {numbers[name]: (1, value) for name, value in tags.items()}
    behind = 8 + 2 + 12 * (len(entries) + 2) + 4
    strips = (273, 279) if "rows_per_strip" in tags else (324, 325)
    entries |= dict.fromkeys(strips, (len(offsets) // 4, behind))
    body = b"".join(struct.pack("<HHII", tag, 4, *entries[tag]) for tag in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + offsets


def test_a_small_tiff_of_huge_tiles_is_refused():
    content = tiff(10, 10, bytes(4), compression=5, tile_width=32768, tile_length=32768)
    with pytest.raises(ValueError, match="^bomb: expected at most .* pixels, its header says tiles of 32768 x 32768"):
        decode_image(content, "bomb")


def test_a_tiff_of_endless_strips_is_refused():
    def of_strips(count: int) -> bytes:
        return tiff(1, count, struct.pack("<I", 8) * count, compression=1, rows_per_strip=1)

    assert decode_image(of_strips(50), "p").shape == (50, 1, 3)
    with pytest.raises(ValueError, match="^bomb: expected a TIFF of at most 131072 tiles or strips, found 200000"):
        decode_image(of_strips(200_000), "bomb")


def test_a_png_of_huge_text_is_refused(photo):
    text = b"comment\0\0" + zlib.compress(b"\0" * (1 << 27))
    with pytest.raises(ValueError, match="^p: expected a readable picture, got .*too large"):
        decode_image(png(1, 1, 8, 0, b"\0\0", (b"zTXt", text)), "p")


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "\udcff.jpg", "x" * 5000, "\u202egpj.exe"])
def test_errors_are_one_short_printable_line(name):
    for content in (b"", b"\x1b[2Jtext\n", encoded(np.zeros((2, 2), np.uint8), "PNG")[:40]):
        with pytest.raises(ValueError) as caught:
            decode_image(content, name)
        message = str(caught.value)
        assert message.isprintable() and len(message) <= 300 and "expected a" in message
        assert message[0] == name[0] or message[0] == "\\"


def test_a_jpeg_decoder_that_does_not_exist_or_is_absent_is_an_error(photo, monkeypatch):
    with pytest.raises(ValueError, match="expected jpeg to be one of .*'pillow'.*, got 'turbo'"):
        decode_image(encoded(photo, "JPEG"), "p", jpeg="turbo")
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    jpeg_decoder.cache_clear()
    with pytest.raises(ImportError, match=r"vistok\[jpeg\]"):
        decode_image(encoded(photo, "JPEG"), "p", jpeg="simplejpeg")


@pytest.mark.parametrize(
    ("absent", "name"), [(["simplejpeg"], "torchvision "), (["simplejpeg", "torchvision.io"], "Pillow ")]
)
def test_the_next_decoder_steps_in_for_an_absent_one_and_is_named(photo, monkeypatch, absent, name):
    content = encoded(photo, "JPEG")
    expected = decode_image(content, "p")
    for module in absent:
        monkeypatch.setitem(sys.modules, module, None)
    jpeg_decoder.cache_clear()
    default_jpeg_decoder.cache_clear()
    assert decoder_name().startswith(name) and "Pillow" in decoder_name()
    assert np.array_equal(decode_image(content, "p"), expected)


def test_the_name_of_the_decoder_has_every_version_that_matters():
    import PIL
    import simplejpeg

    assert decoder_name().startswith(f"simplejpeg {simplejpeg.__version__}, Pillow {PIL.__version__}, libjpeg")


def test_threads_decode_the_same_as_one(photo):
    contents = [encoded(data.astronaut()[n : n + 90, n : n + 70], kind) for n in range(20) for kind in ("JPEG", "PNG")]
    contents[7] = contents[7][:100]

    def outcome(content: bytes) -> object:
        try:
            return decode_image(content, "p").tobytes()
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(outcome, contents * 3)) == list(map(outcome, contents)) * 3


def test_warnings_of_other_threads_are_shown_while_one_decodes(photo, recwarn):
    def warn() -> None:
        warnings.warn("from another thread", UserWarning, stacklevel=1)

    def admit(pixels: int) -> None:
        thread = Thread(target=warn)
        thread.start()
        thread.join()
        warn()

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        decode_image(encoded(photo, "PNG"), "p", admit=admit)
    assert [str(one.message) for one in shown] == ["from another thread"] * 2


@pytest.fixture(autouse=True)
def fresh_decoders():
    yield
    jpeg_decoder.cache_clear()
    default_jpeg_decoder.cache_clear()
