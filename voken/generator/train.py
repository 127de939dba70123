"""Train the generator (section 3.2 of the paper): first L_gen and then L_dis, or both together.

L_gen is Eq. 7 and L_dis Eq. 9; the other losses go beyond the paper. All losses are means over queries, computed in
float32 and differentiable in the logits. The best epoch is chosen by recall on validation queries. This module sees
vokens and texts, not pictures.

Every step draws from its own seed, derived from (seed, stage, epoch, step). A run that continues from a checkpoint
therefore ends exactly like one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from voken import optimisation
from voken.config import GeneratorConfig
from voken.decoding.beam import beam_search, beam_search_from_state
from voken.decoding.node_bias import NodeBias, measure_prior
from voken.decoding.trie import VokenTrie
from voken.errors import EmptyDataError, ResumeError
from voken.generator.interface import Generator
from voken.generator.lite import COSINE, LiteGenerator
from voken.metrics import FirstRelevant, first_relevant, mean_recall
from voken.optimisation import TrainingLoop, autocast, one_caption_per_image
from voken.progress import EpochLog, Progress, no_epoch_log, no_progress
from voken.shapes import Bool, Float, Int

_VALIDATION_BEAMS = 10
_PRIOR_CAPTIONS = 32
"""Training captions whose mean log-probabilities are the prior that validation takes out after every epoch."""
_TEACHER_TEMPERATURE = 0.05
_CHECKPOINT_SECONDS = 60.0
POINT_STAGE = "query point"
_LENGTH_WEIGHTS = (COSINE, 0.3, 0.2, 0.1, 0.0)
"""If equal, the first is chosen."""
_SIMILARITIES = (5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0, 80.0)
_FIT_QUERIES, _FIT_SEED = 1024, 1 << 20
_WHOLE_LIST = 8192
"""Largest number of sequences in the lists that move the query's point."""


@dataclass(frozen=True)
class SoftTargets:
    """For each row and level, a distribution over codebook entries, cut to the K most probable ones."""

    entries: Int[np.ndarray, "rows M K"]
    weights: Float[np.ndarray, "rows M K"]


@dataclass(frozen=True)
class VokenPairs:
    """Texts, the vokens of pictures, and which text describes which picture."""

    texts: Sequence[str]
    vokens: Int[np.ndarray, "images M"]
    concepts: Int[np.ndarray, " images"]
    """Pictures of one concept are never negatives of each other's texts. Families of concepts may stand here too."""
    pairs: Int[np.ndarray, "pairs 2"]
    """Rows (picture, text)."""
    soft: SoftTargets | None = None
    """Soft targets of the pictures. None uses one-hot targets."""
    text_soft: SoftTargets | None = None
    """Soft targets of the texts' own vectors, for text-only training. None turns text-only training off."""
    text_vectors: Float[np.ndarray, "texts dim"] | None = None
    """With `rebuilt_vectors`, the teacher of list-wise distillation. None turns distillation off."""
    rebuilt_vectors: Float[np.ndarray, "images dim"] | None = None

    def draw(self, random: np.random.Generator) -> Int[np.ndarray, "rows 2"]:
        """One row per picture that has a text, with one of its texts, in random order."""
        return one_caption_per_image(self.pairs, random)


@dataclass(frozen=True)
class ValidationQueries:
    """Queries over a pool, with all their right answers. Their recall chooses the best epoch."""

    texts: Sequence[str]
    vokens: Int[np.ndarray, "pool M"]
    relevant: Int[np.ndarray, "answers 2"]
    """Rows (query, picture of the pool)."""

    @property
    def is_relevant(self) -> Bool[np.ndarray, "queries pool"]:
        """Whether a picture is a right answer to a query."""
        table = np.zeros((len(self.texts), len(self.vokens)), bool)
        table[self.relevant[:, 0], self.relevant[:, 1]] = True
        return table


@dataclass(frozen=True)
class EpochRecord:
    """Loss and validation recall of one epoch."""

    stage: str
    """"query point", "generation", or "discrimination" if L_dis is trained after it."""
    epoch: int
    loss: float
    recall: float
    """Mean of R@1, R@5 and R@10 over the validation queries."""


