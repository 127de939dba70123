"""The paper's tables: which cell measures which row, and the figures that the paper prints.

The paper's figures are R@1, R@5, R@10 in percent on Flickr30K and MS-COCO 5K, with 40 beams in Table 1 and 10 in
Tables 3 to 6 (docs/explanation/protocol.md). They never share a column with measured figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from voken_lab.reproduction.builders import TOKENS_ALONE
from voken_lab.reproduction.cells import Cell

Record = dict[str, Any]
"""`Evaluation.to_dict(per_query=True)`."""
Figures = tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Line:
    """A row: the cell that measures it, which of the cell's systems it shows, and the paper's figures by data set."""

    label: str
    cell: Cell
    system: str = ""
    """"": the cell's first system."""
    readout: str | None = None
    beams: int | None = None
    paper: dict[str, Figures] = field(default_factory=dict)
    both_protocols: bool = False
    """Whether the line is measured under the transductive protocol too."""
    first_seed_only: bool = False
    """Whether the line is measured with one seed only, because its cell takes most of an hour."""
    compared_with: str = ""
    """Label of the row to compare with; "": our system with the read-out "generate"."""

    @property
    def transductive(self) -> Cell:
        """The same cell under the transductive protocol."""
        return replace(self.cell, protocol="transductive")

    def record(self, rows: Iterable[Record]) -> Record | None:
        """The row's record among those of its cell; None if there is none."""
        for row in rows:
            if (
                (not self.system or row["system"] == self.system)
                and (self.readout is None or row["readout"] == self.readout)
                and (self.beams is None or row["beams"] == self.beams)
            ):
                return row
        return None


@dataclass(frozen=True)
class Table:
    """One table of the paper."""

    name: str
    title: str
    lines: tuple[Line, ...]
    note: str = ""


def cells_of(lines: Iterable[Line]) -> list[Cell]:
    """The cells of the lines in order, each once."""
    cells: list[Cell] = []
    for line in lines:
        both = [line.cell, line.transductive] if line.both_protocols else [line.cell]
        cells += [cell for cell in both if cell not in cells]
    return cells


OURS = Cell("ours")
FLICKR, COCO = "flickr30k", "coco5k"


def _paper(flickr: Figures | None = None, coco: Figures | None = None) -> dict[str, Figures]:
    return {name: figures for name, figures in ((FLICKR, flickr), (COCO, coco)) if figures}


def _avg(label: str, cell: Cell = OURS, flickr: Figures | None = None, **options: Any) -> Line:
    """A row of our system with the read-out "generate"."""
    return Line(label, cell, readout="generate", paper=_paper(flickr), **options)


def _variant(*settings: Mapping[str, str]) -> Cell:
    """Our system with these settings; later ones win."""
    return Cell("variant", {name: value for each in settings for name, value in each.items()})


def _grace(scheme: str, flickr: Figures | None = None, coco: Figures | None = None) -> Line:
    cell = Cell("grace", {"scheme": scheme})
    return Line(f"GRACE ({scheme} id)", cell, paper=_paper(flickr, coco), both_protocols=True)


def _backbone(label: str, name: str, flickr: Figures | None = None, **options: Any) -> Line:
    return Line(label, Cell("backbone", {"name": name}), paper=_paper(flickr), **options)


_NO_MIXTURES = {"tokenizer.mixture": "false"}
_RANDOM_ROWS = {"generator.copy_voken_embeddings": "false"}
_NO_LISTS = {"generator.discrimination": "none"}
_PLAIN = TOKENS_ALONE | {
    "generator.targets": "one-hot",
    "generator.layers": "2",
    "generator.epochs": "12",
    "generator.patience": "3",
    "generator.learning_rate": "0.001",
    "generator.discrimination": "staged",
    "generator.discrimination_epochs": "2",
}
"""The paper's generator: it reads tokens only and is trained by L_gen, then L_dis."""
_PLAIN_LINE = _avg("plain generator", _variant(_PLAIN))


_PAPER_PRESET = {"preset": "paper-lite"}
_PAPER_LINE = _avg("paper-lite preset", _variant(_PAPER_PRESET))
"""The paper's tokenizer, targets and losses, with a generator that two cores can train."""


def _plain_without(part: str, settings: Mapping[str, str], paper: Figures | None = None) -> Line:
    plain = _PLAIN_LINE.label
    return _avg(f"{plain}, without {part}", _variant(_PLAIN, settings), paper, compared_with=plain)


