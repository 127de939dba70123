"""With the same weights, how fast is ours beside transformers' constrained `generate` and an unconstrained CTranslate2?

The model is T5 in the shapes of T5-small and T5-base, with random weights as transformers initializes them and vokens
appended. All rows have these weights: ours (the engine, and torch), `generate` with `prefix_allowed_tokens_fn`, and
CTranslate2 in int8, which has no such constraint and only serves to compare speed. All rows include the reading of the
text, with the same tokenizer. Each returns 20 sequences of M vokens per query.

Opponents have their fastest settings. `generate`: cache, SDPA, `inference_mode`, no end token (so M steps, not M + 1),
length penalty 0, no scores requested while timed (it would copy every step's logits to return them). Its callback looks
up the whole prefix in one dict. The values are tensors, which were faster to index with than lists or numpy arrays
(batch 1, level 1: 1.1 ms per step against 4.7 ms with lists and 28 ms with arrays), although its documentation says
lists. CTranslate2: end token forbidden by the minimum length; all cores in one operation, or a worker per core; the
library's choice of kernels (CT2_USE_MKL=1 was five to twenty times slower on AMD). Rows named "vokens only" change the
models in ways that neither library documents: the decoder's table and head are cut to the vokens, so that no step
computes the 32,128 words. "Freed memory kept" is `voken.optimisation.keep_freed_memory`. Ratios are to the fastest row
of each library, including these.

Every row has a process that stays loaded. Rows run in turn, one at a time, and a row's figure is the median over
rounds, by wall time. On a shared machine `--threads 1 --clock cpu` is more reliable: with two threads, each waits for
the other in every small operation.

All rows need the same arithmetic: read every text token and project it to cross keys once, decode level 1 for one beam,
then `beams` beams per level, N logits each. Its rate is shown beside the rate of a large matrix product in the same
library, at the same precision, on the same cores. Agreement is with transformers: rankings are the same if all scores
are within 1e-4 and every sequence that only one side has ties with the last.

    python benchmarks/decoding.py --json out.json
    python benchmarks/decoding.py --quick
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int32, Integer

from report import markdown_table, option_parser, write_report

T5_WORDS = 32_128
TIE = 1e-4
"""Two float32 programs may differ by this in a sum of M log-probabilities."""
SINGLES = 8
"""The least number of queries that are timed; smaller batches are timed one after another."""
SETTLE_SECONDS = 0.1
"""Pause between two rows, because threads of the previous row may still be spinning."""
PRODUCT = 2048
SHAPES: dict[str, dict[str, Any]] = {
    "small": {"d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "tiny": {"d_model": 64, "d_ff": 128, "num_layers": 2, "num_heads": 2},
}
D_KV = 64
NEVER = -1e4
"""Bias of words that are not vokens, as in `T5Generator.to_transformers`."""

Precision = Literal["float32", "int8"]
Answer = tuple[Int32[np.ndarray, "beams M"], Float32[np.ndarray, " beams"]]
"""The sequences of one query, best first, and their log-probabilities (NaN if they were not requested)."""
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Workload:
    """The work that every row does."""

    shape: str
    levels: int
    codebook_size: int
    sequences: int
    beams: int
    threads: int
    batches: tuple[int, ...]
    clock: Literal["wall", "cpu"] = "wall"

    @property
    def queries(self) -> int:
        """Number of different texts."""
        return max(SINGLES, *self.batches)


@dataclass(frozen=True)
class Agreement:
    """How far the answers of a row agree with transformers'."""

    same_first: float
    """Share of queries with the same best sequence, or one that ties with it."""
    overlap: float
    """Mean share of the beams that both have."""
    same_ranking: float
    """Share of queries with the same ranking up to ties."""
    greatest_difference: float
    """Greatest difference of the scores of sequences that both have."""


class Row(ABC):
    """A way to search. `prepare` writes its files once; `setup` loads them in the row's process."""

    constrained = True

    def __init__(self, name: str, *, keep_freed_memory: bool = False) -> None:
        self.name = name
        self.keep_freed_memory = keep_freed_memory

    def prepare(self, generator: Any, folder: Path) -> None:
        """Write the row's files into `folder`, which already has generator/ and trie/."""
        return

    @abstractmethod
    def setup(self, folder: Path, workload: Workload) -> None:
        """Load the files, so that `search` can run."""

    @abstractmethod
    def search(self, texts: Sequence[str], *, scores: bool = True) -> list[Answer]:
        """Search all texts in one batch. `scores` is False if nobody reads them, because they can cost time."""

    def matrix_rate(self, clock: Clock) -> float | None:
        """Operations per second of a large matrix product; None if the library offers none."""
        return None