@dataclass(frozen=True)
class GeneratorHistory:
    """The epochs of a training run, and which of them gave the final weights."""

    epochs: tuple[EpochRecord, ...]
    best: int
    """Index into `epochs`; -1 stands for the generator before training."""
    untrained_recall: float


@dataclass(frozen=True)
class _Stage:
    name: str
    epochs: int
    learning_rate: float
    generates: bool
    discriminates: bool


def train_generator(
    model: Generator,
    pairs: VokenPairs,
    validation: ValidationQueries,
    config: GeneratorConfig,
    *,
    seed: int,
    checkpoints: Path | None = None,
    progress: Progress = no_progress,
    prior_weight: float = 0.0,
    log: EpochLog = no_epoch_log,
) -> GeneratorHistory:
    """Train `model` in place. It ends with the weights of the epoch that had the best validation recall.

    With `prior_weight` (see `SearchConfig`), epochs are compared by scores without the prior that L_gen learns. This
    takes a step of the model for each of 32 captions and each node of the validation pictures' trie, per epoch.

    If `checkpoints` is a folder, the run is saved in it every minute and after every epoch. The same call then
    continues an interrupted run and ends with the same weights. Ctrl-C loses at most a minute.
    Raises `EmptyDataError` without pairs and `ResumeError` if the checkpoint belongs to a different run.
    """
    if not len(pairs.pairs):
        raise EmptyDataError("The generator has no training pairs: no picture of the train split has a caption.")
    assert isinstance(model, nn.Module)
    return _GeneratorTraining(model, pairs, validation, config, seed, checkpoints, progress, prior_weight, log).run()


def validation_recall(
    model: Generator,
    validation: ValidationQueries,
    beams: int = _VALIDATION_BEAMS,
    *,
    bias: Callable[[VokenTrie], NodeBias | None] | None = None,
) -> float:
    """Mean of R@1, R@5 and R@10 over the validation pictures, ranked by log-probability alone; 0 without queries.

    `bias` makes the bias of the validation pictures' trie, which is added to the log-probabilities.

    `voken_lab.evaluation` measures the figures to report.
    """
    if not len(validation.texts):
        return 0.0
    return mean_recall(validation_ranks(model, validation, beams, bias=bias))


def validation_ranks(
    model: Generator,
    validation: ValidationQueries,
    beams: int = _VALIDATION_BEAMS,
    *,
    bias: Callable[[VokenTrie], NodeBias | None] | None = None,
) -> FirstRelevant:
    """The ranks behind `validation_recall`, one for each query."""
    trie = VokenTrie.from_vokens(validation.vokens, model.codebook_size)
    leaf_of_image = trie.leaf_of(validation.vokens)
    blocks = [validation.texts[start : start + 64] for start in range(0, len(validation.texts), 64)]
    node_bias = None if bias is None else bias(trie)
    leaf = np.concatenate([beam_search(model, trie, texts, beams, bias=node_bias).leaf for texts in blocks])
    pictures = np.where(leaf >= 0, np.bincount(leaf_of_image)[leaf.clip(0)], 0)
    right_in_leaf = np.zeros((len(leaf), trie.sequences), np.int32)
    np.add.at(right_in_leaf, (validation.relevant[:, 0], leaf_of_image[validation.relevant[:, 1]]), 1)
    right = np.where(leaf >= 0, np.take_along_axis(right_in_leaf, leaf.clip(0), 1), 0)
    # The pictures of a leaf tie, so the first leaf with a right picture decides. Without one, all counts are 0.
    query, first, returned = np.arange(len(leaf)), (right > 0).argmax(1), right.any(1)
    above = (pictures.cumsum(1) - pictures)[query, first] * returned
    return FirstRelevant(above, pictures[query, first] * returned, right[query, first])


def point_scores(
    model: LiteGenerator, validation: ValidationQueries, *, length_weight: float | None = None
) -> Float[np.ndarray, "queries pool"]:
    """`LiteGenerator.point_scores` of all validation pictures, which needs no beam search."""
    vokens = torch.from_numpy(validation.vokens).long().to(model.device)
    with torch.inference_mode():
        points = model.query_points(validation.texts, model.read_vectors(validation.texts))
        scores: np.ndarray = model.point_scores(points, vokens, length_weight=length_weight).cpu().numpy()
    return scores


