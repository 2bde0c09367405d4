"""`sample` against the inverse of a cumulative distribution computed by hand."""

from __future__ import annotations

import math

import numpy as np
import torch

from trace_gym.engines.sampling import sample


def one(logits: list[float], temperature: float, uniform: float) -> tuple[int, float]:
    tokens, logprobs = sample(
        torch.tensor([logits]), torch.tensor([temperature]).double(), torch.tensor([uniform]).double()
    )
    return int(tokens[0]), float(logprobs[0])


def test_a_uniform_picks_the_token_whose_interval_holds_it() -> None:
    logits = [math.log(p) for p in (0.1, 0.2, 0.3, 0.4)]
    for uniform, token in (
        (0.0, 0),
        (0.0999, 0),
        (0.1001, 1),
        (0.2999, 1),
        (0.3001, 2),
        (0.6001, 3),
        (0.9999, 3),
    ):
        drawn, logprob = one(logits, 1.0, uniform)
        assert drawn == token
        assert math.isclose(logprob, logits[token], abs_tol=1e-6)


def test_temperature_divides_the_logits() -> None:
    logits = [0.0, 2.0, -1.0]
    for temperature in (0.25, 1.0, 3.0):
        weights = np.exp(np.array(logits) / temperature)
        for uniform in (0.01, 0.5, 0.99):
            token, logprob = one(logits, temperature, uniform)
            assert token == int(np.searchsorted(weights.cumsum() / weights.sum(), uniform, side="right"))
            assert math.isclose(logprob, math.log(weights[token] / weights.sum()), abs_tol=1e-6)


def test_temperature_zero_is_argmax_with_log_probability_zero() -> None:
    for uniform in (0.0, 0.5, 1.0 - 2.0**-53):
        assert one([1.0, 3.0, 2.0, 3.0], 0.0, uniform) == (1, 0.0)


def test_no_token_of_probability_zero_is_ever_drawn() -> None:
    never = float("-inf")
    for uniform in (0.0, 1e-300, 0.5, 1.0 - 2.0**-53, 1.0):
        for logits in (
            [never, 0.0, never, 0.0, never],
            [never, never, 5.0],
            [0.0, never, never],
            [never, 0.0, -2000.0],
        ):
            token, logprob = one(logits, 1.0, uniform)
            assert math.isfinite(logits[token]) and logits[token] > -1000
            assert math.isfinite(logprob)


def test_rows_do_not_touch_each_other_and_logits_are_left_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 50, generator=generator).double()
    temperatures, uniforms = (
        torch.tensor([0.0, 0.5, 1.0, 1.0, 2.0, 1.0]).double(),
        torch.rand(6, generator=generator),
    )
    before = logits.clone()
    tokens, logprobs = sample(logits, temperatures, uniforms.double())
    assert torch.equal(logits, before)
    for row in range(6):
        alone = sample(logits[row : row + 1], temperatures[row : row + 1], uniforms[row : row + 1].double())
        assert int(alone[0]) == int(tokens[row])
        assert math.isclose(float(alone[1]), float(logprobs[row]), abs_tol=1e-12)


def test_broken_logits_give_nan_for_their_row_only() -> None:
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[0.0, nan, 1.0], [inf, 0.0, 1.0], [-inf, -inf, -inf], [0.0, 1.0, 2.0]])
    for temperature in (0.0, 1.0):
        tokens, logprobs = sample(
            logits, torch.full((4,), temperature).double(), torch.full((4,), 0.5).double()
        )
        assert logprobs.isnan().tolist() == [True, True, True, False]
        assert int(tokens.max()) < 3