def _without_generator() -> tuple[Line, Line]:
    """The same codes and queries as ours, compared exactly."""
    systems = {"quantized, no generator": "query vector", "quantized + caption memory, no generator": "with memory"}
    first, second = (Line(f"no generator, {words}", OURS, system=system) for system, words in systems.items())
    return first, second


def _over_frozen(name: str, family: str) -> tuple[Line, ...]:
    """A frozen encoder that never saw the set, and our system over it, beside the paper's figures over frozen CLIP."""
    encoder = {"encoder.family": family}
    cell, plain = Cell("frozen", encoder), Cell("frozen", encoder | _PLAIN)
    exact = f"{name}, frozen, exact"
    return (
        Line(exact, cell, system="zero-shot two-tower, exact", paper=_paper((58.4, 81.5, 88.1))),
        _avg(f"AVG over {name}, generate", cell, (62.8, 85.4, 91.2), compared_with=exact),
        Line(f"AVG over {name}, + voken rerank", cell, readout="voken", compared_with=exact),
        Line(f"AVG over {name}, + vector rerank", cell, readout="vector", compared_with=exact),
        _avg(f"plain generator over {name}", plain, compared_with=exact),
    )


_TEN_BEAMS: Figures = (62.3, 83.5, 86.6)
_SIZES: dict[int, Figures] = {
    256: (60.8, 82.0, 84.8),
    512: (61.1, 82.8, 86.1),
    1024: _TEN_BEAMS,
    2048: (61.2, 83.0, 86.0),
}
_LEVELS: dict[int, Figures] = {
    2: (45.7, 73.1, 80.6),
    4: _TEN_BEAMS,
    6: (63.2, 84.0, 86.7),
    8: (62.1, 82.6, 85.2),
    10: (64.1, 84.2, 87.1),
}
_BEAMS: dict[int, Figures] = {
    1: (44.2, None, None),
    5: (60.6, 78.1, None),
    10: _TEN_BEAMS,
    20: (62.7, 85.1, 90.2),
    30: (62.7, 85.5, 91.1),
    40: (62.8, 85.4, 91.2),
    50: (62.8, 85.4, 91.1),
}
_FAISS_INDEXES = ("flat", "HNSW", "IVF-PQ", "PQ", "OPQ", "PQ + caption memory", "OPQ + caption memory")

