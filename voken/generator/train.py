"""Training the generator (section 3.2): L_gen, then or with L_dis, judged on validation queries only.

The run is a list of steps, each with its own seed derived from (seed, stage, epoch, step), so a run resumed
from a checkpoint goes on exactly as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from voken.config import GeneratorConfig
from voken.decoding.beam import beam_search
from voken.decoding.trie import VokenTrie
from voken.errors import EmptyDataError, ResumeError
from voken.generator import training_state
from voken.generator.candidates import CandidateSearch, as_tensors
from voken.generator.interface import Generator
from voken.generator.losses import (
    discrimination_loss,
    distillation_loss,
    generation_loss,
    sequence_log_prob,
    soft_generation_loss,
)
from voken.generator.pairs import SoftTargets, ValidationQueries, VokenPairs
from voken.metrics import FirstRelevant, mean_recall
from voken.progress import Progress, no_progress
from voken.shapes import Int

_VALIDATION_BEAMS = 10
_TEACHER_TEMPERATURE = 0.05
_CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a stage."""

    stage: str
    """"generation", or "discrimination" where L_dis is trained after it."""
    epoch: int
    loss: float
    recall: float
    """Mean of R@1, R@5 and R@10 over the validation queries."""


@dataclass(frozen=True)
class GeneratorHistory:
    """What training did, and which epoch's weights were kept."""

    epochs: tuple[EpochRecord, ...]
    best: int
    """Index into `epochs`; -1 is the generator as it was before training."""
    untrained_recall: float


@dataclass(frozen=True)
class _Stage:
    name: str
    epochs: int
    learning_rate: float
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
) -> GeneratorHistory:
    """Train `model` in place and leave it with the weights that were best on validation.

    With `checkpoints` the run is saved there every minute and each epoch; started again with the same
    arguments it goes on from there and ends with the same weights. Ctrl-C loses at most a minute.
    Raises `EmptyDataError` without pairs, `ResumeError` if the checkpoint is of another run.
    """
    if not len(pairs.pairs):
        raise EmptyDataError("the generator has no training pairs: no picture of the train split has a caption.")
    assert isinstance(model, nn.Module)
    trainer = _Trainer(model, pairs, validation, config, seed, checkpoints, progress)
    return trainer.run()


def validation_recall(model: Generator, validation: ValidationQueries, beams: int = _VALIDATION_BEAMS) -> float:
    """Mean of R@1, R@5 and R@10 over the validation pictures, ranked by log-probability alone; 0 without queries.

    `voken_lab.evaluation` measures the figures to report.
    """
    if not len(validation.texts):
        return 0.0
    trie = VokenTrie.from_vokens(validation.vokens, model.codebook_size)
    leaf_of_image = trie.leaf_of(validation.vokens)
    blocks = [validation.texts[start : start + 64] for start in range(0, len(validation.texts), 64)]
    leaf = np.concatenate([beam_search(model, trie, texts, beams).leaf for texts in blocks])
    pictures = np.where(leaf >= 0, np.bincount(leaf_of_image)[leaf.clip(0)], 0)
    right_in_leaf = np.zeros((len(leaf), trie.sequences), np.int32)
    np.add.at(right_in_leaf, (validation.relevant[:, 0], leaf_of_image[validation.relevant[:, 1]]), 1)
    right = np.where(leaf >= 0, np.take_along_axis(right_in_leaf, leaf.clip(0), 1), 0)
    # The pictures of a leaf tie, so the first leaf with a right picture decides. Without one, all counts are 0.
    first, query = (right > 0).argmax(1), np.arange(len(leaf))
    returned = right.any(1)
    above = (pictures.cumsum(1) - pictures)[query, first] * returned
    return mean_recall(FirstRelevant(above, pictures[query, first] * returned, right[query, first]))


