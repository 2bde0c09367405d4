"""Drawing tokens: inverse-CDF sampling, so that a row's token depends on its own logits and its own uniform alone.

The distribution is softmax(logits / temperature) and nothing else; temperature 0 is argmax. Weights are in single
precision or better, as a trainer computes them, and are summed in double, lest the tail of a large vocabulary be lost.
"""

from __future__ import annotations

import torch

__all__ = ["sample"]


def sample(
    logits: torch.Tensor, temperatures: torch.Tensor, uniforms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B] and log-probabilities [B] (float64) from logits [B, V], temperatures [B] and uniforms [B] in [0, 1).

    `temperatures` and `uniforms` are float64. A token of probability zero is never drawn. A row whose logits hold NaN
    or +inf, or nothing finite, gets a NaN.
    """
    greedy = temperatures == 0
    dtype = torch.promote_types(logits.dtype, torch.float32)
    divisors = torch.where(greedy, 1.0, temperatures).to(dtype)[:, None]
    weights = logits.to(dtype) / divisors
    best = weights.max(dim=-1)
    weights.sub_(best.values[:, None]).exp_()
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    total = sums[:, -1]
    target = torch.minimum(
        uniforms * total, torch.nextafter(total, torch.zeros_like(total))
    )  # not rounded up to total
    # The first sum above the target rose there, so its weight is positive.
    drawn = torch.searchsorted(sums, target[:, None], right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
    tokens = torch.where(greedy, best.indices, drawn)
    chosen = (logits.gather(1, tokens[:, None]).to(dtype) / divisors)[:, 0]
    logprobs = (chosen - best.values).double() - total.log()
    return tokens, torch.where(greedy & logprobs.isfinite(), 0.0, logprobs)