_TABLES = (
    Table(
        "table1",
        "Table 1. Generative systems",
        (
            _grace("numeric", (22.5, 28.9, 29.4), (0.03, 0.14, 0.28)),
            _grace("string", (30.5, 39.0, 40.4), (0.12, 0.37, 0.88)),
            _grace("semantic", (22.9, 34.9, 37.4), (13.3, 30.4, 35.9)),
            _grace("structured", (37.4, 59.5, 66.2), (16.7, 39.2, 50.3)),
            _grace("atomic"),
            Line("IRGen", Cell("irgen"), paper=_paper((49.0, 68.9, 72.5), (29.6, 50.7, 56.3)), both_protocols=True),
            Line("IRGen, without voken embeddings", Cell("irgen", _RANDOM_ROWS), both_protocols=True),
            Line("GENIUS-style", Cell("genius"), both_protocols=True),
            *_without_generator(),
            _avg("AVG, plain generator", _variant(_PLAIN), both_protocols=True),
            Line(
                "AVG, generate",
                OURS,
                readout="generate",
                paper=_paper((62.8, 85.4, 91.2), (31.3, 58.0, 66.5)),
                both_protocols=True,
            ),
            Line("AVG, + voken rerank", OURS, readout="voken", both_protocols=True),
            Line("AVG, + vector rerank", OURS, readout="vector", both_protocols=True),
        ),
        "The atomic identifier is not generative (section 4.1 of the paper); the paper gives no figures for it. The "
        "plain generator is the paper's own form: it reads tokens only. The other rows of AVG also read the query's "
        "vector and, if validation chose it, a caption memory. No rival has these, but the rows without a generator "
        "do.",
    ),
    Table(
        "table2",
        "Table 2. Three paradigms",
        (
            Line("one-tower, BLIP", Cell("blip"), paper=_paper((87.6, 97.7, 99.0))),
            Line("two-tower, first 50 reranked by BLIP", Cell("blip"), system="two-tower + BLIP"),
            Line("one-tower, cross-encoder", Cell("one-tower")),
            Line(
                "two-tower, first 50 reranked by the cross-encoder",
                Cell("one-tower"),
                system="two-tower + cross-encoder",
            ),
            *_over_frozen("CLIP", "clip"),
            *_over_frozen("photos encoder", "photos"),
            Line("two-tower, exact", Cell("two-tower"), system="two-tower, exact"),
            Line("two-tower + caption memory, exact", Cell("two-tower"), system="two-tower + caption memory, exact"),
            *(
                Line(f"two-tower, faiss {kind}", Cell("approximate"), system=f"two-tower, faiss {kind}")
                for kind in _FAISS_INDEXES
            ),
            *_without_generator(),
            _avg("AVG, generate", OURS),
            Line("AVG, + voken rerank", OURS, readout="voken"),
            Line("AVG, + vector rerank", OURS, readout="vector"),
        ),
        "In the paper the encoder is frozen and never saw the set, and the generator is trained on it. The rows over "
        "CLIP and over the photos encoder (encoder.family=photos) measure that; each is compared with its encoder "
        "alone. The two-tower is tuned on the same pairs as the generator, so it is the fair opponent, unless the "
        "track's encoder is CLIP. The paper's CLIP row is CLIP's image-to-text row on MS-COCO. Zero-shot, CLIP has "
        "68.7 / 90.6 / 95.2 on Flickr30K.",
    ),
    Table(
        "table3",
        "Table 3. Ablations",
        (
            _avg("AVG", OURS, _TEN_BEAMS),
            *_without_generator(),
            _avg("without mixtures", _variant(_NO_MIXTURES)),
            _avg("without caption memory (not in the paper)", _variant({"generator.memory_weight": "0"})),
            _avg("without query vector and memory (not in the paper)", _variant(TOKENS_ALONE)),
            _PLAIN_LINE,
            _plain_without("mixtures", _NO_MIXTURES),
            _plain_without("voken embeddings", _RANDOM_ROWS, (62.4, 82.7, 85.8)),
            _plain_without("discriminative loss", _NO_LISTS, (60.1, 81.9, 85.0)),
            _PAPER_LINE,
            _avg(
                "paper-lite preset, without L_align",
                _variant(_PAPER_PRESET, {"tokenizer.alignment": "none"}),
                (56.8, 76.5, 79.2),
                compared_with=_PAPER_LINE.label,
            ),
        ),
        "L_align is trained in the paper-lite preset only; the default one trains its codebooks on mixtures of a "
        "picture's and a caption's vector instead. In the default preset the generator is a quantized search for the "
        "query's vector and learns nothing. The plain generator has no query vector and no "
        "memory; it learns L_gen with one-hot targets, then L_dis. Ablations of the plain generator and of paper-lite "
        "are compared with these.",
    ),
    Table(
        "table4",
        "Table 4. Codebook size N",
        tuple(
            _avg(f"N = {size:,}", _variant({"tokenizer.codebook_size": str(size)}), paper)
            for size, paper in _SIZES.items()
        ),
    ),
    Table(
        "table5",
        "Table 5. Voken length M",
        tuple(
            _avg(f"M = {levels}", _variant({"tokenizer.levels": str(levels)}), paper)
            for levels, paper in _LEVELS.items()
        ),
    ),
    Table(
        "table6",
        "Table 6. Backbones",
        (
            _avg("lite (frozen MiniLM, no decoder)"),
            _avg("lite, 4 layers", _variant({"generator.layers": "4"})),
            _backbone("T5-base", "t5-base", _TEN_BEAMS),
            _backbone("T5-large", "t5-large", (64.0, 84.5, 87.6)),
            _backbone("T5-XL", "t5-3b", (64.6, 84.9, 88.0)),
            _backbone("LLaMA-7b, LoRA", "llama-7b", (54.8, 80.8, 85.9)),
            _backbone("SmolLM2-135M, LoRA", "smollm2-135m", first_seed_only=True),
        ),
        "A backbone has no row if its weights are not on this machine (--checkpoints). SmolLM2 has two epochs and one "
        "seed, which is what a processor can do.",
    ),
    Table(
        "table7",
        "Table 7. Beams",
        tuple(
            _avg(f"{count} beam{'s' if count > 1 else ''}", OURS, paper, beams=count) for count, paper in _BEAMS.items()
        ),
    ),
)
TABLES: dict[str, Table] = {table.name: table for table in _TABLES}