class Ours(Row):
    """`beam_search` with a torch model or an engine."""

    model: Any
    trie: Any
    beams: int

    def search(self, texts: Sequence[str], *, scores: bool = True) -> list[Answer]:
        """See `Row`. Scores cost nothing."""
        from voken.decoding.beam import beam_search

        result = beam_search(self.model, self.trie, texts, self.beams)
        return list(zip(result.vokens, result.log_prob, strict=True))

    def _open_trie(self, folder: Path, workload: Workload) -> None:
        from voken.decoding.trie import VokenTrie

        self.trie, self.beams = VokenTrie.load(folder / "trie"), workload.beams


class OurEngine(Ours):
    """ONNX Runtime and numpy, without torch."""

    def __init__(self, name: str, precision: Precision) -> None:
        super().__init__(name)
        self.precision = precision

    def prepare(self, generator: Any, folder: Path) -> None:
        """See `Row`."""
        from voken.inference.export import export_generator, t5_graphs

        export_generator(generator, t5_graphs, folder / f"engine-{self.precision}", precision=self.precision)

    def setup(self, folder: Path, workload: Workload) -> None:
        """See `Row`."""
        from voken.inference.engine import Engine

        self._open_trie(folder, workload)
        self.model = Engine.load(folder / f"engine-{self.precision}", threads=workload.threads)
        self.model.warm_up()

    def matrix_rate(self, clock: Clock) -> float:
        """See `Row`: the graphs' own product, int8 with the rounding of its input."""
        import onnxruntime

        from voken.inference.graph import Graph

        weight = _random_matrix(1)
        graph = Graph(self.precision)
        rows = graph.input("rows", "float32", ["rows", PRODUCT])
        graph.set_row_count(rows)
        graph.output("product", graph.linear(rows, weight), ["rows", PRODUCT])
        options = onnxruntime.SessionOptions()
        options.use_per_session_threads = False  # use the threads that `Engine.load` started
        with tempfile.TemporaryDirectory() as folder:
            graph.save(Path(folder) / "product.onnx", Path(folder) / "product.weights")
            session = onnxruntime.InferenceSession(
                str(Path(folder) / "product.onnx"), options, providers=["CPUExecutionProvider"]
            )
        left = _random_matrix(2)
        return _rate(lambda: session.run(None, {"rows": left}), clock)


class OurTorch(Ours):
    """The generator as it is trained, in float32."""

    def setup(self, folder: Path, workload: Workload) -> None:
        """See `Row`."""
        from voken.generator.t5 import T5Generator

        _use_torch_threads(workload.threads)
        self._open_trie(folder, workload)
        self.model = T5Generator.load(folder / "generator")

    def matrix_rate(self, clock: Clock) -> float:
        """See `Row`."""
        return _torch_rate(clock)


