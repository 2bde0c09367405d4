import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trace_gym.check import check_env
from trace_gym.env import Effect, Snapshot
from trace_gym.envs.actions import format_answer, format_call
from trace_gym.envs.search_qa.env import SearchQAEnv, SearchState
from trace_gym.envs.search_qa.retriever import Hit
from trace_gym.errors import ConfigError, TaskError

HOTPOT = {
    "question": "In which country is the town where Ann was born?",
    "answer": "France",
    "type": "bridge",
    "supporting_facts": [["Ann", 0], ["Brest", 1]],
    "context": [
        ["Ann", ["Ann is a cook. She was born in Brest."]],
        ["Brest", ["Brest is a town.", "It is in France, as is Lyon.", "It has a port."]],
        ["Lyon", ["Lyon is a city."]],
    ],
}
OTHER = {
    **HOTPOT,
    "question": "Is Lyon a town, as Brest is?",
    "answer": "no",
    "supporting_facts": [["Lyon", 0]],
}


def search(query: str, **more: Any) -> str:
    return format_call("search", {"query": query, **more})


def opening(title: str) -> str:
    return format_call("open", {"title": title})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "mine.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in (HOTPOT, OTHER)))
    return file


@pytest.fixture
def env(path: Path) -> SearchQAEnv:
    env = SearchQAEnv(path, "all", k=2)
    env.reset(options={"task": "mine/1"})
    return env


def play(env: SearchQAEnv, act: Any) -> tuple[float, list[str]]:
    """Take `act()` until the end; the reward and the actions."""
    actions, reward, over = [], 0.0, False
    while not over:
        actions.append(act())
        _, reward, terminated, truncated, _ = env.step(actions[-1])
        over = terminated or truncated
    return reward, actions


# ---- registration and settings ---------------------------------------------------------------------------


def test_make_gives_the_environment_itself() -> None:
    made = gymnasium.make("trace_gym/SearchQA-v0", difficulty="2", topics="elements", split="test")
    assert isinstance(made, SearchQAEnv)
    assert made.reset(seed=0)[1]["task_id"].startswith("elements/test/2/")


