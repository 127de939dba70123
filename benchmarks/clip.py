"""How fast are pictures indexed over CLIP without torch, beside a plain loop of transformers over the same network?

The network is CLIP ViT-B/32 in its true shape with random weights (speed does not depend on their values), and with a
tokenizer of the true size. The pictures are photo-sized JPEGs (2,000 × 1,500). Rows are interleaved, a batch of each in
turn, so that other work on the machine falls on all alike; processor time is the more reliable column then. The loop
opens, prepares and encodes 32 pictures at a time, as the documentation of transformers does.

    python benchmarks/clip.py --folder clip-benchmark --pictures 64 --json out.json
    python benchmarks/cold_start.py clip-benchmark/photos/.voken

The first command leaves a collection, which the second one searches from the shell.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from report import markdown_table, option_parser, write_report

SIZE = (2000, 1500)
TRANSFORMERS, GRAPH, ROUNDED = "transformers on torch", "voken, float32", "voken, int8"


def main() -> None:
    """Make the checkpoint, the pictures and the collection; measure; print a table, write JSON."""
    parser = option_parser(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the checkpoint, the pictures, the collection")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    options = parser.parse_args()
    checkpoint, photos = options.folder / "checkpoint", options.folder / "photos"
    make_checkpoint(checkpoint)
    make_pictures(photos, options.pictures)
    threads = options.threads or os.cpu_count() or 1
    encoders = contestants(checkpoint, options.folder, threads)
    paths = sorted(photos.glob("*.jpg"))
    for encode in encoders.values():
        encode(paths[:2])  # the first call loads what the next ones need
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in encoders}
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    for start in range(0, len(paths), options.batch):
        for name, encode in encoders.items():
            clock, processor = time.perf_counter(), time.process_time()
            vectors[name].append(encode(paths[start : start + options.batch]))
            seconds[name].append((time.perf_counter() - clock, time.process_time() - processor))
    figures = summary(seconds, vectors, options.batch)
    print(table(figures))
    make_collection(photos, checkpoint)
    write_report(options.json, {"benchmark": "clip", "threads": threads, "size": SIZE, "rows": figures})


def contestants(checkpoint: Path, folder: Path, threads: int) -> dict[str, Callable[[list[Path]], np.ndarray]]:
    """Functions from files to unit vectors."""
    import torch
    from PIL import Image
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from voken.data.images import load_images
    from voken.encoders.clip import HubEncoder
    from voken.inference.export import export_picture_encoder
    from voken.inference.pictures import PictureGraph

    torch.set_num_threads(threads)
    model: Any = CLIPModel.from_pretrained(checkpoint)
    model.eval()
    processor = CLIPImageProcessorPil.from_pretrained(checkpoint)

    @torch.inference_mode()
    def plain(paths: list[Path]) -> np.ndarray:
        images = [Image.open(path).convert("RGB") for path in paths]
        features = model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output
        unit: np.ndarray = torch.nn.functional.normalize(features, dim=-1).numpy()
        return unit

    def through(graph: PictureGraph) -> Callable[[list[Path]], np.ndarray]:
        def encode(paths: list[Path]) -> np.ndarray:
            pictures = load_images(paths, least_side=graph.least_side, prepare=graph.prepare, workers=threads)
            return graph.encode_prepared([picture for _, picture in pictures])  # type: ignore[misc] # all are readable

        return encode

    encoder = HubEncoder.from_pretrained(str(checkpoint))
    graphs = {}
    for name, precision in ((GRAPH, "float32"), (ROUNDED, "int8")):
        export_picture_encoder(encoder, folder / precision, precision=precision)  # type: ignore[arg-type]
        graphs[name] = through(PictureGraph.load(folder / precision, threads=threads))
    return {TRANSFORMERS: plain, **graphs}


def summary(
    seconds: dict[str, list[tuple[float, float]]], vectors: dict[str, list[np.ndarray]], batch: int
) -> dict[str, dict[str, Any]]:
    """Rates of each row, and how near its vectors are to those of transformers."""
    plain = np.concatenate(vectors[TRANSFORMERS])
    rows = {}
    for name, measured in seconds.items():
        own = np.concatenate(vectors[name])
        clock, processor = (sum(values) for values in zip(*measured, strict=True))
        ratios = [theirs[0] / ours[0] for theirs, ours in zip(seconds[TRANSFORMERS], measured, strict=True)]
        rows[name] = {
            "pictures_per_second": len(own) / clock,
            "processor_ms_per_picture": 1e3 * processor / len(own),
            "times_transformers": statistics.median(ratios),
            "least_cosine": float((own * plain).sum(axis=1).min()),
            "batch": batch,
        }
    return rows


def table(rows: dict[str, dict[str, Any]]) -> str:
    """A Markdown table."""
    heads = ["", "pictures/s", "× transformers (median)", "processor ms a picture", "least cosine"]
    lines = [
        [
            name,
            f"{row['pictures_per_second']:.1f}",
            f"{row['times_transformers']:.2f}",
            f"{row['processor_ms_per_picture']:.0f}",
            f"{row['least_cosine']:.5f}",
        ]
        for name, row in rows.items()
    ]
    return markdown_table(heads, lines)


def make_checkpoint(folder: Path) -> None:
    """Write CLIP ViT-B/32 with random weights and a tokenizer of as many pieces and merges as the true one."""
    if (folder / "config.json").exists():
        return
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    config: Any = CLIPConfig()  # its defaults are those of openai/clip-vit-base-patch32
    size = config.text_config.vocab_size
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    letters += [chr(0x100 + code) for code in range(256 - len(letters))]
    pieces = [*letters, *(letter + "</w>" for letter in letters)]
    pairs = [(one, other) for one in letters for other in pieces][: size - 2 - len(pieces)]
    pieces += ["".join(pair) for pair in pairs] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: row for row, piece in enumerate(pieces)}
    merges: Any = pairs
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    folder.mkdir(parents=True, exist_ok=True)
    for part in (CLIPModel(config), CLIPImageProcessorPil(), tokenizer):
        part.save_pretrained(folder)


def make_pictures(folder: Path, count: int) -> None:
    """Write smooth coloured noise as JPEGs, about as large as photographs."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:04}.jpg"
        coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC), dtype=np.int16)
        grain = random.integers(-12, 13, smooth.shape, dtype=np.int16)
        if not path.exists():
            Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(path, quality=88)


def make_collection(photos: Path, checkpoint: Path) -> None:
    """Index the pictures over the checkpoint, for a measurement of searches."""
    from voken import Collection

    start = time.perf_counter()
    report = Collection.index(photos, encoder=str(checkpoint))
    print(f"`voken index`: {report.pictures} pictures in {time.perf_counter() - start:.0f} s, its model included")


if __name__ == "__main__":
    main()
