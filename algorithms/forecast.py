"""A small network that reads a history turn by turn and says after each turn how likely success still is.

Each turn becomes one frozen vector (`turns`), so it is embedded once and can be kept for replay. A small causal Transformer
runs over the turns of a path, and its answer at position t depends on turns 0 to t alone: one pass along a rollout answers
for the prompt and every prefix of it, as training does. Beside it stands a table with a learned number for every hashed token
and pair of neighbours, added up over the path (wide and deep, arXiv 1606.07792): pooled vectors blur which words a prompt
holds, and of a few hundred noisy outcomes the table learns that faster. K networks are stacked in arrays with a leading axis K.

Objective: the squared error against backed-up values, where prompts and prefixes have equal total weight; AdamW (arXiv
1711.05101) for a few epochs a step. An epoch is the step's new rows and as many rows, drawn at random, of the steps before, up
to `replay_steps` old: the policy moves, and older values with it. (TRACE, arXiv 2606.11119, gives one network, history in,
mean squared error; the form is ours, after GPS, arXiv 2602.01970.)

Invariants: initialisation, bootstrap and order are keyed by the run's seed, step and task, and no global generator is read or
written; what is said of a tree's prefixes does not depend on which other trees the same call asks about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from trace_gym.algorithm import Metrics, RunContext, StepContext
from trace_gym.algorithms.predictor import Float64Array, Place, PredictorSettings, by_tree
from trace_gym.algorithms.replay import Rows, paths_to, sample
from trace_gym.algorithms.turns import BUCKETS, TurnEmbedder
from trace_gym.errors import ConfigError
from trace_gym.seeding import keyed_rng

__all__ = ["Network", "balanced"]

Float32Array = npt.NDArray[np.float32]
MARGIN = 1e-6  # answers stay this far inside (0, 1)
CLIP = 5.0  # standardised features beyond this are outliers


class _Model(torch.nn.Module):
    """K causal pre-norm Transformers side by side. Layer norms carry no weights: the maps that follow can scale."""

    def __init__(self, members: int, features: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        shapes = {"embed": (features, width), "head": (width, 1)}
        for layer in range(layers):
            shapes |= {f"qkv{layer}": (width, 3 * width), f"out{layer}": (width, width)}
            shapes |= {f"up{layer}": (width, 2 * width), f"down{layer}": (2 * width, width)}
        self.layers = range(layers)
        self.wide = torch.nn.Parameter(torch.zeros(BUCKETS, 2 * members))
        self.weight = torch.nn.ParameterDict(
            {name: torch.zeros(members, *shape) for name, shape in shapes.items()}
        )
        self.bias = torch.nn.ParameterDict(
            {name: torch.zeros(members, 1, shape[1]) for name, shape in shapes.items()}
        )

    def initialise(self, seed: int) -> None:
        """Fan-in scaled normal weights, keyed by seed, name and member. A single network's head starts at 0, so its first
        answer is the mean; members of an ensemble must differ where nothing was seen."""
        with torch.no_grad():
            for name, weight in self.weight.items():
                members, rows, columns = weight.shape
                scale = {"head": 0.3 if members > 1 else 0.0}.get(name, 1.0) / math.sqrt(rows)
                for member in range(members):
                    rng = keyed_rng(seed, "predictor", "init", name, member)
                    weight[member] = torch.from_numpy(scale * rng.standard_normal((rows, columns)))

    def forward(self, turns: torch.Tensor, pieces: torch.Tensor) -> torch.Tensor:
        """Turns [R, T, F] and pieces [R, T, L] -> logits [K, R, T]."""
        rows, length, features = turns.shape
        members, width = self.weight["embed"].shape[0], self.weight["embed"].shape[2]
        h = self._map("embed", turns.reshape(1, -1, features).expand(members, -1, -1))
        for i in self.layers:
            qkv = self._map(f"qkv{i}", F.layer_norm(h, (width,)))
            q, k, v = qkv.view(members * rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + self._map(f"out{i}", seen.transpose(1, 2).reshape(members, rows * length, width))
            h = h + self._map(f"down{i}", F.gelu(self._map(f"up{i}", F.layer_norm(h, (width,)))))
        return self._map("head", F.layer_norm(h, (width,))).view(members, rows, length) + self._wide(pieces)

    def _wide(self, pieces: torch.Tensor) -> torch.Tensor:
        """[R, T, L] -> [K, R, T]: what the pieces of all turns so far add, with one table for prompts and one for turns."""
        rows, length, longest = pieces.shape
        sums = F.embedding_bag(pieces.reshape(-1, longest), self.wide, mode="sum", padding_idx=0)
        count = (pieces > 0).sum(dim=2).clamp(min=1).sqrt()
        each = (sums.view(rows, length, -1, 2) / count[:, :, None, None]).permute(3, 2, 0, 1)
        return torch.cat([each[0, :, :, :1], each[1, :, :, 1:]], dim=2).cumsum(dim=2)

    def _map(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias[name], x, self.weight[name])


def balanced(weight: torch.Tensor) -> torch.Tensor:
    """[K, R, T] weights scaled so that prompts (position 0) and prefixes (the rest) each sum to 1/2 for every member; where
    one of the two is missing the other sums to 1."""
    root, rest = weight[:, :, :1], weight[:, :, 1:]
    sums = [part.sum(dim=(1, 2), keepdim=True) for part in (root, rest)]
    present = sum((total > 0).to(weight.dtype) for total in sums)
    return torch.cat(
        [part / (total * present).clamp(min=1e-12) for part, total in zip((root, rest), sums, strict=True)], 2
    )


class Network:
    """See the module. `settings.members` of them, side by side."""

    def __init__(self, settings: PredictorSettings) -> None:
        s = settings
        least = min(s.width, s.layers, s.heads, s.members, s.epochs, s.replay_steps, s.batch)
        if least < 1 or s.width % s.heads or not min(s.lr, s.wide_lr) > 0 or s.weight_decay < 0:
            raise ConfigError(
                f"predictor: width={s.width} must be a multiple of heads={s.heads}; layers, members, epochs, replay_steps "
                "and batch at least 1; lr and wide_lr above 0; weight_decay at least 0"
            )
        self.settings, self.members = settings, settings.members
        self._embedder = TurnEmbedder(s.width)
        self._model = _Model(s.members, self._embedder.features, s.width, s.layers, s.heads)
        self._replay: list[Rows] = []
        # [2 prompt/later turn, 2 mean/deviation, F] of the first step that was learned
        self._scale: Float32Array | None = None

    def start(self, run: RunContext) -> None:
        self._embedder.start(run)
        self._model.initialise(run.seed)
        wide = self._model.wide
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self._model.parameters() if p is not wide], "lr": self.settings.lr},
            {"params": [wide], "lr": self.settings.wide_lr},
        ]
        self._optimiser = torch.optim.AdamW(groups, weight_decay=self.settings.weight_decay, fused=True)

    # ---- answering --------------------------------------------------------------------------------------------------

    def predict(self, ctx: StepContext, places: Sequence[Place]) -> Float64Array:
        """[K, n]; with `thompson` [1, n], one member's answers per prompt, drawn anew each step."""
        answers = np.full((self.members, len(places)), 0.5)
        self._embedder.embed(ctx, [place for path in paths_to(ctx, places)[0] for place in path])
        for group in by_tree(places):
            rows, where = self._rows(ctx, [places[i] for i in group])
            with torch.no_grad():
                seen = [torch.from_numpy(part[rows.index]) for part in (rows.turns, rows.pieces)]
                values = torch.sigmoid(self._model(*seen)).numpy()
            row, position = np.array(where).T
            answers[:, group] = values[:, row, position]
        answers = answers.clip(MARGIN, 1.0 - MARGIN)
        if not self.settings.thompson:
            return answers
        drawn = {task: ctx.rng("predictor", "thompson", task).integers(self.members) for task, _ in places}
        return np.array([[answers[drawn[task], i] for i, (task, _) in enumerate(places)]])

    # ---- learning ---------------------------------------------------------------------------------------------------

    def learn(
        self, ctx: StepContext, places: Sequence[Place], targets: Float64Array, weights: Float64Array
    ) -> Metrics:
        """`predictor_loss` is the mean over the step's updates of the balanced squared error, before each update."""
        assert len(set(places)) == len(places), "a place is learned once a step"
        self._replay = [rows for rows in self._replay if rows.step > ctx.step - self.settings.replay_steps]
        scored = [i for i in range(len(places)) if weights[i] > 0 and not np.isnan(targets[i])]
        if not scored:
            return {}
        places, targets, weights = [places[i] for i in scored], targets[scored], weights[scored]
        if self._scale is None:
            self._look(ctx, places, targets, weights)
        rows, where = self._rows(ctx, places)
        row, position = np.array(where).T
        rows.target[row, position] = targets
        rows.weight[:, row, position] = weights * self._bootstrap(ctx, places)
        self._replay.append(rows)
        losses = [self._epoch(ctx, epoch) for epoch in range(self.settings.epochs)]
        return {"predictor_loss": float(np.mean(losses))}

    def _look(
        self, ctx: StepContext, places: Sequence[Place], targets: Float64Array, weights: Float64Array
    ) -> None:
        """At the first data: the scale of each feature, for prompts and for later turns; and the mean value as the bias."""
        features = self._embedder.features
        rows, _ = self._rows(ctx, places)
        prompts = np.unique(rows.index[:, 0])
        later_turns = np.setdiff1d(rows.index[:, 1:], prompts)  # a row's padding is turn 0, a prompt
        self._scale = np.zeros((2, 2, features), dtype=np.float32)
        self._scale[:, 1] = 1.0  # where there was nothing to see
        for later, chosen_turns in enumerate((prompts, later_turns)):
            if len(chosen_turns):
                found = rows.turns[chosen_turns]
                deviation = found.std(axis=0)
                self._scale[later] = found.mean(axis=0), deviation + 0.1 * deviation.mean() + 1e-6
        roots = np.array([node == 0 for _, node in places])
        chosen = roots if roots.any() else ~roots
        mean = float(np.clip(np.average(targets[chosen], weights=weights[chosen]), 0.02, 0.98))
        with torch.no_grad():
            self._model.bias["head"].fill_(math.log(mean / (1.0 - mean)))

    def _bootstrap(self, ctx: StepContext, places: Sequence[Place]) -> Float64Array:
        """[K, n] each member's weight: exponential (the Bayesian bootstrap, Rubin 1981), one for a whole tree, for its nodes
        are not independent. 1 for a single network."""
        if self.members == 1:
            return np.ones((1, len(places)))
        drawn = {
            task: ctx.rng("predictor", "bootstrap", task).exponential(size=self.members) for task, _ in places
        }
        return np.stack([drawn[task] for task, _ in places], axis=1)

    def _epoch(self, ctx: StepContext, epoch: int) -> float:
        rng = ctx.rng("predictor", "epoch", epoch)
        turns, pieces, index, target, weight = sample(self._replay, rng)
        weight = balanced(weight)
        parts = np.array_split(rng.permutation(len(index)), math.ceil(len(index) / self.settings.batch))
        total = 0.0
        for part in parts:
            chosen = torch.from_numpy(part)
            probability = torch.sigmoid(self._model(turns[index[chosen]], pieces[index[chosen]]))
            error = (probability - target[chosen]).square() * weight[:, chosen]
            self._optimiser.zero_grad()
            (error.sum() * len(parts)).backward()  # members share no parameter, so a sum trains each alone
            self._optimiser.step()
            total += float(error.detach().sum()) / self.members
        return total

    # ---- rows -------------------------------------------------------------------------------------------------------

    def _rows(self, ctx: StepContext, places: Sequence[Place]) -> tuple[Rows, list[tuple[int, int]]]:
        """The paths that cover `places`, and the (row, position) of each place."""
        paths, where = paths_to(ctx, places)
        nodes = {place: i for i, place in enumerate(dict.fromkeys(p for path in paths for p in path))}
        turns, pieces = self._embedder.turns(ctx, list(nodes))
        if self._scale is not None:
            later = np.array([int(node > 0) for _, node in nodes])
            mean, deviation = self._scale[later, 0], self._scale[later, 1]
            turns = ((turns - mean) / deviation).clip(-CLIP, CLIP)
        index = np.zeros((len(paths), max(map(len, paths), default=0)), dtype=np.int64)
        for row, path in enumerate(paths):
            index[row, : len(path)] = [nodes[place] for place in path]
        weight = np.zeros((self.members, *index.shape), dtype=np.float32)
        rows = Rows(ctx.step, turns, pieces, index, np.zeros(index.shape, dtype=np.float32), weight)
        return rows, [where[place] for place in places]

    # ---- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Parameters, moments, feature scale and replay. The table of turn vectors is not in it: `start` makes it again."""
        parameters = dict(self._model.named_parameters())
        moments = {name: self._optimiser.state.get(p, {}) for name, p in parameters.items()}
        return {
            "parameters": {name: p.detach().numpy().copy() for name, p in parameters.items()},
            "moments": {
                name: {key: value.numpy().copy() for key, value in state.items()}
                for name, state in moments.items()
            },
            "scale": None if self._scale is None else self._scale.copy(),
            "replay": [{name: getattr(rows, name) for name in Rows.__slots__} for rows in self._replay],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `ValueError` when the state is another network's."""
        parameters = dict(self._model.named_parameters())
        saved = state["parameters"]
        if {n: tuple(p.shape) for n, p in parameters.items()} != {
            n: tuple(a.shape) for n, a in saved.items()
        }:
            raise ValueError("the predictor's network has another shape")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(torch.from_numpy(np.asarray(saved[name])))
                self._optimiser.state[parameter] = {
                    key: torch.from_numpy(np.array(value)).view(() if key == "step" else parameter.shape)
                    for key, value in state["moments"][name].items()  # a checkpoint gives scalars an axis
                }
        self._scale = None if state["scale"] is None else np.array(state["scale"])
        self._replay = [Rows(**rows) for rows in state["replay"]]