class Transformers(Row):
    """`generate` with `prefix_allowed_tokens_fn`, float32."""

    def __init__(self, name: str, *, keep_freed_memory: bool = False, vokens_only: bool = False) -> None:
        super().__init__(name, keep_freed_memory=keep_freed_memory)
        self.vokens_only = vokens_only

    def setup(self, folder: Path, workload: Workload) -> None:
        """See `Row`."""
        from voken.decoding.trie import VokenTrie
        from voken.generator.t5 import T5Generator

        _use_torch_threads(workload.threads)
        generator = T5Generator.load(folder / "generator")
        self.model = generator.to_transformers().eval()
        self.first_voken = 0 if self.vokens_only else T5_WORDS
        start = generator.config.decoder_start_token_id
        if self.vokens_only:
            cut_to_vokens(self.model, generator, marks=1)
            start = workload.codebook_size
        trie = VokenTrie.load(folder / "trie")
        self.tokenizer = generator.reader.tokenizer
        children = children_of_prefixes(trie.leaf_vokens(np.arange(trie.sequences)), self.first_voken)
        self.options: dict[str, Any] = {
            "num_beams": workload.beams,
            "num_return_sequences": workload.beams,
            "max_new_tokens": workload.levels,
            "do_sample": False,
            "use_cache": True,
            "length_penalty": 0.0,
            "pad_token_id": 0,
            "decoder_start_token_id": start,
            "prefix_allowed_tokens_fn": lambda _, tokens: children[tuple(tokens.tolist()[1:])],
        }
        self.model.generation_config.eos_token_id = None  # a sequence ends by its length

    def search(self, texts: Sequence[str], *, scores: bool = True) -> list[Answer]:
        """See `Row`."""
        import torch

        queries = self.tokenizer(texts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=queries["input_ids"],
                attention_mask=queries["attention_mask"],
                return_dict_in_generate=True,
                output_scores=scores,
                **self.options,
            )
        vokens = (out.sequences[:, 1:] - self.first_voken).numpy().astype(np.int32)
        totals = out.sequences_scores.numpy() if scores else np.full(len(vokens), np.nan, np.float32)
        return list(zip(np.split(vokens, len(texts)), np.split(totals, len(texts)), strict=True))

    def matrix_rate(self, clock: Clock) -> float:
        """See `Row`."""
        return _torch_rate(clock)


