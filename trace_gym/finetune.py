"""What of a policy learns: every weight, or low-rank adapters beside frozen weights (LoRA, Hu et al. 2021).

    full    float32 weights learn. Where forward passes run in bfloat16, the trainer casts as it goes (autocast) and the engine
            samples from a bfloat16 copy, which `Engine.load` refreshes each step.
    LoRA    float32 adapters learn; the frozen weights are kept in the precision of forward passes, for nothing is ever
            added to them. The engine samples from the trainer's very module with its adapters active.

Invariants: what an optimiser changes is float32, for steps smaller than bfloat16's rounding would be lost. `model` is the plain
Hugging Face module either way (adapters sit inside its layers), and `save` leaves a plain folder of float32 weights.
"""

from __future__ import annotations

import copy
import secrets
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from trace_gym.config import LoraConfig, PolicyConfig
from trace_gym.errors import ConfigError
from trace_gym.models import resolve
from trace_gym.policy import Layout, Policy, pick_device
from trace_gym.tiny import load_policy_folder, save, writing

__all__ = ["Learner", "load_frozen", "load_learner"]

ADAPTER = "default"  # peft's name of the only adapter


@dataclass(frozen=True, slots=True)
class Learner:
    """A policy and what of it learns: the parameters of `model` that require gradients, none of them in `load_frozen`'s."""

    model: Any
    sampler: Any  # what an engine samples from: `model` itself, or a copy in lower precision
    settings: PolicyConfig
    autocast: torch.dtype | None = None
    adapted: Any = None  # peft's wrapper around `model`, where adapters learn
    learning_rate: ClassVar[float] = 3e-4  # where the settings give none

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    def learned(self) -> list[torch.nn.Parameter]:
        """The parameters that learn: what the optimiser gets."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def policy(self, temperature: float) -> Policy:
        """The policy as it learns."""
        return Policy(
            self.model,
            temperature=temperature,
            autocast=self.autocast,
            checkpointing=self.settings.gradient_checkpointing,
            layout=self.settings.layout,
        )

    def reference(self, temperature: float) -> Policy:
        """The policy as it is before it learns: a frozen copy, or the same model with its adapters switched off."""
        if self.adapted is not None:
            return _Unadapted(
                self.adapted,
                self.model,
                temperature=temperature,
                autocast=self.autocast,
                layout=self.settings.layout,
            )
        frozen = copy.deepcopy(self.model).requires_grad_(False)
        return Policy(frozen, temperature=temperature, autocast=self.autocast, layout=self.settings.layout)

    def plain_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of the policy as a plain model, W + (alpha / rank) B A where adapters learn, one at a time.

        For engines that keep weights of their own.
        """
        adapted = {} if self.adapted is None else _adapters(self.model)
        for name, parameter in self.model.named_parameters():
            place, base, rest = name.partition(".base_layer.")
            inside = any(name.startswith(f"{other}.") for other in adapted)
            if base:
                delta = adapted[place].get_delta_weight(ADAPTER) if rest == "weight" else 0.0
                yield f"{place}.{rest}", (parameter.detach().float() + delta).to(parameter.dtype)
            elif not inside:
                yield name, parameter.detach()

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Write the policy as a plain Hugging Face folder, adapters merged into the weights, whole or not at all."""
        save(folder, self.model if self.adapted is None else _merged(self.model), tokenizer)

    def save_adapter(self, folder: Path) -> None:
        """Write the adapters as peft keeps them; nothing where there are none. Raises `RunError` when the disk refuses."""
        if self.adapted is None:
            return
        fresh = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            with writing(folder):
                # By default peft asks the hub whether the base model has the same embeddings.
                self.adapted.save_pretrained(fresh, save_embedding_layers=False)
                shutil.rmtree(folder, ignore_errors=True)
                fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


class _Unadapted(Policy):
    """The frozen weights under the adapters."""

    def __init__(
        self,
        adapted: Any,
        model: Any,
        *,
        temperature: float,
        autocast: torch.dtype | None,
        layout: Layout,
    ) -> None:
        super().__init__(model, temperature=temperature, autocast=autocast, layout=layout)
        self._adapted = adapted

    def logprobs(self, tokens: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        with self._adapted.disable_adapter(), torch.no_grad():
            return super().logprobs(tokens, wanted)


# ---- loading --------------------------------------------------------------------------------------------------------


def load_learner(settings: PolicyConfig, *, seed: int, samples: bool = True) -> tuple[Learner, Any]:
    """The policy that `settings` describe, ready to learn, and its tokenizer. `seed` draws the adapters' first weights.

    `samples`: whether an engine will sample from `sampler`, and not from weights of its own.
    Raises `ConfigError` for a policy that cannot be had or adapters that do not fit it.
    """
    device, half = _where(settings)
    adapts = settings.lora.rank > 0
    precision = torch.bfloat16 if half and adapts else torch.float32
    model, tokenizer = load_policy_folder(resolve(settings.path), dtype=precision, device=device)
    autocast = torch.bfloat16 if half else None
    adapted = _adapt(model, settings.lora, seed) if adapts else None
    model.eval()  # no dropout anywhere: engine and trainer must agree on a token's probability
    sampler: Any = model
    if half and not adapts and samples:
        sampler = copy.deepcopy(model).bfloat16().requires_grad_(False)
    return Learner(model, sampler, settings, autocast, adapted), tokenizer


def load_frozen(settings: PolicyConfig) -> tuple[Learner, Any]:
    """The policy that `settings` describe as it is, in the precision of forward passes, and its tokenizer."""
    device, half = _where(settings)
    dtype = torch.bfloat16 if half else torch.float32
    model, tokenizer = load_policy_folder(resolve(settings.path), dtype=dtype, device=device)
    model.eval().requires_grad_(False)
    return Learner(model, model, settings), tokenizer


def _where(settings: PolicyConfig) -> tuple[torch.device, bool]:
    """The device, and whether forward passes run in bfloat16."""
    device = pick_device(settings.device)
    return device, settings.dtype == "bfloat16" or (settings.dtype == "auto" and device.type == "cuda")


# ---- adapters -------------------------------------------------------------------------------------------------------


def _adapt(model: Any, lora: LoraConfig, seed: int) -> Any:
    """Put adapters into `model` and freeze the rest. They change nothing at first, for one of their factors is 0."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    config = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=list(lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    outside = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those that matter are an error below
            torch.default_generator.manual_seed(seed)
            adapted = get_peft_model(model, config)
    except ValueError as error:  # no layer is called that
        raise ConfigError(f"policy.lora.targets: {' '.join(str(error).split())[:200]}") from error
    if outside != {id(model.get_input_embeddings()), id(model.get_output_embeddings())}:
        raise ConfigError(
            "policy.lora.targets: leave embeddings and output head out; they may share their weights"
        )
    return adapted


def _adapters(model: Any) -> dict[str, Any]:
    """The layers that have adapters, by their place in the model."""
    from peft.tuners.lora import LoraLayer

    return {place: module for place, module in model.named_modules() if isinstance(module, LoraLayer)}


def _merged(model: Any) -> Any:
    """A plain copy to be saved, in float32 on the CPU: W + (alpha / rank) B A for each weight W that has an adapter.

    It cannot run: buffers that are no part of a saved model hold nothing.
    """
    adapted = _adapters(model)
    weights = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
    for place, layer in adapted.items():
        inside = {name: weights.pop(name) for name in list(weights) if name.startswith(f"{place}.")}
        base = f"{place}.base_layer."
        weights |= {name.replace(base, f"{place}."): t for name, t in inside.items() if name.startswith(base)}
        delta = layer.get_delta_weight(ADAPTER).detach().float().cpu()
        weights[f"{place}.weight"] = weights[f"{place}.weight"] + delta
    with torch.device("meta"):  # allocates nothing, draws nothing
        plain = type(model)(copy.deepcopy(model.config))
    plain.load_state_dict(weights, strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain.eval()
