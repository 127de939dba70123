"""How many pairs per second does stage 2 train on, beside a naive form of the training step?

The naive form uses only public libraries: vokens appended to T5's vocabulary, one-hot targets,
`T5ForConditionalGeneration` and transformers' `Trainer`. Ours is the `lite` family (a frozen or tuned sentence encoder
and a shallow decoder) and, between the two, the `t5` family at exactly the naive form's size.

"The same size": T5 gets MiniLM's shape (6 encoder layers, 384 wide, 1,536 inside) with two decoder layers and a
vocabulary of 32,128 + N. It then has as many parameters as the sentence encoder and the decoder of `lite` together,
within a few per cent; both counts are printed. T5's texts are split into MiniLM's word pieces, so that both read the
same number of tokens. The naive form's texts are split before training, ours during training.

Rows of L_dis (Eq. 8-10) train only on that loss: the beams of each query are searched without dropout, among the
training sequences only, and the positive is ranked among them. The naive form searches with transformers' `generate`,
whose `prefix_allowed_tokens_fn` is a trie of dicts. It scores a list with one pass of the model, with the encoder's
output repeated for each sequence. These rows are compared with the naive form of L_dis, the others with that of L_gen.

Every row of every round runs in a new process, because the allocator's options belong to a process. Rows are
interleaved; figures are medians over rounds. Rates are by wall time and by the process's CPU time. On a shared machine,
the CPU rate with `--threads 1` is more reliable. Warm-up steps are not counted. Nor is reading every text once, which
`lite` does before its first step; one column includes it, for a run of `--epochs`.

    python benchmarks/training_step.py --json out.json
    python benchmarks/training_step.py --data emoji --levels 8 --codebook-size 256
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from report import markdown_table, option_parser, write_report

PICTURES = 1024
CAPTIONS = 2
T5_WORDS = 32_128
BEAMS = 10
NAIVE = "naive"
NAIVE_LISTS = "naive, L_dis"


@dataclass(frozen=True)
class Workload:
    """What every row trains on."""

    levels: int
    codebook_size: int
    batch_size: int
    threads: int
    data: str
    epochs: int
    naive_steps: int
    lite_steps: int


@dataclass(frozen=True)
class Measurement:
    """The measurements of one row in one round."""

    pairs_per_second: float
    pairs_per_cpu_second: float
    """By the process's CPU time. With one thread this is the rate of an idle machine."""
    parameters: int
    trained: int
    read_texts_seconds: float
    """Seconds to read one text once; 0 if texts are read in every step."""
    peak_megabytes: float


