"""A real pretrained model learns: SmolLM2-135M-Instruct with adapters and GRPO on one-step Math-v0 problems, on a CPU.

    python -m trace_gym.benchmarks.smollm2 --out runs/smollm2

As it comes, the model writes no tool call that can be read, so every group fails alike and GRPO has nothing to learn from.
Hence a cold start from the environment's fallible demonstrations, then GRPO. Held-out tasks are the same 128 before and after
(half of them for the model as it comes) and chose no setting. What is in `--out` already is kept, so the same command goes
on after an interruption.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trace_gym import models
from trace_gym.config import TrainConfig, load_config
from trace_gym.display import LiveDisplay
from trace_gym.evaluate import evaluate_policy, evaluation_row
from trace_gym.observer import Observer
from trace_gym.plugins import make_env
from trace_gym.runs import RunFolder, environment_facts
from trace_gym.train import train
from trace_gym.warmup import cold_start

__all__ = ["main", "report"]

BASE = "smollm2-135m"
COLD_STEPS, COLD_BATCH = 16, 8
ZERO_SHOT_TASKS = 64  # every turn runs to its limit there
SETTINGS = (
    "env.options.difficulty=1",  # one tool call, then the answer
    "policy.lora.rank=16",
    "policy.dtype=bfloat16",
    "algorithm.group=4",
    "rollout.prompts_per_step=4",
    "rollout.max_tokens=48",  # a call takes 25 to 40
    "rollout.turn_deadline_s=900",
    "engine.max_batch=64",
    "optim.micro_batch_tokens=8192",
    "eval.tasks=128",
    "eval.greedy=false",
    "log.trees_every_steps=10",
    "log.checkpoint_every_steps=4",
)
Row = Mapping[str, float | str]
STAGES = ("as it comes", "after the cold start", "after GRPO")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    own = (f"seed={given.seed}", f"budget.steps={given.steps}", f"policy.path={out / 'cold'}", f"out={out}")
    config = load_config(None, [*SETTINGS, *own, "name=grpo"])
    with LiveDisplay() as display:
        models.get(BASE, note=display.note)
        _teach(out / "cold", config, display)
        run = _learn(out / "grpo", config, display)
        _zero_shot(out / "zero_shot.json", config, display)
    print(report(out, run))


def _of_base(config: TrainConfig) -> TrainConfig:
    return config.model_copy(update={"policy": config.policy.model_copy(update={"path": BASE})})


def _teach(cold: Path, config: TrainConfig, observer: Observer) -> None:
    if (cold / "warmup.json").exists():
        return
    env = make_env(config.env.id, config.env.options)
    policy = _of_base(config).policy
    cold_start(
        cold, policy=policy, env=env, seed=config.seed, steps=COLD_STEPS, batch=COLD_BATCH, observer=observer
    )


def _learn(folder: Path, config: TrainConfig, observer: Observer) -> RunFolder:
    if not (folder / "config.yaml").exists():
        return train(config, observer)
    run = RunFolder.open(folder)
    return train(run.config(), observer, resume=run)


def _zero_shot(file: Path, config: TrainConfig, observer: Observer) -> None:
    if file.exists():
        return
    fewer = config.eval.model_copy(update={"tasks": ZERO_SHOT_TASKS})
    found = evaluate_policy(_of_base(config).model_copy(update={"eval": fewer}), observer=observer)
    file.write_text(json.dumps(evaluation_row("eval", found), indent=1))


# ---- telling it -----------------------------------------------------------------------------------------------------


def report(out: Path, run: RunFolder) -> str:
    """Write `results.json`, `steps.csv`, `curve.png` and `summary.md` into `out`; returns the summary."""
    evals: list[Row] = [json.loads((out / "zero_shot.json").read_text())]
    evals += [run.evals()[0], run.evals()[-1]]
    steps = run.metrics()
    about = run.about() | {"commit_of_report": environment_facts().get("commit", "none")}
    record = {
        "about": about,
        "cold_start": json.loads((out / "cold" / "warmup.json").read_text()),
        "settings": SETTINGS,
        "evaluations": dict(zip(STAGES, evals, strict=True)),
    }
    (out / "results.json").write_text(json.dumps(record, indent=1))
    with open(out / "steps.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(name for row in steps for name in row)))
        table.writeheader()
        table.writerows(steps)
    _picture(out / "curve.png", steps, evals)
    text = _summary(evals, steps, about)
    (out / "summary.md").write_text(text)
    return text


def _summary(
    evals: Sequence[Row],
    steps: Sequence[Row],
    about: Mapping[str, object],
) -> str:
    lines = [
        "| policy | held-out success, sampled | 95 % interval | format errors, share of turns | turns a rollout |",
        "|---|---|---|---|---|",
    ]
    for stage, row in zip(STAGES, evals, strict=True):
        names = ("success", "low", "high", "format_error_rate", "mean_turns")
        success, low, high, errors, turns = (float(row[f"eval_{name}"]) for name in names)
        lines.append(f"| {stage} | {success:.3f} | {low:.3f} to {high:.3f} | {errors:.1%} | {turns:.1f} |")
    quarter = max(1, len(steps) // 4)
    first, last = (
        np.mean([float(r["success"]) for r in part]) for part in (steps[:quarter], steps[-quarter:])
    )
    seconds = [float(row["seconds"]) for row in steps]
    lines += [
        "",
        f"{len(steps)} steps, {int(float(steps[-1]['policy_tokens'])):,} sampled tokens; a step took"
        f" {np.median(seconds):.0f} s (median), {min(seconds):.0f} to {max(seconds):.0f} s. Success on training tasks:"
        f" {first:.3f} in the first {quarter} steps, {last:.3f} in the last {quarter}. Unscored rollouts:"
        f" {sum(float(row['unscored']) for row in steps):.0f}.",
        "",
        "Machine and versions: " + ", ".join(f"{k} {v}" for k, v in about.items()),
    ]
    return "\n".join(lines) + "\n"


def _picture(path: Path, steps: Sequence[Row], evals: Sequence[Row]) -> None:
    """Success and format errors while training, and held-out success with its intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
    success, errors = (np.array([float(r[n]) for r in steps]) for n in ("success", "format_error_rate"))
    window = min(8, len(steps))
    places = np.arange(len(steps)) + 1
    axes.plot(places, success, ".", color="C0", alpha=0.4, label="training tasks, each step (16 rollouts)")
    smooth = np.convolve(success, np.ones(window) / window, mode="valid")
    axes.plot(places[window - 1 :], smooth, color="C0", label=f"training tasks, mean of {window} steps")
    axes.plot(places, errors, color="C3", linewidth=0.8, label="format errors, share of turns")
    held_out = np.array(
        [[float(row[f"eval_{name}"]) for name in ("success", "low", "high")] for row in evals]
    ).T
    bars = [held_out[0] - held_out[1], held_out[2] - held_out[0]]
    label = "held-out tasks, 95 % interval"
    axes.errorbar((-3, 0, len(steps)), held_out[0], bars, fmt="ok", markersize=5, capsize=2, label=label)
    axes.set(xlabel="step (-3: the model as it comes)", ylabel="share", ylim=(-0.03, 1.03))
    axes.set_title("SmolLM2-135M, cold start and GRPO with adapters, Math-v0 difficulty 1", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
