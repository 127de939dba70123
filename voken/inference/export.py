"""Write the graphs that `voken.inference.engine` searches with, from a trained generator.

engine.json          family, sizes, which graph writes which level
prefill.onnx         reads the texts
step_….onnx          writes a level; levels whose graph is the same share a file
vectors.onnx         the text's vector, where the generator does not give one
tokenizer.json       the texts' tokens, as `tokenizers` reads them
*.weights            the numbers of each graph, mapped into memory
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voken.artifact import storage_errors, write_json
from voken.encoders.builtin import sentence_folder
from voken.encoders.two_tower import TwoTowerEncoder
from voken.errors import ConfigError, MissingExtraError
from voken.generator.lite import LiteGenerator
from voken.generator.llama import LlamaStepModel
from voken.generator.t5 import T5StepModel
from voken.inference.engine import FORMAT, HEADER
from voken.inference.text_encoder import TextEncoder

if TYPE_CHECKING:
    from voken.encoders.interface import Encoder
    from voken.generator.interface import Generator
    from voken.image_tokenizer.model import ImageTokenizer
    from voken.inference.graph import Graph, Precision


def can_export(generator: Generator, encoder: Encoder | None = None) -> bool:
    """Whether there are graphs for this generator: t5 and llama, and lite over the built-in encoder."""
    if isinstance(generator, LiteGenerator):
        return isinstance(encoder, TwoTowerEncoder)
    return isinstance(generator, T5StepModel | LlamaStepModel) and generator.reader is not None


def export_generator(
    generator: Generator,
    folder: Path,
    *,
    precision: Precision = "float32",
    encoder: Encoder | None = None,
    tokenizer: ImageTokenizer | None = None,
) -> None:
    """Write the engine of `generator` into `folder`, which is made if it is not there.

    `encoder` is the one that `lite` reads with; of t5 and llama, a built-in `encoder` adds the graph of its text
    vectors, which the reranks need; `tokenizer` adds the graph that rebuilds vectors from vokens. Raises `ConfigError`
    where there is no graph for what is given, and `MissingExtraError` without the package onnx.
    """
    if importlib.util.find_spec("onnx") is None:
        raise MissingExtraError("onnx", "train")
    if not can_export(generator, encoder):
        raise ConfigError(f"There is no engine for {type(generator).__name__} with this encoder. Search with torch.")
    folder = Path(folder)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        header = _graphs(generator, folder, precision, encoder, tokenizer)
    header |= {
        "format": FORMAT,
        "precision": precision,
        "levels": generator.levels,
        "codebook_size": generator.codebook_size,
    }
    write_json(folder / HEADER, header)


def export_text_encoder(encoder: TwoTowerEncoder, folder: Path, *, precision: Precision = "float32") -> None:
    """Write what `voken.inference.text_encoder.TextEncoder` loads, into `folder`, made if it is not there."""
    folder = Path(folder)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / TextEncoder.HEADER, _text_encoder(encoder, folder, precision))


def _text_encoder(encoder: TwoTowerEncoder, folder: Path, precision: Precision) -> dict[str, Any]:
    from voken.inference.sentences import vector_graph

    _save(vector_graph(encoder, precision), folder, TextEncoder.GRAPH.removesuffix(".onnx"))
    return _sentence_reader(folder, encoder.sentences.max_tokens, "vectors_tokenizer.json")


def _graphs(
    generator: Any, folder: Path, precision: Precision, encoder: Encoder | None, tokenizer: ImageTokenizer | None
) -> dict[str, Any]:
    from voken.inference import lite, llama, rebuild, t5

    header: dict[str, Any] = {"vectors": None}
    levels = range(generator.levels)
    if isinstance(generator, LiteGenerator):
        assert isinstance(encoder, TwoTowerEncoder)
        _save(lite.prefill_graph(generator, encoder, precision), folder, "prefill")
        steps = [_save(lite.step_graph(generator, precision, level), folder, f"step_{level}") for level in levels[1:]]
        header |= {"family": "lite", "reader": _sentence_reader(folder, generator.config.max_query_tokens)}
        # an aim compares with pictures where codes and vectors are of one space
        aims = generator.config.query_vector and not (tokenizer is not None and tokenizer.config.layers)
        if aims:
            header["vectors"] = "aim"
    else:
        aims = False
        module = t5 if isinstance(generator, T5StepModel) else llama
        _save(module.prefill_graph(generator, precision), folder, "prefill")
        written = levels if module is t5 else levels[1:]
        shared = generator.vocabulary.shared
        names = {level: "step" if shared else f"step_{level}" for level in written}
        for level in list(written)[:1] if shared else written:
            _save(module.step_graph(generator, precision, level), folder, names[level])
        steps = [f"{name}.onnx" for name in names.values()]
        header |= {"family": "t5" if module is t5 else "llama", "reader": _query_reader(generator.reader, folder)}
    if not aims and isinstance(encoder, TwoTowerEncoder):
        header["vectors"] = _text_encoder(encoder, folder, precision)
    if tokenizer is not None:
        _save(rebuild.rebuild_graph(tokenizer), folder, "rebuild")
    return header | {"steps": steps}


def _save(graph: Graph, folder: Path, name: str) -> str:
    graph.save(folder / f"{name}.onnx", folder / f"{name}.weights")
    return f"{name}.onnx"


def _sentence_reader(folder: Path, max_tokens: int, name: str = "tokenizer.json") -> dict[str, Any]:
    (folder / name).write_bytes((sentence_folder() / "tokenizer.json").read_bytes())
    return {"file": name, "max_tokens": max_tokens, "cut": "keep end", "added": [], "stand_in": 0}


def _query_reader(reader: Any, folder: Path) -> dict[str, Any]:
    """The tokenizer of a checkpoint without transformers."""
    backend = getattr(reader.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError("The checkpoint's tokenizer has no tokenizer.json. Save it once with its fast form.")
    content = json.loads(backend.to_str())
    content["truncation"] = content["padding"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return {
        "file": "tokenizer.json",
        "max_tokens": reader.max_tokens - len(reader._separator_tokens),
        "cut": "truncate",
        "added": list(reader._separator_tokens),
        "stand_in": reader._stand_in(),
    }
