"""The rules about playing: gymnasium's own, what is shown, tasks, and that a seed fixes everything."""

from __future__ import annotations

import contextlib
import json
import math
import random
import warnings
from collections.abc import Iterator

import numpy as np
from gymnasium.utils.env_checker import check_env as gymnasium_check_env

from trace_gym.check.probe import (
    GARBAGE,
    NOT_PLAIN,
    AnyEnv,
    Episode,
    Policy,
    Shown,
    Subject,
    difference,
    expert,
    play,
    record,
    snapshot_if_allowed,
    stumbling,
    tool_calls,
)
from trace_gym.check.rules import Broken, Unexercised, expect, refuses, rule
from trace_gym.text import MAX_OBSERVATION_CHARS, clean_text

__all__: list[str] = []

SEEDS = range(5)
MAX_TURN_LIMIT = 1_000


# ---- calls ------------------------------------------------------------------------------------------------


@rule
def gymnasium_api(subject: Subject) -> None:
    """Gymnasium's own checker passes."""
    subject.env.reset(seed=0)  # which seeds what the checker leaves unseeded
    subject.env.action_space.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gymnasium_check_env(subject.env, skip_render_check=True)


@rule
def no_wrapper(subject: Subject) -> None:
    """`gymnasium.make` gives the environment itself: a wrapper keeps counters that no snapshot holds."""
    if subject.outer.spec is None and subject.outer is subject.env:
        raise Unexercised("gymnasium.make did not make it")
    expect(
        subject.outer is subject.env,
        f"it comes wrapped in {type(subject.outer).__name__}; register it with order_enforce=False, "
        "disable_env_checker=True and no max_episode_steps",
    )


@rule
def playable(subject: Subject) -> None:
    """Whole episodes can be played and kept: solved, after a wasted turn, and wandering about."""
    _, failure = subject.recorded()
    if failure is not None:
        raise failure


@rule
def order_of_calls(subject: Subject) -> None:
    """`step` after the end, and `step` and `snapshot` before `reset`, raise a TraceGymError."""
    env = subject.env
    for episode in subject.episodes:
        if episode.ended:
            env.reset(seed=episode.seed, options={"task": episode.task})
            if play(env, episode.actions)[-1].ended:
                refuses(lambda: env.step(GARBAGE[0]), "step() after the end")
    env = subject.new()
    refuses(env.snapshot, "snapshot() before reset()")
    refuses(lambda: env.step(GARBAGE[0]), "step() before reset()")


# ---- what is shown ----------------------------------------------------------------------------------------


@rule
def observations(subject: Subject) -> None:
    """Observations are text of at most 8,192 characters, in the space, without lone surrogates."""
    for episode, turn, shown in _all_shown(subject):
        text, where = shown.observation, episode.at(turn)
        expect(isinstance(text, str), f"{where}: the observation is of type {type(text).__name__}")
        expect(len(text) <= MAX_OBSERVATION_CHARS, f"{where}: the observation has {len(text)} characters")
        expect(subject.env.observation_space.contains(text), f"{where}: the observation is outside its space")
        expect(text == clean_text(text), f"{where}: the observation holds lone surrogates")


@rule
def info_keys(subject: Subject) -> None:
    """`info` is plain data: task_id, role; system and tools at reset; success at the end, and only there."""
    for episode, turn, shown in _all_shown(subject):
        info, where = shown.info, episode.at(turn)
        plain = isinstance(info, dict) and NOT_PLAIN not in str(info)
        expect(plain, f"{where}: info is no dict of plain data: {info!r:.200}")
        expect(
            info.get("task_id") == episode.task, f"{where}: info['task_id'] is {info.get('task_id')!r:.60}"
        )
        expect(info.get("role") in ("user", "tool"), f"{where}: info['role'] is {info.get('role')!r:.60}")
        for name, kind in (("system", str), ("tools", list)):
            expect(turn > 0 or isinstance(info.get(name), kind), f"{where}: info has no {name!r}")
        for tool in info.get("tools", ()):
            expect(_is_schema(tool), f"{where}: a tool is no function schema: {tool!r:.80}")
        if shown.ended:
            expect(isinstance(info.get("success"), bool), f"{where}: info has no 'success' at the end")
        else:
            expect("success" not in info, f"{where}: info has 'success' before the end")


def _is_schema(tool: object) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


@rule
def rewards(subject: Subject) -> None:
    """Rewards are finite numbers, 0 before the end unless the environment sets `dense_reward`."""
    for episode, turn, shown in _all_shown(subject):
        reward, where = shown.reward, episode.at(turn)
        expect(isinstance(reward, float | int), f"{where}: the reward is of type {type(reward).__name__}")
        expect(math.isfinite(reward), f"{where}: the reward is {reward}")
        allowed = reward == 0 or shown.ended or subject.env.dense_reward
        expect(
            allowed, f"{where}: there is a reward, {reward}, before the end; set dense_reward if it is meant"
        )


def _all_shown(subject: Subject) -> Iterator[tuple[Episode, int, Shown]]:
    for episode in subject.episodes:
        for turn, shown in enumerate(episode.shown):
            yield episode, turn, shown


# ---- tasks ------------------------------------------------------------------------------------------------


@rule
def task_ids(subject: Subject) -> None:
    """`tasks("train")` names some, each once, in a fixed order; unknown tasks and splits are refused."""
    env, other = subject.env, subject.another()
    ids = list(env.tasks("train"))
    expect(bool(ids), "the train split is empty")
    expect(all(isinstance(task, str) and task for task in ids), "some ids of the train split are no strings")
    expect(len(set(ids)) == len(ids), "the train split names a task twice")
    expect(ids == list(env.tasks("train")) == list(other.tasks("train")), "the train split changes its order")
    refuses(lambda: other.reset(options={"task": "\x00 no such task"}), "reset() to an unknown task")
    refuses(lambda: list(other.tasks("no such split")), "tasks() of an unknown split")


