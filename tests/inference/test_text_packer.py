"""A tokenizer from elsewhere that contradicts itself is a named error when a text shows it."""

import json

import pytest
from tokenizers import Tokenizer

from voken.errors import CorruptArtifactError
from voken.inference.engine import TextPacker


def packer(vocabulary):
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocabulary,
    }
    content = json.dumps(
        {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    )
    return TextPacker(Tokenizer.from_str(content), 16, False, [], 0)


def test_words_that_have_no_token_are_unknown_or_an_error():
    assert packer({"[UNK]": 0, "cat": 1}).pack(["cat dog"]).rows == [[1, 0]]
    with pytest.raises(CorruptArtifactError, match=r"tokenizer cannot read this text .*\[UNK\].*Create the engine"):
        packer({"[CLS]": 0, "cat": 1}).pack(["cat dog"])
