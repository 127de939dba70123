"""Raw pictures as a camera writes them: a DNG of a sensor's numbers, with or without a preview."""

import struct
from io import BytesIO

import numpy as np
from PIL import Image

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 10: 8}


def write_dng(path, sensor, *, preview=None, orientation=1):
    """Write a DNG of `sensor` (uint16, a mosaic of red, green, green, blue), with a JPEG of the picture `preview`."""
    height, width = sensor.shape
    raw = [
        (254, 4, (0,)),  # the main picture
        (256, 4, (width,)),
        (257, 4, (height,)),
        (258, 3, (16,)),
        (259, 3, (1,)),
        (262, 3, (32803,)),  # a mosaic
        (273, 4, "strip"),
        (277, 3, (1,)),
        (278, 4, (height,)),
        (279, 4, (2 * sensor.size,)),
        (33421, 3, (2, 2)),
        (33422, 1, (0, 1, 1, 2)),
        (50717, 4, (65535,)),
    ]
    camera = [
        (271, 2, b"voken\0"),
        (272, 2, b"voken test\0"),
        (274, 3, (orientation,)),
        (50706, 1, (1, 4, 0, 0)),
        (50708, 2, b"voken test\0"),
        (50721, 10, tuple(number for value in (1, 0, 0, 0, 1, 0, 0, 0, 1) for number in (value, 1))),
        (50728, 5, (1, 1, 1, 1, 1, 1)),
        (50778, 3, (21,)),
    ]
    sensor_bytes = sensor.astype("<u2").tobytes()
    file = BytesIO(b"II*\0" + struct.pack("<I", 8))
    file.seek(8)
    if preview is None:
        _directory(file, sorted(raw + camera), {"strip": sensor_bytes})
    else:
        jpeg = BytesIO()
        preview.save(jpeg, "JPEG", quality=95)
        first = [
            (254, 4, (1,)),
            (256, 4, (preview.width,)),
            (257, 4, (preview.height,)),
            (258, 3, (8, 8, 8)),
            (259, 3, (7,)),
            (262, 3, (6,)),
            (273, 4, "strip"),
            (277, 3, (3,)),
            (278, 4, (preview.height,)),
            (279, 4, (len(jpeg.getvalue()),)),
            (330, 4, "sub"),
        ]
        _directory(file, sorted(first + camera), {"strip": jpeg.getvalue()}, sub=(raw, {"strip": sensor_bytes}))
    path.write_bytes(file.getvalue())
    return path


def _directory(file, entries, blocks, sub=None):
    """Write a directory of tags at the file's position, then the values that do not fit into it, then the blocks."""
    start = file.tell()
    end = start + 2 + 12 * len(entries) + 4
    late, rows, patches = b"", [], []
    for place, (tag, kind, values) in enumerate(entries):
        if isinstance(values, str):
            patches.append((start + 2 + 12 * place + 8, values))
            rows.append(struct.pack("<HHII", tag, kind, 1, 0))
            continue
        data = values if isinstance(values, bytes) else _packed(kind, values)
        count = len(data) // _SIZES[kind]
        if len(data) <= 4:
            rows.append(struct.pack("<HHI", tag, kind, count) + data.ljust(4, b"\0"))
        else:
            rows.append(struct.pack("<HHII", tag, kind, count, end + len(late)))
            late += data + b"\0" * (len(data) % 2)
    file.write(struct.pack("<H", len(entries)) + b"".join(rows) + struct.pack("<I", 0) + late)
    for position, name in patches:
        target = file.tell()
        if name == "sub":
            entries, inner = sub
            _directory(file, sorted(entries, key=lambda entry: entry[0]), inner)
        else:
            file.write(blocks[name] + b"\0" * (len(blocks[name]) % 2))
        here = file.tell()
        file.seek(position)
        file.write(struct.pack("<I", target))
        file.seek(here)


def _packed(kind, values):
    form = {1: "B", 3: "H", 4: "I", 5: "I", 10: "i"}[kind]
    return struct.pack(f"<{len(values)}{form}", *values)


def mosaic(size, red, green, blue):
    """A sensor's numbers for a picture of one colour."""
    sensor = np.empty((size, size), np.uint16)
    sensor[::2, ::2], sensor[::2, 1::2], sensor[1::2, ::2], sensor[1::2, 1::2] = red, green, green, blue
    return sensor


def halves(width, height):
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (width, height), "red")
    picture.paste("blue", (width // 2, 0, width, height))
    return picture