@rule
def turn_limit(subject: Subject) -> None:
    """Useless actions end an episode by its turn limit, which is 2 or more, and without success."""
    env = subject.env
    for task in subject.some_tasks():
        env.reset(seed=0, options={"task": task})
        limit = env.snapshot().turn_limit
        expect(limit >= 2, f"task {task!r:.60}: a turn limit of {limit} leaves no turn to waste")
        if limit > MAX_TURN_LIMIT:
            raise Unexercised(f"{limit} turns are too many to try")
        shown = play(env, (GARBAGE[turn % len(GARBAGE)] for turn in range(limit)))
        where = f"task {task!r:.60}: after {len(shown)} useless actions"
        expect(shown[-1].ended, f"{where} the episode goes on; its turn limit is {limit}")
        expect(not shown[-1].info.get("success"), f"{where} the episode is a success")
        expect(env.dense_reward or shown[-1].reward <= 0, f"{where} there is a reward")


@rule
def any_action(subject: Subject) -> None:
    """Any string is an action: it raises nothing, costs one turn and is answered within the space."""
    env = subject.env
    env.reset(seed=0, options={"task": subject.some_tasks()[0]})
    starts = [env.snapshot()]
    starts += [snapshot for episode in subject.recorded()[0][:1] for _, snapshot in episode.forks()][-1:]
    for start in starts:
        env.restore(start)
        for action in _hostile_actions(env):
            env.restore(start)
            _takes(env, action)


def _takes(env: AnyEnv, action: str) -> None:
    turn = env.snapshot().turn
    try:
        shown = Shown.next(env.step(action))
    except Exception as error:
        raise Broken(f"the action {action!r:.60} raises {type(error).__name__}: {error}") from error
    inside = isinstance(shown.observation, str) and env.observation_space.contains(shown.observation)
    expect(inside, f"the action {action!r:.60} is answered outside the observation space")
    now = snapshot_if_allowed(env)
    expect(now is None or now.turn == turn + 1, f"the action {action!r:.60} does not cost one turn")


def _hostile_actions(env: AnyEnv) -> list[str]:
    actions = [
        *GARBAGE,
        "\x00\x1b[2J\x07",
        "\ud800 lone \udfff",
        "\u202e\ufeff\u0000",
        "9" * 100_000,
        "[" * 5_000,
    ]
    actions += [
        "<tool_call>",
        "<tool_call>" * 2_000,
        "<answer></answer>",
        "<answer>__import__('os')</answer>",
    ]
    calls = ["[]", "null", "{}", '{"name": null}', '{"name": "no such tool", "arguments": {}}']
    for call in tool_calls(env, np.random.default_rng(0)):
        name = json.dumps(call.name)
        wrong = ["[]", "null", "{}", '{"no such": 1}', '"text"', "[" * 3_000]
        for value in ("null", "[]", "1e999", '"\\ud800"', json.dumps("(" * 4_000), json.dumps("9**9**9**9")):
            wrong.append("{" + ", ".join(f"{json.dumps(key)}: {value}" for key in call.arguments) + "}")
        calls += [f'{{"name": {name}, "arguments": {arguments}}}' for arguments in wrong]
    return actions + [f"<tool_call>{call}</tool_call>" for call in calls]


@rule
def solvable(subject: Subject) -> None:
    """`expert_action` leads to success from the start."""
    _solves(subject, expert, "")


@rule
def room_for_a_wasted_turn(subject: Subject) -> None:
    """`expert_action` leads to success after a wasted turn."""
    _solves(subject, stumbling, " after a wasted turn")


def _solves(subject: Subject, policy: Policy, when: str) -> None:
    env = subject.env
    for task in subject.some_tasks():
        tries = (
            record(env, task, seed, policy, max_turns=MAX_TURN_LIMIT) for seed in SEEDS
        )  # noise spoils some
        solved = any(episode.shown[-1].info.get("success") is True for episode in tries)
        expect(solved, f"task {task!r:.60}: expert_action() does not solve it{when}")


# ---- sameness ---------------------------------------------------------------------------------------------


@rule
def same_seed_same_episode(subject: Subject) -> None:
    """The same seed and actions give the same everything, on a used instance and on a new one."""
    used, other = subject.env, subject.another()
    for episode in subject.episodes:
        for env in (used, other, used):
            different = replay(env, episode)
            expect(not different, f"{episode.at(0)}, played again: {different}")
    first, again = ([Shown.first(used.reset(seed=7)), Shown.first(used.reset())] for _ in range(2))
    different = difference(again, first)
    expect(not different, f"reset(seed=7) and reset(), again: {different}")


@rule
def global_generators(subject: Subject) -> None:
    """Nothing depends on the global random generators, or moves them."""
    env = subject.env
    with _global_generators_kept():
        for episode in subject.episodes:
            for seed in (1, 2):
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002 (to find out who uses it)
                before = _global_generators()
                different = replay(env, episode)
                expect(not different, f"{episode.at(0)}, with other global generators: {different}")
                expect(before == _global_generators(), f"{episode.at(0)} moves a global generator")


def replay(env: AnyEnv, episode: Episode) -> str:
    """What differs when `env` plays `episode` again; "" when nothing does."""
    opening = Shown.first(env.reset(seed=episode.seed, options={"task": episode.task}))
    return difference([opening, *play(env, episode.actions)], episode.shown)


def _global_generators() -> tuple[object, ...]:
    words = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return random.getstate(), words["key"].tobytes(), words["pos"]


@contextlib.contextmanager
def _global_generators_kept() -> Iterator[None]:
    kept = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
