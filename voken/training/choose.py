"""What is chosen on the validation side once both stages are trained: the rerank weights and the calibration."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from voken.config import ReadOutName, ReadOutWeights, SearchConfig
from voken.decoding.beam import beam_search_from_state
from voken.decoding.trie import VokenTrie
from voken.metrics import first_relevant, mean_recall
from voken.model.model import Model
from voken.search.readouts import ReadOut
from voken.training.calibrate import Answers
from voken.training.sides import Side, query_rows

_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


def validation_answers(model: Model, validation: Side) -> dict[ReadOutName, Answers]:
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


def choose_weights(
    search: SearchConfig, answers: dict[ReadOutName, Answers]
) -> tuple[ReadOutWeights, dict[str, dict[str, float]]]:
    """Choose the weights of the two reranks (docs/protocol.md) by validation recall. Weights in the settings stay.

    Also returns the recall of each weight that was tried, per read-out.
    """
    recalls: dict[str, dict[str, float]] = {}
    best: dict[ReadOutName, float] = {"voken": 0.0, "vector": 0.0}
    for name in best:
        answer = answers[name]
        if len(answer.relevant):
            scores = (ReadOut(name, weight).score(answer.log_prob, answer.cosine) for weight in _WEIGHTS)
            by_weight = [mean_recall(first_relevant(score, answer.relevant)) for score in scores]
            recalls[name] = dict(zip(map(str, _WEIGHTS), by_weight, strict=True))
            best[name] = _WEIGHTS[int(np.argmax(by_weight))]
    return search.weights(ReadOutWeights(best["voken"], best["vector"])), recalls


def read_outs(weights: ReadOutWeights) -> dict[ReadOutName, ReadOut]:
    """The three read-outs with these weights."""
    return {
        "generate": ReadOut("generate"),
        "voken": ReadOut("voken", weights.voken or 0.0),
        "vector": ReadOut("vector", weights.vector or 0.0),
    }