class CTranslate2(Row):
    """CTranslate2's beam search over all vokens; only words and the end token are forbidden."""

    constrained = False

    def __init__(self, name: str, compute_type: str, *, core_workers: bool = False, vokens_only: bool = False) -> None:
        super().__init__(name)
        self.compute_type = compute_type
        self.core_workers = core_workers
        self.vokens_only = vokens_only
        self.quantization = "float32" if compute_type == "float32" else "int8"

    def prepare(self, generator: Any, folder: Path) -> None:
        """See `Row`."""
        import torch
        from ctranslate2.converters.transformers import T5Loader

        if self._files(folder).exists():
            return
        model = generator.to_transformers().eval()
        words = _word_texts(generator.reader.tokenizer)
        vokens = [_voken_text(voken) for voken in range(generator.codebook_size)]
        start, end, unknown = words[0], words[1], words[2]
        target_words = [*words, *vokens]
        if self.vokens_only:
            target_words = [*vokens, start, end, unknown]
            cut_to_vokens(model, generator, marks=3)
        with torch.no_grad():
            spec = T5Loader().get_model_spec(model)
        spec.config.bos_token = spec.config.decoder_start_token = start
        spec.config.eos_token, spec.config.unk_token = end, unknown
        spec.register_source_vocabulary([*words, *vokens])
        spec.register_target_vocabulary(target_words)
        spec.validate()
        spec.optimize(quantization=self.quantization)
        self._files(folder).mkdir()
        spec.save(str(self._files(folder)))

    def setup(self, folder: Path, workload: Workload) -> None:
        """See `Row`."""
        import ctranslate2
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(str(folder / "generator"))
        self.words = _word_texts(self.tokenizer)
        self.voken_of = {_voken_text(voken): voken for voken in range(workload.codebook_size)}
        self.workers = workload.threads if self.core_workers else 1
        self.translator = ctranslate2.Translator(
            str(self._files(folder)),
            device="cpu",
            compute_type=self.compute_type,
            inter_threads=self.workers,
            intra_threads=workload.threads // self.workers,
        )
        self.options = {
            "beam_size": workload.beams,
            "num_hypotheses": workload.beams,
            "max_decoding_length": workload.levels,
            "min_decoding_length": workload.levels,
            "length_penalty": 0.0,
            "return_scores": True,
        }

    def search(self, texts: Sequence[str], *, scores: bool = True) -> list[Answer]:
        """See `Row`. Scores cost nothing."""
        source = [[self.words[token] for token in row] for row in self.tokenizer(texts)["input_ids"]]
        batch_per_worker = -(-len(texts) // self.workers)
        results = self.translator.translate_batch(source, max_batch_size=batch_per_worker, **self.options)
        return [
            (
                np.array([[self.voken_of[word] for word in sequence] for sequence in result.hypotheses], np.int32),
                np.array(result.scores, np.float32),
            )
            for result in results
        ]

    def _files(self, folder: Path) -> Path:
        return folder / f"ctranslate2-{self.quantization}{'-vokens' if self.vokens_only else ''}"


REFERENCE = "transformers"
ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        OurEngine("ours, engine float32", "float32"),
        OurEngine("ours, engine int8", "int8"),
        OurTorch("ours, torch"),
        OurTorch("ours, torch, freed memory kept", keep_freed_memory=True),
        Transformers(REFERENCE),
        Transformers("transformers, freed memory kept", keep_freed_memory=True),
        Transformers("transformers, the same, vokens only", keep_freed_memory=True, vokens_only=True),
        CTranslate2("CTranslate2 int8", "int8"),
        CTranslate2("CTranslate2 int8_float32", "int8_float32"),
        CTranslate2("CTranslate2 int8, a worker a core", "int8", core_workers=True),
        CTranslate2("CTranslate2 int8, vokens only", "int8", vokens_only=True),
        CTranslate2("CTranslate2 int8, the same, a worker a core", "int8", core_workers=True, vokens_only=True),
    )
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table per shape, write JSON."""
    parser = option_parser(__doc__)
    parser.add_argument("--shapes", nargs="*", default=["small", "base"], choices=list(SHAPES))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=300_000)
    parser.add_argument("--levels", type=int, default=4, help="M")
    parser.add_argument("--codebook-size", type=int, default=1024, help="N")
    parser.add_argument("--beams", type=int, default=20)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, 500 sequences of 32 vokens, one round")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        answer_questions(ROWS[options.rows[0]], options.worker)
        return
    if options.quick:
        options.shapes, options.batches, options.rounds = ["tiny"], [1, 4], 1
        options.sequences, options.codebook_size, options.beams = 500, 32, 5
    reports = {}
    for shape in options.shapes:
        workload = Workload(
            shape=shape,
            levels=options.levels,
            codebook_size=options.codebook_size,
            sequences=options.sequences,
            beams=options.beams,
            threads=options.threads,
            batches=tuple(options.batches),
            clock=options.clock,
        )
        reports[shape] = measure([ROWS[name] for name in options.rows], workload, options.rounds)
        print(f"\nT5-{shape}\n\n{table(reports[shape], workload)}", flush=True)
    machine = _machine(options.threads)
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items() if value))
    report = {"benchmark": "decoding", "machine": machine, "rounds": options.rounds, "shapes": reports}
    write_report(options.json, report)


def measure(rows: Sequence[Row], workload: Workload, rounds: int) -> dict[str, Any]:
    """Time the rows in turn, `rounds` times, and compare their answers once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lengths = prepare(rows, workload, folder)
        workers = {}
        try:
            for row in rows:
                workers[row.name] = _Worker(row.name, folder, workload.threads)
            seconds: dict[str, dict[int, list[float]]] = {
                row.name: {batch: [] for batch in workload.batches} for row in rows
            }
            rates: dict[str, list[float]] = {row.name: [] for row in rows}
            loads = []
            for number in range(rounds):
                loads.append(os.getloadavg()[0])
                for row in rows:
                    for batch in workload.batches:
                        time.sleep(SETTLE_SECONDS)
                        seconds[row.name][batch].append(workers[row.name].ask("time", batch))
                    rate = workers[row.name].ask("rate")
                    rates[row.name] += [rate] if rate else []
                    milliseconds = [f"{1000 * seconds[row.name][batch][-1]:.1f}" for batch in workload.batches]
                    print(f"round {number + 1}  {row.name}: {' '.join(milliseconds)} ms per query", file=sys.stderr)
            answers = {
                row.name: [(np.array(vokens), np.array(scores)) for vokens, scores in workers[row.name].ask("answers")]
                for row in rows
                if row.constrained
            }
        finally:
            for worker in workers.values():
                worker.close()
    operations_per_query = {
        batch: statistics.mean(operations(workload, length) for length in lengths[: max(SINGLES, batch)])
        for batch in workload.batches
    }
    reference = answers.get(REFERENCE)
    return {
        "workload": dataclasses.asdict(workload),
        "load_before_rounds": loads,
        "tokens_a_query": statistics.mean(lengths),
        "operations_a_query": operations_per_query,
        "rows": {
            row.name: {
                "seconds_a_query": seconds[row.name],
                "useful_operations_a_second": {
                    batch: operations_per_query[batch] / statistics.median(times)
                    for batch, times in seconds[row.name].items()
                },
                "product_operations_a_second": statistics.median(rates[row.name]) if rates[row.name] else None,
                "agreement": dataclasses.asdict(agreement(answers[row.name], reference))
                if reference and row.name in answers and row.name != REFERENCE
                else None,
            }
            for row in rows
        },
    }


