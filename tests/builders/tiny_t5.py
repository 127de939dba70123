"""Tiny random T5 checkpoints, as transformers saves them, and generators made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from voken.generator.t5 import T5Generator

SENTENCE = "a red blue cat dog on the hill under rain with two small birds"


WORDS = ["<pad>", "</s>", "<unk>", *SENTENCE.split()]


LEVELS, SIZE = 3, 6


KINDS = ["t5", "t5 untied gated", "mt5 untied gated", "t5 gated, tied, unscaled"]


def make_checkpoint(folder: Path, kind: str, *, d_model: int = 16, seed: int = 0) -> Path:
    """A tiny random checkpoint as transformers saves it, with a word-level tokenizer."""
    from safetensors.torch import load_file, save_file
    from transformers import (
        MT5Config,
        MT5ForConditionalGeneration,
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(seed)
    sizes = {"vocab_size": len(WORDS), "d_model": d_model, "d_kv": 5, "d_ff": 24, "num_layers": 2}
    sizes |= {"num_heads": 3, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "dropout_rate": 0.1}
    if kind != "t5":
        sizes |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    if kind.startswith("mt5"):
        model = MT5ForConditionalGeneration(MT5Config(**sizes))
    else:
        model = T5ForConditionalGeneration(T5Config(**sizes))
    for name, weight in model.named_parameters():  # the library's own start is too flat to tell beams apart
        if "layer_norm" not in name:
            weight.data.normal_(0, 0.5)
    model.save_pretrained(folder)
    if "untied" in kind:
        # As the published v1.1, Flan and mT5 files are: a head of its own beside the table of words.
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = torch.randn(len(WORDS), d_model)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def make_codebooks(width: int = 16) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(LEVELS, SIZE, width)).astype(np.float32)


def make_t5(folder: Path, kind: str = "t5", **options) -> T5Generator:
    checkpoint = make_checkpoint(folder / "checkpoint", kind)
    return T5Generator.from_pretrained(checkpoint, options.pop("codebooks", make_codebooks()), **options).eval()
