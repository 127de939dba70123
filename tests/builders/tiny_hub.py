"""CLIP and SigLIP checkpoints of random weights, in the format of the real ones."""

from __future__ import annotations

import sentencepiece
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, SiglipConfig, SiglipModel, SiglipTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

TEXTS = ["a red dog", "cat", "", "a much longer text about a cat and a dog that no tiny model reads to its end"]
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**TOWER, "image_size": 32, "patch_size": 16}


def make_clip(folder):
    torch.manual_seed(0)
    alphabet = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(letter + "</w>" for letter in alphabet)]
    tokenizer = CLIPTokenizer(vocab={piece: row for row, piece in enumerate(pieces)}, merges=[], model_max_length=16)
    text = {**TOWER, "vocab_size": len(pieces), "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24))
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save(folder, model, images, tokenizer)


def make_true_clip(folder):
    """CLIP ViT-B/32 as OpenAI's, of 151 million random weights. It knows single letters alone."""
    torch.manual_seed(0)
    config = CLIPConfig()  # its defaults are those of openai/clip-vit-base-patch32
    size = config.text_config.vocab_size
    alphabet = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    pieces += [f"filler {number}" for number in range(size - 2 - len(pieces))] + ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: row for row, piece in enumerate(pieces)}, merges=[], model_max_length=77)
    return save(folder, CLIPModel(config), CLIPImageProcessorPil(), tokenizer)


def make_siglip(folder):
    torch.manual_seed(0)
    (folder / "words.txt").write_text("\n".join(TEXTS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "words.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"), model_max_length=12)
    text = {**TOWER, "vocab_size": 64, "max_position_embeddings": 12}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    return save(folder, model, SiglipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer)


def save(folder, *parts):
    for part in parts:
        part.save_pretrained(folder)
    return parts