def test_registration_loads_no_environment() -> None:
    code = "import trace_gym.envs, sys; print([m for m in sys.modules if 'search_qa' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ({"split": "validation"}, "unknown split 'validation'"),
        ({"reward": "rouge"}, "unknown reward 'rouge'; there are em, f1"),
        ({"tags": "xml"}, "unknown tags 'xml'"),
        ({"k": 0}, "k is a whole number from 1 to 10, not 0"),
        ({"k": "3"}, "k is a whole number"),
        ({"snippet_chars": 5}, "snippet_chars is a whole number from 20"),
        ({"passage_chars": 10**6}, "passage_chars is a whole number"),
        ({"max_turns": 0}, "max_turns is a whole number"),
        ({"f1_threshold": 0.0}, "f1_threshold"),
        ({"difficulty": "hard"}, "difficulty 'hard'"),
        ({"topics": "films"}, "unknown topic 'films'"),
        ({"retriever": "google"}, "unknown retriever 'google'"),
    ],
)
def test_settings_that_cannot_be_meant(path: Path, setting: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        SearchQAEnv(path, **setting)


def test_an_unknown_task_is_refused(env: SearchQAEnv) -> None:
    with pytest.raises(TaskError, match="unknown task 'nothing'"):
        env.reset(options={"task": "nothing"})


# ---- turns -----------------------------------------------------------------------------------------------


def test_a_search_shows_the_best_passages(env: SearchQAEnv) -> None:
    observation, reward, terminated, truncated, info = env.step(search("where was Ann born"))
    assert observation.startswith("1. Ann: Ann is a cook. She was born in Brest.")
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info == {"task_id": "mine/1", "role": "tool", "format_error": False, "fact_recall": 0.5, "f1": 0.0}
    assert env.step(search("Brest", k=1))[0].count("\n") == 0
    assert env.step(search("zebra"))[0] == "nothing found"


def test_opening_shows_the_whole_passage(env: SearchQAEnv) -> None:
    assert (
        env.step(opening("BREST"))[0] == "Brest: Brest is a town. It is in France, as is Lyon. It has a port."
    )
    assert env.step(opening("Paris"))[0] == "nothing has this title; search for it"
    assert env.state.found == (1,)


def test_how_much_is_shown_is_a_setting(path: Path) -> None:
    env = SearchQAEnv(path, "all", snippet_chars=20, passage_chars=30)
    env.reset(options={"task": "mine/1"})
    assert env.step(search("France"))[0] == "1. Brest: It is in France, as…"
    assert not env.state.found, "too little was shown"
    assert env.step(opening("Brest"))[0] == "Brest: Brest is a town. It is in…"
    assert env.state.found == (1,), "nothing more can be shown"


@pytest.mark.parametrize(
    "action", [format_answer("the France"), format_call("answer", {"answer": "france."})]
)
def test_the_right_answer_ends_with_reward_one(env: SearchQAEnv, action: str) -> None:
    env.step(search("Ann"))
    observation, reward, terminated, _, info = env.step(action)
    assert (observation, reward, terminated, info["success"]) == ("correct", 1.0, True, True)
    assert (info["f1"], info["fact_recall"]) == (1.0, 0.5)


def test_partial_credit_is_an_option(path: Path) -> None:
    for reward_kind, threshold, expected in (("em", 0.8, 0.0), ("f1", 0.6, 2 / 3), ("f1", 0.7, 0.0)):
        env = SearchQAEnv(path, "all", reward=cast(Any, reward_kind), f1_threshold=threshold)
        env.reset(options={"task": "mine/1"})
        _, reward, _, _, info = env.step(format_answer("southern France"))
        assert reward == pytest.approx(expected)
        assert info["success"] is (expected > 0)
        assert info["f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("action", "part"),
    [
        ("", "no action found"),
        ("<answer> </answer>", "the answer is empty"),
        ("<search>Ann</search>", "no action found"),
        (format_call("python", {"code": "1"}), "no tool 'python'; the tools are search and open"),
        (format_call("search", {}), "search: the argument 'query' is missing"),
        (search("Ann", k=0), "k is a number from 1 to 10, not 0"),
        (search("Ann", k="2"), "must be of type integer"),
        (format_call("open", {"title": 3}), "must be of type string"),
    ],
)
def test_an_action_that_cannot_be_used_costs_a_turn(env: SearchQAEnv, action: str, part: str) -> None:
    state, key = env.state, env.state_key()
    observation, reward, terminated, _, info = env.step(action)
    assert observation.startswith("error: ") and part in observation and "\n" not in observation
    assert (reward, terminated, info["format_error"]) == (0.0, False, True)
    assert env.state == state and env.state_key() != key


def test_search_r1_tags_are_an_option(path: Path) -> None:
    env = SearchQAEnv(path, "all", tags="search-r1")
    _, info = env.reset(options={"task": "mine/1"})
    assert "<search>" in info["system"]
    plain = SearchQAEnv(path, "all")
    plain.reset(options={"task": "mine/1"})
    assert env.step("I wonder. <search> Ann born </search>")[0] == plain.step(search("Ann born"))[0]
    assert env.step("<search></search>")[4]["format_error"] is True
    assert env.step("<answer>France</answer>")[1] == 1.0


def test_the_turn_limit_leaves_two_turns_to_waste(path: Path) -> None:
    env = SearchQAEnv(path, "all", snippet_chars=20)
    for wasted, reward in ((2, 1.0), (99, 0.0)):
        env.reset(options={"task": "mine/1"})
        assert env.snapshot().turn_limit == 7
        actions = iter(["hm"] * wasted)
        assert play(env, lambda actions=actions: next(actions, None) or env.expert_action())[0] == reward
    assert env.snapshot().status == "truncated"
    short = SearchQAEnv(path, "all", max_turns=1)
    short.reset(options={"task": "mine/1"})
    assert short.step(search("Ann"))[3] is True


WORDS = st.lists(
    st.sampled_from(["Ann", "Brest", "France", "zebra", "the", "\u0130", "\u200b", "<"]), max_size=5
)
ACTION = st.one_of(
    st.text(max_size=60),
    WORDS.map(" ".join).map(search),
    WORDS.map(" ".join).map(opening),
    st.builds(lambda text: f"<tool_call>{text}</tool_call>", st.text(max_size=40)),
    st.just(search("x" * 16_000)),
)


@given(st.lists(ACTION, max_size=4))
@settings(max_examples=40)
def test_whatever_the_agent_wrote_the_expert_still_succeeds(path: Path, actions: list[str]) -> None:
    env = SearchQAEnv(path, "all", tags="search-r1")
    env.reset(options={"task": "mine/1"})
    for action in actions:
        observation, *_ = env.step(action)
        assert len(observation) <= 8192
    assert play(env, env.expert_action)[0] == 1.0
    assert len(env.snapshot().to_bytes()) < 16_000


# ---- forks -----------------------------------------------------------------------------------------------


def test_forks_anywhere_in_any_order_go_on_alike(path: Path) -> None:
    """Snapshots of every state of an episode, continued in every order, and through bytes, end as the episode did."""
    env = SearchQAEnv(path, "all", snippet_chars=20)
    env.reset(options={"task": "mine/1"})
    snapshots, actions, observations = [env.snapshot()], [], []
    while snapshots[-1].status == "running":
        actions.append(env.expert_action())
        observations.append(env.step(actions[-1])[0])
        snapshots.append(env.snapshot())
    last = snapshots[-1].digest
    for order in itertools.permutations(range(len(actions)), 3):
        for start in order:
            other = cast(SearchQAEnv, env.fork())
            kept = snapshots[start]
            other.restore(Snapshot.from_bytes(kept.to_bytes()) if start % 2 else kept)
            for action, observation in zip(actions[start:], observations[start:], strict=True):
                assert other.expert_action() == action
                assert other.step(action)[0] == observation
            assert other.snapshot().digest == last


def test_a_snapshot_holds_the_question_whatever_the_source(env: SearchQAEnv) -> None:
    env.step(env.expert_action())
    builtin = SearchQAEnv()
    builtin.restore(Snapshot.from_bytes(env.snapshot().to_bytes()))
    assert isinstance(builtin.state, SearchState)
    assert builtin.state == env.state and builtin.state_key() == env.state_key()
    assert builtin.step(format_answer("France"))[1] == 1.0


def key_after(path: Path, *actions: str, task: str = "mine/1") -> str:
    env = SearchQAEnv(path, "all", k=2)
    env.reset(options={"task": task})
    for action in actions:
        env.step(action)
    return env.state_key()


def test_equal_situations_have_equal_keys(path: Path) -> None:
    assert key_after(path, opening("Ann"), opening("Brest")) == key_after(
        path, opening("brest"), opening("ANN")
    )
    assert key_after(path, search("Ann born")) == key_after(path, "So: " + search("born Ann"))
    assert key_after(path, "hm", search("Ann")) == key_after(path, search("Ann"), opening("Paris"))


def test_different_situations_have_different_keys(path: Path) -> None:
    different = [
        key_after(path),
        key_after(path, task="mine/2"),
        key_after(path, "hm"),
        key_after(path, opening("Ann")),
        key_after(path, opening("Brest")),
        key_after(path, opening("Ann"), opening("Brest")),
        key_after(path, "hm", opening("Ann")),
        key_after(path, "hm", format_answer("France")),
        key_after(path, "hm", format_answer("Spain")),
    ]
    assert len(set(different)) == len(different)


def test_it_keeps_the_whole_contract(path: Path) -> None:
    own = gymnasium.make("trace_gym/SearchQA-v0", source=str(path), split="all", tags="search-r1")
    for env in ("trace_gym/SearchQA-v0", own):
        report = check_env(cast(Any, env))
        assert len(report.exercised) >= 25
        assert set(report.unexercised) <= {"fresh-noise"}, "nothing is random after reset"


# ---- retrievers ------------------------------------------------------------------------------------------


class Fixed:
    """A service that knows one passage."""

    effect: Effect = "recorded"

    def search(self, query: str, k: int) -> Sequence[Hit]:
        return [Hit("7", "Ann\u2028", "A <b>passage</b>\nof two lines", 1.0)][:k]

    def open(self, title: str) -> Hit | None:
        return None


def test_a_retriever_of_ones_own(path: Path) -> None:
    env = SearchQAEnv(path, "all", retriever=Fixed())
    env.reset(options={"task": "mine/1"})
    assert {tool.effect for tool in env.tools(env.state)} == {"recorded"}
    assert env.step(search("anything"))[0].endswith("A <b>passage</b> of two lines")
    assert play(env, env.expert_action)[0] == 1.0, "what cannot be found here does not stop the expert"


# ---- demonstrators ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def builtin() -> SearchQAEnv:
    return SearchQAEnv(split="all")


@pytest.mark.parametrize(("split", "every"), [("test", 5), ("dev", 5), ("train", 60)])
def test_the_expert_solves_built_in_tasks_by_their_passages(
    builtin: SearchQAEnv, split: str, every: int
) -> None:
    for task in builtin.tasks(split)[::every]:
        builtin.reset(options={"task": task})
        assert play(builtin, builtin.expert_action)[0] == 1.0, task
        assert builtin.snapshot().extra["fact_recall"] == 1.0, task


def novice_rate(env: SearchQAEnv, tasks: Sequence[str], **chances: float) -> float:
    total = 0.0
    for place, task in enumerate(tasks):
        rng = np.random.default_rng(place)
        env.reset(options={"task": task})
        total += play(env, lambda rng=rng: env.novice_action(rng, **chances))[0]
    return total / len(tasks)


def test_a_novice_that_never_slips_is_an_expert(builtin: SearchQAEnv) -> None:
    assert novice_rate(builtin, builtin.tasks("test")[:120], slip=0.0, noise=0.0) == 1.0


def test_a_novice_that_always_slips_stops_at_the_bridge(builtin: SearchQAEnv) -> None:
    tasks = [t for t in builtin.tasks("train")[:1200] if t.split("/")[2] == "2"][:150]
    for task in tasks:
        builtin.reset(options={"task": task})
        question = builtin.state.question
        if question.kind != "bridge":
            continue
        rng = np.random.default_rng(0)
        _, actions = play(builtin, lambda rng=rng: builtin.novice_action(rng, slip=1.0, noise=0.0))
        assert actions[-1] == format_answer(f" {question.hops[0].value}"), "it answers the bridge entity"


def test_the_novice_leaves_room_to_learn(builtin: SearchQAEnv) -> None:
    for hops, low, high in (("1", 0.9, 1.0), ("2", 0.3, 0.6), ("3", 0.25, 0.65), ("4", 0.2, 0.6)):
        tasks = [t for t in builtin.tasks("train")[:1600] if t.split("/")[2] == hops][:100]
        assert low <= novice_rate(builtin, tasks) <= high, hops


def test_the_novice_always_has_an_action(builtin: SearchQAEnv) -> None:
    novice_rate(builtin, builtin.tasks("dev")[:60], slip=0.5, noise=0.9)
