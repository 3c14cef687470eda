"""Pictures: bombs, programs, broken heads."""

import functools
import pickle
import struct
import zlib
from collections.abc import Callable

from tests.hostile import samples
from tests.hostile.cases import Code, case

# Pictures


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, data=b"", *more, depth=8, colour=2):
    """A PNG by hand, whose head may lie."""
    inside = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + inside + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@functools.cache
def zeros(megabytes):
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def gif(width, height):
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0x80, 0, 0)
        + bytes(6)
        + (b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;")
    )


EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(executed) (w) file closefile\nshowpage\n%%EOF\n"
)

PICTURES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "60,000 x 60,000": ("0.png", lambda: png(60_000, 60_000, zeros(8))),
    "13,000 x 13,000, below Pillow's own limit": ("0.png", lambda: png(13_000, 13_000, zeros(1))),
    "2^31 pixels wide": ("0.png", lambda: png(2**31 - 1, 1, b"")),
    "no pixels": ("0.png", lambda: png(0, 0, b"")),
    "no data": ("0.png", lambda: png(8, 8, b"")),
    "a comment of 256 MiB": ("0.png", lambda: png(8, 8, b"", chunk(b"zTXt", b"k\0\0" + zeros(256)))),
    "a profile of 256 MiB": ("0.png", lambda: png(8, 8, b"", chunk(b"iCCP", b"k\0\0" + zeros(256)))),
    "a GIF of 65,535 x 65,535": ("0.gif", lambda: gif(65_535, 65_535)),
    "a program in PostScript": ("0.png", lambda: EPS),
    "a program in PostScript, as a picture of JPEG": ("0.jpg", lambda: EPS),
    "a head of TIFF alone": ("0.tif", lambda: b"II*\0\x08\0\0\0\xff\xff"),
    "a TIFF of 60,000 x 60,000": ("0.tif", lambda: tiff(60_000, 60_000)),
    "a PPM of 60,000 x 60,000": ("0.ppm", lambda: b"P6 60000 60000 255\n" + bytes(100)),
    "a PPM of 10^30 x 10^30": ("0.ppm", lambda: b"P6 %d %d 255\n" % (10**30, 10**30) + bytes(100)),
    "a BMP of a negative size": (
        "0.bmp",
        lambda: b"BM" + struct.pack("<IHHIIiiHH", 99, 0, 0, 54, 40, -8, -8, 1, 24) + bytes(40),
    ),
    "empty": ("0.png", lambda: b""),
    "text": ("0.jpg", lambda: b"not a picture"),
    "16 bits a level": ("0.png", lambda: png(1, 1, zlib.compress(b"\0\0\0"), depth=16, colour=0)),
    "a pickle with code": ("0.png", lambda: pickle.dumps(Code())),
}


def tiff(width, height):
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, height), (279, 4, 100)]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + body + bytes(4)


for _name, (_file, _content) in PICTURES.items():

    @case(f"picture: {_name}", "pictures", "picture")
    def _(folder, file=_file, content=_content):
        folder.mkdir()
        (folder / file).write_bytes(content())
        return folder / file

    for _reader in ("data", "picture_folder"):

        @case(f"picture, {_reader}: {_name}", "pictures", _reader, _file)
        def _(folder, file=_file, content=_content):
            samples.pictures(folder)
            (folder / "ant" / f"1{file}").write_bytes(content())
            return folder


@case("picture: cut short", "pictures", "data", "0.png")
def _(folder):
    samples.pictures(folder)
    path = folder / "ant" / "0.png"
    path.write_bytes(path.read_bytes()[:50])
    return folder


@case("picture: a link to itself", "links", "data")
def _(folder):
    samples.pictures(folder)
    (folder / "ant" / "loop.png").symlink_to("loop.png")
    return folder


@case("picture: a link to endless zeros", "links", "data", "zero.png")
def _(folder):
    samples.pictures(folder)
    (folder / "ant" / "zero.png").symlink_to("/dev/zero")
    return folder


@case("picture: a folder", "folders for files", "data")
def _(folder):
    samples.pictures(folder)
    for path in (folder / "ant").iterdir():
        path.unlink()
    (folder / "ant" / "0.png").mkdir()
    return folder
