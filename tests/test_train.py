"""The way through the house: warm-up, training, evaluation, with a real (tiny) language model on the real environment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trace_gym.algorithm import Algorithm, Branch, Credit, StepContext
from trace_gym.boards import Boards
from trace_gym.config import TrainConfig, load_config
from trace_gym.errors import ConfigError
from trace_gym.evaluate import evaluate_policy, summarise, wilson
from trace_gym.observer import Silent
from trace_gym.plugins import make_env
from trace_gym.runs import RunFolder
from trace_gym.train import train
from trace_gym.warmup import demonstrate, demonstration_row

SMALL = ("env.options.difficulty=1-2", "eval.tasks=8", "rollout.prompts_per_step=4", "algorithm.group=4")


def settings(policy: Path, out: Path, *more: str) -> TrainConfig:
    return load_config(None, [f"policy.path={policy}", f"out={out}", *SMALL, "budget.steps=3", *more])


class Watching(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[Mapping[str, float]] = []
        self.evaluations: list[Mapping[str, float]] = []
        self.looks = 0

    def progress(self, ctx: StepContext, ledger: Any) -> None:
        self.looks += 1

    def step(self, metrics: Mapping[str, float]) -> None:
        self.steps.append(metrics)

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        self.evaluations.append(metrics)


def test_a_run_leaves_everything_that_was_promised(policy: Path, tmp_path: Path) -> None:
    watching = Watching()
    run = train(settings(policy, tmp_path), watching)
    assert len(watching.steps) == len(run.metrics()) == 3 and watching.looks > 3
    assert [row["step"] for row in run.evals()] == [0.0, 3.0] and len(watching.evaluations) == 2
    last = run.metrics()[-1]
    trees = [tree for step in range(3) for tree in run.load_trees(step)]
    assert last["policy_tokens"] == sum(node.n_action for tree in trees for node in tree.nodes)
    assert last["rollout_units"] == 3 * 4 * 4
    assert last["env_steps"] == sum(len(tree) - 1 for tree in trees)
    result = evaluate_policy(
        settings(run.policy_folder, tmp_path)
    )  # the final policy is a folder like any other
    assert result.success == pytest.approx(float(run.evals()[-1]["eval_success"]))


@dataclass(kw_only=True)
class AlternateSigns(Algorithm):
    """Every turn is trained, whatever its outcome: for tests of the machinery under a policy that never succeeds."""

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        return [] if ctx.idle else [Branch(task, count=3) for task in ctx.pool]

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return {
            t: Credit(np.where(np.arange(len(tree)) % 2, 1.0, -1.0), np.ones(len(tree)))
            for t, tree in ctx.trees.items()
        }


def alternating(policy: Path, out: Path, *more: str) -> TrainConfig:
    own = f"algorithm={{name: '{__name__}:AlternateSigns'}}"
    words = [w for w in SMALL if not w.startswith("algorithm")]
    return load_config(None, [f"policy.path={policy}", f"out={out}", *words, "budget.steps=3", own, *more])


def test_stored_log_probs_are_the_trainers_own(policy: Path, tmp_path: Path) -> None:
    """On policy in float32, trainer and engine must agree: an off-by-one anywhere would show here."""
    rows = train(alternating(policy, tmp_path, "eval.tasks=0"), Silent()).metrics()
    assert all(float(row["grad_norm"]) > 0 for row in rows)
    assert all(float(row["mismatch"]) < 1e-4 for row in rows)
    assert all(row["clip_fraction"] == 0.0 for row in rows)  # one update a step: the ratio is 1


def test_deterministic_runs_repeat_to_the_last_bit(policy: Path, tmp_path: Path) -> None:
    runs = [train(alternating(policy, tmp_path, "deterministic=true"), Silent()) for _ in range(2)]
    timed = ("seconds", "tokens_per_s")
    one, other = (
        [{k: v for k, v in row.items() if not k.startswith(timed)} for row in (*run.metrics(), *run.evals())]
        for run in runs
    )
    np.testing.assert_equal(one, other)
    first, second = ((run.policy_folder / "model.safetensors").read_bytes() for run in runs)
    assert first == second


def test_the_budget_stops_the_run_and_is_kept(policy: Path, tmp_path: Path) -> None:
    config = settings(policy, tmp_path, "budget.steps=null", "budget.policy_tokens=3000", "eval.tasks=0")
    run = train(config, Silent())
    spent = [int(row["policy_tokens"]) for row in run.metrics()]
    assert 1500 < spent[-1] <= 3000
    assert float(run.metrics()[-1]["refused"]) > 0 or spent[-1] == 3000


def test_a_kl_term_and_minibatches_train_too(policy: Path, tmp_path: Path) -> None:
    more = ("algorithm.kl=0.1", "optim.minibatches=2", "eval.tasks=0", "optim.warmup_steps=0")
    rows = train(alternating(policy, tmp_path, *more), Silent()).metrics()
    assert all(np.isfinite(float(row["loss"])) for row in rows)
    assert all(float(row["kl"]) > 0.0 for row in rows)  # the second mini-batch already sees a moved policy


@dataclass(kw_only=True)
class ForkEveryTree(Algorithm):
    """A third party's algorithm: two rollouts, then three continuations of the first anchor; contrast among siblings."""

    started: int = 0

    def start(self, ctx: Any) -> None:
        assert ctx.embeddings().shape[0] >= ctx.vocabulary
        self.started += 1

    def plan(self, ctx: StepContext) -> Sequence[Branch]:
        if not ctx.idle:
            return [Branch(task, count=2) for task in ctx.pool]
        grown = [t for t in ctx.idle if all(n.origin != "continuation" for n in ctx.trees[t].nodes)]
        return [Branch(t, node=ctx.trees[t].anchors()[0], count=3) for t in grown if ctx.trees[t].anchors()]

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        return {
            t: Credit(tree.values() - tree.values()[0], np.ones(len(tree))) for t, tree in ctx.trees.items()
        }