def cosine_bias(model: Generator) -> NodeBias | None:
    """The bias with which epochs are compared: a generator that starts from inner products with the query's vector
    ranks nearly by cosines. None for other generators."""
    if not (isinstance(model, LiteGenerator) and model.has_query_point):
        return None
    similarity = float(model.similarity.detach().mean())
    return NodeBias(norm_weight=model.length_weight * similarity, codebooks=model.entries.cpu().numpy())


def generation_loss(
    logits: Float[Tensor, "pairs M N"], vokens: Int[Tensor, "pairs M"], *, temperature: float = 1.0
) -> Tensor:
    """L_gen, Eq. 7: minus the log-probability of the picture's vokens, summed over its M levels.

    `temperature` divides the logits, as in the official code; the softmax is over voken rows only.
    """
    return cross_entropy((logits.float() / temperature).flatten(0, 1), vokens.flatten(), reduction="sum") / len(vokens)


def soft_generation_loss(
    logits: Float[Tensor, "pairs M N"],
    entries: Int[Tensor, "pairs M K"],
    weights: Float[Tensor, "pairs M K"],
    *,
    temperature: float = 1.0,
) -> Tensor:
    """L_gen with a distribution over entries as its target: the cross-entropy, summed over levels.

    If all weight is on the picture's own voken, it equals `generation_loss`.
    """
    log_prob = (logits.float() / temperature).log_softmax(-1).gather(-1, entries)
    return -(weights * log_prob).sum() / len(entries)


def sequence_log_prob(
    logits: Float[Tensor, "queries sequences M N"], vokens: Int[Tensor, "queries sequences M"]
) -> Float[Tensor, "queries sequences"]:
    """s_j, the score of a sequence in Eq. 9: the sum of its vokens' log-probabilities."""
    return logits.float().log_softmax(-1).gather(-1, vokens[..., None]).squeeze(-1).sum(-1)


def discrimination_loss(
    scores: Float[Tensor, "queries sequences"], usable: Bool[Tensor, "queries sequences"]
) -> Tensor:
    """L_dis, Eq. 9: a softmax over each list, with the positive in column 0. Unusable columns are left out."""
    scores = scores.masked_fill(~usable, float("-inf"))
    return (scores.logsumexp(1) - scores[:, 0]).mean()


def distillation_loss(
    scores: Float[Tensor, "queries sequences"],
    teacher: Float[Tensor, "queries sequences"],
    usable: Bool[Tensor, "queries sequences"],
) -> Tensor:
    """Cross-entropy between the softmax of a teacher's scores over each list and the softmax of the model's scores."""
    log_prob = scores.masked_fill(~usable, -1e4).log_softmax(1)
    target = teacher.masked_fill(~usable, float("-inf")).softmax(1)
    return -(target * log_prob).sum(1).mean()


@dataclass(frozen=True)
class Candidates:
    """One list of sequences per query. Column 0 is the positive; other right answers and padding are not usable."""

    vokens: Int[np.ndarray, "queries columns M"]
    rows: Int[np.ndarray, "queries columns"]
    """A picture that has the sequence. In column 0 it is the query's picture."""
    usable: Bool[np.ndarray, "queries columns"]


