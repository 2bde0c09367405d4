"""A policy that is a table of logits, for environments that can be solved: `policy.path=tabular`.

Everything else runs unchanged (engine, loop, trainer, checkpoints) while success probabilities and the policy gradient are
known exactly. Token ids: the actions come first, then the states, then the features of states:

    0 … A-1 actions · A … A+S-1 states · A+S … features       an observation is the features of its state, then the state

Invariants: a turn is one sampled token, which is an action and a stop token at once; the logits after a prefix are the table's
row of the last state in it, so no token but an action is ever sampled.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from trace_gym.algorithm import Metrics
from trace_gym.config import PolicyConfig
from trace_gym.engine import IntArray
from trace_gym.env import ForkableEnv, Snapshot
from trace_gym.errors import ConfigError
from trace_gym.exact import HasTable, TabularSpec, softmax, success, success_table
from trace_gym.finetune import Learner
from trace_gym.policy import pick_device

__all__ = ["NAME", "TabularLearner", "TabularPolicy", "TabularRenderer", "is_tabular", "load_tabular"]

NAME = "tabular"
EMBEDDING = 64  # dimensions of the fixed input embeddings, which predictors read and the policy does not
LEARNING_RATE = 0.1  # of Adam, per logit


class TabularRenderer:
    """Observations and actions as tokens; see the module. `len` is the vocabulary's size, as of a tokenizer."""

    def __init__(self, spec: TabularSpec) -> None:
        self._spec = spec
        actions, states = len(spec.actions), spec.states
        self.stop: tuple[int, ...] = tuple(range(actions))
        own = np.arange(actions, actions + states)[:, None]
        self._shown = np.concatenate([spec.features + actions + states, own], 1).astype(
            np.int32
        )  # [S, F + 1]
        self._shown.flags.writeable = False

    def __len__(self) -> int:
        return len(self._spec.actions) + self._spec.states + int(self._spec.features.max(initial=-1)) + 1

    def prompt(self, observation: str, *, system: str = "", tools: Sequence[dict[str, Any]] = ()) -> IntArray:
        return self.delta(observation, role="user", closed=True)

    def delta(self, observation: str, *, role: str, closed: bool) -> IntArray:
        tokens: IntArray = self._shown[self._spec.state(observation)]
        return tokens

    def action(self, tokens: IntArray) -> str:
        return " ".join(self._spec.actions[t] for t in tokens if 0 <= t < len(self._spec.actions))


class TabularPolicy(nn.Module):
    """The table as a causal language model: `policy(input_ids=[B, T]).logits` is [B, T, V], -inf for all but actions."""

    def __init__(self, spec: TabularSpec) -> None:
        super().__init__()
        self.spec = spec
        self.logits = nn.Parameter(torch.tensor(spec.initial_logits, dtype=torch.float32))  # [S, A]
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(len(TabularRenderer(spec)), EMBEDDING, generator=generator)
        self.embeddings: nn.Embedding = nn.Embedding.from_pretrained(vectors, freeze=True)
        outcomes, chances = torch.from_numpy(spec.outcomes), torch.from_numpy(spec.chances)
        self.register_buffer("_outcomes", outcomes, persistent=False)
        self.register_buffer("_chances", chances, persistent=False)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        states, actions = self.logits.shape
        state = input_ids - actions
        at = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (
            torch.where((state >= 0) & (state < states), at, -1).cummax(1).values
        )  # where a state was last shown
        row = torch.where(last >= 0, state.gather(1, last.clamp(min=0)), states)
        table = nn.functional.pad(self.logits, (0, 0, 0, 1))  # before any state, every action is as likely
        known = table[row]
        return SimpleNamespace(
            logits=nn.functional.pad(known, (0, len(self.embeddings.weight) - actions), value=-torch.inf)
        )

    def next_logits(self, prefixes: Sequence[IntArray]) -> torch.Tensor:
        """[B, A] logits after each prefix, as `ForwardEngine` asks for them. Every turn of an agent begins after a state."""
        states, actions = self.logits.shape
        rows = np.array([prefix[-1] for prefix in prefixes], dtype=np.int64) - actions
        if ((rows < 0) | (rows >= states)).any():
            raise ValueError("a prefix does not end with a state")
        return self.logits[torch.from_numpy(rows).to(self.logits.device)]

    # ---- what is known exactly --------------------------------------------------------------------------------------

    def probabilities(self, temperature: float = 1.0) -> npt.NDArray[np.float64]:
        """[S, A] of each action in each state."""
        return softmax(self.logits.detach().cpu().numpy(), temperature)

    def success(self, temperature: float = 1.0) -> torch.Tensor:
        """The success probability of an episode, a scalar that gradients flow through."""
        pi = (self.logits.double() / temperature).softmax(-1)
        ends = torch.tensor([1.0, 0.0], dtype=torch.float64, device=pi.device)
        values = torch.zeros(len(pi), dtype=torch.float64, device=pi.device)
        for _ in range(self.spec.turn_limit):
            after = torch.cat([values, ends])
            values = (pi * (self._chances * after[self._outcomes]).sum(-1)).sum(-1)  # type: ignore[operator, index]
        return values[torch.from_numpy(self.spec.starts).to(pi.device)].mean()

    def oracle(self, temperature: float = 1.0) -> Callable[[Sequence[Snapshot]], npt.NDArray[np.float64]]:
        """Exact success probabilities of the policy as it is now, for running episodes."""
        table = success_table(self.spec, self.probabilities(temperature))

        def ask(snapshots: Sequence[Snapshot]) -> npt.NDArray[np.float64]:
            states, turns = self.spec.locate(snapshots)
            return table[turns, states]

        return ask

    def exact_metrics(self, temperature: float = 1.0) -> Metrics:
        """`exact_success` of the policy as it is now, and `exact_greedy_success`."""
        greedy = np.eye(len(self.spec.actions))[self.probabilities().argmax(-1)]
        return {
            "exact_success": success(self.spec, self.probabilities(temperature)),
            "exact_greedy_success": success(self.spec, greedy),
        }


