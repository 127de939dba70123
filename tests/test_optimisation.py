"""The training loop: schedules by hand, early stopping, and which weights are left in the end."""

import pytest
import torch

from voken.optimisation import TrainingLoop, adamw, learning_rate_factor


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
    ],
)
def test_schedules_by_hand(schedule, factors):
    """Six steps, of which two rise; the way down starts at the top and would reach 0 at the seventh."""
    assert [learning_rate_factor(step, 6, schedule, 0.34) for step in range(6)] == pytest.approx(factors)


def run(scores, **settings):
    """Train one weight down the slope of a plane; return the loop, and the weight after each epoch."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    optimizer = adamw(model, learning_rate=0.1, weight_decay=0.0)
    loop = TrainingLoop(model, optimizer, steps_per_epoch=2, **{"epochs": 6, "schedule": "constant"} | settings)
    weights = []
    for epoch in loop.epochs():
        for _ in range(2):
            assert loop.step(model.weight.sum()) == pytest.approx(-0.1 * (loop.steps_taken - 1), abs=1e-5)
        loop.record_score(scores[epoch])
        weights.append(float(model.weight.detach()))
    loop.restore_best()
    return loop, weights


@pytest.mark.parametrize(("patience", "epochs"), [(0, 3), (1, 3), (2, 4), (4, 6), (None, 6)])
def test_patience_counts_epochs_since_the_best(patience, epochs):
    loop, weights = run([1, 2, 2, 0, 1, 1.5], patience=patience)
    assert len(weights) == epochs
    assert loop.best_epoch == 1
    assert float(loop.model.weight.detach()) == weights[1]
    assert not loop.model.training


def test_without_scores_the_last_epoch_is_the_best():
    loop, weights = run([None] * 6, patience=1)
    assert loop.best_epoch == 5
    assert float(loop.model.weight.detach()) == weights[5]
