"""The table as a policy: what the model saw, what the engine sampled, what the trainer reads, and what is known exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trace_gym.actor import Actor, build_actor
from trace_gym.algorithm import Algorithm, Branch, Credit, RunContext, StepContext
from trace_gym.config import TrainConfig, load_config
from trace_gym.engine import Request
from trace_gym.errors import ConfigError
from trace_gym.evaluate import evaluate
from trace_gym.exact import softmax, start_success, success, success_table
from trace_gym.ledger import Budget, Ledger
from trace_gym.observer import Silent
from trace_gym.pack import flatten
from trace_gym.policy import Policy, TensorBatch
from trace_gym.rollout import grow_trees, plant_trees
from trace_gym.runs import RunFolder
from trace_gym.tabular import TabularPolicy, TabularRenderer
from trace_gym.train import train

RELAY = (
    "env.id=trace_gym/Relay-v0",
    "policy.path=tabular",
    "log.tensorboard=false",
    "log.trees_every_steps=0",
    "eval.tasks=0",
)


def config(*more: str) -> TrainConfig:
    return load_config(None, [*RELAY, "env.options={kinds: 6, slip: 0.1, slack: 3}", *more])


@dataclass(kw_only=True)
class Forks(Algorithm):
    """`roots` rollouts of every task, then `more` from `anchors` anchors of each tree."""

    roots: int = 4
    anchors: int = 2
    more: int = 2

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        if not ctx.idle:
            return [Branch(task, count=self.roots) for task in ctx.pool]
        fresh = [t for t in ctx.idle if all(n.origin != "continuation" for n in ctx.trees[t].nodes)]
        found = [(t, node) for t in fresh for node in ctx.trees[t].anchors()[: self.anchors]]
        return [Branch(task, node, self.more) for task, node in found]

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return {
            task: Credit(np.arange(len(t), dtype=np.float64), np.ones(len(t)))
            for task, t in ctx.trees.items()
        }


def plant(actor: Actor, tasks: int) -> StepContext:
    names = actor.env.tasks("train")[:tasks]
    return plant_trees(actor.env, names, actor.renderer, RunContext(seed=0, tasks=names), 0, Budget())


def grow(actor: Actor, algorithm: Algorithm, *, tasks: int = 12) -> StepContext:
    return grow_trees(
        algorithm,
        plant(actor, tasks),
        engine=actor.engine,
        renderer=actor.renderer,
        env=actor.env,
        settings=actor.settings,
        ledger=Ledger(),
    )


# ---- tokens and log-probs -------------------------------------------------------------------------------------------


def test_a_path_is_what_rendering_its_messages_gives() -> None:
    actor = build_actor(config())
    spec = actor.env.tabular()  # type: ignore[attr-defined]
    for tree in grow(actor, Forks()).trees.values():
        for leaf in tree.leaves():
            path = [tree[i] for i in tree.path(leaf)]
            expected = list(actor.renderer.prompt(path[0].observation))
            for node in path[1:]:
                assert node.n_action == 1 and node.action == spec.actions[node.tokens[0]]
                expected.append(spec.actions.index(node.action))
                if node.status == "running":
                    expected += list(actor.renderer.delta(node.observation, role="user", closed=True))
            assert tree.tokens(leaf).tolist() == expected


def test_observation_tokens_are_unique_to_a_state_and_share_its_features() -> None:
    spec = build_actor(config()).env.tabular()  # type: ignore[attr-defined]
    render = TabularRenderer(spec)
    rows = np.array([render.prompt(text) for text in spec.observations])
    assert rows.min() >= len(spec.actions) and rows.max() == len(render) - 1
    assert len({tuple(row) for row in rows}) == spec.states == len(set(rows[:, -1]))
    assert len(set(rows[:, 0])) == 6 and len(set(rows[:, 1])) == 6  # kinds; stations and the dead end
    assert render.stop == (0, 1, 2, 3)
    assert render.action(np.array([2], dtype=np.int32)) == "c" and render.action(rows[0]) == ""


def test_logits_after_a_prefix_are_the_row_of_its_last_state() -> None:
    actor = build_actor(config())
    policy: TabularPolicy = actor.model
    states = policy.spec.states
    state = torch.arange(4, 4 + states)
    ids = torch.stack(
        [torch.full((states,), 4 + states + 1), state, torch.full((states,), 2), state.flip(0)], 1
    )
    logits = policy(input_ids=ids, use_cache=False).logits
    assert logits.shape == (states, 4, len(actor.tokenizer))
    assert torch.equal(logits[:, 1, :4], policy.logits) and torch.equal(logits[:, 2, :4], policy.logits)
    assert torch.equal(logits[:, 3, :4], policy.logits.flip(0))
    assert bool((logits[:, 0, :4] == 0).all()) and bool((logits[..., 4:] == -torch.inf).all())
    assert policy.get_input_embeddings().weight.shape[0] == len(actor.tokenizer)
    assert torch.equal(TabularPolicy(policy.spec).embeddings.weight, policy.embeddings.weight)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_trainer_reads_the_log_probs_that_the_engine_sampled_under(temperature: float) -> None:
    actor = build_actor(config(f"rollout.temperature={temperature}"), learns=True)
    algorithm = Forks()
    ctx = grow(actor, algorithm)
    credits = algorithm.credit(ctx)
    rows = flatten(ctx.trees, credits, {task: c.weight for task, c in credits.items()})
    batch = TensorBatch.of(rows, actor.device)
    policy = actor.learner.policy(temperature)
    logprobs = policy.logprobs(batch.tokens, batch.weight > 0)
    assert int((batch.weight > 0).sum()) == sum(len(tree) - 1 for tree in ctx.trees.values())
    assert logprobs.detach().numpy() == pytest.approx(batch.behaviour.numpy(), abs=1e-6)


def test_gradients_reach_the_rows_that_were_visited_and_no_others() -> None:
    actor = build_actor(config(), learns=True)
    prompt = actor.renderer.prompt(next(iter(actor.model.spec.observations)))
    tokens = torch.tensor([[*prompt, 1]])
    wanted = torch.zeros_like(tokens, dtype=torch.bool)
    wanted[0, -1] = True
    Policy(actor.model).logprobs(tokens, wanted).sum().backward()
    expected = torch.eye(4)[1] - actor.model.logits[0].softmax(-1)
    assert torch.allclose(actor.model.logits.grad[0], expected) and not actor.model.logits.grad[1:].any()
    assert [name for name, p in actor.model.named_parameters() if p.requires_grad] == ["logits"]


# ---- what is known exactly ------------------------------------------------------------------------------------------


def test_rollouts_succeed_as_often_as_the_table_says() -> None:
    actor = build_actor(config())
    tasks = actor.env.tasks("train")[:30]
    found = evaluate(
        actor.env,
        tasks,
        engine=actor.engine,
        renderer=actor.renderer,
        settings=actor.settings,
        draws=40,
        seed=1,
    )
    by_kind = start_success(actor.model.spec, actor.model.probabilities())
    error = np.sqrt((by_kind * (1 - by_kind)).mean() / found.rollouts)
    assert found.rollouts == 1200 and abs(found.success - by_kind.mean()) < 4 * error
    assert actor.model.exact_metrics()["exact_success"] == pytest.approx(by_kind.mean())


def test_the_temperature_is_part_of_what_is_known() -> None:
    actor = build_actor(config())
    cold = success(actor.model.spec, softmax(actor.model.logits.detach().numpy(), 0.01))
    assert actor.model.exact_metrics(0.01)["exact_success"] == pytest.approx(cold)
    assert actor.model.exact_metrics()["exact_greedy_success"] == pytest.approx(cold, abs=1e-3)


def test_squared_steps_of_the_value_add_up_to_its_uncertainty() -> None:
    """The success martingale: E[sum_t (V_{t+1} - V_t)^2] = V_0 (1 - V_0), noise of the environment included."""
    actor = build_actor(config())
    table = success_table(actor.model.spec, actor.model.probabilities())
    excess = []
    for tree in grow(actor, Forks(roots=60, anchors=0)).trees.values():
        values = tree.returns()
        for i, node in enumerate(tree.nodes):
            if node.snapshot is not None:
                (state,), (turns,) = actor.model.spec.locate([node.snapshot])
                values[i] = table[turns, state]
        for leaf in tree.leaves():
            path = values[tree.path(leaf)]
            excess.append(float((np.diff(path) ** 2).sum() - path[0] * (1 - path[0])))
    error = np.std(excess, ddof=1) / np.sqrt(len(excess))
    assert len(excess) == 12 * 60 and abs(np.mean(excess)) < 4 * error < 0.05


def test_a_restored_place_with_the_same_streams_goes_on_in_the_same_way() -> None:
    actor = build_actor(config())
    tree = max(grow(actor, Forks()).trees.values(), key=len)
    node = tree.anchors()[0]

    def suffix(restored: Any, seed: int) -> list[Any]:
        observation, _ = actor.env.restore(restored)
        prefix, seen, over = tree.tokens(node), list[Any]([observation]), False
        while not over:
            actor.engine.submit(Request(prefix, 1, seed=seed + len(prefix), stop=actor.renderer.stop))
            (done,) = actor.engine.poll(1.0)
            observation, reward, terminated, truncated, _ = actor.env.step(actor.renderer.action(done.tokens))
            seen += [done.tokens.tolist(), observation, reward]
            over = terminated or truncated
            if not over:
                shown = actor.renderer.delta(observation, role="user", closed=True)
                prefix = np.concatenate([prefix, done.tokens, shown])
        return seen

    snapshot = tree[node].snapshot
    assert suffix(snapshot, 5) == suffix(type(snapshot).from_bytes(snapshot.to_bytes()), 5)  # type: ignore[union-attr]
    assert len({str(suffix(snapshot, seed)) for seed in range(0, 1000, 100)}) > 1


# ---- runs -----------------------------------------------------------------------------------------------------------


def numbers(run: RunFolder) -> list[dict[str, Any]]:
    rows = [*run.metrics(), *run.evals()]
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "tokens_per_s"))} for row in rows]


def test_training_raises_exact_success(tmp_path: Path) -> None:
    setup = config(f"out={tmp_path}", "budget.policy_tokens=8000", "optim.lr=0.2")
    before = success(build_actor(setup).model.spec, build_actor(setup).model.probabilities())
    rows: list[Any] = list(train(setup, Silent()).metrics())
    assert rows[-1]["exact_success"] > before + 0.15
    assert all(row["mismatch"] < 1e-5 for row in rows)
    assert rows[-1]["policy_tokens"] == rows[-1]["env_steps"] > 7900


def test_the_default_learning_rate_is_the_tables_own(tmp_path: Path) -> None:
    for more, rate in (((), 0.1), (("optim.lr=0.03",), 0.03)):
        run = train(config(f"out={tmp_path}", "budget.steps=1", "optim.warmup_steps=0", *more), Silent())
        assert run.metrics()[0]["lr"] == pytest.approx(rate)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    words = ("deterministic=true", "budget.steps=5", "log.checkpoint_every_steps=2", "eval.tasks=10")
    whole = train(config(f"out={tmp_path}", *words), Silent())
    asked = iter([False, False, False, True])
    cut = train(config(f"out={tmp_path}", *words), Silent(), stop=lambda: next(asked))
    assert len(cut.metrics()) == 3
    resumed = train(cut.config(), Silent(), resume=cut)
    assert numbers(RunFolder.open(resumed.path)) == numbers(RunFolder.open(whole.path))


def test_the_final_policy_is_a_folder_that_acts_again(tmp_path: Path) -> None:
    run = train(config(f"out={tmp_path}", "budget.steps=2"), Silent())
    saved = config(f"policy.path={run.policy_folder}")
    assert build_actor(saved).model.exact_metrics()["exact_success"] == run.metrics()[-1]["exact_success"]
    with pytest.raises(ConfigError, match="another table"):
        build_actor(config(f"policy.path={run.policy_folder}", "env.options.world=3"))
    (run.policy_folder / "table.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="cannot be read"):
        build_actor(saved)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("env.id=trace_gym/Math-v0", "env.options={}"), "no table"),
        (("policy.lora.rank=4",), "policy.lora.rank"),
        (("policy.gradient_checkpointing=true",), "policy.gradient_checkpointing"),
        (("policy.dtype=bfloat16",), "policy.dtype"),
    ],
)
def test_what_a_table_cannot_do_is_refused(more: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_actor(config(*more))
