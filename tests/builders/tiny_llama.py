"""Tiny random Llama checkpoints, as transformers saves them, and generators made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from voken.generator.llama import LlamaGenerator

SENTENCE = "a red blue cat dog on the hill under rain with two small birds picture :"


WORDS = ["<s>", "</s>", "<unk>", *SENTENCE.split()]


LEVELS, SIZE = 3, 6


KINDS = ["tied", "untied"]


def make_checkpoint(folder: Path, kind: str) -> Path:
    """A tiny random checkpoint with grouped key heads, and a word-level tokenizer without a padding token."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=kind == "tied",
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():  # the library's own start is too flat to tell beams apart
        if "norm" not in name:
            weight.data.normal_(0, 0.4)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return folder


def make_codebooks() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(LEVELS, SIZE, 10)).astype(np.float32)


def make_llama(folder: Path, kind: str = "tied", **options) -> LlamaGenerator:
    checkpoint = make_checkpoint(folder / "checkpoint", kind)
    model = LlamaGenerator.from_pretrained(checkpoint, make_codebooks(), **options).eval()
    for name, weight in model.named_parameters():  # adapters start without effect; give them one
        if ".lora_B." in name:
            weight.data.normal_(0, 0.3)
    return model
