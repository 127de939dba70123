"""How fast are pictures indexed over CLIP without torch, beside a plain loop of transformers over the same network?

The network is CLIP ViT-B/32 in its true shape with random weights (speed does not depend on their values), and with a
tokenizer of the true size. The pictures are photo-sized JPEGs (2,000 × 1,500). Rows are interleaved, a batch of each in
turn, so that other work on the machine falls on all alike; processor time is the more reliable column then. The loop
opens, prepares and encodes 32 pictures at a time, as the documentation of transformers does.

    python benchmarks/clip.py --folder clip-benchmark --pictures 64 --json out.json
    python benchmarks/cold_start.py clip-benchmark/photos/.voken

The first command leaves a collection, which the second one searches from the shell.

With `--rclip PYTHON`, the interpreter of an environment with rclip (4.0.8 needs Python 3.12), rclip indexes the same
pictures in turn, in a process of its own that stays. Its network is a ViT-B/32 that reads 256 pixels with the usual
GELU, so all rows are measured on that one then. rclip gets the weights of the others as a graph of plain operators, as
exporters write it, and its vectors are compared like ours:

    python3.12 -m venv rclip && rclip/bin/pip install rclip==4.0.8
    python benchmarks/clip.py --folder clip-256 --rclip rclip/bin/python --pictures 64
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from report import markdown_table, option_parser, write_report

SIZE = (2000, 1500)
TRANSFORMERS, GRAPH, ROUNDED, RCLIP = "transformers on torch", "voken, float32", "voken, int8", "rclip"
RCLIP_SIDE = 256
RCLIP_FOLDER = "ViT-B-32-256-datacomp_s34b_b86k"
RCLIP_FILES = ("LICENSE", "OPENAI-CLIP-MIT.txt", "README.md", "THIRD_PARTY_NOTICES.md")  # it looks for them
RCLIP_LOOP = """
import json, os, sys, time
import numpy
from rclip import db, model
from rclip.main import RClip
index = RClip(model.Model(), db.DB(sys.argv[1]), 8, None)
for line in sys.stdin:
    clock, processor = time.perf_counter(), time.process_time()
    index.ensure_index(line.strip())
    spent = time.perf_counter() - clock, time.process_time() - processor
    rows = sorted((os.path.basename(row[0]), row[1]) for row in index._db.get_image_vectors_by_dir_path(line.strip()))
    print(json.dumps([*spent, [numpy.frombuffer(row[1], numpy.float32).tolist() for row in rows]]), flush=True)
