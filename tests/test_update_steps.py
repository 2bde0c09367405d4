"""What one update changes: mini-batches against the start's log-probs, their scale, clipping, the learning rate."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests import test_update
from tests.test_update import reference_loss, rows_of, two_rollouts
from trace_gym.algorithms.grpo import GRPO
from trace_gym.pack import Row
from trace_gym.policy import Policy
from trace_gym.tree import Tree
from trace_gym.update import Updater

model = test_update.model  # the fixture

UNSCALED = GRPO(scale="none")  # advantages that do not depend on the group's size


class InOrder(np.random.Generator):
    """Leaves rows as they come, so that a test knows the mini-batches."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def permutation(self, x: Any, axis: int = 0) -> Any:
        return np.arange(x)


def twice_two_rollouts() -> Tree:
    """The two rollouts of `two_rollouts`, and once more the same: halves with the same loss."""
    tree, same = two_rollouts(), two_rollouts()
    offset = len(tree) - 1
    for node in same.nodes[1:]:
        parent = node.parent + offset if node.parent else 0
        fields = {name: getattr(node, name) for name in type(node).__slots__}
        tree.append(type(node)(**fields | {"parent": parent}))
    return tree


def sgd(
    net: Any, lr: float | Callable[[int], float], *, max_grad_norm: float = 1e9, minibatches: int = 1
) -> Updater:
    """An updater whose steps are minus the rate times the gradient."""
    schedule = lr if callable(lr) else lambda updates: lr
    optimizer = torch.optim.SGD(net.parameters(), lr=schedule(0))
    return Updater(Policy(net), optimizer, lr=schedule, max_grad_norm=max_grad_norm, minibatches=minibatches)


def flat(net: Any) -> torch.Tensor:
    """All parameters, in one vector."""
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]).clone()


def gradient(now: Any, start: Any, tree: Tree, algorithm: GRPO) -> torch.Tensor:
    loss = reference_loss(now, start, tree, algorithm)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(now.parameters()))])


def moved(net: Any, by: torch.Tensor) -> Any:
    out = copy.deepcopy(net)
    torch.nn.utils.vector_to_parameters(flat(net) + by, out.parameters())
    return out


def rows() -> list[Row]:
    return rows_of(two_rollouts(), GRPO())


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def test_the_second_mini_batch_is_clipped_against_the_weights_of_the_start(model: Any) -> None:
    """Each half of the rows holds one `two_rollouts`, so both steps follow its loss, the second one from moved weights."""
    lr, tree = 0.3, two_rollouts()
    one = moved(model, -lr * gradient(model, model, tree, UNSCALED))
    second = gradient(one, model, tree, UNSCALED)
    assert float(second.norm()) > 1e-2  # not all of it is clipped away
    assert relative(gradient(one, one, tree, UNSCALED), second) > 0.1  # and the ratios do matter
    net = copy.deepcopy(model)
    metrics = sgd(net, lr, minibatches=2).update(UNSCALED, rows_of(twice_two_rollouts(), UNSCALED), InOrder())
    assert metrics["clip_fraction"] > 0
    assert relative(flat(net) - flat(one), -lr * second) < 1e-3


def test_a_mini_batch_steps_as_far_as_the_whole_batch_would(model: Any) -> None:
    """Its rows hold a part of the weight, which is undone: two steps, too small to matter to each other, go twice as far."""
    whole, parts = copy.deepcopy(model), copy.deepcopy(model)
    sgd(whole, 1e-3).update(GRPO(), rows(), InOrder())
    sgd(parts, 1e-3, minibatches=2).update(GRPO(), rows(), InOrder())
    assert relative(flat(parts) - flat(model), 2 * (flat(whole) - flat(model))) < 0.02


def test_gradients_are_scaled_down_to_the_largest_norm(model: Any) -> None:
    net = copy.deepcopy(model)
    metrics = sgd(net, 1.0, max_grad_norm=1e-3).update(GRPO(), rows(), InOrder())
    expected = gradient(model, model, two_rollouts(), GRPO())
    assert metrics["grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-3)  # as it was before
    step = flat(net) - flat(model)
    assert float(step.norm()) == pytest.approx(1e-3, rel=1e-2)
    assert relative(step, -expected * 1e-3 / expected.norm()) < 1e-2  # the direction is kept


def test_gradients_below_the_largest_norm_are_left_alone(model: Any) -> None:
    net = copy.deepcopy(model)
    expected = gradient(model, model, two_rollouts(), GRPO())
    sgd(net, 1e-2, max_grad_norm=2 * float(expected.norm())).update(GRPO(), rows(), InOrder())
    assert relative(flat(net) - flat(model), -1e-2 * expected) < 1e-3


def test_every_update_takes_its_own_learning_rate(model: Any) -> None:
    net = copy.deepcopy(model)
    updater = sgd(net, lambda updates: [0.1, 0.0, 0.05][updates])
    places = [flat(net)]
    for rate in (0.1, 0.0, 0.05):
        assert updater.update(GRPO(), rows(), InOrder())["lr"] == rate
        places.append(flat(net))
    expected = gradient(model, model, two_rollouts(), GRPO())
    assert relative(places[1] - places[0], -0.1 * expected) < 1e-3
    assert torch.equal(places[2], places[1])
    assert not torch.equal(places[3], places[2])


def test_mini_batches_count_as_updates(model: Any) -> None:
    halves = rows_of(twice_two_rollouts(), UNSCALED)
    only_first, only_second = copy.deepcopy(model), copy.deepcopy(model)
    sgd(only_first, lambda updates: [0.1, 0.0][updates], minibatches=2).update(UNSCALED, halves, InOrder())
    sgd(only_second, lambda updates: [0.0, 0.1][updates], minibatches=2).update(UNSCALED, halves, InOrder())
    expected = -0.1 * gradient(model, model, two_rollouts(), UNSCALED)
    assert relative(flat(only_first) - flat(model), expected) < 1e-3
    assert relative(flat(only_second) - flat(model), expected) < 1e-3