def prepare(rows: Sequence[Row], workload: Workload, folder: Path) -> list[int]:
    """Write the generator, the trie and what `rows` need into `folder`; return the number of tokens of each text."""
    from voken.decoding.trie import VokenTrie

    os.environ |= _QUIET
    generator = make_generator(workload)
    generator.save(folder / "generator")
    vokens = np.random.default_rng(1).integers(workload.codebook_size, size=(workload.sequences, workload.levels))
    VokenTrie.from_vokens(vokens, workload.codebook_size).save(folder / "trie")
    for row in rows:
        row.prepare(generator, folder)
    (folder / "workload.json").write_text(json.dumps(dataclasses.asdict(workload)), encoding="utf-8")
    return list(map(len, generator.reader.tokenizer(query_texts(workload.queries))["input_ids"]))


def make_generator(workload: Workload) -> Any:
    """A T5 with random weights, MiniLM's tokenizer and vokens."""
    import torch
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    from voken.encoders.builtin import sentence_folder
    from voken.generator.t5 import T5Generator

    torch.manual_seed(0)
    sizes = SHAPES[workload.shape]
    config = T5Config(vocab_size=T5_WORDS, d_kv=D_KV, **sizes)
    config.decoder_start_token_id = 0
    shape = (workload.levels, workload.codebook_size, sizes["d_model"])
    codebooks = np.random.default_rng(2).standard_normal(shape, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        T5ForConditionalGeneration(config).save_pretrained(folder)
        PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_file=str(sentence_folder() / "tokenizer.json"), pad_token="[PAD]", unk_token="[UNK]"
        ).save_pretrained(folder)
        return T5Generator.from_pretrained(folder, codebooks).eval()


def query_texts(count: int) -> list[str]:
    """Captions of 6 to 14 words."""
    random = np.random.default_rng(0)
    ends = random.integers(6, 15, size=count)
    return [" ".join(" ".join(str(random.choice(words)) for words in _CAPTION).split()[:end]) for end in ends]


_ADJECTIVES = ["small", "old", "red", "wooden", "tall", "young", "snowy", "striped", "empty", "bright", "rusty"]
_NOUNS = ["dog", "woman", "bicycle", "bridge", "boat", "kitchen", "mountain", "guitar", "horse", "market", "lamp"]
_PREPOSITIONS = ["on", "under", "beside", "behind", "near", "across", "in front of"]
_VERBS = ["stands", "is running", "sits", "is seen", "waits", "lies", "is being painted"]
_CAPTION = [["a", "the", "one"], _ADJECTIVES, _NOUNS, _VERBS, _PREPOSITIONS, ["a", "the"], _ADJECTIVES, _NOUNS]
_CAPTION += [["with", "and"], ["a", "its", "another"], _ADJECTIVES, _NOUNS, _PREPOSITIONS, ["some trees", "the sea"]]


def children_of_prefixes(sequences: Integer[np.ndarray, "sequences M"], first_word: int) -> dict[tuple[int, ...], Any]:
    """The words (int64 tensors) that may follow each prefix of words; `sequences` are sorted, without repeats."""
    import torch

    words = sequences.astype(np.int64) + first_word
    children: dict[tuple[int, ...], Any] = {}
    for level in range(words.shape[1]):
        differs = np.any(words[1:, : level + 1] != words[:-1, : level + 1], axis=1)
        nodes = words[np.concatenate([[True], differs])]
        differs = np.any(nodes[1:, :level] != nodes[:-1, :level], axis=1)
        starts = np.flatnonzero(np.concatenate([[True], differs]))
        below = torch.from_numpy(nodes[:, level].copy()).split(np.diff(np.append(starts, len(nodes))).tolist())
        children |= zip(map(tuple, nodes[starts, :level].tolist()), below, strict=True)
    return children