@dataclass(frozen=True)
class Row:
    """A form of the training step: what is trained, and how."""

    family: str
    keep_freed_memory: bool = True
    autocast: bool = True
    remember_texts: bool = True
    ranks_lists: bool = False
    """Whether L_dis is trained instead of L_gen."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


_SOFT: dict[str, Any] = {"targets": "soft", "query_vector": True, "memory_weight": 0.6}
ROWS = {
    NAIVE: Row("naive", keep_freed_memory=False, autocast=False),
    "naive + freed memory kept": Row("naive", autocast=False),
    "naive + bf16": Row("naive", keep_freed_memory=False),
    "naive + both": Row("naive"),
    "t5, float32, freed memory returned": Row("t5", keep_freed_memory=False, autocast=False),
    "t5": Row("t5"),
    "lite, float32": Row("lite", autocast=False),
    "lite, freed memory returned": Row("lite", keep_freed_memory=False),
    "lite, texts read in every step": Row("lite", remember_texts=False),
    "lite, sentence encoder tuned": Row("lite", remember_texts=False, settings={"tune_encoder": True}),
    "lite": Row("lite"),
    "lite, soft targets, query vector, memory": Row("lite", settings=_SOFT),
    NAIVE_LISTS: Row("naive", keep_freed_memory=False, autocast=False, ranks_lists=True),
    "naive, L_dis + freed memory kept": Row("naive", autocast=False, ranks_lists=True),
    "naive, L_dis + both": Row("naive", ranks_lists=True),
    "t5, L_dis": Row("t5", ranks_lists=True),
    "lite, L_dis": Row("lite", ranks_lists=True),
    "lite, soft targets, query vector, memory, L_dis": Row("lite", ranks_lists=True, settings=_SOFT),
}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = option_parser(__doc__)
    parser.add_argument("--data", default="", help="a data set whose captions are the texts (default: synthetic texts)")
    parser.add_argument("--levels", type=int, default=4, help="M")
    parser.add_argument("--codebook-size", type=int, default=1024, help="N")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--epochs", type=int, default=4, help="epochs that share the cost of reading the texts once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--naive-steps", type=int, default=6, help="number of measured steps of the T5 rows")
    parser.add_argument("--lite-steps", type=int, default=40, help="number of measured steps of the lite rows")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--worker", choices=list(ROWS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = [field.name for field in dataclasses.fields(Workload)]
    workload = Workload(**{name: getattr(options, name) for name in names})
    if options.worker:
        print(json.dumps(dataclasses.asdict(measure(ROWS[options.worker], workload))))
        return
    rounds: dict[str, list[Measurement]] = {name: [] for name in options.rows}
    for number in range(options.rounds):
        for name in options.rows:
            rounds[name].append(_measure_in_process(name, sys.argv[1:]))
            print(f"round {number + 1}  {name}: {rounds[name][-1].pairs_per_second:.1f} pairs/s", file=sys.stderr)
    print(table(rounds, workload.epochs))
    write_report(options.json, _report(rounds, workload))


def measure(row: Row, workload: Workload) -> Measurement:
    """Train `row` for its steps in this process."""
    if row.keep_freed_memory:
        from voken.optimisation import keep_freed_memory

        keep_freed_memory()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(workload.threads)
    torch.manual_seed(0)
    texts = caption_texts(workload.data)
    run = {"naive": _naive, "t5": _ours, "lite": _ours}[row.family]
    return run(row, workload, texts)


def caption_texts(data: str) -> list[str]:
    """CAPTIONS texts for each of PICTURES pictures: captions of a data set, or 4 to 16 random words."""
    random = np.random.default_rng(0)
    if data:
        from voken.data.captions import read_dataset

        captions = [caption for image in read_dataset(Path(data)).images for caption in image.captions]
        return [captions[row] for row in random.integers(len(captions), size=PICTURES * CAPTIONS)]
    words = ["a", "the", "small", "red", "old", "two", "dogs", "cat", "house", "tree", "on", "under", "hill", "with"]
    lengths = random.integers(4, 17, size=PICTURES * CAPTIONS)
    return [" ".join(random.choice(words, length)) for length in lengths]


def _naive(row: Row, workload: Workload, texts: Sequence[str]) -> Measurement:
    import torch
    from transformers import T5ForConditionalGeneration, Trainer, TrainerCallback, TrainingArguments

    model = T5ForConditionalGeneration(_t5_config(T5_WORDS + workload.codebook_size))
    tokens = _tokenizer()([texts[CAPTIONS * picture] for picture in range(PICTURES)])["input_ids"]
    vokens = _vokens(workload)
    # Vokens are the vocabulary's appended words, and </s> ends a sequence, as a user of the library would write it.
    examples = [
        {"input_ids": ids, "labels": [*(T5_WORDS + row).tolist(), 1]} for ids, row in zip(tokens, vokens, strict=True)
    ]
    clock = _Clock(warm=2)

    class Stamp(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(example["input_ids"]) for example in batch]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        labels = torch.tensor([example["labels"] for example in batch])
        return {"input_ids": padded, "attention_mask": (padded != 0).long(), "labels": labels}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=workload.batch_size,
            max_steps=clock.warm + workload.naive_steps,
            learning_rate=1e-3,
            use_cpu=True,
            bf16=row.autocast,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        kind = _list_trainer(vokens) if row.ranks_lists else Trainer
        kind(model=model, args=arguments, train_dataset=examples, data_collator=collate, callbacks=[Stamp()]).train()
    return _measurement(clock, workload, model, 0.0, 0)


def _list_trainer(vokens: Int32[np.ndarray, "pictures M"]) -> Any:
    """transformers' Trainer with L_dis as its loss, as a user of the library would write it."""
    import torch
    from transformers import Trainer

    children: dict[tuple[int, ...], list[int]] = {}
    for sequence in (T5_WORDS + np.unique(vokens, axis=0)).tolist():
        for level, voken in enumerate(sequence):
            allowed = children.setdefault(tuple(sequence[:level]), [])
            if voken not in allowed[-1:]:  # sequences are sorted
                allowed.append(voken)
    levels = vokens.shape[1]

    class ListTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
            query = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            positive = inputs["labels"][:, None, :levels]
            model.eval()
            beams = model.generate(  # by default without gradients and with its cache
                **query,
                num_beams=BEAMS,
                num_return_sequences=BEAMS,
                max_new_tokens=levels,
                prefix_allowed_tokens_fn=lambda _, written: children[tuple(written[1:].tolist())],
            )
            model.train()
            negatives = beams[:, 1:].view(len(positive), BEAMS, levels)[:, :-1]
            lists = torch.cat([positive, negatives], 1).flatten(0, 1)
            with self.accelerator.autocast():
                hidden = model.encoder(**query).last_hidden_state.repeat_interleave(BEAMS, 0)
                logits = model(
                    encoder_outputs=(hidden,),
                    attention_mask=query["attention_mask"].repeat_interleave(BEAMS, 0),
                    decoder_input_ids=torch.nn.functional.pad(lists[:, :-1], (1, 0)),
                ).logits
            scores = logits.float().log_softmax(-1).gather(-1, lists[..., None]).sum((1, 2)).view(-1, BEAMS)
            again = (negatives == positive).all(-1)
            scores = torch.cat([scores[:, :1], scores[:, 1:].masked_fill(again, -torch.inf)], 1)
            return -scores.log_softmax(1)[:, 0].mean()

    return ListTrainer


