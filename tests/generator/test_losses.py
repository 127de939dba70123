"""Stage 2's losses against numbers worked out by hand, and their gradients against finite differences."""

import math

import pytest
import torch

from voken.generator.train import (
    discrimination_loss,
    distillation_loss,
    generation_loss,
    sequence_log_prob,
    soft_generation_loss,
)


def test_generation_loss_by_hand():
    # level 1: probabilities 1/4, 3/4; level 2: 1/2, 1/2
    logits = torch.tensor([[[0.0, math.log(3.0)], [5.0, 5.0]]])
    loss = generation_loss(logits, torch.tensor([[1, 0]]))
    assert float(loss) == pytest.approx(-math.log(3 / 4) - math.log(1 / 2))


def test_generation_loss_temperature_divides_the_logits():
    logits = torch.tensor([[[0.0, 1.0]]])
    expected = -math.log(math.exp(2.0) / (1 + math.exp(2.0)))
    assert float(generation_loss(logits, torch.tensor([[1]]), temperature=0.5)) == pytest.approx(expected)


def test_generation_loss_is_a_mean_over_pairs_and_a_sum_over_levels():
    logits = torch.zeros(3, 4, 8)
    assert float(generation_loss(logits, torch.zeros(3, 4, dtype=torch.long))) == pytest.approx(4 * math.log(8))


def test_soft_targets_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0), -50.0]]])
    loss = soft_generation_loss(logits, torch.tensor([[[1, 0]]]), torch.tensor([[[0.9, 0.1]]]))
    assert float(loss) == pytest.approx(-0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4))


def test_soft_targets_with_all_weight_on_one_entry_are_one_hot():
    torch.manual_seed(0)
    logits, vokens = torch.randn(5, 3, 7), torch.randint(7, (5, 3))
    soft = soft_generation_loss(logits, vokens[..., None], torch.ones(5, 3, 1), temperature=0.5)
    torch.testing.assert_close(soft, generation_loss(logits, vokens, temperature=0.5))


def test_sequence_log_prob_by_hand():
    logits = torch.tensor([[[[0.0, math.log(3.0)], [5.0, 5.0]], [[0.0, 0.0], [math.log(9.0), 0.0]]]])
    scores = sequence_log_prob(logits, torch.tensor([[[1, 0], [0, 0]]]))
    assert scores[0].tolist() == pytest.approx([math.log(3 / 8), math.log(9 / 20)])


def test_discrimination_loss_by_hand():
    scores = torch.tensor([[math.log(0.2), math.log(0.6), math.log(0.2), 100.0]])
    usable = torch.tensor([[True, True, True, False]])
    assert float(discrimination_loss(scores, usable)) == pytest.approx(-math.log(0.2))


def test_discrimination_loss_is_not_the_double_softmax_of_the_official_code():
    scores = torch.tensor([[2.0, 0.0]])
    twice = -torch.log_softmax(scores.softmax(1), 1)[0, 0]
    loss = discrimination_loss(scores, torch.ones(1, 2, dtype=torch.bool))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2.0)))
    assert abs(float(loss) - float(twice)) > 0.1


def test_a_list_with_only_the_positive_costs_nothing_and_pulls_nothing():
    scores = torch.randn(2, 4, requires_grad=True)
    usable = torch.tensor([[True, False, False, False]] * 2)
    loss = discrimination_loss(scores, usable)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0)
    assert scores.grad.abs().max() == 0


def test_distillation_by_hand():
    scores = torch.tensor([[0.0, math.log(3.0), 9.0]])
    teacher = torch.tensor([[math.log(4.0), 0.0, 9.0]])
    usable = torch.tensor([[True, True, False]])
    expected = -0.8 * math.log(1 / 4) - 0.2 * math.log(3 / 4)
    assert float(distillation_loss(scores, teacher, usable)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["generation", "soft", "discrimination", "distillation"])
def test_gradients_against_finite_differences(name):
    torch.manual_seed(1)
    vokens = torch.randint(5, (2, 3, 4))
    usable = torch.tensor([[True, True, True], [True, True, False]])
    weights = torch.rand(2, 4, 5).softmax(-1)
    teacher = torch.randn(2, 3)

    def loss(logits):
        scores = sequence_log_prob(logits, vokens)
        return {
            "generation": lambda: generation_loss(logits[:, 0], vokens[:, 0], temperature=0.5),
            "soft": lambda: soft_generation_loss(logits[:, 0], torch.arange(5).expand(2, 4, 5), weights),
            "discrimination": lambda: discrimination_loss(scores, usable),
            "distillation": lambda: distillation_loss(scores, teacher, usable),
        }[name]()

    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    direction = torch.randn_like(logits)
    step = 1e-2
    with torch.no_grad():
        difference = (loss(logits + step * direction) - loss(logits - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=2e-3, abs=2e-4)
