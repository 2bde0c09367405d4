"""Is it reinforcement learning that helps, or only more training? A tiny policy on Math-v0 is taught by GRPO; beside it stands
a control, the same policy after as many further supervised updates.

    python -m trace_gym.benchmarks.supervised --seeds 3 --out runs/supervised        about 8 minutes a seed

All are measured on the same held-out tasks with the same seeds; nothing is chosen by its result.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from trace_gym.config import TrainConfig, load_config
from trace_gym.display import LiveDisplay
from trace_gym.errors import ConfigError
from trace_gym.evaluate import Evaluation, evaluate_policy
from trace_gym.observer import Observer
from trace_gym.plugins import make_env
from trace_gym.runs import RunFolder, environment_facts
from trace_gym.train import train
from trace_gym.warmup import more_supervised, warmup

__all__ = ["Seed", "compare", "summary"]

SETTINGS = (
    "env.options.difficulty=1-3",
    "rollout.max_tokens=32",
    "optim.micro_batch_tokens=2048",  # little padding: faster on a CPU
    "budget.policy_tokens=600000",
    "eval.tasks=512",
    "log.trees_every_steps=10",
)


@dataclass(frozen=True, slots=True)
class Seed:
    """Held-out numbers of one seed: at the start, after reinforcement learning, after supervised learning alone."""

    seed: int
    updates: int
    policy_tokens: int
    success: tuple[float, float, float]
    greedy: tuple[float, float, float]
    format_errors: tuple[float, float, float]  # share of turns
    seconds: dict[str, float]
    overhead: float  # share of the training steps' wall time outside engine, environment and update

    @property
    def gain(self) -> float:
        return self.success[1] - self.success[0]


def compare(out: Path, observer: Observer, *, seeds: int = 1, overrides: Sequence[str] = ()) -> list[Seed]:
    """Run it and write `results.json`, `summary.md` and `curve.png` into `out`. Raises `ConfigError` when `out` holds one."""
    if (out / "results.json").exists():
        raise ConfigError(f"{out} holds a finished comparison; name another folder with --out, or remove it")
    results, curves = [], []
    for seed in range(seeds):
        result, run = _one(out / f"seed-{seed}", seed, overrides, observer)
        results.append(result)
        curves.append([(float(row["policy_tokens"]), float(row["success"])) for row in run.metrics()])
        observer.note(_line(result))
    record = {
        "about": environment_facts(),
        "overrides": list(overrides),
        "seeds": [asdict(r) for r in results],
    }
    (out / "results.json").write_text(json.dumps(record, indent=1))
    (out / "summary.md").write_text(summary(results, environment_facts()))
    _picture(out / "curve.png", results, curves)
    return results


def _one(out: Path, seed: int, overrides: Sequence[str], observer: Observer) -> tuple[Seed, RunFolder]:
    policy, control = out / "policy", out / "supervised"
    settings = [f"policy.path={policy}", f"out={out}", "name=grpo", f"seed={seed}", *SETTINGS, *overrides]
    config = load_config(None, settings)
    env = make_env(config.env.id, config.env.options)
    out.mkdir(parents=True, exist_ok=True)
    clock = _Clock()
    observer.note(f"seed {seed}: a small language model learns from imperfect demonstrations")
    warmup(policy, env=env, seed=seed, observer=observer)
    clock.lap("warm-up")
    observer.note(f"seed {seed}: reinforcement learning ({config.algorithm['name']})")
    run = train(config, observer)
    clock.lap("training and its evaluations")
    updates = len(run.metrics())
    observer.note(f"seed {seed}: the control, {updates} further supervised updates")
    more_supervised(policy, control, env=env, seed=seed, steps=updates)
    after = _control(config, control)
    clock.lap("control")
    first, last = run.evals()[0], run.evals()[-1]

    def three(name: str, supervised: float) -> tuple[float, float, float]:
        return float(first[name]), float(last[name]), supervised

    return Seed(
        seed=seed,
        updates=updates,
        policy_tokens=int(run.metrics()[-1]["policy_tokens"]),
        success=three("eval_success", after[0].success),
        greedy=three("eval_greedy_success", after[1].success),
        format_errors=three("eval_format_error_rate", after[0].format_error_rate),
        seconds=clock.laps,
        overhead=_overhead(run),
    ), run


def _overhead(run: RunFolder) -> float:
    rows = run.metrics()
    wall = sum(float(row["seconds"]) for row in rows)
    return 1.0 - sum(float(rows[-1][f"seconds_{phase}"]) for phase in ("engine", "env_wait", "update")) / wall


def _control(config: TrainConfig, control: Path) -> tuple[Evaluation, Evaluation]:
    """Sampled and greedy, on the very tasks and seeds of the run's own evaluations."""
    moved = config.model_copy(update={"policy": config.policy.model_copy(update={"path": str(control)})})
    return evaluate_policy(moved), evaluate_policy(moved, greedy=True)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 1), now


