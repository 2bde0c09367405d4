"""`warmup`, `train`, `eval`: the commands that run a policy."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from trace_gym.cli.app import DebugOption, SetOption, app
from trace_gym.cli.fork import CONTINUATIONS, evaluate_from
from trace_gym.cli.trust import TrustOption, refuse_untrusted
from trace_gym.config import EnvConfig, EvalConfig, TrainConfig, dump_config, load_config
from trace_gym.errors import ConfigError
from trace_gym.observer import printable
from trace_gym.plugins import algorithm_fields, make_algorithm, make_env
from trace_gym.settings import setting

if TYPE_CHECKING:
    from trace_gym.evaluate import Evaluation
    from trace_gym.runs import RunFolder

__all__ = ["evaluate_command", "policy_of", "train_command", "warmup_command"]

DEFAULT_ENV = EnvConfig().id
DEFAULT_EVAL = EvalConfig()
# As in trace_gym.warmup, which loads torch: too slow for a help text.
WARMUP_STEPS, COLD_START_STEPS = 900, 32


@app.command("warmup")
def warmup_command(
    out: Annotated[Path, typer.Option(help="Folder for the policy.")] = Path("policy"),
    env: Annotated[str, typer.Option(metavar="ID", help="Environment to demonstrate.")] = DEFAULT_ENV,
    option: SetOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same policy.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Supervised updates; default: {WARMUP_STEPS}, with --from {COLD_START_STEPS}."
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="POLICY", help="Teach this one: a folder, or a name of `trace-gym model list`."
        ),
    ] = None,
    setting_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --from: a policy setting of `train`."),
    ] = None,
) -> None:
    """Make a small policy from imperfect demonstrations, or teach them to a pretrained one.

    \b
    Examples:  trace-gym warmup --out policy --option difficulty=2
               trace-gym warmup --from smollm2-135m --set policy.lora.rank=16 --out policy
    """
    settings = load_config(None, [*_environment(env, option), *_pretrained(pretrained, setting_ or [])])
    made = make_env(settings.env.id, settings.env.options)
    from trace_gym.display import LiveDisplay
    from trace_gym.warmup import cold_start, warmup

    given = {} if steps is None else {"steps": steps}
    with LiveDisplay() as display:
        if pretrained is None:
            metrics = warmup(out, env=made, seed=seed, observer=display, **given)
        else:
            metrics = cold_start(out, policy=settings.policy, env=made, seed=seed, observer=display, **given)
    facts = ", ".join(f"{name} {value:,.3g}" for name, value in metrics.items())
    typer.echo(f"policy in {out} ({facts}); next: trace-gym train policy.path={out}")


@app.command("train")
def train_command(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG.yaml|KEY=VALUE]", help="A settings file and single settings; later ones win."
        ),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings and stop.")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run from its newest checkpoint.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Train a policy with an algorithm in an environment.

    \b
    Examples:  trace-gym train policy.path=policy algorithm.group=16 budget.steps=50
               trace-gym train run.yaml seed=1
               trace-gym train --print-config > run.yaml
               trace-gym train --resume runs/train

    Ctrl-C ends a run after the present step, a second one at once; either way --resume goes on.
    """
    run, config = _run_and_config(resume, settings or [])
    if print_config:
        typer.echo(dump_config(config), nl=False)
        return
    from trace_gym.display import LiveDisplay
    from trace_gym.train import train

    with LiveDisplay() as display, stop_on_interrupt(display.note) as stop:
        run = train(config, display, resume=run, stop=stop)
    typer.echo(_gain(run))
    typer.echo(f"run folder: {run.path}")


@app.command("eval")
def evaluate_command(
    policy: Annotated[
        str | None, typer.Argument(metavar="[POLICY_OR_RUN]", help="A policy's folder or a run's.")
    ] = None,
    env: Annotated[
        str | None, typer.Option(metavar="ID", help="Environment; default: the run's, or Math.")
    ] = None,
    option: SetOption = None,
    split: Annotated[
        str | None, typer.Option(help="The environment's split; default: the run's, or test.")
    ] = None,
    tasks: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Tasks, a fixed random draw of the split; default: the run's, or {DEFAULT_EVAL.tasks}.",
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(min=1, help=f"Sampled rollouts per task; default: the run's, or {DEFAULT_EVAL.draws}."),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="The likeliest token each time, one rollout.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Same seed, same samples; default: the run's, or 0.")
    ] = None,
    setting_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of `train`, such as rollout.max_tokens=128."
        ),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN:STEP:TREE:NODE",
            help="From a node of a recorded tree, with the run's policy unless one is named.",
        ),
    ] = None,
    continuations: Annotated[
        int | None, typer.Option("-k", min=1, help=f"With --from: rollouts; default: {CONTINUATIONS}.")
    ] = None,
    trust: TrustOption = False,
) -> None:
    """Measure how often a policy succeeds.

    \b
    Examples:  trace-gym eval runs/train --tasks 500 --draws 4
               trace-gym eval --from runs/train:12:3:5 -k 64
               trace-gym eval policy --env trace_gym/Math-v0 --option source=gsm8k.jsonl --greedy
    """
    given = {"eval.split": split, "eval.tasks": tasks, "eval.draws": draws}
    if from_ is not None:
        if env or option or greedy or any(value is not None for value in given.values()):
            raise ConfigError(
                "--from samples from one node: --env, --option, --split, --tasks, --draws and --greedy do not apply"
            )
        evaluate_from(
            from_,
            policy=policy,
            settings=setting_ or [],
            continuations=continuations or CONTINUATIONS,
            seed=seed,
            trust=trust,
        )
        return
    if policy is None or continuations is not None:
        raise ConfigError(
            "name the policy's folder or a run's"
            if policy is None
            else "-k goes with --from; --draws without"
        )
    from trace_gym.display import LiveDisplay
    from trace_gym.evaluate import evaluate_policy

    file, found = policy_of(policy)
    given |= {"seed": seed}
    overrides = [
        *found,
        *_environment(env, option),
        *(setting(key, value) for key, value in given.items() if value is not None),
        *(setting_ or []),
    ]
    config = load_config(file, overrides)
    if file is not None:
        refuse_untrusted(load_config(file), config, trust=trust)
    with LiveDisplay() as display:
        result = evaluate_policy(config, greedy=greedy, observer=display)
    typer.echo(
        f"{config.policy.path} on {config.env.id}, split {config.eval.split}, {'greedy' if greedy else 'sampled'}"
    )
    typer.echo(printable(_summary(result)))


