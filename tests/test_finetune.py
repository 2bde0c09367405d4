"""Adapters, full fine-tuning, checkpointed gradients and saved policies, on models too small to wait for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_train import AlternateSigns
from trace_gym.actor import build_actor
from trace_gym.algorithms.grpo import GRPO
from trace_gym.config import LoraConfig, PolicyConfig, load_config
from trace_gym.engine import Completion, Request
from trace_gym.engines.transformers import TransformersEngine
from trace_gym.errors import ConfigError
from trace_gym.evaluate import evaluate_policy
from trace_gym.finetune import Learner, load_frozen, load_learner
from trace_gym.observer import Silent
from trace_gym.pack import Row
from trace_gym.policy import Layout, Policy
from trace_gym.tiny import load_policy_folder, make_model, make_tokenizer, save
from trace_gym.train import train
from trace_gym.update import Updater

SIGNS = f"{AlternateSigns.__module__}:{AlternateSigns.__name__}"
LORA = LoraConfig(rank=4, alpha=8)
TOKENIZER = make_tokenizer(["Ann has 3 apples."] * 2, 280)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy's folder, with weights large enough for log-probs to differ."""
    folder = tmp_path_factory.mktemp("finetune") / "base"
    model = make_model(TOKENIZER, d=32, layers=2, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    save(folder, model, TOKENIZER)
    return folder


def learner_of(base: Path, **settings: Any) -> Learner:
    return load_learner(PolicyConfig(path=str(base), **settings), seed=3)[0]


def some_rows() -> list[Row]:
    """Four rows of 10 to 13 tokens of which the last six are trained."""
    rng, rows = np.random.default_rng(0), []
    for length in range(10, 14):
        weight = np.zeros(length, dtype=np.float32)
        weight[-6:] = 1 / 24
        tokens = rng.integers(5, 270, size=length).astype(np.int32)
        advantage, behaviour = rng.normal(size=length), np.full(length, -5.0)
        rows.append(Row(tokens, advantage.astype(np.float32), weight, behaviour.astype(np.float32)))
    return rows


def teach(learner: Learner, steps: int = 3, lr: float = 0.01) -> None:
    updater = Updater(
        policy=learner.policy(1.0),
        optimizer=torch.optim.AdamW(learner.learned(), lr=lr),
        lr=lambda updates: lr,
    )
    for _ in range(steps):
        assert updater.update(GRPO(), some_rows(), np.random.default_rng(0))["grad_norm"] > 0


def wanted_of(tokens: torch.Tensor) -> torch.Tensor:
    wanted = torch.ones_like(tokens, dtype=torch.bool)
    wanted[:, 0] = False
    return wanted


def read(policy: Policy) -> torch.Tensor:
    """Log-probs [3, 12] of fixed tokens."""
    tokens = torch.from_numpy(np.random.default_rng(1).integers(5, 270, size=(3, 12)))
    with torch.no_grad():
        return policy.logprobs(tokens, wanted_of(tokens))


def read_folder(folder: Path) -> torch.Tensor:
    return read(Policy(load_policy_folder(folder)[0]))


# ---- what learns ----------------------------------------------------------------------------------------------------


def test_adapters_learn_and_nothing_else_does(base: Path) -> None:
    learner = learner_of(base, lora=LORA)
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    teach(learner)
    changed = {n for n, p in learner.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {name for name in before if ".lora_" in name}
    assert len(changed) == 2 * 2 * 7  # two factors at each of seven linear layers of both blocks
    assert len(learner.learned()) == len(changed)


def test_adapters_change_nothing_at_first_and_depend_on_the_seed_alone(base: Path) -> None:
    state = torch.get_rng_state()
    one, same = learner_of(base, lora=LORA), learner_of(base, lora=LORA)
    other = load_learner(PolicyConfig(path=str(base), lora=LORA), seed=4)[0]
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(read(one.policy(1.0)), read_folder(base), atol=1e-6, rtol=0)
    for a, b in zip(one.learned(), same.learned(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(one.learned(), other.learned(), strict=True))


def test_every_weight_learns_without_adapters(base: Path) -> None:
    learner = learner_of(base)
    before = [p.detach().clone() for p in learner.learned()]
    teach(learner)
    assert len(before) == len(list(learner.model.parameters()))
    assert all(not torch.equal(p, old) for p, old in zip(learner.learned(), before, strict=True))


def test_chosen_layers_get_the_adapters(base: Path) -> None:
    learner = learner_of(base, lora=LoraConfig(rank=2, targets=("q_proj", "v_proj")))
    names = {n for n, p in learner.model.named_parameters() if p.requires_grad}
    assert len(names) == 2 * 2 * 2 and all("q_proj" in name or "v_proj" in name for name in names)


@pytest.mark.parametrize("target", ["no_such_layer", "lm_head", "embed_tokens"])
def test_layers_that_cannot_have_adapters_are_refused(base: Path, target: str) -> None:
    with pytest.raises(ConfigError, match=r"policy\.lora\.targets") as caught:
        learner_of(base, lora=LoraConfig(rank=2, targets=(target,)))
    assert "\n" not in str(caught.value)


# ---- precision ------------------------------------------------------------------------------------------------------


def dtypes(parameters: Sequence[torch.nn.Parameter]) -> set[torch.dtype]:
    return {parameter.dtype for parameter in parameters}


def test_what_learns_is_float32_and_what_is_frozen_is_as_forward_passes_are(base: Path) -> None:
    half, single = torch.bfloat16, torch.float32
    lora = learner_of(base, dtype="bfloat16", lora=LORA)
    assert dtypes(lora.learned()) == {single}
    assert dtypes([p for p in lora.model.parameters() if not p.requires_grad]) == {half}
    assert lora.sampler is lora.model
    full = learner_of(base, dtype="bfloat16")
    assert dtypes(full.learned()) == {single} and dtypes(list(full.sampler.parameters())) == {half}
    assert learner_of(base, dtype="float32").autocast is None
    frozen = load_frozen(PolicyConfig(path=str(base), dtype="bfloat16", lora=LORA))[0]
    assert dtypes(list(frozen.model.parameters())) == {half} and frozen.learned() == []


def test_bfloat16_learners_learn(base: Path) -> None:
    exact = read_folder(base)
    for settings in ({}, {"lora": LORA}):
        learner = learner_of(base, dtype="bfloat16", **settings)
        torch.testing.assert_close(
            read(learner.policy(1.0)), exact, atol=0.3, rtol=0
        )  # a wrong model: several
        teach(learner)
        assert (read(learner.policy(1.0)) - exact).abs().max() > 0.3


def test_a_copy_to_sample_from_gets_each_steps_weights(base: Path) -> None:
    learner = learner_of(base, dtype="bfloat16")
    engine = TransformersEngine(learner.sampler, max_batch=2)
    teach(learner)
    engine.load(learner.model.named_parameters(), 1)
    for mine, copied in zip(learner.model.parameters(), learner.sampler.parameters(), strict=True):
        assert torch.equal(mine.bfloat16(), copied)


# ---- the reference --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [LoraConfig(), LORA])
def test_the_reference_stays_what_the_policy_was(base: Path, lora: LoraConfig) -> None:
    learner = learner_of(base, lora=lora)
    policy, reference = learner.policy(1.0), learner.reference(1.0)
    start = read_folder(base)
    teach(learner)
    now = read(policy)
    assert (now - start).abs().max() > 0.1
    torch.testing.assert_close(read(reference), start, atol=1e-6, rtol=0)
    assert torch.equal(read(policy), now)  # the adapters are on again
    teach(learner, steps=1)  # and learn on
    assert not torch.equal(read(policy), now)
    if lora.rank:
        assert reference.model is learner.model  # no copy


# ---- gradient checkpointing -----------------------------------------------------------------------------------------


def gradients(learner: Learner, policy: Policy) -> list[torch.Tensor]:
    tokens = torch.from_numpy(np.random.default_rng(2).integers(5, 270, size=(2, 15)))
    policy.logprobs(tokens, wanted_of(tokens)).sum().backward()
    return [p.grad for p in learner.learned() if p.grad is not None]


@pytest.mark.parametrize("lora", [LoraConfig(), LORA])
def test_checkpointing_recomputes_layers_and_gives_the_same_gradient(base: Path, lora: LoraConfig) -> None:
    plain, saving = (learner_of(base, lora=lora, gradient_checkpointing=on) for on in (False, True))
    runs = []
    found = []
    for learner in (plain, saving):
        policy, passes = learner.policy(1.0), list[int]()
        learner.model.model.layers[0].mlp.register_forward_pre_hook(
            lambda *_, passes=passes: passes.append(1)
        )
        found.append(gradients(learner, policy))
        runs.append(len(passes))
    one, other = found
    assert runs == [1, 2]  # one more in the backward pass
    assert len(one) == len(other) == len(plain.learned())
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert not any(module.training for module in saving.model.modules())


def test_checkpointing_leaves_dropout_off_and_the_engine_alone(base: Path) -> None:
    learner = learner_of(base, gradient_checkpointing=True)
    for layer in learner.model.model.layers:
        layer.mlp.register_module("drop", torch.nn.Dropout(0.5).eval())
        layer.mlp.register_forward_hook(lambda module, _, out: module.drop(out))
    policy = learner.policy(1.0)
    tokens = torch.arange(5, 20)[None]
    torch.testing.assert_close(
        policy.logprobs(tokens, wanted_of(tokens)), read_with(learner_of(base), tokens), atol=1e-6, rtol=0
    )
    assert sample_greedily(learner.model) == sample_greedily(learner_of(base).model)


@pytest.mark.parametrize("layout", ["packed", "flat"])
def test_layers_that_drop_out_in_their_own_name_do_not(layout: Layout) -> None:
    """OPT's layers look at their own mode, which checkpointing needs to be that of training."""
    from transformers import OPTConfig, OPTForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 30, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24}
    config = OPTConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, dropout=0.5)
    model, tokens = OPTForCausalLM(config).eval(), torch.arange(5, 20)[None]
    found = []
    for checkpointing in (False, True):
        model.zero_grad()
        policy = Policy(model, checkpointing=checkpointing, layout=layout)
        logprobs = policy.logprobs(tokens, wanted_of(tokens))
        logprobs.sum().backward()
        found.append((logprobs.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)


def read_with(learner: Learner, tokens: torch.Tensor) -> torch.Tensor:
    return learner.policy(1.0).logprobs(tokens, wanted_of(tokens))


def sample_greedily(model: Any) -> list[int]:
    engine = TransformersEngine(model, max_batch=1)
    engine.submit(Request(np.arange(5, 15, dtype=np.int32), max_tokens=8, temperature=0.0, seed=0, stop=()))
    done: list[Completion] = []
    while not done:
        done = engine.poll(10.0)
    return [int(token) for token in done[0].tokens]


def test_a_model_without_checkpointing_says_so() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match=r"policy\.gradient_checkpointing=false"):
        Policy(model, checkpointing=True)


# ---- saved ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own doing
def test_merged_and_adapter_folders_give_the_log_probs_of_the_trained_policy(
    base: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    learner = learner_of(base, lora=LORA)
    teach(learner)
    trained = read(learner.policy(1.0))
    assert (trained - read_folder(base)).abs().max() > 0.1
    for _ in range(2):  # the second time there is something to replace
        learner.save(tmp_path / "policy", TOKENIZER)
        learner.save_adapter(tmp_path / "adapter")
    assert torch.equal(read(learner.policy(1.0)), trained)  # saving changes nothing
    torch.testing.assert_close(read_folder(tmp_path / "policy"), trained, atol=1e-4, rtol=0)
    model = PeftModel.from_pretrained(load_policy_folder(base)[0], str(tmp_path / "adapter"))
    torch.testing.assert_close(read(Policy(model.get_base_model())), trained, atol=1e-5, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "policy"]


def test_a_merged_folder_is_like_its_base(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    learner = learner_of(base, dtype="bfloat16", lora=LORA)
    learner.save(tmp_path / "policy", TOKENIZER)
    merged, original = (load_file(folder / "model.safetensors") for folder in (tmp_path / "policy", base))
    assert {n: t.shape for n, t in merged.items()} == {n: t.shape for n, t in original.items()}
    assert {t.dtype for t in merged.values()} == {torch.float32}  # small changes are not rounded away
    config, before = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "policy", base))
    assert config == before
    assert {p.name for p in (tmp_path / "policy").iterdir()} == {p.name for p in base.iterdir()}


def test_conv1d_layers_merge_too(tmp_path: Path) -> None:
    """GPT-2 keeps its linear layers' weights the other way round."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(TOKENIZER), n_embd=16, n_layer=1, n_head=2, n_positions=32)
    save(tmp_path / "base", GPT2LMHeadModel(config), TOKENIZER)
    learner = learner_of(tmp_path / "base", lora=LoraConfig(rank=2, targets=("c_attn", "c_fc")))
    teach(learner, steps=6, lr=0.05)
    learner.save(tmp_path / "policy", TOKENIZER)
    trained = read(learner.policy(1.0))
    assert (trained - read_folder(tmp_path / "base")).abs().max() > 0.02
    torch.testing.assert_close(read_folder(tmp_path / "policy"), trained, atol=1e-4, rtol=0)


# ---- the output head ------------------------------------------------------------------------------------------------


def kinds_of_model() -> dict[str, tuple[Any, bool]]:
    """Models, and whether their logits are the output head's and nothing else."""
    import transformers as t

    size: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
    }
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
    gemma: dict[str, Any] = {"head_dim": 8, "final_logit_softcapping": 30.0}
    return {
        "llama": (t.LlamaForCausalLM(t.LlamaConfig(**size, **heads)), True),
        "qwen3": (t.Qwen3ForCausalLM(t.Qwen3Config(**size, **heads, head_dim=8)), True),
        "gpt2": (t.GPT2LMHeadModel(t.GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2)), True),
        "gemma2 caps": (t.Gemma2ForCausalLM(t.Gemma2Config(**size, **heads, **gemma)), False),
        "cohere scales": (t.CohereForCausalLM(t.CohereConfig(**size, **heads, logit_scale=0.06)), False),
        "granite scales": (t.GraniteForCausalLM(t.GraniteConfig(**size, **heads, logits_scaling=8.0)), False),
    }