def cut_to_vokens(model: Any, generator: Any, *, marks: int) -> None:
    """Cut the decoder of `generator.to_transformers()` to its vokens, followed by `marks` words that it never writes.

    All these words have the embedding of the start token.
    """
    import torch

    start = generator.encoder.embed_tokens.weight[generator.config.decoder_start_token_id]
    read = torch.cat([generator.vocabulary.embeddings[0], start.expand(marks, -1)]).detach()
    head = torch.nn.Linear(read.shape[1], len(read))
    head.weight.data = torch.cat([generator.vocabulary.output_rows[0], torch.zeros(marks, read.shape[1])]).detach()
    head.bias.data = torch.where(torch.arange(len(read)) < generator.codebook_size, 0.0, NEVER)
    model.decoder.embed_tokens = torch.nn.Embedding.from_pretrained(read.clone())
    model.lm_head = head


def operations(workload: Workload, tokens: int) -> float:
    """Multiplications and additions that a query of `tokens` tokens needs, biases, norms and softmax not counted."""
    sizes = SHAPES[workload.shape]
    width, inner = sizes["d_model"], sizes["num_heads"] * D_KV
    feed_forward = 2 * width * sizes["d_ff"]
    encoder = tokens * (4 * width * inner + feed_forward + 2 * tokens * inner)
    cross_keys = tokens * 2 * width * inner
    decoder = head = 0
    for level in range(workload.levels):
        positions = workload.beams if level else 1
        decoder += positions * (6 * width * inner + feed_forward + 2 * (tokens + level + 1) * inner)
        head += positions * width * workload.codebook_size
    return float(2 * (sizes["num_layers"] * (encoder + cross_keys + decoder) + head))


def agreement(answers: Sequence[Answer], reference: Sequence[Answer]) -> Agreement:
    """Compare each query's answer with the reference's."""
    same_first, overlap, same_ranking, differences = [], [], [], [0.0]
    for (vokens, scores), (expected_vokens, expected_scores) in zip(answers, reference, strict=True):
        row_scores = dict(zip(map(tuple, vokens.tolist()), scores.tolist(), strict=True))
        reference_scores = dict(zip(map(tuple, expected_vokens.tolist()), expected_scores.tolist(), strict=True))
        common = row_scores.keys() & reference_scores.keys()
        apart = [abs(row_scores[sequence] - reference_scores[sequence]) for sequence in common]
        both = ((row_scores, reference_scores), (reference_scores, row_scores))
        last = min(reference_scores.values())
        beyond = [abs(score - last) for first, second in both for score in _only(first, second)]
        best = tuple(vokens[0].tolist())
        same_first.append(best in reference_scores and reference_scores[best] >= max(reference_scores.values()) - TIE)
        overlap.append(len(common) / len(reference_scores))
        same_ranking.append(max([*apart, *beyond]) <= TIE)
        differences += apart
    return Agreement(
        same_first=statistics.mean(same_first),
        overlap=statistics.mean(overlap),
        same_ranking=statistics.mean(same_ranking),
        greatest_difference=max(differences),
    )


def _only(first: dict[tuple[int, ...], float], second: dict[tuple[int, ...], float]) -> list[float]:
    return [score for sequence, score in first.items() if sequence not in second]


def table(report: dict[str, Any], workload: Workload) -> str:
    """A Markdown table, a line per row."""
    rows = report["rows"]
    heads = [""]
    for batch in workload.batches:
        heads += [f"batch {batch}: ms per query", "least … most", "× transformers", "× CTranslate2"]
    heads += ["useful GFLOP/s", "of a large product", "same first", f"of {workload.beams} shared", "same ranking"]
    heads += ["greatest difference"]
    lines = []
    largest = max(workload.batches)
    for name, row in rows.items():
        line = [name]
        for batch in workload.batches:
            times = row["seconds_a_query"][batch]
            median = statistics.median(times)
            line += [f"{1000 * median:.1f}", f"{1000 * min(times):.1f} … {1000 * max(times):.1f}"]
            for opponent in ("transformers", "CTranslate2"):
                fastest = _fastest(rows, opponent, batch)
                line.append(f"{fastest / median:.2f}" if fastest else "")
        useful, product = row["useful_operations_a_second"][largest], row["product_operations_a_second"]
        line += [f"{useful / 1e9:.1f}", f"{useful / product:.0%}" if product else ""]
        agreed = row["agreement"]
        if agreed:
            line += [f"{agreed['same_first']:.0%}", f"{agreed['overlap']:.1%}", f"{agreed['same_ranking']:.0%}"]
            line += [f"{agreed['greatest_difference']:.1e}"]
        else:
            line += [""] * 4
        lines.append(line)
    return markdown_table(heads, lines)