# ---- telling it -----------------------------------------------------------------------------------------------------


def _line(r: Seed) -> str:
    before, learned, supervised = r.success
    return (
        f"seed {r.seed}: held-out success {before:.3f} -> {learned:.3f} after {r.policy_tokens:,} sampled tokens"
        f" ({r.updates} updates); {supervised:.3f} after as many supervised updates"
    )


def summary(results: Sequence[Seed], about: Mapping[str, object]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| seed | held-out success, start | after RL | after SFT alone | greedy: start / RL / SFT"
        " | format errors: start / RL / SFT |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        greedy, errors = (" / ".join(f"{x:.3f}" for x in three) for three in (r.greedy, r.format_errors))
        cells = (r.seed, *(f"{x:.3f}" for x in r.success), greedy, errors)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    gains = np.array([r.gain for r in results])
    control = np.array([r.success[2] - r.success[0] for r in results])
    lines += [
        "",
        f"Mean gain by reinforcement learning {gains.mean():+.3f}, by supervised learning alone {control.mean():+.3f}"
        f" ({len(results)} seed{'s' if len(results) > 1 else ''}).",
        "",
        "Seconds: "
        + "; ".join(
            f"seed {r.seed}: " + ", ".join(f"{k} {v:.0f}" for k, v in r.seconds.items()) for r in results
        ),
        "",
        "Share of the training steps' wall time outside engine, environment and update: "
        + ", ".join(f"{r.overhead:.1%}" for r in results),
        "",
        "Machine and versions: " + ", ".join(f"{k} {v}" for k, v in about.items()),
    ]
    return "\n".join(lines) + "\n"


def _picture(path: Path, results: Sequence[Seed], curves: Sequence[Sequence[tuple[float, float]]]) -> None:
    """Success while training (mean of ten steps), and held-out success before and after."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
    for result, curve in zip(results, curves, strict=True):
        tokens, success = np.array(curve).T
        window = min(10, len(success))
        smooth = np.convolve(success, np.ones(window) / window, mode="valid")
        colour = f"C{result.seed}"
        axes.plot(
            tokens[window - 1 :] / 1000, smooth, color=colour, label=f"seed {result.seed}, training tasks"
        )
        ends = [0, tokens[-1] / 1000]
        axes.plot(ends, result.success[:2], "o--", color=colour, markersize=7, linewidth=0.8)
        axes.plot(ends[1:], result.success[2:], "x", color=colour, markersize=8)
    axes.set(
        xlabel="sampled tokens, thousands", ylabel="success", ylim=(0, 1), title="GRPO on trace_gym/Math-v0"
    )
    axes.plot([], [], "ko--", label="held-out, before and after")
    axes.plot([], [], "kx", label="held-out, supervised alone")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/supervised"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="training settings other than these")
    asked = parser.parse_args()
    with LiveDisplay() as display:
        results = compare(asked.out, display, seeds=asked.seeds, overrides=asked.settings)
    print(summary(results, environment_facts()))


if __name__ == "__main__":
    main()
