"""The command line: what it passes on, what it prints, and one clear line for whatever a user got wrong."""

import inspect
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import pytest
from typer.testing import CliRunner, Result

from tests.support.walk import WalkEnv
from trace_gym.cli import app
from trace_gym.config import TrainConfig, load_config
from trace_gym.env import ForkableEnv
from trace_gym.errors import TaskError
from trace_gym.evaluate import Evaluation
from trace_gym.observer import Observer
from trace_gym.runs import RunFolder


class GuardedWalk(WalkEnv):
    """A walk with one split, as `check` wants it."""

    env_id = "tests/GuardedWalk-v0"

    def tasks(self, split: str) -> Sequence[str]:
        if split != "train":
            raise TaskError(f"no split {split!r}")
        return super().tasks(split)


Call = dict[str, Any]
Fake = Callable[..., None]


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), catch_exceptions=True)


def refused(*words: str) -> str:
    """What is printed about a mistake: nothing but lines on stderr, status 1."""
    result = run(*words)
    assert result.exit_code == 1 and result.stdout == "", (result.exit_code, result.stdout, result.exception)
    assert "Traceback" not in result.stderr and result.stderr.startswith("error: ")
    return result.stderr.rstrip("\n")


def one_line(*words: str) -> str:
    text = refused(*words)
    assert "\n" not in text
    return text


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a module in the place of one that would load torch."""

    def install(module: str, **contents: object) -> None:
        made = ModuleType(module)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, module, made)

    return install


@pytest.fixture
def walk_env() -> Iterator[str]:
    """A registered environment of this test suite."""
    gymnasium.register(
        GuardedWalk.env_id,
        entry_point=f"{__name__}:GuardedWalk",
        order_enforce=False,
        disable_env_checker=True,
    )
    yield GuardedWalk.env_id
    del gymnasium.registry[GuardedWalk.env_id]


@pytest.fixture
def finished_run(tmp_path: Path) -> RunFolder:
    """A run folder as training leaves it, but for the policy's files."""
    config = load_config(
        None, ["env.options.difficulty=2", "rollout.max_tokens=48", "seed=5", "eval.tasks=9"]
    )
    folder = RunFolder.create(tmp_path, "done", config=config)
    folder.append_eval({"step": 0.0, "eval_success": 0.25, "eval_greedy_success": 0.5})
    folder.append_eval({"step": 9.0, "eval_success": 0.75, "eval_greedy_success": 0.875})
    folder.policy_folder.mkdir()
    return folder


# ---- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["warmup", "train", "eval", "envs", "algorithms", "check"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Examples?:\s+trace-gym {command}", result.stdout)
    assert command in run("--help").stdout


def test_help_tells_the_defaults() -> None:
    from trace_gym.warmup import cold_start, warmup

    steps, cold = (inspect.signature(f).parameters["steps"].default for f in (warmup, cold_start))
    assert f"default: {steps}, with --from {cold}." in " ".join(run("warmup", "--help").stdout.split())
    text = " ".join(run("eval", "--help").stdout.split())
    assert "or 256." in text and "or 1." in text and "or 0." in text and "rollout.max_tokens=128" in text


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
sys.argv = ["trace-gym", "--help"]
from trace_gym.cli import main
try:
    main()
except SystemExit as done:
    assert not done.code
