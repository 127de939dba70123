"""Tiny random BLIP models in the format of the real ones."""

import torch
from transformers import BertTokenizer, BlipConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

WORDS = ["a", "red", "blue", "dog", "cat", "and", "on", "grass", "runs", "the"]


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", *WORDS]


def blip_config():
    text = {
        "vocab_size": len(PIECES),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "bos_token_id": PIECES.index("[DEC]"),
        "eos_token_id": PIECES.index("[SEP]"),
        "sep_token_id": PIECES.index("[SEP]"),
        "pad_token_id": 0,
        "initializer_range": 0.5,
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        "initializer_range": 0.5,
    }
    return BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=16, initializer_range=0.5)


def save_blip(kind, folder):
    torch.manual_seed(0)
    (folder / "words.txt").write_text("\n".join(PIECES))
    model = kind(blip_config()).eval()
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    texts = BertTokenizer(str(folder / "words.txt"))
    for part in (model, images, texts):
        part.save_pretrained(folder)
    return folder, model, images, texts