class _Trainer:
    def __init__(
        self,
        model: Generator,
        pairs: VokenPairs,
        validation: ValidationQueries,
        config: GeneratorConfig,
        seed: int,
        checkpoints: Path | None,
        progress: Progress,
    ) -> None:
        self.model, self.pairs, self.validation, self.config = model, pairs, validation, config
        self.seed, self.folder, self.progress = seed, checkpoints, progress
        self.candidates: CandidateSearch | None = None
        self.records: list[EpochRecord] = []
        self.best_recall = self.untrained = 0.0
        self.best_index = -1
        self.best: dict[str, Tensor] = {}
        self.saved_at = time.monotonic()

    def run(self) -> GeneratorHistory:
        place = training_state.load_place(self.folder) if self.folder else None
        if place is None:
            self.untrained = self.best_recall = validation_recall(self._evaluated(), self.validation)
            self.best = _copy(training_state.trained_weights(self._module()))
        else:
            self._restore(place)
        for number, stage in enumerate(_stages(self.config)):
            if place is None or number >= place["stage"]:
                resume = place if place is not None and number == place["stage"] else None
                self._run_stage(number, stage, resume)
        self._module().load_state_dict(self.best, strict=False)
        self.model.eval()
        return GeneratorHistory(tuple(self.records), self.best_index, self.untrained)

    def _run_stage(self, number: int, stage: _Stage, place: dict[str, Any] | None) -> None:
        if place is None and number:
            self._module().load_state_dict(self.best, strict=False)
        optimizer = torch.optim.AdamW(
            self.model.parameter_groups(), lr=stage.learning_rate, weight_decay=self.config.weight_decay, fused=True
        )
        if place is not None and self.folder:
            training_state.load_optimizer(self.folder, optimizer)
        rows_an_epoch = len(np.unique(self.pairs.pairs[:, 0]))
        steps_an_epoch = math.ceil(rows_an_epoch / self.config.batch_size)
        first_epoch, first_step = (place["epoch"], place["step"]) if place else (0, 0)
        loss = place["loss"] if place else 0.0
        for epoch in range(first_epoch, stage.epochs):
            if self._gave_up(number, stage, epoch):
                return
            rows = self.pairs.draw(np.random.default_rng([self.seed, number, epoch]))
            self.model.train()
            for step in range(first_step, steps_an_epoch):
                batch = rows[step * self.config.batch_size : (step + 1) * self.config.batch_size]
                done = epoch * steps_an_epoch + step
                rate = stage.learning_rate * _schedule(done, stage.epochs * steps_an_epoch, self.config.warmup)
                loss += self._step(optimizer, batch, stage, rate, [self.seed, number, epoch, step]) * len(batch)
                self.progress(f"generator, {stage.name}", done + 1, stage.epochs * steps_an_epoch)
                if self.folder and time.monotonic() - self.saved_at > _CHECKPOINT_SECONDS and step + 1 < steps_an_epoch:
                    self._save(number, epoch, step + 1, loss, optimizer)
            recall = validation_recall(self._evaluated(), self.validation)
            self.records.append(EpochRecord(stage.name, epoch + 1, loss / len(rows), recall))
            if recall > self.best_recall or not self.validation.texts:
                self.best_recall, self.best_index = recall, len(self.records) - 1
                self.best = _copy(training_state.trained_weights(self._module()))
            first_step, loss = 0, 0.0
            self._save(number, epoch + 1, 0, 0.0, optimizer)

    def _gave_up(self, number: int, stage: _Stage, epoch: int) -> bool:
        own = [index for index, record in enumerate(self.records) if record.stage == stage.name]
        reference = max(self.best_index, own[0] - 1) if own else 0
        return bool(own) and self.config.patience > 0 and len(self.records) - 1 - reference >= self.config.patience

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        batch: Int[np.ndarray, "rows 2"],
        stage: _Stage,
        rate: float,
        key: list[int],
    ) -> float:
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with _autocast(self.model.device, self.config.autocast):
            loss = self._loss(batch, stage)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._trained(), self.config.gradient_clip)
        optimizer.step()
        return float(loss.detach())

    def _loss(self, batch: Int[np.ndarray, "rows 2"], stage: _Stage) -> Tensor:
        config, images = self.config, batch[:, 0]
        texts = [self.pairs.texts[row] for row in batch[:, 1]]
        state = self.model.encode(texts)
        total = torch.zeros((), device=self.model.device)
        weighs_generation = not (stage.discriminates and config.discrimination == "staged")
        if weighs_generation:
            total = total + self._generation(state, self.pairs.vokens[images], self.pairs.soft, images)
            if config.text_only_weight and self.pairs.text_soft is not None:
                # the first entry of a text's soft target is its own voken: targets are sorted by weight
                own = self.pairs.text_soft.entries[batch[:, 1], :, 0]
                text_loss = self._generation(state, own, self.pairs.text_soft, batch[:, 1])
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

    def _discrimination(self, state: Any, batch: Int[np.ndarray, "rows 2"]) -> Tensor:
        if self.candidates is None:
            self.candidates = CandidateSearch(self.pairs, self.model.codebook_size)
        self.model.eval()
        with torch.no_grad():
            searched = self.model.encode([self.pairs.texts[row] for row in batch[:, 1]])
            lists = self.candidates.find(self.model, searched, batch[:, 0], self.config.discrimination_beams)
        self.model.train()
        vokens, usable = as_tensors(lists, self.model.device)
        scores = sequence_log_prob(self.model.teacher_forced(state, vokens), vokens)
        loss = discrimination_loss(scores, usable)
        texts, rebuilt = self.pairs.text_vectors, self.pairs.rebuilt_vectors
        if self.config.distillation_weight and texts is not None and rebuilt is not None:
            similarity = np.einsum("qd,qkd->qk", texts[batch[:, 1]], rebuilt[lists.rows])
            teacher = torch.from_numpy(similarity / _TEACHER_TEMPERATURE).to(scores)
            loss = loss + self.config.distillation_weight * distillation_loss(scores, teacher, usable)
        return loss

    def _save(self, number: int, epoch: int, step: int, loss: float, optimizer: torch.optim.Optimizer) -> None:
        if self.folder is None:
            return
        place = {
            "stage": number,
            "epoch": epoch,
            "step": step,
            "loss": loss,
            "run": self._identity(),
            "untrained": self.untrained,
            "best_recall": self.best_recall,
            "best_index": self.best_index,
            "records": [vars(record) for record in self.records],
        }
        training_state.save_state(self.folder, self._module(), optimizer, self.best, place)
        self.saved_at = time.monotonic()

    def _restore(self, place: dict[str, Any]) -> None:
        assert self.folder is not None
        if place["run"] != self._identity():
            raise ResumeError(
                f"{self.folder}: is the checkpoint of a run with other settings or data. "
                "Start it with the same ones, or remove the folder to start again."
            )
        self.best = training_state.load_weights(self.folder, self._module())
        self.untrained, self.best_recall = place["untrained"], place["best_recall"]
        self.best_index = place["best_index"]
        self.records = [EpochRecord(**record) for record in place["records"]]

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that goes on from it."""
        return {
            "seed": self.seed,
            "config": _listed(vars(self.config)),
            "pairs": len(self.pairs.pairs),
            "vokens": int(self.pairs.vokens.astype(np.int64).sum()),
        }

    def _module(self) -> nn.Module:
        assert isinstance(self.model, nn.Module)
        return self.model

    def _trained(self) -> Iterator[nn.Parameter]:
        return (weight for weight in self.model.parameters() if weight.requires_grad)

    def _evaluated(self) -> Generator:
        self.model.eval()
        return self.model


def _stages(config: GeneratorConfig) -> list[_Stage]:
    generation = _Stage("generation", config.epochs, config.learning_rate, config.discrimination == "joint")
    if config.discrimination != "staged":
        return [generation]
    rate = config.discrimination_learning_rate
    return [generation, _Stage("discrimination", config.discrimination_epochs, rate, True)]


def _schedule(done: int, total: int, warmup: float) -> float:
    """Linear warm-up over the first share of the steps, then linear decay to nothing."""
    rising = max(1, int(warmup * total))
    if done < rising:
        return (done + 1) / rising
    return max(0.0, (total - done) / max(1, total - rising))


def _autocast(device: torch.device, wanted: bool) -> AbstractContextManager[Any]:
    if not wanted or (device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _listed(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