"""


def main() -> None:
    """Make the checkpoint, the pictures and the collection; measure; print a table, write JSON."""
    parser = option_parser(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the checkpoint, the pictures, the collection")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--rclip", metavar="PYTHON", default="", help="measure rclip, which this interpreter has")
    options = parser.parse_args()
    checkpoint, photos = options.folder / "checkpoint", options.folder / "photos"
    make_checkpoint(checkpoint, for_rclip=bool(options.rclip))
    make_pictures(photos, options.pictures)
    if options.rclip and options.threads:
        parser.error("--threads: rclip uses all cores, so all rows must. Leave it out.")
    threads = options.threads or os.cpu_count() or 1
    encoders = contestants(checkpoint, options.folder, threads)
    if options.rclip:
        encoders[RCLIP] = rclip_indexing(options.rclip, checkpoint, options.folder.resolve() / "rclip")
    paths = sorted(photos.glob("*.jpg"))
    for encode in encoders.values():
        encode(paths[:2])  # the first call loads what the next ones need
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in encoders}
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    for start in range(0, len(paths), options.batch):
        for name, encode in encoders.items():
            clock, processor = time.perf_counter(), time.process_time()
            batch, spent = encode(paths[start : start + options.batch])
            vectors[name].append(batch)
            own = time.perf_counter() - clock, time.process_time() - processor
            seconds[name].append(spent or own)
    figures = summary(seconds, vectors, options.batch)
    print(table(figures))
    make_collection(photos, checkpoint)
    write_report(options.json, {"benchmark": "clip", "threads": threads, "size": SIZE, "rows": figures})


Encode = Callable[[list[Path]], tuple[np.ndarray, tuple[float, float] | None]]
"""From files to their unit vectors, with seconds by the clock and of the processor if another process did it."""


def contestants(checkpoint: Path, folder: Path, threads: int) -> dict[str, Encode]:
    """Transformers, and our graphs, through which files go as in `voken index`: hashed, read, and stored in a cache."""
    import torch
    from PIL import Image
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from voken.encoders.cache import VectorCache, picture_vectors
    from voken.encoders.clip import HubEncoder
    from voken.inference.export import export_picture_encoder
    from voken.inference.pictures import PictureGraph

    torch.set_num_threads(threads)
    model: Any = CLIPModel.from_pretrained(checkpoint)
    model.eval()
    processor = CLIPImageProcessorPil.from_pretrained(checkpoint)

    @torch.inference_mode()
    def plain(paths: list[Path]) -> tuple[np.ndarray, None]:
        images = [Image.open(path).convert("RGB") for path in paths]
        features = model.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output
        return torch.nn.functional.normalize(features, dim=-1).numpy(), None

    shutil.rmtree(folder / "cache", ignore_errors=True)

    def through(graph: PictureGraph) -> Encode:
        cache = VectorCache(folder / "cache" / graph.fingerprint)

        def encode(paths: list[Path]) -> tuple[np.ndarray, None]:
            return picture_vectors(graph, paths, cache=cache, workers=threads).vectors, None

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


def make_checkpoint(folder: Path, *, for_rclip: bool = False) -> None:
    """Write CLIP ViT-B/32 with random weights and a tokenizer of as many pieces and merges as the true one."""
    if (folder / "config.json").exists():
        return
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    config: Any = CLIPConfig()  # its defaults are those of openai/clip-vit-base-patch32
    side = RCLIP_SIDE if for_rclip else config.vision_config.image_size
    if for_rclip:
        config = CLIPConfig(vision_config={"image_size": side, "hidden_act": "gelu"})
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
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    for part in (CLIPModel(config), images, tokenizer):
        part.save_pretrained(folder)


def rclip_indexing(python: str, checkpoint: Path, folder: Path) -> Encode:
    """rclip's own indexing, in its interpreter: it walks a folder, hashes and reads its files, encodes them in batches
    of 8, its default, and writes them to its database."""
    shutil.rmtree(folder, ignore_errors=True)
    data = folder / "data"
    (data / RCLIP_FOLDER).mkdir(parents=True)
    for name in RCLIP_FILES:
        (data / name).touch()
    write_rclip_graph(checkpoint, data / RCLIP_FOLDER / "visual.onnx")
    process = subprocess.Popen(
        [python, "-c", RCLIP_LOOP, str(data / "db.sqlite3")],
        env={**os.environ, "RCLIP_DATADIR": str(data)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def encode(paths: list[Path]) -> tuple[np.ndarray, tuple[float, float]]:
        batch = folder / "batches" / paths[0].stem / str(len(paths))
        batch.mkdir(parents=True)
        for path in paths:
            os.link(path.resolve(), batch / path.name)
        print(batch, file=requests, flush=True)
        line = answers.readline()
        if not line:
            raise SystemExit(f"rclip ended with code {process.wait()}.")
        clock, processor, rows = json.loads(line)
        return np.array(rows, np.float32), (clock, processor)

    return encode


def write_rclip_graph(checkpoint: Path, path: Path) -> None:
    """Write the checkpoint's picture tower in the plain operators of exporters: (pictures, 3, 256, 256) to vectors."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from transformers import CLIPModel

    model: Any = CLIPModel.from_pretrained(checkpoint)
    tower, config = model.vision_model, model.config.vision_config
    width, heads, patches = config.hidden_size, config.num_attention_heads, (RCLIP_SIDE // config.patch_size) ** 2
    nodes: list[Any] = []
    weights: list[Any] = []

    def weight(values: Any) -> str:
        array = values.detach().numpy() if hasattr(values, "detach") else np.asarray(values)
        weights.append(numpy_helper.from_array(np.ascontiguousarray(array), f"w{len(weights)}"))
        return str(weights[-1].name)

    def apply(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    def linear(rows: str, layer: Any) -> str:
        product = apply("MatMul", rows, weight(layer.weight.T))
        return product if layer.bias is None else apply("Add", product, weight(layer.bias))

    def norm(rows: str, layer: Any) -> str:
        parts = weight(layer.weight), weight(layer.bias)
        return apply("LayerNormalization", rows, *parts, axis=-1, epsilon=float(layer.eps))

    def split(rows: str, order: list[int]) -> str:
        return apply("Transpose", apply("Reshape", rows, weight(np.array([0, 0, heads, width // heads]))), perm=order)

    side = config.patch_size
    rows = apply("Conv", "input", weight(tower.embeddings.patch_embedding.weight), strides=[side, side])
    rows = apply("Transpose", apply("Reshape", rows, weight(np.array([0, width, patches]))), perm=[0, 2, 1])
    count = apply("Shape", rows, start=0, end=1)
    first = weight(tower.embeddings.class_embedding[None, None])
    first = apply("Expand", first, apply("Concat", count, weight(np.array([1, width])), axis=0))
    places = weight(tower.embeddings.position_embedding.weight[None])
    rows = norm(apply("Add", apply("Concat", first, rows, axis=1), places), tower.pre_layrnorm)
    for layer in tower.encoder.layers:
        attention, normed = layer.self_attn, norm(rows, layer.layer_norm1)
        query = split(linear(normed, attention.q_proj), [0, 2, 1, 3])
        keys = split(linear(normed, attention.k_proj), [0, 2, 3, 1])
        values = split(linear(normed, attention.v_proj), [0, 2, 1, 3])
        scale = weight(np.float32((width // heads) ** -0.5))
        shares = apply("Softmax", apply("MatMul", apply("Mul", query, scale), keys), axis=-1)
        mixed = apply("Transpose", apply("MatMul", shares, values), perm=[0, 2, 1, 3])
        mixed = apply("Reshape", mixed, weight(np.array([0, 0, width])))
        rows = apply("Add", rows, linear(mixed, attention.out_proj))
        inside = apply("Gelu", linear(norm(rows, layer.layer_norm2), layer.mlp.fc1))
        rows = apply("Add", rows, linear(inside, layer.mlp.fc2))
    pooled = norm(apply("Gather", rows, weight(np.array(0)), axis=1), tower.post_layernorm)
    nodes.append(helper.make_node("Identity", [linear(pooled, model.visual_projection)], ["output"]))
    sizes: list[int | str | None] = ["pictures", 3, RCLIP_SIDE, RCLIP_SIDE]
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, sizes)
    result = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["pictures", model.config.projection_dim])
    graph = helper.make_graph(nodes, "visual", [source], [result], weights)
    opset = helper.make_opsetid("", 21)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), str(path))


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
