"""Checkpoints that write their own tokens, as generators that can be exported (see `voken.identifiers`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from voken.errors import ConfigError
from voken.generator.checkpoint import QueryReader, checkpoint_errors
from voken.generator.llama import LlamaGenerator
from voken.generator.t5 import T5Generator
from voken.generator.vocabulary import VokenVocabulary
from voken.inference.export import llama_graphs, t5_graphs


def checkpoint_generator(
    checkpoint: str | Path, *, longest: int, max_tokens: int, separator: str = ""
) -> tuple[LlamaGenerator | T5Generator, Callable[..., Any]]:
    """A generator whose vokens are all tokens of a T5 or Llama checkpoint, and the function that builds its graphs.

    Raises `ConfigError` if the checkpoint cannot be opened or has another architecture.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    if longest < 1:
        raise ConfigError(f"longest {longest}: an identifier has 1 token or more.")
    with checkpoint_errors(checkpoint):
        config = AutoConfig.from_pretrained(str(checkpoint))
    if config.model_type not in {"t5", "mt5", "llama"}:
        raise ConfigError(
            f"{checkpoint}: is a {config.model_type} checkpoint; T5, Flan-T5, mT5 and Llama can be exported."
        )
    reader = QueryReader.from_pretrained(checkpoint, max_tokens=max_tokens, separator=separator)
    kind = AutoModelForCausalLM if config.model_type == "llama" else AutoModelForSeq2SeqLM
    with checkpoint_errors(checkpoint):
        model = kind.from_pretrained(str(checkpoint), dtype=torch.float32).eval()
    vocabulary = _own_vocabulary(model, longest)
    if config.model_type == "llama":
        llama = LlamaGenerator(transformer=model.model, reader=reader, vocabulary=vocabulary, lora=None)
        return llama.eval(), llama_graphs
    t5 = T5Generator(
        encoder=model.encoder,
        decoder=model.decoder,
        config=model.config,
        reader=reader,
        vocabulary=vocabulary,
        scale=config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0,
    )
    return t5.eval(), t5_graphs


def _own_vocabulary(model: Any, longest: int) -> VokenVocabulary:
    """The tokens of a model as vokens, the same at every level."""
    words, head = model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()
    if len(words) != len(head):
        raise ConfigError(f"The checkpoint reads {len(words)} tokens and writes {len(head)}. It cannot be exported.")
    tied = words.data_ptr() == head.data_ptr()
    size, width = words.shape
    vocabulary = VokenVocabulary(levels=longest, codebook_size=size, width=width, shared=True, tied=tied)
    vocabulary.embeddings.data = words[None]
    if vocabulary.head is not None:
        vocabulary.head.data = head[None]
    return vocabulary
