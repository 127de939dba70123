"""SigLIP's tokenizer, which transformers runs with the library sentencepiece, for the library `tokenizers`."""

from __future__ import annotations

import string
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

_SPACE = "\u2581"
"""What stands for a space in pieces."""


def siglip_tokenizer(tokenizer: Any) -> Tokenizer:
    """The same tokenizer as a `SiglipTokenizer` of transformers, except that no text stands for a special token.

    It reads lower case, without ASCII punctuation, with single spaces; the end token follows.
    """
    from sentencepiece import sentencepiece_model_pb2

    pb: Any = sentencepiece_model_pb2
    proto = pb.ModelProto.FromString(tokenizer.sp_model.serialized_model_proto())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    kinds = pb.ModelProto.SentencePiece
    unknown = next(row for row, piece in enumerate(proto.pieces) if piece.type == kinds.UNKNOWN)
    has_bytes = any(piece.type == kinds.BYTE for piece in proto.pieces)
    backend = Tokenizer(Unigram(pieces, unk_id=unknown, byte_fallback=has_bytes))
    steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if tokenizer.do_lower_case else []
    steps += [
        normalizers.Replace(Regex(f"[{_escaped(string.punctuation)}]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    if charsmap := proto.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    if proto.normalizer_spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(rf"[ {_SPACE}]+"), " "), normalizers.Strip()]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always", split=False)
    end = tokenizer.eos_token
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, int(tokenizer.eos_token_id))]
    )
    return backend


def _escaped(characters: str) -> str:
    return "".join(f"\\{character}" for character in characters)