def test_log_probs_are_the_models_whatever_it_does_to_its_logits() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        models = kinds_of_model()
    tokens = torch.from_numpy(np.random.default_rng(3).integers(1, 60, size=(2, 9)))
    for kind, (model, head_only) in models.items():
        model.eval()
        policy, rows = Policy(model), list[int]()
        model.get_output_embeddings().register_forward_pre_hook(
            lambda _, args, rows=rows: rows.append(args[0].numel() // args[0].shape[-1])
        )
        wanted = wanted_of(tokens)
        wanted[:, :5] = False
        with torch.no_grad():
            got = policy.logprobs(tokens, wanted)
            table = torch.log_softmax(model(input_ids=tokens).logits[:, :-1], dim=-1)
        expected = table.gather(-1, tokens[:, 1:, None])[..., 0]
        torch.testing.assert_close(got[:, 5:], expected[:, 4:], atol=1e-5, rtol=1e-5, msg=kind)
        assert (got[:, :5] == 0).all()
        assert rows[0] == (8 if head_only else 16), kind  # positions that the head was run on


def test_a_cap_that_small_logits_do_not_show_is_found() -> None:
    model = kinds_of_model()["gemma2 caps"][0].eval()
    with torch.no_grad():
        logits = model(input_ids=torch.arange(4)[None]).logits
        plain = model.get_output_embeddings()(model.base_model(input_ids=torch.arange(4)[None])[0])
    torch.testing.assert_close(logits, plain, atol=1e-3, rtol=1e-3)  # the trap is real
    assert not Policy(model)._head_only


# ---- the way through the house --------------------------------------------------------------------------------------


def lora_run(policy: Path, out: Path, *more: str) -> Any:
    words = [
        f"policy.path={policy}", f"out={out}", "env.options.difficulty=1-2", "rollout.prompts_per_step=4",
        "policy.lora.rank=4", "policy.gradient_checkpointing=true", "optim.lr=3e-3", "budget.steps=3",
        "eval.tasks=8", "deterministic=true", f"algorithm={{name: '{SIGNS}', kl: 0.1}}", *more,
    ]  # fmt: skip
    return load_config(None, words)


def test_a_run_with_adapters_leaves_a_plain_policy_and_the_adapters(policy: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    run = train(lora_run(policy, tmp_path, "log.checkpoint_every_steps=1"), Silent())
    rows = run.metrics()
    assert all(
        float(row["mismatch"]) < 1e-4 for row in rows
    )  # the engine samples from what the trainer trains
    assert float(rows[0]["kl"]) < 1e-9 < float(rows[-1]["kl"])  # the reference is the policy before
    assert (run.path / "adapter" / "adapter_model.safetensors").is_file()
    plain = build_actor(load_config(None, [f"policy.path={run.policy_folder}"])).model
    assert not any("lora" in name for name, _ in plain.named_parameters())
    result = evaluate_policy(
        run.config().model_copy(update={"policy": PolicyConfig(path=str(run.policy_folder))})
    )
    assert result.success == pytest.approx(float(run.evals()[-1]["eval_success"]))
    newest = max((run.path / "checkpoints").glob("step-*"))
    with safe_open(newest / "weights.safetensors", "pt") as file:
        assert all(".lora_" in name for name in file.keys())  # noqa: SIM118


def test_a_run_with_adapters_that_stopped_goes_on_as_if_it_had_not(policy: Path, tmp_path: Path) -> None:
    whole = train(lora_run(policy, tmp_path, "name=whole", "eval.tasks=0"), Silent())
    looks = iter([False, False, True])
    half = train(lora_run(policy, tmp_path, "name=half", "eval.tasks=0"), Silent(), stop=lambda: next(looks))
    assert len(half.metrics()) == 2
    train(half.config(), Silent(), resume=half)
    names = ("policy/model.safetensors", "adapter/adapter_model.safetensors")
    for name in names:
        assert (whole.path / name).read_bytes() == (half.path / name).read_bytes()