heavy = {"torch", "transformers", "pyarrow", "sympy", "matplotlib", "scipy", "datasets"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_the_module_runs_and_tells_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trace_gym.cli", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and re.fullmatch(r"\d+\.\d+\.\S+\n", done.stdout)


# ---- train ----------------------------------------------------------------------------------------------------------


def test_train_passes_the_settings_on_and_tells_the_gain(
    fake: Fake, tmp_path: Path, finished_run: RunFolder
) -> None:
    seen: list[TrainConfig] = []

    def train(config: TrainConfig, observer: Observer, **options: object) -> RunFolder:
        seen.append(config)
        observer.step({"step": 0.0, "success": 0.5})
        return finished_run

    fake("trace_gym.train", train=train)
    file = tmp_path / "run.yaml"
    file.write_text("seed: 4\noptim: {lr: 1e-3}\n")
    result = run("train", str(file), "algorithm.group=4", "budget.steps=2")
    assert result.exit_code == 0, result.output
    config = seen[0]
    assert (config.seed, config.optim.lr, config.budget.steps) == (4, 1e-3, 2)
    assert config.algorithm["group"] == 4 and config.algorithm["scale"] == "group_std"  # all fields are told
    assert (
        "step 0" in result.stdout
        and "held-out success 0.250 -> 0.750, greedy 0.500 -> 0.875" in result.stdout
    )
    assert f"run folder: {finished_run.path}" in result.stdout


def test_print_config_shows_everything_and_loads_back(tmp_path: Path) -> None:
    result = run("train", "--print-config", "algorithm.group=4", "env.options.difficulty=2")
    assert (
        result.exit_code == 0 and "  group: 4\n" in result.stdout and "micro_batch_tokens:" in result.stdout
    )
    file = tmp_path / "run.yaml"
    file.write_text(result.stdout)
    again = run("train", str(file), "--print-config")
    assert again.stdout == result.stdout


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["optim.lrr=1"], ["unknown key optim.lrr", "did you mean 'optim.lr'", "--print-config"]),
        (["none.yaml"], ["config file none.yaml", "No such file"]),
        (["a.yaml", "b.yaml"], ["'a.yaml' and 'b.yaml'", "one config file"]),
        (["algorithm.name=gpro"], ["no algorithm 'gpro'", "did you mean 'grpo'"]),
        (["algorithm.name=no_such_module:X"], ["no_such_module", "in the folder"]),
        (["policy"], ["'policy' is no config file", "did you mean policy.path=policy?"]),
        (["algorithm.grup=3"], ["unknown field 'grup'; did you mean 'group'", "its fields are", "group=8"]),
        (["optim.betas=[0.9]"], ["optim.betas is a list", "such as [0.9, 0.999]"]),
        (["budget={}"], ["set one limit"]),
        (["seed=\x1b[31m"], ["YAML"]),
    ],
)
def test_a_wrong_setting_is_one_line(words: list[str], parts: list[str]) -> None:
    text = one_line("train", *words)
    assert all(part in text for part in parts) and "\x1b" not in text


def test_each_wrong_field_of_the_algorithm_is_told() -> None:
    lines = refused("train", "algorithm.grup=3", "algorithm.group=x").split("\n")
    assert "unknown field 'grup'" in lines[0] and "group: " in lines[1] and "its fields are" in lines[1]


def test_a_run_where_a_config_file_belongs_is_resumed(finished_run: RunFolder) -> None:
    assert f"did you mean --resume {finished_run.path}?" in one_line("train", str(finished_run.path))


def test_debug_shows_where_an_error_came_from() -> None:
    for words in (["--debug", "train", "x=1"], ["train", "--debug", "x=1"]):
        result = run(*words)
        assert result.exit_code == 1 and type(result.exception).__name__ == "ConfigError"


def test_a_missing_package_is_told_with_how_to_install_it(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoTorch:
        def find_spec(self, name: str, *rest: object) -> None:
            if name == "trace_gym.train":
                raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.delitem(sys.modules, "trace_gym.train", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoTorch(), *sys.meta_path])
    assert "pip install 'trace-gym[train]'" in one_line("train")


def test_our_own_bugs_keep_their_traceback(fake: Fake) -> None:
    def train(config: TrainConfig, observer: Observer, **options: object) -> RunFolder:
        raise ZeroDivisionError

    fake("trace_gym.train", train=train)
    assert isinstance(run("train").exception, ZeroDivisionError)


