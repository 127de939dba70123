"""What is chosen on the validation side once both stages are trained: the rerank weights and the calibration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from voken.config import SearchConfig
from voken.decoding.beam import beam_search_from_state
from voken.decoding.trie import VokenTrie
from voken.metrics import first_relevant, mean_recall
from voken.model.model import Model
from voken.search.confidence import Answers, Readout, calibrate
from voken.training.sides import Side, query_rows

_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


def validation_answers(model: Model, validation: Side) -> dict[Readout, Answers]:
    """The model's answers to at most a thousand validation captions over the validation pictures, per read-out.

    The read-outs differ in their cosines: "vector" compares with the pictures' vectors, the others with rebuilt ones.
    """
    tokenizer = model.tokenizer
    captions = query_rows(validation, model.config.seed)
    vokens = tokenizer.encode(validation.images)
    trie = VokenTrie.from_vokens(vokens, tokenizer.codebook_size)
    leaf_of_image = trie.leaf_of(vokens)
    log_prob = np.full((len(captions), trie.sequences), -np.inf, np.float32)
    queries = np.zeros((len(captions), validation.images.shape[1]), np.float32)
    for start in range(0, len(captions), 64):
        texts = [validation.captions[row] for row in captions[start : start + 64]]
        state = model.generator.prefill(texts)
        queries[start : start + 64] = model.query_vectors(texts, state)
        beams = beam_search_from_state(model.generator, state, trie, min(model.search.beams, trie.sequences))
        rows = np.arange(start, start + len(texts))[:, None]
        log_prob[rows, beams.leaf] = beams.log_prob
    relevant = np.zeros((len(captions), len(vokens)), bool)
    pairs = validation.pairs[np.isin(validation.pairs[:, 1], captions)]
    relevant[np.searchsorted(captions, pairs[:, 1]), pairs[:, 0]] = True
    rebuilt = Answers(
        log_prob[:, leaf_of_image],
        queries @ tokenizer.decode(vokens).T,
        leaf_of_image,
        relevant,
        validation.concepts,
    )
    return {"generate": rebuilt, "voken": rebuilt, "vector": replace(rebuilt, cosine=queries @ validation.images.T)}


def choose_weights(search: SearchConfig, answers: dict[Readout, Answers]) -> tuple[SearchConfig, dict[str, Any]]:
    """Choose the weights of the two reranks (docs/protocol.md) by validation recall. Weights already set stay.

    Returns the search settings, and per read-out the recall of each weight that was tried.
    """
    if not len(answers["voken"].relevant):
        return with_weights(search, 0.0, 0.0), {}
    recalls: dict[str, Any] = {}
    chosen: dict[str, float] = {}
    reranks: tuple[Readout, ...] = ("voken", "vector")
    for readout in reranks:
        log_prob, cosine, relevant = answers[readout].log_prob, answers[readout].cosine, answers[readout].relevant
        by_weight = [mean_recall(first_relevant(log_prob + weight * cosine, relevant)) for weight in _WEIGHTS]
        recalls[readout] = dict(zip(map(str, _WEIGHTS), by_weight, strict=True))
        chosen[f"{readout}_weight"] = _WEIGHTS[int(np.argmax(by_weight))]
    return with_weights(search, **chosen), recalls


def with_calibration(
    search: SearchConfig, answers: dict[Readout, Answers], seed: int
) -> tuple[SearchConfig, dict[str, Any]]:
    """The same settings with a calibration for their rerank weights, and the report on it."""
    weights: dict[Readout, float] = {
        "generate": 0.0,
        "voken": search.voken_weight or 0.0,
        "vector": search.vector_weight or 0.0,
    }
    calibration, report = calibrate(answers, weights, beams=search.beams, seed=seed)
    return replace(search, calibration=calibration), report


def with_weights(search: SearchConfig, voken_weight: float, vector_weight: float) -> SearchConfig:
    """The same settings with these rerank weights, except where they have their own."""
    return replace(
        search,
        voken_weight=voken_weight if search.voken_weight is None else search.voken_weight,
        vector_weight=vector_weight if search.vector_weight is None else search.vector_weight,
    )
