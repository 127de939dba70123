"""How long does a user with a folder of pictures wait for the first hits?

Draws COUNT pictures as large as photos (JPEG, each a drawing of the data set somewhere on a noisy background, with a
camera's date), runs `voken index` and `voken search` as a shell would, with a trained model (`--model`) or with nothing
at all, and prints the seconds of each command, and those of the processor, which other work on the machine does not
change. A second `voken index` shows the cost if nothing is new, a third the cost of ten new pictures. The pictures have
no captions. `--data` is a folder of pictures that are drawn on.

    python benchmarks/first_result.py --data emoji --count 1000 --json out.json
"""

from __future__ import annotations

import resource
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from report import markdown_table, option_parser, write_report
from voken.data.captions import read_dataset
from voken.data.images import open_image

SIZE = (2000, 1500)
QUERIES = ("a red heart", "a smiling face", "an animal")


def main() -> None:
    """Draw, run, print, write JSON."""
    parser = option_parser(__doc__)
    parser.add_argument("--model", type=Path, help="a trained model (default: none)")
    parser.add_argument("--data", type=Path, required=True, help="a data set, or pictures, to draw on")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="voken-") as folder:
        photos, out, cache = (Path(folder) / name for name in ("photos", "photos.voken", "cache"))
        draw(options.data, photos, options.count, tuple(options.size), options.seed)
        model = ["--encoder", "photos"] if options.model is None else ["--model", options.model]
        index = ["index", photos, *model, "--out", out, "--cache", cache]
        steps = {"voken index": seconds_of(index)}
        steps |= {f'voken search "{query}"': seconds_of(["search", out, query]) for query in QUERIES}
        steps["voken index, nothing new"] = seconds_of(index)
        draw(options.data, photos / "new", min(10, options.count), tuple(options.size), options.seed + 1)
        steps["voken index, ten new"] = seconds_of(index)
    parts = (steps["voken index"], steps[f'voken search "{QUERIES[0]}"'])
    first = tuple(sum(values) for values in zip(*parts, strict=True))
    print(f"{options.count:,} pictures of {options.size[0]} × {options.size[1]} pixels\n")
    rows = {**steps, "to the first answer": first}.items()
    heads = ["command", "seconds", "of the processor"]
    print(markdown_table(heads, [[command, *(f"{value:.1f}" for value in values)] for command, values in rows]))
    figures = {"count": options.count, "size": options.size, "seconds": steps, "first_answer": first}
    write_report(options.json, figures | {"model": str(options.model or "")})


def draw(data: Path, folder: Path, count: int, size: tuple[int, int], seed: int) -> None:
    """Create JPEGs that resemble photos of a drawing on a wall."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    images = read_dataset(data).images
    for place in range(count):
        drawing = open_image(images[int(random.integers(len(images)))].path)
        low = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        photo = Image.fromarray(low).resize(size, Image.Resampling.BICUBIC)
        side = int(random.integers(min(size) // 3, min(size)))
        corner = (int(random.integers(size[0] - side + 1)), int(random.integers(size[1] - side + 1)))
        photo.paste(drawing.resize((side, side)), corner)
        exif = Image.Exif()
        exif[306] = f"2024:{place % 12 + 1:02d}:{place % 28 + 1:02d} 12:00:00"
        photo.save(folder / f"IMG_{place:05d}.jpg", quality=88, exif=exif)


def seconds_of(arguments: list[object]) -> tuple[float, float]:
    """Seconds of one `voken` command, from its start to its end, by the clock and of the processor."""
    command = [str(Path(sysconfig.get_path("scripts")) / "voken"), *map(str, arguments)]
    begin, before = time.perf_counter(), _children_seconds()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin, _children_seconds() - before


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
