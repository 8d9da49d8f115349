"""Decoding does what viewers do with odd files, and refuses damaged ones and bombs before they cost anything."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from minisimclr.data import archive, decode, headers, jpeg, memory, png
from minisimclr.data.colours import SCALED

pytestmark = pytest.mark.host

RED = Image.new("RGB", (64, 48), (200, 40, 40))
RAMP = np.linspace(0, 1, 64)[None].repeat(64, 0)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def png_with(*chunks: bytes) -> bytes:
    """A red PNG with more chunks in front of its pixels."""
    data = encoded(RED, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def png_that_declares(width: int, height: int, bits: int, colour: int, pixels: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def exif_jpeg(entries: list[tuple[int, int, int, bytes]], extra: bytes = b"") -> bytes:
    """A red JPEG with these EXIF tags: number, type, count, and 4 bytes of value or offset."""
    tags = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + tags + b"\0\0\0\0" + extra
    data = encoded(RED, "JPEG", quality=95)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def bmp(width: int, height: int, bits: int, compression: int, body: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, 0, 0)
    palette = bytes(1024) if bits == 8 else b""
    offset = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + head + palette + body


def many_scans(count: int) -> bytes:
    """A progressive JPEG with so many empty scans more."""
    data = encoded(Image.new("L", (64, 64)), "JPEG", progressive=True)
    return data[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00\x00" * count + data[-2:]


# ── What viewers show ─────────────────────────────────────────────────────────────────────────────

TURN = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
BEHIND = 8 + 2 + 2 * 12 + 4  # where the values begin that do not fit into two tags
ODD_EXIF = {
    "rational": [TURN, (0x011A, 5, 1, struct.pack("<I", BEHIND))],
    "offset": [TURN, (0x8769, 4, 1, struct.pack("<I", 0x7FFFFFF0))],
    "place": [TURN, (0x8825, 2, 4, b"abc\0")],
    "number": [TURN, (0x0100, 12, 1, struct.pack("<I", BEHIND))],
}


@pytest.mark.parametrize("kind", ODD_EXIF)
def test_a_photo_is_turned_whatever_else_is_broken_in_its_exif_data(kind):
    data = exif_jpeg(ODD_EXIF[kind], struct.pack("<d", 1e300))
    assert decode.pixels(data).shape == (64, 48, 3)
    assert decode.header(data) == (48, 64)


@pytest.mark.parametrize(
    "tag", [(0x0112, 3, 1, b"\x09\0\0\0"), (0x0112, 2, 2, b"6\0\0\0"), (0x0112, 3, 0, b"\6\0\0\0")]
)
def test_nonsense_for_an_orientation_turns_nothing(tag):
    assert decode.pixels(exif_jpeg([tag])).shape == (48, 64, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone_as_pillow_undoes_it(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(NOISE, form, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decode.pixels(data), expected)
    assert decode.header(data) == expected.shape[1::-1]


@pytest.mark.parametrize(
    ("most", "std"), [(65535, 73), (16383, 73), (4095, 73), (1023, 73), (300, 21)], ids=lambda value: str(value)
)
def test_grey_of_16_bits_is_scaled_to_the_bits_that_it_uses(most, std):
    remarks: set[str] = set()
    got = decode.pixels(encoded(Image.fromarray((RAMP * most).astype(np.uint16)), "PNG"), remarks=remarks)
    assert abs(got.std() - std) < 2
    assert remarks == ({SCALED} if most < 65535 else set())


@pytest.mark.parametrize("most", [4095, 16383])
def test_colours_of_16_bits_are_scaled_to_the_bits_that_they_use(most):
    values = np.stack([RAMP, RAMP[::-1], RAMP * 0], -1) * most
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    got = decode.pixels(png_that_declares(64, 64, 16, 2, rows))
    np.testing.assert_allclose(got, values / most * 255, atol=0.6)


@pytest.mark.parametrize(
    "side",
    [
        chunk(b"gAMA", struct.pack(">I", 45455), crc=0),
        chunk(b"tRNS", b"\0\1\0\1\0\1", crc=0),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (2 << 20))),
        chunk(b"iCCP", b"p\0\0" + zlib.compress(b"x" * (2 << 20))),
        chunk(b"tEXt", b"parameters\0" + b"x" * (1 << 20)),
        chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
    ],
    ids=lambda data: data[4:8].decode(),
)
def test_side_chunks_can_do_no_harm(side):
    assert (decode.pixels(png_with(side)) == (200, 40, 40)).all()


def test_an_empty_alpha_plane_of_a_bitmap_is_no_transparency():
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 108, 8, 8, 1, 32, 3, 256, 0, 0, 0, 0) + masks + bytes(52)
    for alpha, expected in ((0, (200, 40, 40)), (255, (200, 40, 40))):
        body = bytes([40, 40, 200, alpha]) * 64
        data = b"BM" + struct.pack("<IHHI", 14 + len(head) + 256, 0, 0, 14 + len(head)) + head + body
        assert (decode.pixels(data) == expected).all()


@pytest.mark.parametrize("form", ["GIF", "TIFF", "BMP", "PNG", "WEBP", "JPEG", "MPO"])
def test_an_image_is_known_by_its_content_and_gives_its_first_frame(form):
    more = {"save_all": True, "append_images": [Image.new("RGB", (64, 48), "blue")]} if form != "BMP" else {}
    got = decode.pixels(encoded(RED, form, **({} if form == "JPEG" else more)))
    assert abs(got.astype(int) - (200, 40, 40)).max() <= 6


@pytest.mark.skipif("avif" not in features.get_supported(), reason="this Pillow has no AVIF")
def test_avif_is_read():
    assert abs(decode.pixels(encoded(RED, "AVIF")).astype(int) - (200, 40, 40)).max() <= 6


def test_heic_is_read_with_its_extra():
    heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    buffer = io.BytesIO()
    heif.from_pillow(RED).save(buffer, quality=95)
    assert abs(decode.pixels(buffer.getvalue()).astype(int) - (200, 40, 40)).max() <= 6


def test_heic_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif.as_plugin", None)
    with pytest.raises(ValueError, match="needs the extra: pip install pillow-heif"):
        decode.pixels(struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic")


def test_large_strips_are_converted_as_the_whole_is(monkeypatch):
    from minisimclr.data import colours

    for image in (NOISE, NOISE.convert("RGBA"), NOISE.convert("P")):
        data = encoded(image, "PNG")
        whole = decode.pixels(data)
        monkeypatch.setattr(colours, "STRIP", 300)
        np.testing.assert_array_equal(decode.pixels(data), whole)
        monkeypatch.undo()


def test_a_jpeg_is_reduced_only_where_it_stays_fine_enough_or_would_be_too_large():
    data = encoded(Image.new("RGB", (400, 320)), "JPEG")
    assert decode.pixels(data).shape == (320, 400, 3)
    assert [decode.pixels(data, at_least=side).shape[0] for side in (321, 320, 161, 160, 81, 80, 40, 1)] == [
        320, 320, 320, 160, 160, 80, 40, 40
    ]  # fmt: skip
    assert decode.pixels(data, max_pixels=40_000).shape == (160, 200, 3)
    with pytest.raises(ValueError, match=r"declares 50×40 pixels, more than 0 megapixels; --megapixels raises"):
        decode.pixels(data, max_pixels=1999)


# ── Damaged files ─────────────────────────────────────────────────────────────────────────────────


def test_every_flipped_bit_of_a_png_is_noticed_or_changes_nothing():
    data, rng, said = encoded(NOISE, "PNG"), np.random.default_rng(0), []
    expected = decode.pixels(data)
    for at, bit in zip(rng.integers(0, len(data), 300), rng.integers(0, 8, 300)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << bit
        try:
            np.testing.assert_array_equal(decode.pixels(flipped), expected)
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 250


def test_the_checksum_of_the_pixels_counts_also_where_that_of_the_chunk_is_right():
    data = encoded(RED, "PNG")
    at = data.index(b"IDAT")
    packed = bytearray(data[at + 4 : at + 4 + int.from_bytes(data[at - 4 : at])])
    packed[-1] ^= 1  # the last byte of the stream's own checksum
    with pytest.raises(ValueError, match="checksum is wrong"):
        decode.pixels(data[: at - 4] + chunk(b"IDAT", bytes(packed)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "PROGRESSIVE", "WEBP", "BMP", "GIF", "TIFF", "LZW"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_that_is_cut_off_is_refused_and_says_so(form, share):
    options = {"PROGRESSIVE": {"progressive": True}, "LZW": {"compression": "tiff_lzw"}}.get(form, {})
    data = encoded(NOISE, {"PROGRESSIVE": "JPEG", "LZW": "TIFF"}.get(form, form), **options)
    with pytest.raises(ValueError, match=r"^cut off"):
        decode.pixels(data[: int(share * len(data))])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_random_bytes_raise_nothing_but_one_line(form, capfd):
    data, rng, said = encoded(NOISE, form), np.random.default_rng(1), []
    for _ in range(60):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            broken[at] = rng.integers(0, 256)
        try:
            decode.pixels(broken)
        except ValueError as error:
            said.append(str(error))
    assert not [text for text in said if "\n" in text]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "but an empty file"),
        (bytes(500), "but zeros: the file was never written"),
        (b"<html>404", "but a page of text"),
        (b"version https://git-lfs.github.com/spec/v1", "but the place of one that Git LFS keeps"),
        (b"hello", "not a PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF or HEIC image$"),
        (encoded(RED, "JPEG")[:200], "^cut off"),
    ],
    ids=["empty", "zeros", "page", "lfs", "text", "head"],
)
def test_the_message_says_what_a_file_is_instead(data, says):
    with pytest.raises(ValueError, match=says):
        decode.pixels(data)


# ── Bombs ─────────────────────────────────────────────────────────────────────────────────────────

BOMBS = {
    "png": (png_that_declares(30_000, 30_000, 8, 2), "declares 30000×30000 pixels"),
    "png of 16 bits": (png_that_declares(8000, 8000, 16, 6), "would take 976 MiB to decode"),
    "webp": (
        encoded(RED.convert("RGBA"), "WEBP", lossless=True)[:21] + b"\xff\xff\xff\x0f" + bytes(40),
        "more than 64 m",
    ),
    "gif": (
        b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"," + b"\0\0\0\0\xff\xff\xff\xff\0\2\0;",
        "65535×65535",
    ),
    "bmp": (bmp(8000, 8000, 24, 0, b""), "cut off: it has fewer pixels"),
    "bmp of runs": (bmp(8000, 8000, 8, 1, b"\1\0\0\0" * 8000), "a run-length bitmap of 8000×8000 pixels"),
    "bmp of empty runs": (bmp(64, 64, 8, 1, b"\0\0" * 400_000), "too much work"),
    "jpeg of scans": (many_scans(5000), "more than 100 scans"),
    "png of chunks": (png_with(chunk(b"IDAT", b"") * 501), "more than 500 chunks"),
    "png of too many pixels": (png_that_declares(8, 8, 8, 2, bytes(5_000_000)), "more pixels than it declares"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_by_what_its_header_says(kind, monkeypatch):
    monkeypatch.setattr(png, "MAX_CHUNKS", 500)
    data, says = BOMBS[kind]
    data = data if kind != "webp" else data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=says):
            decode.pixels(data)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_scans_are_counted_with_their_pixels(monkeypatch):
    monkeypatch.setattr(jpeg, "MAX_WORK", 64 * 64 * 20)
    assert decode.pixels(many_scans(1)).shape == (64, 64, 3)
    with pytest.raises(ValueError, match=r"scans of 64×64 pixels, which is too much work"):
        decode.pixels(many_scans(30))


def test_threads_wait_for_memory_and_none_is_refused_for_what_others_hold():
    budget, inside, most = memory.Budget(100), [], []

    def work() -> None:
        with budget.hold(60):
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert max(most) == 1
    assert len(most) == 8
    with pytest.raises(ValueError, match="--megapixels raises the limit"), budget.hold(101):
        pass
    with budget.hold(150, alone=200):  # a larger limit of pixels: one at a time
        pass


def test_the_limit_of_pixels_is_an_option():
    data = encoded(Image.new("L", (1000, 900)), "PNG")
    with pytest.raises(ValueError, match="declares 1000×900"):
        decode.pixels(data, max_pixels=800_000)
    assert decode.pixels(data, max_pixels=900_000).shape == (900, 1000, 3)


def test_limits_are_those_that_the_page_names():
    assert (archive.MAX_FILE_BYTES, archive.MAX_MEMBERS) == (200 << 20, 400_000)
    assert (jpeg.MAX_SCANS, png.MAX_CHUNKS, memory.MOST >> 20) == (100, 100_000, 640)
    assert headers.RLE_PIXELS == 9_000_000


@pytest.mark.parametrize("packed", ["tiff_lzw", "tiff_adobe_deflate"])
def test_libtiff_writes_no_line_of_its_own_beside_ours(packed, capfd):
    """It writes to the descriptor of stderr, past Python."""
    data = bytearray(encoded(NOISE, "TIFF", compression=packed))
    for k in range(20, len(data) // 2, 7):
        data[k] ^= 0xFF
    with pytest.raises(ValueError, match="damaged"):
        decode.pixels(bytes(data))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_below_zero_are_refused_and_not_shown_black(kind):
    """Radar has decibels, tomography Hounsfield units, a map heights below the sea: all would be black."""
    for low, high in ((-1000, 2000), (-25, -1)):
        values = np.linspace(low, high, 64).astype(kind)[None].repeat(48, 0)
        with pytest.raises(ValueError, match=f"has values from {low} to {high}: below 0 there is no brightness"):
            decode.pixels(encoded(Image.fromarray(values), "TIFF"))
    nearly = np.linspace(-2, 255, 64).astype(kind)[None].repeat(48, 0)
    assert decode.pixels(encoded(Image.fromarray(nearly), "TIFF"))[0, :, 0].tolist()[::63] == [0, 255]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak of memory is read from Linux")
@pytest.mark.parametrize(
    ("form", "side"), [("JPEG", 7990), ("PNG", 7990), ("WEBP", 4000), ("GIF", 6000), ("TIFF", 6200)]
)
def test_a_large_file_that_is_damaged_near_its_end_is_refused_below_300_mebibytes(tmp_path, form, side):
    rows = np.repeat(np.arange(side, dtype=np.uint32) * 2654435761 >> 24, 3).astype(np.uint8).reshape(side, 1, 3)
    image = Image.fromarray(np.broadcast_to(rows, (side, side, 3)).copy())
    options = {"TIFF": {"compression": "tiff_adobe_deflate"}, "WEBP": {"lossless": True, "method": 0}}.get(form, {})
    data = encoded(image.convert("P") if form == "GIF" else image, form, **options)
    (tmp_path / "x").write_bytes(data[: len(data) * 97 // 100])
    program = (
        "import sys; from minisimclr.data import decode\n"
        "try: decode.pixels(open(sys.argv[1], 'rb').read())\n"
        "except ValueError: print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x")], capture_output=True, text=True)
    assert int(done.stdout.split()[1]) < 300 << 10