def _fastest(rows: dict[str, Any], opponent: str, batch: int) -> float | None:
    """The smallest median among an opponent's rows."""
    medians = [
        statistics.median(row["seconds_a_query"][batch]) for name, row in rows.items() if name.startswith(opponent)
    ]
    return min(medians, default=None)


class _Worker:
    """A row in a new process, which answers questions as lines of JSON."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        command = [sys.executable, __file__, "--rows", name, "--worker", str(folder)]
        self.name = name
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | _QUIET | {"OMP_NUM_THREADS": str(threads)},
        )
        self.ask("answers")  # waits until the row is loaded and warm

    def ask(self, *question: Any) -> Any:
        """The answer to a question of `answer_questions`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            print(json.dumps(question), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed; its message is above.")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


_QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


def answer_questions(row: Row, folder: Path) -> None:
    """Load `row` and answer the questions of a `_Worker` until its input ends."""
    workload = read_workload(folder)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: workload.threads])
    if row.keep_freed_memory:
        from voken.optimisation import keep_freed_memory

        keep_freed_memory()
    texts = query_texts(workload.queries)
    row.setup(folder, workload)
    for batch in workload.batches:
        row.search(texts[:batch], scores=False)
    gc.freeze()  # so that the collector does not walk the dict of prefixes while a search is timed
    for line in sys.stdin:
        question, *details = json.loads(line)
        reply: Any
        if question == "time":
            reply = _seconds_per_query(row, texts, details[0], CLOCKS[workload.clock])
        elif question == "rate":
            reply = row.matrix_rate(CLOCKS[workload.clock])
        else:
            answers = row.search(texts)
            reply = [(vokens.tolist(), scores.tolist()) for vokens, scores in answers]
        print(json.dumps(reply), flush=True)


def read_workload(folder: Path) -> Workload:
    """The workload that `prepare` wrote."""
    values = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
    return Workload(**values | {"batches": tuple(values["batches"])})


def _seconds_per_query(row: Row, texts: Sequence[str], batch: int, clock: Clock) -> float:
    count = max(SINGLES, batch) // batch * batch
    start = clock()
    for first in range(0, count, batch):
        row.search(texts[first : first + batch], scores=False)
    return (clock() - start) / count


def _rate(product: Callable[[], object], clock: Clock) -> float:
    """Operations per second of a product of two PRODUCT × PRODUCT matrices: the best of three."""
    product()
    best = float("inf")
    for _ in range(3):
        start = clock()
        product()
        best = min(best, clock() - start)
    return float(2 * PRODUCT**3 / best)


def _torch_rate(clock: Clock) -> float:
    import torch

    left, right = torch.from_numpy(_random_matrix(1)), torch.from_numpy(_random_matrix(2))
    return _rate(lambda: left @ right, clock)


def _random_matrix(seed: int) -> Float32[np.ndarray, "rows columns"]:
    return np.random.default_rng(seed).standard_normal((PRODUCT, PRODUCT), dtype=np.float32)


def _use_torch_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _word_texts(tokenizer: Any) -> list[str]:
    """One text for each row of T5's table, because CTranslate2 reads tokens as texts."""
    return [tokenizer.convert_ids_to_tokens(word) or f"<{word}>" for word in range(T5_WORDS)]


def _voken_text(voken: int) -> str:
    return f"<voken {voken}>"


def _machine(threads: int) -> dict[str, Any]:
    from importlib import metadata

    from voken_lab.evaluation.machine import Machine

    machine = dataclasses.asdict(Machine.here()) | {"threads": threads}
    return machine | {name: metadata.version(name) for name in ("transformers", "ctranslate2", "onnxruntime")}


if __name__ == "__main__":
    main()