# ---- keeping and loading --------------------------------------------------------------------------------------------


class TabularLearner(Learner):
    """A table that learns, or not. `save` writes `table.json` and `table.safetensors`, which `load_tabular` reads."""

    learning_rate: ClassVar[float] = LEARNING_RATE

    def save(self, folder: Path, tokenizer: Any) -> None:
        fresh = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        about = {"kind": NAME, "fingerprint": self.model.spec.fingerprint}
        try:
            fresh.mkdir(parents=True)
            save_file({"logits": self.model.logits.detach().cpu().contiguous()}, fresh / "table.safetensors")
            (fresh / "table.json").write_text(json.dumps(about))
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def is_tabular(path: str) -> bool:
    """Whether `policy.path` means a table: the word, or the folder of a saved one."""
    return (path == NAME and not Path(path).exists()) or (Path(path) / "table.json").is_file()


def load_tabular(
    settings: PolicyConfig, env: ForkableEnv[Any], *, learns: bool
) -> tuple[TabularLearner, TabularRenderer]:
    """The environment's initial policy, or a saved one. Raises `ConfigError` where there is none or it does not fit."""
    if not isinstance(env, HasTable):
        raise ConfigError(
            f"policy.path={settings.path}: {env.env_id} is no table that could be solved; "
            "use env.id=trace_gym/Relay-v0, or another policy"
        )
    wrong = {
        "lora.rank": settings.lora.rank > 0,
        "dtype": settings.dtype == "bfloat16",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "template_args": bool(settings.template_args),
    }
    if any(wrong.values()):
        names = ", ".join(f"policy.{name}" for name, is_set in wrong.items() if is_set)
        raise ConfigError(f"a table of logits has no use for {names}: leave it out")
    spec = env.tabular()
    model = TabularPolicy(spec)
    if settings.path != NAME or Path(settings.path).exists():
        _read(Path(settings.path), model)
    model.to(pick_device("cpu" if settings.device == "auto" else settings.device))
    model.eval()
    model.logits.requires_grad_(learns)
    return TabularLearner(model, model, settings), TabularRenderer(spec)


def _read(folder: Path, model: TabularPolicy) -> None:
    try:
        about = json.loads((folder / "table.json").read_text())
        fits = isinstance(about, dict) and about.get("fingerprint") == model.spec.fingerprint
        logits = load_file(folder / "table.safetensors")["logits"]
    except Exception as error:  # files of any content
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{folder} cannot be read as a table: {reason}") from error
    if not fits or logits.shape != model.logits.shape:
        raise ConfigError(f"{folder} was saved for another table: give the env.options it was trained with")
    with torch.no_grad():
        model.logits.copy_(logits)