@contextlib.contextmanager
def stop_on_interrupt(note: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks politely, through what is yielded; a second one interrupts at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        note("stopping after this step; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


# ---- words into settings --------------------------------------------------------------------------------------------


def _file_and_overrides(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The config file among the words, if there is one, and the overrides."""
    files = [word for word in words if "=" not in word or Path(word).is_file()]
    for word in files:
        if (meant := _meant_instead(Path(word))) is not None:
            raise ConfigError(f"{word!r} is no config file; did you mean {meant}?")
    if len(files) > 1:
        raise ConfigError(f"{files[0]!r} and {files[1]!r}: give one config file; a setting is key=value")
    return (Path(files[0]) if files else None), [word for word in words if word not in files]


def _meant_instead(word: Path) -> str | None:
    """What to write for a word that names a run or a policy; None for one that may be a config file."""
    if (word / "config.yaml").is_file():
        return f"--resume {word}"
    return f"policy.path={word}" if word.is_dir() or not (word.suffix or word.exists()) else None


def _run_and_config(resume: Path | None, settings: Sequence[str]) -> tuple[RunFolder | None, TrainConfig]:
    """The run to go on with, if any, and the settings: its own, or those given."""
    if resume is None:
        path, overrides = _file_and_overrides(settings)
        return None, _with_all_fields(load_config(path, overrides))
    if settings:
        raise ConfigError("--resume goes on with the run's own settings; start a new run to change them")
    from trace_gym.runs import RunFolder

    run = RunFolder.open(resume)
    return run, run.config()


def _with_all_fields(config: TrainConfig) -> TrainConfig:
    """The config with every field of its algorithm filled in, so that the run folder tells them all."""
    fields = dict(config.algorithm)
    name = str(fields.pop("name"))
    return config.model_copy(
        update={"algorithm": {"name": name, **algorithm_fields(make_algorithm(name, fields))}}
    )


def _environment(env: str | None, options: Sequence[str] | None) -> list[str]:
    """Overrides for `--env` and `--option`; another environment does not inherit the options of the run's."""
    chosen = [] if env is None else [setting("env", {"id": env})]
    return chosen + [f"env.options.{option}" for option in options or []]


def _pretrained(policy: str | None, settings: Sequence[str]) -> list[str]:
    """Overrides for `warmup --from`, whose settings are those of the policy."""
    if policy is None:
        if settings:
            raise ConfigError("--set is of a pretrained policy: name it with --from")
        return []
    for word in settings:
        if not word.startswith("policy."):
            raise ConfigError(
                f"--set {word}: warm-up reads settings of policy alone, such as policy.lora.rank=16"
            )
    return [setting("policy.path", policy), *settings]


def policy_of(path: str) -> tuple[Path | None, list[str]]:
    """The config file that goes with a policy's or a run's folder, if any, and the overrides that choose the policy."""
    if not (Path(path) / "config.yaml").is_file():
        return None, [setting("policy.path", path)]
    from trace_gym.runs import RunFolder

    run = RunFolder.open(path)
    if not run.policy_folder.is_dir():
        raise ConfigError(
            f"{path} holds no policy yet: its training has not ended; name the policy it started from"
        )
    return run.path / "config.yaml", [setting("policy.path", str(run.policy_folder))]


# ---- results into words ---------------------------------------------------------------------------------------------


def _gain(run: RunFolder) -> str:
    """Held-out success before and after."""
    evals = [row for row in run.evals() if "eval_success" in row]
    if len(evals) < 2:
        return "not evaluated before and after"
    before, after = evals[0], evals[-1]
    names = {"eval_success": "held-out success", "eval_greedy_success": "greedy"}
    return ", ".join(f"{text} {before[n]:.3f} -> {after[n]:.3f}" for n, text in names.items() if n in before)


def _summary(result: Evaluation) -> str:
    lines = [
        f"success {result.success:.3f} (95 % interval {result.low:.3f} to {result.high:.3f}),"
        f" {result.tasks} tasks, {result.rollouts} rollouts, {result.unscored} of them unscored",
        f"format errors in {result.format_error_rate:.1%} of turns, {result.mean_turns:.1f} turns a rollout",
    ]
    width = max((len(name) for name in result.groups), default=0)
    lines += [
        f"  {name:<{width}}  {success:.3f}  ({tasks} tasks)"
        for name, (tasks, success) in result.groups.items()
    ]
    return "\n".join(lines)
