"""Tiny lite generators over texts whose states depend on each word and its place."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import torch

from voken.config import EncoderConfig, GeneratorConfig, ReadOutWeights, RunConfig, SearchConfig, TokenizerConfig
from voken.encoders.text_reader import TextStates
from voken.encoders.two_tower import TwoTowerEncoder, TwoTowerHead
from voken.generator.lite import CaptionMemory, LiteGenerator
from voken.image_tokenizer.model import ImageTokenizer
from voken.model.calibration import Calibration
from voken.model.model import Model

LEVELS, SIZE, DIM = 3, 5, 8


SMALL = GeneratorConfig(family="lite", width=12, layers=2, heads=3, dropout=0.2, query_vector=True)


SETTINGS = {
    "paper": {"query_vector": False},
    "random rows": {"query_vector": False, "copy_voken_embeddings": False},
    "query vector": {},
    "query vector, random rows": {"copy_voken_embeddings": False},
    "memory": {"memory_weight": 0.7},
    "moved query point": {"point_epochs": 1},
    "moved query point, memory": {"point_epochs": 1, "memory_weight": 0.7},
    "one layer, as wide as the codes": {"layers": 1, "width": 8, "heads": 2},
}


class WordReader:
    """Each word has a state that depends on the word and its place. Behind a text's end stands noise."""

    text_width, dim = 7, DIM

    def __init__(self) -> None:
        self.noise = torch.Generator().manual_seed(0)

    def read_texts(self, texts, *, max_tokens):
        words = [text.split()[:max_tokens] for text in texts]
        longest = max(map(len, words), default=0)
        tokens = torch.randn(len(texts), longest, self.text_width, generator=self.noise) * 100
        mask = torch.zeros(len(texts), longest, dtype=torch.bool)
        for row, text in enumerate(words):
            for place, word in enumerate(text):
                tokens[row, place] = fixed_noise(f"{word} {place}", self.text_width)
                mask[row, place] = True
        vectors = torch.stack([fixed_noise(text, self.dim) for text in texts])
        return TextStates(tokens, mask, torch.nn.functional.normalize(vectors, dim=-1))


def fixed_noise(name: str, size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def make_codebooks(*, shared: bool = False) -> np.ndarray:
    codebooks = np.random.default_rng(5).normal(size=(LEVELS, SIZE, DIM)).astype(np.float32)
    return np.repeat(codebooks[:1], LEVELS, 0) if shared else codebooks


def make_memory(own_captions: dict[str, np.ndarray] | None = None) -> CaptionMemory:
    random = np.random.default_rng(6)
    vectors, pictures = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in random.normal(size=(2, 4, DIM)))
    return CaptionMemory(list("wxyz"), vectors.astype(np.float32), pictures.astype(np.float32), own_captions or {})


def make_lite(*, shared: bool = False, **settings) -> LiteGenerator:
    torch.manual_seed(1)
    model = LiteGenerator(WordReader(), make_codebooks(shared=shared), dataclasses.replace(SMALL, **settings))
    for weight in model.parameters():  # away from the start, where much is zero or one
        weight.data.add_(torch.randn(weight.shape) * 0.3)
    if model.config.memory_weight:
        model.memorize(make_memory())
    return model.eval()


def make_lite_over(encoder: TwoTowerEncoder, memory: int = 3, *, linear: bool = False, **settings) -> LiteGenerator:
    """A lite generator that reads its texts with an encoder; `memory` captions are in its memory, if it has one. With
    `linear`, logits do not depend on the vokens before."""
    torch.manual_seed(1)
    model = LiteGenerator(encoder, make_codebooks(), dataclasses.replace(SMALL, **settings))
    for name, weight in model.named_parameters():
        if not name.startswith("text."):
            weight.data.add_(torch.randn(weight.shape) * 0.3)
    if linear:
        model.voken_out.data.zero_()
        model.repetition.data.zero_()
    if model.config.memory_weight:
        rows = np.random.default_rng(6).normal(size=(2, memory, DIM))
        vectors, pictures = rows / np.linalg.norm(rows, axis=2, keepdims=True)
        model.memorize(CaptionMemory(["w"] * memory, vectors.astype(np.float32), pictures.astype(np.float32), {}))
    return model.eval()


def make_whole_model(
    search: SearchConfig, *, layers: tuple[int, ...] = (), calibration: Calibration | None = None
) -> Model:
    """Random weights, in the true format. `layers` are those of the image tokenizer."""
    torch.manual_seed(3)
    encoder_config = EncoderConfig(dim=DIM, hidden=16, image_size=32)
    encoder = TwoTowerEncoder(TwoTowerHead(encoder_config).eval())
    generator = make_lite_over(encoder, memory_weight=0.7, copy_voken_embeddings=False)
    config = TokenizerConfig(codebook_size=SIZE, levels=LEVELS, layers=layers, code_dim=DIM, shared_codebook=False)
    tokenizer = ImageTokenizer(DIM, config).eval()
    for name, buffer in tokenizer.named_buffers():
        if "running_mean" in name:
            buffer.normal_()
        elif "running_var" in name:
            buffer.uniform_(0.5, 2)
    run = RunConfig(name="demo", encoder=encoder_config, tokenizer=config, generator=generator.config)
    return Model(run, encoder, tokenizer, generator, search, {}, ReadOutWeights(2.0, 3.0), calibration)
