"""The bias of the tries that a search sees: made once for each trie, and only if a weight is not 0.

The length of rebuilt vectors needs nothing but the codebooks. The generator's prior is measured with the model's own
captions when a trie is first searched, which takes a step of the model for every node and caption
(`voken.decoding.node_bias.measure_prior`). After a change of the collection only new sequences are measured.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np

from voken.config import ReadOutWeights
from voken.decoding.interface import StepModel
from voken.decoding.node_bias import NodeBias, NodePrior, measure_prior, prior_from
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError
from voken.shapes import Float32


class Corrections:
    """The biases of tries, for one model. Several threads may ask at once.

    Raises `ConfigError` if the model lacks what a weight needs.
    """

    def __init__(
        self,
        generator: StepModel,
        codebooks: Float32[np.ndarray, "M N e"] | None,
        prior_captions: Sequence[str],
        weights: ReadOutWeights,
    ) -> None:
        norm, self._prior_weight = weights.norm or 0.0, weights.prior or 0.0
        if norm and codebooks is None:
            raise ConfigError(
                f"search.norm_weight {norm:g}: the model does not say how long its vectors are. Set it to 0; or, if "
                "tokenizer.layers is empty, create the engine again with: voken compile MODEL"
            )
        if self._prior_weight and not prior_captions:
            raise ConfigError(
                f"search.prior_weight {self._prior_weight:g}: the model has no captions to measure its prior with. "
                "Set it to 0, or train the model again with this weight."
            )
        self._generator, self._captions = generator, prior_captions
        self._lengths = NodeBias(norm, codebooks if norm else None)
        self._biases: WeakKeyDictionary[VokenTrie, NodeBias] = WeakKeyDictionary()
        self._known: tuple[VokenTrie, NodePrior] | None = None
        self._lock = threading.Lock()

    def of(self, trie: VokenTrie) -> NodeBias | None:
        """What a search of `trie` adds to the scores; None if nothing."""
        if not self._prior_weight:
            return self._lengths if self._lengths.norm_weight else None
        with self._lock:
            bias = self._biases.get(trie)
            if bias is None:
                prior = self._measured(trie)
                bias = self._biases[trie] = replace(self._lengths, prior_weight=self._prior_weight, prior=prior)
            return bias

    def _measured(self, trie: VokenTrie) -> NodePrior:
        if self._known is None:
            prior = measure_prior(self._generator, self._captions, trie)
        else:
            prior = prior_from(self._known, self._generator, self._captions, trie)
        if self._known is None or trie.sequences >= self._known[0].sequences / 2:
            self._known = trie, prior
        return prior