class CandidateSearch:
    """Builds the lists of L_dis (Eq. 8) by beam search over the training sequences. Create it once per training set."""

    def __init__(self, pairs: VokenPairs, codebook_size: int) -> None:
        self._pairs = pairs
        self.trie = VokenTrie.from_vokens(pairs.vokens, codebook_size)
        self._leaf_of_image = self.trie.leaf_of(pairs.vokens)
        self._first_image = np.unique(self._leaf_of_image, return_index=True)[1]
        self._leaves = self.trie.sequences
        number_of_text = {text: number for number, text in enumerate(dict.fromkeys(pairs.texts))}
        self._text_number = np.array([number_of_text[text] for text in pairs.texts], np.int64)
        self._concept_leaves = np.unique(pairs.concepts.astype(np.int64) * self._leaves + self._leaf_of_image)
        pictures, texts = pairs.pairs.T
        self._text_leaves = np.unique(self._text_number[texts] * self._leaves + self._leaf_of_image[pictures])

    def find(self, model: Generator, state: Any, batch: Int[np.ndarray, "queries 2"], beams: int) -> Candidates:
        """Lists of at most `beams` sequences for the queries in the model's `state`: rows (picture, text) of `batch`.

        As in the official code, the positive comes first and beams equal to it are dropped. A beam with another
        picture of the same concept, or with a picture that has the query's very text as a caption, is a right answer
        too, so it is not used as a negative. What is left is cut to `beams` - 1.
        """
        leaf = beam_search_from_state(model, state, self.trie, beams).leaf
        images, texts = batch.T
        of_concept = self._pairs.concepts[images].astype(np.int64)[:, None] * self._leaves + leaf
        of_text = self._text_number[texts][:, None] * self._leaves + leaf
        right = np.isin(of_concept, self._concept_leaves) | np.isin(of_text, self._text_leaves)
        usable = (leaf >= 0) & (leaf != self._leaf_of_image[images][:, None]) & ~right
        # The negatives first, in the order of the beams. Only a search without the positive has one too many.
        order = np.argsort(~usable, axis=1, kind="stable")[:, : beams - 1]
        leaf, usable = np.take_along_axis(leaf, order, 1), np.take_along_axis(usable, order, 1)
        rows = np.concatenate([images[:, None], self._first_image[leaf.clip(0)]], 1)
        usable = np.concatenate([np.ones((len(images), 1), bool), usable], 1)
        return Candidates(self._pairs.vokens[rows], rows, usable)

    def leaves_beside(self, batch: Int[np.ndarray, "queries 2"], count: int, seed: int) -> Int[np.ndarray, " leaves"]:
        """The leaves of the batch's pictures and a draw of others, `count` in all; every leaf if there are no more."""
        if self._leaves <= count:
            return np.arange(self._leaves)
        others = np.random.default_rng(seed).choice(self._leaves, count, replace=False)
        own = np.unique(self._leaf_of_image[batch[:, 0]])
        return np.unique(np.concatenate([own, np.setdiff1d(others, own)[: max(count - len(own), 0)]]))

    def vokens_of(self, leaves: Int[np.ndarray, " leaves"]) -> Int[np.ndarray, "leaves M"]:
        """The sequences of leaves."""
        vokens: np.ndarray = self._pairs.vokens[self._first_image[leaves]]
        return vokens

    def right_answers(
        self, batch: Int[np.ndarray, "queries 2"], leaves: Int[np.ndarray, " leaves"]
    ) -> tuple[Int[np.ndarray, " queries"], Bool[np.ndarray, "queries leaves"]]:
        """The column of each query's own sequence, and which other columns are right answers too; see `find`."""
        images, texts = batch.T
        own = np.searchsorted(leaves, self._leaf_of_image[images])
        right = np.zeros((len(batch), len(leaves)), bool)
        for keys, known in (
            (self._pairs.concepts[images].astype(np.int64), self._concept_leaves),
            (self._text_number[texts], self._text_leaves),
        ):
            starts, ends = (np.searchsorted(known, (keys + more) * self._leaves) for more in (0, 1))
            for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
                of_row = known[start:end] % self._leaves
                column = np.searchsorted(leaves, of_row).clip(max=len(leaves) - 1)
                right[row, column[leaves[column] == of_row]] = True
        right[np.arange(len(batch)), own] = False
        return own, right