def test_an_interrupted_run_ends_with_status_130() -> None:
    code = """
import sys, time, types
fake = types.ModuleType("trace_gym.train")
def train(config, observer, resume, stop):
    print("started", flush=True)
    time.sleep(30)
fake.train = train
sys.modules["trace_gym.train"] = fake
sys.argv = ["trace-gym", "train"]
from trace_gym.cli import main
main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    start = time.monotonic()
    process.send_signal(signal.SIGINT)  # asks politely
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)  # insists
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said
    assert time.monotonic() - start < 10


# ---- warmup ---------------------------------------------------------------------------------------------------------


def test_warmup_passes_environment_seed_and_steps_on(fake: Fake, tmp_path: Path) -> None:
    calls: list[Call] = []

    def warmup(
        out: Path, *, env: ForkableEnv[Any], seed: int, observer: Observer, steps: int = 9
    ) -> dict[str, float]:
        calls.append({"out": out, "env": env, "seed": seed, "steps": steps})
        return {"loss": 0.5}

    fake("trace_gym.warmup", warmup=warmup, cold_start=None)
    out = tmp_path / "policy"
    assert run("warmup", "--out", str(out)).exit_code == 0
    result = run("warmup", "--out", str(out), "--option", "difficulty=2", "--seed", "3", "--steps", "7")
    assert result.exit_code == 0, result.output
    assert f"trace-gym train policy.path={out}" in result.stdout and "loss 0.5" in result.stdout
    assert [(c["seed"], c["steps"]) for c in calls] == [(0, 9), (3, 7)]
    assert calls[1]["out"] == out and calls[1]["env"].spec.kwargs == {"difficulty": 2}


def test_warmup_teaches_a_policy_that_exists(fake: Fake, tmp_path: Path) -> None:
    calls: list[Call] = []

    def cold_start(out: Path, **given: Any) -> dict[str, float]:
        calls.append({"out": out, **given})
        return {"loss": 0.5}

    fake("trace_gym.warmup", warmup=None, cold_start=cold_start)
    out = tmp_path / "taught"
    words = (
        "--from",
        "smollm2-135m",
        "--set",
        "policy.lora.rank=16",
        "--option",
        "difficulty=1",
        "--steps",
        "7",
    )
    result = run("warmup", "--out", str(out), *words)
    assert result.exit_code == 0, result.output
    [call] = calls
    assert (call["out"], call["seed"], call["steps"]) == (out, 0, 7)
    assert (call["policy"].path, call["policy"].lora.rank) == ("smollm2-135m", 16)
    assert call["env"].spec.kwargs == {"difficulty": 1}


def test_settings_of_warmup_are_those_of_a_policy_to_teach(fake: Fake) -> None:
    assert "name it with --from" in one_line("warmup", "--set", "policy.lora.rank=16")
    refused = one_line("warmup", "--from", "policy", "--set", "optim.lr=1e-3")
    assert "--set optim.lr=1e-3: warm-up reads settings of policy alone" in refused
    assert "did you mean 'policy.lora.rank'" in one_line(
        "warmup", "--from", "policy", "--set", "policy.lora.rnk=1"
    )


def test_warmup_refuses_an_unknown_environment(fake: Fake) -> None:
    assert "trace-gym envs" in one_line("warmup", "--env", "trace_gym/Mat-v0")
    assert "no option 'sorce'; did you mean 'source'" in one_line("warmup", "--option", "sorce=x")


# ---- eval -----------------------------------------------------------------------------------------------------------

RESULT = Evaluation(
    tasks=8,
    rollouts=16,
    unscored=1,
    success=0.5,
    low=0.25,
    high=0.75,
    format_error_rate=0.125,
    mean_turns=2.5,
    groups={"test/2 steps": (5, 0.8), "test/3 steps": (3, 0.0)},
)


@pytest.fixture
def evaluated(fake: Fake) -> list[Call]:
    calls: list[Call] = []

    def evaluate_policy(config: TrainConfig, *, greedy: bool, observer: Observer) -> Evaluation:
        calls.append({"config": config, "greedy": greedy})
        return RESULT

    fake("trace_gym.evaluate", evaluate_policy=evaluate_policy)
    return calls


def test_eval_of_a_policy_takes_all_its_settings_from_the_words(evaluated: list[Call]) -> None:
    result = run(
        *(
            "eval",
            "some/model",
            "--env",
            "trace_gym/Math-v0",
            "--option",
            "source=a b.jsonl",
            "--split",
            "dev",
        ),
        *("--tasks", "40", "--draws", "3", "--greedy", "--seed", "9", "--set", "rollout.max_tokens=100"),
    )
    assert result.exit_code == 0, result.output
    config = evaluated[0]["config"]
    assert (config.policy.path, config.env.id) == ("some/model", "trace_gym/Math-v0")
    assert config.env.options == {"source": "a b.jsonl"} and evaluated[0]["greedy"]
    assert (config.eval.split, config.eval.tasks, config.eval.draws, config.seed) == ("dev", 40, 3, 9)
    assert config.rollout.max_tokens == 100


def test_eval_prints_success_its_interval_and_the_groups(evaluated: list[Call]) -> None:
    text = run("eval", "policy").stdout
    for part in (
        "success 0.500 (95 % interval 0.250 to 0.750), 8 tasks, 16 rollouts, 1 of them unscored",
        "format errors in 12.5% of turns, 2.5 turns a rollout",
        "test/2 steps  0.800  (5 tasks)",
        "policy on trace_gym/Math-v0, split test, sampled",
    ):
        assert part in text


def test_eval_of_a_run_takes_its_settings_from_the_run(
    evaluated: list[Call], finished_run: RunFolder
) -> None:
    assert run("eval", str(finished_run.path)).exit_code == 0
    config = evaluated[0]["config"]
    assert config.policy.path == str(finished_run.policy_folder) and not evaluated[0]["greedy"]
    assert config.env.options == {"difficulty": 2} and config.rollout.max_tokens == 48
    assert (config.seed, config.eval.tasks) == (5, 9)


def test_another_environment_does_not_inherit_the_runs_options(
    evaluated: list[Call], finished_run: RunFolder
) -> None:
    assert run("eval", str(finished_run.path), "--env", "tests/Other-v0", "--option", "a=1").exit_code == 0
    config = evaluated[0]["config"]
    assert (config.env.id, config.env.options) == ("tests/Other-v0", {"a": 1})


def test_eval_refuses_a_run_without_a_policy(evaluated: list[Call], finished_run: RunFolder) -> None:
    finished_run.policy_folder.rmdir()
    assert "holds no policy yet" in one_line("eval", str(finished_run.path))
    assert "key=value" in one_line("eval", "policy", "--option", "difficulty")


def test_an_unknown_task_is_one_line(fake: Fake) -> None:
    def evaluate_policy(config: TrainConfig, *, greedy: bool, observer: Observer) -> Evaluation:
        WalkEnv().reset(options={"task": "no\nsuch\x1b task"})
        return RESULT

    fake("trace_gym.evaluate", evaluate_policy=evaluate_policy)
    assert "no task 'no\\nsuch" in one_line("eval", "policy")


def test_a_model_folder_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    for command in (["eval", str(tmp_path)], ["train", f"policy.path={tmp_path}", f"out={tmp_path}"]):
        text = one_line(*command)
        assert str(tmp_path) in text and "tokenizer" in text
    assert "trace-gym warmup" in one_line("eval", str(tmp_path / "none"))


# ---- envs, algorithms, check ----------------------------------------------------------------------------------------


def test_envs_lists_ids_with_a_sentence_but_not_gymnasiums_own(walk_env: str) -> None:
    lines = run("envs").stdout.splitlines()
    assert any(re.match(r"trace_gym/Math-v0 +Mathematics", line) for line in lines)
    assert any(re.match(r"tests/GuardedWalk-v0 +A walk with one split", line) for line in lines)
    assert not any("CartPole" in line or "GymV21" in line for line in lines)
    assert "cannot be imported" in one_line("envs", "no_such_module")


class Undescribed(WalkEnv):
    env_id = "tests/Undescribed-v0"


def test_a_base_class_does_not_speak_for_an_environment() -> None:
    gymnasium.register(Undescribed.env_id, entry_point=f"{__name__}:Undescribed")
    try:
        assert Undescribed.env_id in [line.rstrip() for line in run("envs").stdout.splitlines()]
    finally:
        del gymnasium.registry[Undescribed.env_id]


def test_a_broken_environment_is_listed_as_such() -> None:
    gymnasium.register("tests/Broken-v0", entry_point="no_such_module:Env")
    try:
        assert re.search(r"tests/Broken-v0 .*cannot be loaded: ModuleNotFoundError", run("envs").stdout)
    finally:
        del gymnasium.registry["tests/Broken-v0"]


def test_algorithms_are_listed_with_distribution_sentence_and_fields() -> None:
    text = run("algorithms").stdout
    assert re.search(
        r"grpo \(trace-gym\)  Uniform groups.*\n    .*group=8, advantage='group', weights='turn', scale='group_std'",
        text,
    )


def test_a_broken_algorithm_is_an_error_after_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "broken_one-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-one\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[trace_gym.algorithms]\naaa = no_such_module:X\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = run("algorithms")
    assert result.exit_code == 1 and "grpo" in result.stdout
    assert "'broken-one'" in result.stderr and "error: algorithm 'aaa'" in result.stderr


def test_check_prints_the_report(walk_env: str) -> None:
    result = run("check", walk_env, "--option", "turn_limit=9")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("tests/GuardedWalk-v0 keeps all ")


def test_check_sees_the_wrappers_that_a_registration_adds() -> None:
    gymnasium.register("tests/Wrapped-v0", entry_point=f"{__name__}:GuardedWalk")
    try:
        assert "no-wrapper: it comes wrapped in" in refused("check", "tests/Wrapped-v0")
    finally:
        del gymnasium.registry["tests/Wrapped-v0"]


@pytest.mark.parametrize("wrong", ["Math", "math-v0", "trace_gym/Mat-v0", "trace_gym/Math-v1"])
def test_the_id_that_was_meant_is_suggested(wrong: str) -> None:
    assert "did you mean 'trace_gym/Math-v0'?" in one_line("check", wrong)


def test_modules_of_the_present_folder_are_found_after_all_others(tmp_path: Path) -> None:
    (tmp_path / "here_env.py").write_text("import trace_gym")
    (tmp_path / "json.py").write_text("raise SystemExit('hidden')")
    code = "import sys; sys.path.remove(''); sys.argv = ['trace-gym', 'envs', 'here_env']\n"
    code += "from trace_gym.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "trace_gym/Math-v0" in done.stdout, done.stderr


def test_check_names_the_broken_rules(walk_env: str) -> None:
    text = refused("check", walk_env, "--option", "turn_limit=1")  # leaves no room for a wasted turn
    assert text.startswith("error: tests/GuardedWalk-v0 breaks ") and "\n  " in text


# ---- files that are wrong -------------------------------------------------------------------------------------------


def test_a_missing_task_file_is_one_line(tmp_path: Path) -> None:
    text = one_line("check", "trace_gym/Math-v0", "--option", f"source={tmp_path / 'none.jsonl'}")
    assert "none.jsonl" in text and "No such file" in text


def test_a_malformed_task_is_one_line_with_its_number(tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"What is {i}+1?", "answer": f"#### {i + 1}"}) for i in range(30)]
    lines[16] = '{"question": "half a line'
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(lines))
    text = one_line("check", "trace_gym/Math-v0", "--option", f"source={path}")
    assert "17" in text and "tasks.jsonl" in text
