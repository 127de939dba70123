"""What must hold of every generator: against transformers, against its own steps, against its teacher-forced pass."""

from __future__ import annotations

import numpy as np
import torch

from builders.score_sequences import score_sequences
from voken.decoding.beam import beam_search, beam_search_from_state


def check_search_equals_transformers(model, plain, trie, texts, *, words, log_probs, sequence_start):
    """The search equals `plain`, the same weights in transformers: its log-probabilities, and its own `generate`.

    `plain` has `words` tokens before its vokens. `log_probs(plain, model, text, sequences)` is by its forward pass;
    `sequence_start(tokens)` is where a sequence begins in what it generates for a query of these tokens.
    """
    sequences = trie.leaf_vokens(np.arange(trie.sequences))
    everything = beam_search(model, trie, texts, trie.sequences)
    narrow = {beams: beam_search(model, trie, texts, beams) for beams in (1, 4)}
    for query, text in enumerate(texts):
        inputs = model.reader([text], torch.device("cpu"))
        start = sequence_start(inputs.tokens)
        expected = log_probs(plain, model, text, sequences)
        assert sorted(everything.leaf[query].tolist()) == list(range(trie.sequences))
        np.testing.assert_allclose(everything.log_prob[query], expected[everything.leaf[query]], atol=1e-4)
        wide = _generate(plain, inputs, sequences.tolist(), words, start, trie.sequences)
        assert [s for s, _ in wide] == [tuple(s) for s in everything.vokens[query].tolist()]
        np.testing.assert_allclose([score for _, score in wide], everything.log_prob[query], atol=1e-4)
        for beams, result in narrow.items():
            theirs = _generate(plain, inputs, sequences.tolist(), words, start, beams)
            assert [s for s, _ in theirs] == [tuple(s) for s in result.vokens[query].tolist()]


def check_teacher_forcing_equals_stepping(model, trie, texts):
    """One pass over sequences, a pass over pairs, step by step, and the search: all give the same log-probabilities."""
    sequences = torch.from_numpy(trie.leaf_vokens(np.arange(7)).astype(np.int64)).expand(len(texts), -1, -1)
    with torch.no_grad():
        state = model.encode(texts)
        logits = model.teacher_forced(state, sequences)
        forced = logits.log_softmax(-1).gather(3, sequences.unsqueeze(-1)).squeeze(-1).sum(-1)
        torch.testing.assert_close(forced, score_sequences(model, state, sequences), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(texts, sequences[:, 2]), logits[:, 2], atol=1e-5, rtol=1e-5)
    result = beam_search_from_state(model, state, trie, trie.sequences)
    for query in range(len(texts)):
        by_leaf = dict(zip(result.leaf[query].tolist(), result.log_prob[query].tolist(), strict=True))
        np.testing.assert_allclose(forced[query], [by_leaf[leaf] for leaf in range(7)], atol=1e-4)


def check_steps_equal_the_teacher_forced_pass(model, texts):
    """Beams that take any voken and any parent, also one parent twice, see the logits of their own prefix."""
    random = np.random.default_rng(3)
    with torch.no_grad():
        read = model.encode(texts)
        logits, state = model.step(model.prefill(texts), None, None)
        prefixes = np.zeros((len(texts), 1, 0), np.int64)
        for level in range(model.levels):
            padded = np.zeros((*prefixes.shape[:2], model.levels), np.int64)
            padded[:, :, :level] = prefixes
            expected = model.teacher_forced(read, torch.from_numpy(padded))[:, :, level]
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
            if level + 1 < model.levels:
                parents = random.integers(prefixes.shape[1], size=(len(texts), 4))
                vokens = random.integers(model.codebook_size, size=(len(texts), 4))
                followed = np.take_along_axis(prefixes, parents[..., None], 1)
                prefixes = np.concatenate([followed, vokens[..., None]], 2)
                logits, state = model.step(state, torch.from_numpy(vokens), torch.from_numpy(parents))


def _generate(plain, inputs, sequences, words, start, beams):
    """The answer of transformers' own constrained beam search: sequences and their sums of log-probabilities."""

    def allowed(_, tokens):
        prefix = [token - words for token in tokens[start:].tolist()]
        return sorted({words + s[len(prefix)] for s in sequences if s[: len(prefix)] == prefix})

    plain.generation_config.eos_token_id = None  # a sequence ends by its length
    plain.generation_config.pad_token_id = 1
    out = plain.generate(
        input_ids=inputs.tokens,
        attention_mask=inputs.mask.long(),
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=len(sequences[0]),
        do_sample=False,
        length_penalty=0.0,
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = out.sequences_scores.tolist() if beams > 1 else [0.0]
    pairs = zip((out.sequences[:, start:] - words).tolist(), scores, strict=True)
    return [(tuple(sequence), score) for sequence, score in pairs if score > -1e3]