def test_an_algorithm_that_forks_trains_from_its_class_path(policy: Path, tmp_path: Path) -> None:
    config = load_config(
        None,
        [f"policy.path={policy}", f"out={tmp_path}", "env.options.difficulty=1-2", "budget.steps=2", "eval.tasks=0",
         f"algorithm={{name: '{__name__}:ForkEveryTree'}}", "rollout.prompts_per_step=4"],
    )  # fmt: skip
    run = train(config, Silent())
    trees = run.load_trees(0)
    assert any(node.origin == "continuation" for tree in trees for node in tree.nodes)
    assert float(run.metrics()[-1]["restores"]) > 0


def test_supervised_rows_train_the_actions_and_nothing_else(policy: Path) -> None:
    from trace_gym.render import ChatRenderer
    from trace_gym.tiny import load_policy_folder

    _, tokenizer = load_policy_folder(policy)
    renderer = ChatRenderer(tokenizer)
    env = make_env("trace_gym/Math-v0", {"difficulty": "2"})
    demo = demonstrate(env, env.tasks("train")[0], np.random.default_rng(0), seed=1)
    row = demonstration_row(demo, renderer, lambda text: tokenizer.encode(text, add_special_tokens=False))
    trained, spans = row.weight > 0, []
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trained, [False]]).astype(int)))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        assert row.tokens[end - 1] in renderer.stop
        spans.append(renderer.action(row.tokens[start:end]))
    assert tuple(spans) == demo.actions


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("policy.path=/nowhere/at/all", "no policy folder"),
        ("env.id=trace_gym/Nothing-v0", "trace-gym envs"),
        ("env.options.difficulty=99", "difficulty"),
        ("algorithm.name=grop", "grpo"),
        ("algorithm.groups=4", "group"),
        ("eval.split=exam", "split"),
    ],
)
def test_mistakes_are_one_clear_line(policy: Path, tmp_path: Path, change: str, says: str) -> None:
    with pytest.raises(Exception, match=says) as caught:
        train(settings(policy, tmp_path, change), Silent())
    assert type(caught.value).__module__ == "trace_gym.errors"
    assert says in str(caught.value).splitlines()[0]


def test_a_policy_folder_without_tokenizer(policy: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(policy, broken)
    for file in broken.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigError, match="tokenizer"):
        train(settings(broken, tmp_path), Silent())


# ---- evaluation -----------------------------------------------------------------------------------------------------


def test_wilsons_interval() -> None:
    low, high = wilson(0.5, 100)  # 0.4038 to 0.5962, R. G. Newcombe 1998, by the same formula
    assert low == pytest.approx(0.4038, abs=1e-4) and high == pytest.approx(0.5962, abs=1e-4)
    assert wilson(0.0, 10)[0] == 0.0 and wilson(0.0, 10)[1] > 0.2
    assert all(np.isnan(wilson(0.5, 0)))


def test_summaries_leave_unscored_rollouts_out() -> None:
    from tests.support.trees import add, star

    trees = [star([1.0, 0.0]), star([1.0])]
    add(trees[1], 0, reward=float("nan"), status="failed")
    result = summarise(trees)
    assert result.success == 0.75  # the mean over tasks of their means
    assert (result.tasks, result.rollouts, result.unscored) == (2, 4, 1)
    assert result.groups == {"": (2, 0.75)}


def test_greedy_evaluation_repeats(policy: Path, tmp_path: Path) -> None:
    config = settings(policy, tmp_path, "eval.tasks=16", "eval.draws=2")
    one, other = evaluate_policy(config, greedy=True), evaluate_policy(config, greedy=True)
    assert one.success == other.success and one.rollouts == 16
    assert evaluate_policy(config).rollouts == 32


def test_a_run_can_be_opened_again(policy: Path, tmp_path: Path) -> None:
    run = train(settings(policy, tmp_path, "eval.tasks=0"), Silent())
    again = RunFolder.open(run.path)
    np.testing.assert_equal(again.metrics(), run.metrics())
    assert again.config().algorithm["group"] == 4


def test_tensorboard_shows_the_same_numbers(policy: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(settings(policy, tmp_path), Silent())
    events = reader.EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    shown = [point.value for point in events.Scalars("policy_tokens")]
    assert shown == [row["policy_tokens"] for row in run.metrics()]
    assert events.Scalars("eval_success")[-1].value == pytest.approx(float(run.evals()[-1]["eval_success"]))


def test_wandb_that_is_not_installed_is_one_line(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pip install wandb"):
        train(settings(policy, tmp_path, "log.wandb=project"), Silent())


def test_a_dashboard_that_breaks_does_not_stop_the_run(tmp_path: Path) -> None:
    notes: list[str] = []
    boards = Boards(tmp_path, tensorboard=True, wandb="", first_step=0, note=notes.append)

    class Broken:
        def add_scalar(self, *words: object) -> None:
            raise OSError("no space")

    boards._writer = Broken()
    boards.write({"a": 1.0, "b": float("nan"), "c": "text"}, 3)
    boards.write({"a": 1.0}, 4)
    assert len(notes) == 1 and "no space" in notes[0]