def _ours(row: Row, workload: Workload, texts: Sequence[str]) -> Measurement:
    from voken.config import GeneratorConfig
    from voken.generator.train import SoftTargets, ValidationQueries, VokenPairs, train_generator

    vokens = _vokens(workload)
    steps = workload.lite_steps if row.family == "lite" else workload.naive_steps
    clock = _Clock(warm=5 if row.family == "lite" else 2)
    epochs = -(-(clock.warm + steps) * workload.batch_size // PICTURES)
    config = GeneratorConfig(
        family="lite" if row.family == "lite" else "t5",
        batch_size=workload.batch_size,
        autocast=row.autocast,
        discrimination="none",
        patience=0,
        epochs=epochs,
    )
    if row.ranks_lists:
        lists: dict[str, Any] = {"epochs": 0, "discrimination": "staged", "discrimination_epochs": epochs}
        config = dataclasses.replace(config, discrimination_beams=BEAMS, **lists)
    config = dataclasses.replace(config, **row.settings)
    model, read_seconds, frozen = _lite(row, workload, config, texts) if row.family == "lite" else _t5(workload)
    soft = None
    if config.targets == "soft":
        entries = (vokens[..., None] + np.arange(32)) % workload.codebook_size
        soft = SoftTargets(entries.astype(np.int32), np.full(entries.shape, 1 / 32, np.float32))
    pairs = VokenPairs(
        texts=texts,
        vokens=vokens,
        concepts=np.arange(PICTURES),
        pairs=np.stack([np.arange(len(texts)) // CAPTIONS, np.arange(len(texts))], 1),
        soft=soft,
    )
    no_queries = ValidationQueries([], vokens, np.empty((0, 2), np.int64))

    def stamp(label: str, count: int, total: int) -> None:
        clock.step()
        if clock.steps >= clock.warm + steps:
            raise _EnoughError

    with suppress(_EnoughError):
        train_generator(model, pairs, no_queries, config, seed=0, progress=stamp)
    return _measurement(clock, workload, model, read_seconds, frozen)


class _EnoughError(Exception):
    """Ends a training run that has been measured."""


def _lite(row: Row, workload: Workload, config: Any, texts: Sequence[str]) -> tuple[Any, float, int]:
    from voken.config import EncoderConfig
    from voken.encoders.two_tower import TwoTowerEncoder, TwoTowerHead
    from voken.generator.lite import CaptionMemory, LiteGenerator
    from voken.training.sides import CachedTextReader

    encoder = TwoTowerEncoder(TwoTowerHead(EncoderConfig()))
    model = LiteGenerator(encoder, _codebooks(workload, encoder.dim), config)
    read_seconds = 0.0
    encoder.read_texts(texts[:8], max_tokens=config.max_query_tokens)  # loads the encoder
    start = time.process_time()
    remembered = CachedTextReader(encoder, texts, max_tokens=config.max_query_tokens)
    if row.remember_texts:
        read_seconds = (time.process_time() - start) / workload.threads / len(set(texts))
        model.begin_training(remembered)
    if config.memory_weight:
        vectors = remembered.read_texts(texts, max_tokens=config.max_query_tokens).vectors.numpy()
        captions_of_text = {text: np.arange(CAPTIONS) + row // CAPTIONS * CAPTIONS for row, text in enumerate(texts)}
        model.memorize(CaptionMemory(texts, vectors, vectors, captions_of_text))
    # The head's picture tower has no part in this; the sentence encoder reads every text.
    frozen = [] if config.tune_encoder else encoder.sentences.parameters()
    return model, read_seconds, sum(weight.numel() for weight in frozen)


def _t5(workload: Workload) -> tuple[Any, float, int]:
    from transformers import T5ForConditionalGeneration

    from voken.generator.t5 import T5Generator

    with tempfile.TemporaryDirectory() as folder:
        T5ForConditionalGeneration(_t5_config(T5_WORDS)).save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        return T5Generator.from_pretrained(folder, _codebooks(workload, 256)), 0.0, 0


def _t5_config(words: int) -> Any:
    from transformers import T5Config

    config = T5Config(
        vocab_size=words,
        d_model=384,
        d_kv=64,
        num_heads=6,
        d_ff=1536,
        num_layers=6,
        num_decoder_layers=2,
    )
    config.decoder_start_token_id = 0
    return config


def _tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    from voken.encoders.builtin import sentence_folder

    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(sentence_folder() / "tokenizer.json"), pad_token="[PAD]", unk_token="[UNK]"
    )


def _vokens(workload: Workload) -> Int32[np.ndarray, "pictures M"]:
    random = np.random.default_rng(1)
    return random.integers(workload.codebook_size, size=(PICTURES, workload.levels), dtype=np.int32)


def _codebooks(workload: Workload, width: int) -> Float32[np.ndarray, "M N width"]:
    shape = (workload.levels, workload.codebook_size, width)
    return np.random.default_rng(2).standard_normal(shape, dtype=np.float32) / np.float32(width**0.5)


class _Clock:
    """Records when each step ended."""

    def __init__(self, *, warm: int) -> None:
        self.warm = warm
        self.steps = 0
        self._since = self._last = (0.0, 0.0)

    def step(self) -> None:
        self.steps += 1
        self._last = time.perf_counter(), time.process_time()
        if self.steps == self.warm:
            self._since = self._last

    @property
    def steps_per_second(self) -> tuple[float, float]:
        """By wall time, and by the process's CPU time."""
        wall, cpu = (last - since for last, since in zip(self._last, self._since, strict=True))
        return (self.steps - self.warm) / wall, (self.steps - self.warm) / cpu


def _measurement(clock: _Clock, workload: Workload, model: Any, read_seconds: float, frozen: int) -> Measurement:
    trained = sum(weight.numel() for weight in model.parameters())
    wall, cpu = clock.steps_per_second
    return Measurement(
        pairs_per_second=wall * workload.batch_size,
        pairs_per_cpu_second=cpu * workload.batch_size,
        parameters=trained + frozen,
        trained=trained,
        read_texts_seconds=read_seconds,
        peak_megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def _measure_in_process(name: str, arguments: list[str]) -> Measurement:
    command = [sys.executable, __file__, *arguments, "--worker", name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{name} failed:\n{result.stderr}")
    return Measurement(**json.loads(result.stdout.splitlines()[-1]))


def table(rounds: dict[str, list[Measurement]], epochs: int) -> str:
    """A Markdown table, one line per row: medians over rounds, and ratios to the naive form of the same loss."""
    heads = ["", "parameters", "trained", "pairs/s", "least … most", "× naive"]
    heads += ["pairs/CPU s", "× naive", f"the same, reading in, {epochs} epochs", "× naive", "peak memory"]
    lines = []
    for name, results in rounds.items():
        naive = _naive_of(name, rounds)
        speeds = [result.pairs_per_second for result in results]
        lines.append(
            [
                name,
                f"{results[0].parameters / 1e6:.1f} M",
                f"{results[0].trained / 1e6:.1f} M",
                f"{statistics.median(speeds):,.0f}",
                f"{min(speeds):,.0f} … {max(speeds):,.0f}",
                _times(statistics.median(speeds), _median(naive, _wall)),
                f"{_median(results, _cpu):,.0f}",
                _times(_median(results, _cpu), _median(naive, _cpu)),
                f"{_with_reading(results, epochs):,.0f}",
                _times(_with_reading(results, epochs), _median(naive, _cpu)),
                f"{_median(results, lambda result: result.peak_megabytes):,.0f} MB",
            ]
        )
    return markdown_table(heads, lines)


def _naive_of(name: str, rounds: dict[str, list[Measurement]]) -> list[Measurement]:
    return rounds.get(NAIVE_LISTS if ROWS[name].ranks_lists else NAIVE, [])


def _with_reading(results: list[Measurement], epochs: int) -> float:
    """Pairs per CPU second of a run of `epochs` that first reads every caption once."""
    reading = _median(results, lambda result: result.read_texts_seconds) * CAPTIONS / epochs
    return 1 / (1 / _median(results, _cpu) + reading)


def _wall(result: Measurement) -> float:
    return result.pairs_per_second


def _cpu(result: Measurement) -> float:
    return result.pairs_per_cpu_second


def _times(speed: float, naive: float) -> str:
    return f"{speed / naive:.1f}" if naive else ""


def _median(results: list[Measurement], value: Callable[[Measurement], float]) -> float:
    return statistics.median(map(value, results)) if results else 0.0


def _report(rounds: dict[str, list[Measurement]], workload: Workload) -> dict[str, Any]:
    rows = {}
    for name, results in rounds.items():
        naive = _naive_of(name, rounds)
        rows[name] = {
            "pairs_per_second": _median(results, _wall),
            "times_naive": _median(results, _wall) / _median(naive, _wall) if naive else None,
            "pairs_per_cpu_second": _median(results, _cpu),
            "cpu_times_naive": _median(results, _cpu) / _median(naive, _cpu) if naive else None,
            "cpu_with_reading": _with_reading(results, workload.epochs),
            "rounds": [dataclasses.asdict(result) for result in results],
        }
    return {
        "benchmark": "training_step",
        "workload": dataclasses.asdict(workload) | {"pictures": PICTURES, "captions": CAPTIONS},
        "rows": rows,
    }


if __name__ == "__main__":
    main()