class _GeneratorTraining:
    def __init__(
        self,
        model: Generator,
        pairs: VokenPairs,
        validation: ValidationQueries,
        config: GeneratorConfig,
        seed: int,
        checkpoints: Path | None,
        progress: Progress,
        prior_weight: float,
        log: EpochLog,
    ) -> None:
        self.model, self.pairs, self.validation, self.config = model, pairs, validation, config
        self.seed, self.folder, self.progress = seed, checkpoints, progress
        self.candidates: CandidateSearch | None = None
        self.text_vectors: Tensor | None = None
        self.records: list[EpochRecord] = []
        self.untrained_recall, self.best_index = 0.0, -1
        self.saved_at = time.monotonic()
        self.prior_weight, self.log = prior_weight, log
        captions = np.random.default_rng(seed).permutation(len(pairs.texts))[:_PRIOR_CAPTIONS]
        self.prior_captions = [pairs.texts[row] for row in np.sort(captions)]

    def run(self) -> GeneratorHistory:
        position = optimisation.load_position(self.folder) if self.folder else None
        if position is None:
            self.untrained_recall = self._recall()
        else:
            self._check_run(position)
            self.untrained_recall, self.best_index = position["untrained"], position["best_index"]
            if isinstance(self.model, LiteGenerator):
                self.model.length_weight = position["length_weight"]
            self.records = [EpochRecord(**record) for record in position["records"]]
        loop: TrainingLoop | None = None
        for number, stage in enumerate(_stages(self.config)):
            if position is None or number > position["stage"]:
                loop = self._run_stage(number, stage, None, loop)
            elif number == position["stage"]:
                loop = self._run_stage(number, stage, position, loop)
        assert loop is not None
        loop.restore_best()
        return GeneratorHistory(tuple(self.records), self.best_index, self.untrained_recall)

    def _run_stage(
        self, number: int, stage: _Stage, position: dict[str, Any] | None, previous: TrainingLoop | None
    ) -> TrainingLoop:
        if previous is not None:
            previous.restore_best()
        config, size = self.config, self.config.batch_size
        loop = self._loop(stage)
        loss = 0.0
        if position is not None:
            self._resume(loop, position)
            loss = position["loss"]
        elif previous is not None:
            loop.best_score, loop.best_weights = previous.best_score, previous.best_weights
            if self._stage_before(number) == POINT_STAGE:
                loop.best_score = self._recall()  # of a beam search, as in the stages to come
        elif stage.name == POINT_STAGE:
            self._fit_similarity()
            self._fit_length_weight()
            loop.record_score(self._point_recall())
        else:
            loop.record_score(self.untrained_recall)
        for epoch in loop.epochs():
            rows = self._rows(stage, np.random.default_rng([self.seed, number, epoch]))
            for step in range(loop.steps_taken % loop.steps_per_epoch, loop.steps_per_epoch):
                batch = rows[step * size : (step + 1) * size]
                torch.manual_seed(int(np.random.SeedSequence([self.seed, number, epoch, step]).generate_state(1)[0]))
                with autocast(self.model.device, config.autocast):
                    batch_loss = self._loss(batch, stage)
                loss += loop.step(batch_loss) * len(batch)
                self.progress(f"generator, {stage.name}", loop.steps_taken, loop.steps)
                if time.monotonic() - self.saved_at > _CHECKPOINT_SECONDS and step + 1 < loop.steps_per_epoch:
                    self._save(loop, number, epoch, step + 1, loss)
            recall = self._point_recall() if stage.name == POINT_STAGE else self._recall()
            self.records.append(EpochRecord(stage.name, epoch + 1, loss / len(rows), recall))
            score = recall if self.validation.texts else None
            self.log(f"generator, {stage.name}", epoch + 1, loss / len(rows), score)
            if loop.record_score(score):
                self.best_index = len(self.records) - 1
            loss = 0.0
            self._save(loop, number, epoch + 1, 0, loss)
        return loop

    def _loop(self, stage: _Stage) -> TrainingLoop:
        config = self.config
        optimizer = torch.optim.AdamW(
            self.model.parameter_groups(), lr=stage.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        rows = len(self._rows(stage, np.random.default_rng(0)))
        return TrainingLoop(
            self._module(),
            optimizer,
            epochs=stage.epochs,
            steps_per_epoch=math.ceil(rows / config.batch_size),
            schedule="linear",
            warmup=config.warmup,
            patience=config.patience if config.patience > 0 else None,
            gradient_clip=config.gradient_clip,
        )

    def _rows(self, stage: _Stage, random: np.random.Generator) -> Int[np.ndarray, "rows 2"]:
        """The rows of an epoch: one per picture, or all pairs where that costs little."""
        return random.permutation(self.pairs.pairs) if stage.name == POINT_STAGE else self.pairs.draw(random)

    def _recall(self) -> float:
        self.model.eval()
        return validation_recall(self.model, self.validation, bias=self._bias)

    def _stage_before(self, number: int) -> str:
        return _stages(self.config)[number - 1].name

    def _point_recall(self) -> float:
        """The validation recall of `LiteGenerator.point_scores`, without a beam search."""
        assert isinstance(self.model, LiteGenerator)
        self.model.eval()
        if not len(self.validation.texts):
            return 0.0
        return mean_recall(first_relevant(point_scores(self.model, self.validation), self.validation.is_relevant))

    def _bias(self, trie: VokenTrie) -> NodeBias | None:
        cosine = cosine_bias(self.model)
        if not self.prior_weight:
            return cosine
        prior = measure_prior(self.model, self.prior_captions, trie)
        return replace(cosine or NodeBias(), prior_weight=self.prior_weight, prior=prior)

    def _loss(self, batch: Int[np.ndarray, "rows 2"], stage: _Stage) -> Tensor:
        config, images = self.config, batch[:, 0]
        if stage.name == POINT_STAGE:
            return self._whole_discrimination(batch)
        state = self.model.encode([self.pairs.texts[row] for row in batch[:, 1]])
        total = torch.zeros((), device=self.model.device)
        if stage.generates:
            total = total + self._generation(state, self.pairs.vokens[images], self.pairs.soft, images)
            if config.text_only_weight and self.pairs.text_soft is not None:
                # The first entry of a text's soft target is its own voken: targets are sorted by weight.
                vokens = self.pairs.text_soft.entries[batch[:, 1], :, 0]
                text_loss = self._generation(state, vokens, self.pairs.text_soft, batch[:, 1])
                total = total + config.text_only_weight * text_loss
        if stage.discriminates:
            total = total + config.discrimination_weight * self._discrimination(state, batch)
        return total

    def _generation(
        self, state: Any, vokens: Int[np.ndarray, "rows M"], soft: SoftTargets | None, rows: Int[np.ndarray, " rows"]
    ) -> Tensor:
        device, temperature = self.model.device, self.config.logit_temperature
        sequence = torch.from_numpy(np.ascontiguousarray(vokens)).long().to(device)
        logits = self.model.teacher_forced(state, sequence[:, None])[:, 0]
        if soft is None:
            return generation_loss(logits, sequence, temperature=temperature)
        entries = torch.from_numpy(soft.entries[rows]).long().to(device)
        return soft_generation_loss(
            logits, entries, torch.from_numpy(soft.weights[rows]).to(device), temperature=temperature
        )

    def _fit_similarity(self) -> None:
        """Set the factor of the inner products to the one of a grid at which the first stage starts with the least
        loss: a step of the optimizer would move it by little."""
        assert isinstance(self.model, LiteGenerator)
        rows = self.pairs.draw(np.random.default_rng([self.seed, _FIT_SEED]))[:_FIT_QUERIES]
        losses = {}
        self.model.train()
        with torch.no_grad():
            for factor in _SIMILARITIES:
                self.model.similarity.fill_(factor)
                torch.manual_seed(self.seed)  # the same noise for all
                losses[factor] = float(self._whole_discrimination(rows))
            self.model.similarity.fill_(min(losses, key=losses.__getitem__))

    def _fit_length_weight(self) -> None:
        """Set the weight of long vectors to the one of a grid with which the first stage starts with the best recall.

        With a metric of queries (`TokenizerConfig.query_metric`), lengths vary with what no query asks for, and little
        of them or nothing should be taken off.
        """
        assert isinstance(self.model, LiteGenerator)
        recalls = {}
        for weight in _LENGTH_WEIGHTS:
            self.model.length_weight = weight
            recalls[weight] = self._point_recall()
        self.model.length_weight = max(recalls, key=recalls.__getitem__)

    def _whole_discrimination(self, batch: Int[np.ndarray, "rows 2"]) -> Tensor:
        """L_dis with every sequence of the training set in the list, or a draw of them beside the batch's own."""
        assert isinstance(self.model, LiteGenerator)
        if self.text_vectors is None:
            self.text_vectors = self.model.read_vectors(self.pairs.texts)
        texts = [self.pairs.texts[row] for row in batch[:, 1]]
        points = self.model.query_points(texts, self.text_vectors[torch.from_numpy(batch[:, 1])])
        leaves = self._candidates().leaves_beside(batch, _WHOLE_LIST, int(torch.randint(1 << 31, (1,))))
        own, right = self._candidates().right_answers(batch, leaves)
        vokens = torch.from_numpy(self._candidates().vokens_of(leaves)).long().to(self.model.device)
        scores = self.model.point_scores(points, vokens).float()
        device = scores.device
        scores = scores.masked_fill(torch.from_numpy(right).to(device), float("-inf"))
        return cross_entropy(scores, torch.from_numpy(own).to(device))

    def _candidates(self) -> CandidateSearch:
        if self.candidates is None:
            self.candidates = CandidateSearch(self.pairs, self.model.codebook_size)
        return self.candidates

    def _discrimination(self, state: Any, batch: Int[np.ndarray, "rows 2"]) -> Tensor:
        self.model.eval()
        with torch.no_grad():
            search_state = self.model.encode([self.pairs.texts[row] for row in batch[:, 1]])
            lists = self._candidates().find(self.model, search_state, batch, self.config.discrimination_beams)
        self.model.train()
        vokens = torch.from_numpy(lists.vokens).long().to(self.model.device)
        usable = torch.from_numpy(lists.usable).to(self.model.device)
        scores = sequence_log_prob(self.model.teacher_forced(state, vokens), vokens)
        loss = discrimination_loss(scores, usable)
        texts, rebuilt = self.pairs.text_vectors, self.pairs.rebuilt_vectors
        if self.config.distillation_weight and texts is not None and rebuilt is not None:
            similarity = np.einsum("qd,qkd->qk", texts[batch[:, 1]], rebuilt[lists.rows])
            teacher = torch.from_numpy(similarity / _TEACHER_TEMPERATURE).to(scores)
            loss = loss + self.config.distillation_weight * distillation_loss(scores, teacher, usable)
        return loss

    def _save(self, loop: TrainingLoop, number: int, epoch: int, step: int, loss: float) -> None:
        if self.folder is None:
            return
        position = {
            "stage": number,
            "epoch": epoch,
            "step": step,
            "loss": loss,
            "run": self._identity(),
            "untrained": self.untrained_recall,
            "length_weight": getattr(self.model, "length_weight", 0.0),
            "best_recall": loop.best_score,
            "best_index": self.best_index,
            "records": [vars(record) for record in self.records],
        }
        optimisation.save_checkpoint(self.folder, loop, position)
        self.saved_at = time.monotonic()

    def _resume(self, loop: TrainingLoop, position: dict[str, Any]) -> None:
        assert self.folder is not None
        loop.best_weights = optimisation.load_weights(self.folder, self._module())
        optimisation.load_optimizer(self.folder, loop.optimizer)
        loop.steps_taken = position["epoch"] * loop.steps_per_epoch + position["step"]
        loop.best_score = position["best_recall"]
        before_stage = len(self.records) - position["epoch"]
        loop.best_epoch = max(self.best_index - before_stage, -1)

    def _check_run(self, position: dict[str, Any]) -> None:
        if position["run"] != self._identity():
            raise ResumeError(
                f"{self.folder}: is the checkpoint of a run with other settings or data. "
                "Start it with the same ones, or remove the folder to start again."
            )

    def _identity(self) -> dict[str, Any]:
        """Values that must be equal in a checkpoint and in the run that continues it, as they are read from JSON."""
        settings = vars(self.config).items()
        return {
            "seed": self.seed,
            "config": {name: list(value) if isinstance(value, tuple) else value for name, value in settings},
            "pairs": len(self.pairs.pairs),
            "vokens": int(self.pairs.vokens.astype(np.int64).sum()),
        } | ({"prior_weight": self.prior_weight} if self.prior_weight else {})

    def _module(self) -> nn.Module:
        assert isinstance(self.model, nn.Module)
        return self.model


def _stages(config: GeneratorConfig) -> list[_Stage]:
    point = _Stage(POINT_STAGE, config.point_epochs, config.point_learning_rate, generates=False, discriminates=False)
    joint = config.discrimination == "joint"
    stages = [_Stage("generation", config.epochs, config.learning_rate, generates=True, discriminates=joint)]
    if config.moves_query_point:
        stages.insert(0, point)
    if config.discrimination == "staged":
        rate, keeps = config.discrimination_learning_rate, config.generation_beside_discrimination
        stages.append(_Stage("discrimination", config.discrimination_epochs, rate, generates=keeps, discriminates=True))
    return stages
