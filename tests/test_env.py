"""Snapshots are values, restoring is exact, and no bytes can do harm."""

import copy
import json
import pickle
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import msgspec
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import examples.count_env
from examples.count_env import Count, CountEnv
from tests.support.broken_envs import IrreversiblePurseEnv, Purse, PurseEnv, SteadyPurseEnv
from trace_gym.env import MAX_OBSERVATION_CHARS, ForkableEnv, Opening, Snapshot, Tool, Turn, UnicodeText
from trace_gym.errors import (
    ConfigError,
    EnvironmentContractError,
    EpisodeError,
    IrreversibleError,
    SnapshotError,
    TaskError,
    TraceGymError,
)
from trace_gym.snapshot import MAX_CONTAINERS, MAX_DEPTH, MAX_SNAPSHOT_BYTES, GeneratorState, _nesting

ROOT = Path(__file__).parent.parent
ACTIONS = st.lists(st.sampled_from(["1", "2", "3", "", "many"]), max_size=12)


def started(env: ForkableEnv[Any], task: str = "9", *, seed: int = 0) -> ForkableEnv[Any]:
    env.reset(seed=seed, options={"task": task})
    return env


def run(env: ForkableEnv[Any], actions: list[str]) -> list[Any]:
    """What is shown for `actions`, up to the end."""
    shown = []
    for action in actions:
        if env.snapshot().status != "running":
            break
        shown.append(env.step(action))
    return shown


def purse_call(name: str, **arguments: int) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


OPEN, PUT_1, PUT_2 = purse_call("open"), purse_call("put", coin=1), purse_call("put", coin=2)


# ---- restoring is exact --------------------------------------------------------------------------------------


@given(before=ACTIONS, after=ACTIONS, seed=st.integers(0, 2**40), noise=st.none() | st.integers(0, 2**40))
def test_bytes_restored_in_a_new_instance_go_on_the_same(
    before: list[str], after: list[str], seed: int, noise: int | None
) -> None:
    env = started(CountEnv(misheard=0.5), seed=seed)
    run(env, before)
    snapshot = env.snapshot()
    other = CountEnv(misheard=0.5)
    first = env.restore(snapshot, seed=noise)
    assert other.restore(Snapshot.from_bytes(snapshot.to_bytes()), seed=noise) == first
    assert run(other, after) == run(env, after)
    assert other.snapshot() == env.snapshot()
    assert other.state_key() == env.state_key()


def test_bytes_restored_in_a_new_process_go_on_the_same() -> None:
    program = """
import json, sys
from examples.count_env import CountEnv
from trace_gym.env import Snapshot
env = CountEnv(misheard=0.5)
env.restore(Snapshot.from_bytes(bytes.fromhex(sys.argv[1])))
shown = [env.step(action) for action in json.loads(sys.argv[2])]
print(json.dumps([shown, env.snapshot().digest, env.state_key()]))
"""
    env = started(CountEnv(misheard=0.5), "15")
    run(env, ["1", "2"])
    data, actions = env.snapshot().to_bytes().hex(), ["1", "x", "1", "1"]
    done = subprocess.run(
        [sys.executable, "-c", program, data, json.dumps(actions)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    shown, digest, key = json.loads(done.stdout)
    assert shown == [list(step) for step in run(env, actions)]
    assert (digest, key) == (env.snapshot().digest, env.state_key())


@given(
    ways=st.lists(ACTIONS, min_size=3, max_size=3),
    order=st.lists(st.integers(0, 2), min_size=36, max_size=36),
)
def test_siblings_never_affect_each_other(ways: list[list[str]], order: list[int]) -> None:
    parent = started(CountEnv(misheard=0.5), "15")
    parent.step("2")
    alone = [run(parent.fork(), way) for way in ways]
    forks, left, shown = [parent.fork() for _ in ways], copy.deepcopy(ways), [[], [], []]  # type: ignore[var-annotated]
    for which in order:
        if left[which]:
            shown[which] += run(forks[which], [left[which].pop(0)])
    for which in range(3):
        shown[which] += run(forks[which], left[which])
    assert shown == alone
    assert run(parent, ways[0]) == alone[0]


def test_restore_shows_what_was_shown_last() -> None:
    env = started(PurseEnv(), "4")
    env.step(OPEN)
    observation, _, _, _, info = env.step("?")
    snapshot = env.snapshot()
    env.step(PUT_2)
    assert env.restore(snapshot) == (
        observation,
        {
            **info,
            "system": "Fill the purse with 4, in coins of 1, 2 and 5.",
            "tools": [tool.schema() for tool in env.tools(Purse(4, is_open=True))],
        },
    )


def test_a_fork_is_a_twin_and_another_instance() -> None:
    env = started(CountEnv(misheard=0.5))
    twin = env.fork()
    assert twin is not env
    assert type(twin) is CountEnv
    assert twin.snapshot() == env.snapshot()
    assert twin.np_random is not env.np_random
    assert twin.action_space is not env.action_space


def test_a_seed_draws_fresh_noise_and_is_fixed_by_its_value() -> None:
    env = started(CountEnv(misheard=0.5), "15")
    snapshot = env.snapshot()

    def course(seed: int | None) -> list[Any]:
        env.restore(snapshot, seed=seed)
        return run(env, ["1"] * 6)

    assert course(None) == course(None)
    assert course(5) == course(5)
    assert len({repr(course(seed)) for seed in range(20)}) > 10


@pytest.mark.parametrize("seed", [-1, 1.5, "7"])
def test_a_bad_seed_is_one_clear_error(seed: Any) -> None:
    env = started(CountEnv())
    with pytest.raises(ConfigError, match=r"restore\(seed=\) takes a whole number from 0"):
        env.restore(env.snapshot(), seed=seed)


def test_the_turn_limit_travels_with_the_snapshot() -> None:
    env = started(CountEnv(max_turns=3, misheard=0.0))
    env.step("1")
    other = CountEnv(max_turns=12, misheard=0.0)
    other.restore(Snapshot.from_bytes(env.snapshot().to_bytes()))
    assert other.step("1")[2:4] == (False, False)
    _, reward, terminated, truncated, info = other.step("1")
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, True, False)


def test_the_state_key_knows_the_situation_and_nothing_else() -> None:
    one, other = started(CountEnv(misheard=0.0)), started(CountEnv(misheard=0.0), seed=3)
    run(one, ["1", "2"])
    run(other, ["2", "x", "1"])
    assert one.state_key() == other.state_key()
    other.step("1")
    assert one.state_key() != other.state_key()
    assert one.state_key() != started(CountEnv(), "10").state_key()


def test_snapshot_and_restore_are_quick() -> None:
    env = started(PurseEnv())
    env.step(OPEN)
    snapshot = env.snapshot()
    pair = min(timeit.repeat(lambda: (env.snapshot(), env.restore(snapshot)), number=20, repeat=20)) / 20
    assert pair < 200e-6  # about 20 µs on an idle core


# ---- snapshots are values ------------------------------------------------------------------------------------


def test_a_snapshot_equals_what_comes_back_from_its_bytes() -> None:
    snapshot = started(PurseEnv()).snapshot()
    decoded = Snapshot.from_bytes(snapshot.to_bytes())
    assert decoded == snapshot
    assert hash(decoded) == hash(snapshot)
    assert decoded.digest == snapshot.digest
    assert decoded.to_bytes() == snapshot.to_bytes()
    assert Snapshot.from_bytes(bytearray(snapshot.to_bytes())) == snapshot  # type: ignore[arg-type]
    assert snapshot != started(PurseEnv(), seed=1).snapshot()
    assert snapshot != "a snapshot"


def test_later_steps_leave_a_snapshot_alone() -> None:
    env = started(PurseEnv())
    snapshot = env.snapshot()
    digest = snapshot.digest
    _, _, _, _, info = env.step(OPEN)
    info["coins"].append(5)
    info["tools"].clear()
    env.step(PUT_1)
    assert snapshot.digest == digest
    assert env.restore(snapshot)[1]["coins"] == []


def test_returned_info_is_nobodys_property() -> None:
    env = started(PurseEnv())
    for info in (env.reset(seed=0)[1], env.step(OPEN)[4], env.restore(env.snapshot())[1]):
        snapshot = env.snapshot()
        digest = snapshot.digest
        info["coins"].append(5)
        info.clear()
        assert snapshot.digest == digest
        assert env.restore(snapshot)[1]["coins"] == []


def test_a_state_that_is_no_plain_data_is_refused_by_to_bytes() -> None:
    for state in (object(), {1: 2}, 2**70, "\ud800", [lambda: 0]):
        snapshot = msgspec.structs.replace(started(CountEnv()).snapshot(), state=state)
        with pytest.raises(SnapshotError, match="not plain data"):
            snapshot.to_bytes()


def test_limits_hold_for_writing_too() -> None:
    snapshot = started(CountEnv()).snapshot()
    deep: Any = 0
    for _ in range(MAX_DEPTH):
        deep = [deep]
    for extra, message in (({"a": deep}, "deep"), ({"a": b"x" * MAX_SNAPSHOT_BYTES}, "bytes; the limit")):
        with pytest.raises(SnapshotError, match=message):
            msgspec.structs.replace(snapshot, extra=extra).to_bytes()
    shallow = msgspec.structs.replace(snapshot, extra={"a": deep[0][0]})
    assert Snapshot.from_bytes(shallow.to_bytes()) == shallow


# ---- bytes from anywhere -------------------------------------------------------------------------------------


def survives(data: bytes) -> bool:
    """Whether `data` is a snapshot that can be restored; anything but SnapshotError fails the test."""
    try:
        env = CountEnv()
        env.restore(Snapshot.from_bytes(data))
        return True
    except SnapshotError:
        return False


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert not survives(data)


def test_damaged_snapshots_are_refused_or_are_snapshots() -> None:
    env = started(CountEnv())
    env.step("1")
    good = env.snapshot().to_bytes()
    assert survives(good)
    assert not any(survives(good[:length]) for length in range(len(good)))
    assert not survives(good + b"\x00")
    flipped = [
        good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :]
        for place in range(len(good))
        for bit in range(8)
    ]
    rng = np.random.default_rng(0)
    for _ in range(2000):
        noisy = bytearray(good)
        for place in rng.integers(len(good), size=4):
            noisy[place] = int(rng.integers(256))
        flipped.append(bytes(noisy))
    survivors = sum(map(survives, flipped))
    assert 0 < survivors < len(flipped)  # a flip in the generator's words or in a text is a snapshot still


def wire(**changes: Any) -> bytes:
    """The bytes of a snapshot with some fields replaced by anything."""
    fields = msgspec.msgpack.decode(started(CountEnv()).snapshot().to_bytes())
    return msgspec.msgpack.encode({**fields, **changes})


GOOD_WORDS = [bytes(16), bytes(15) + b"\x01", 0, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"turn": -1},
        {"turn": "2"},
        {"turn_limit": 1.5},
        {"status": "paused"},
        {"role": "system"},
        {"success": 1},
        {"observation": "x" * (MAX_OBSERVATION_CHARS + 1)},
        {"observation": None},
        {"extra": []},
        {"schema_version": 2},
        {"env_id": "trace_gym/Other-v0"},
        {"irreversible": True},
        {"state": 5},
        {"state": {"target": "9"}},
        {"state": {}},
        {"state": None},
        {"generator": {}},
        {"generator": [bytes(15), *GOOD_WORDS[1:]]},
        {"generator": [bytes(17), *GOOD_WORDS[1:]]},
        {"generator": [bytes(16), bytes(16), 0, 0]},  # PCG's increment is odd
        {"generator": [*GOOD_WORDS[:2], 2, 0]},
        {"generator": [*GOOD_WORDS[:2], 0, 2**32]},
    ],
    ids=str,
)
def test_wrong_fields_are_refused(changes: dict[str, Any]) -> None:
    assert survives(wire())
    assert survives(wire(generator=GOOD_WORDS))
    assert not survives(wire(**changes))


def test_what_is_no_bytes_is_refused() -> None:
    for data in ("text", None, 12, ["list"]):
        with pytest.raises(SnapshotError, match="read from bytes"):
            Snapshot.from_bytes(data)  # type: ignore[arg-type]


def spliced(value: bytes, *, into: str) -> bytes:
    """A snapshot with the encoded `value` in place of a field."""
    marker = "here it goes"
    placed = msgspec.msgpack.encode(marker)
    return wire(**{into: marker}).replace(placed, value)


DEEP = 200_000
BOMBS: dict[str, bytes] = {
    "lists": b"\x91" * DEEP,
    "closed lists": b"\x91" * DEEP + b"\xc0",
    "maps": b"\x81\xa1a" * DEEP + b"\xc0",
    "long lists": b"\xdd\x00\x00\x00\x01" * DEEP + b"\xc0",
    "long maps": b"\xdf\x00\x00\x00\x01\xa1a" * DEEP + b"\xc0",
    "map keys": b"\x81" * DEEP + b"\xc0",
    "just too deep": b"\x91" * MAX_DEPTH + b"\xc0",
    "many lists": b"\xdd" + (MAX_CONTAINERS + 1).to_bytes(4, "big") + b"\x90" * (MAX_CONTAINERS + 1),
    "a list said to be huge": b"\xdd\xff\xff\xff\xff",
    "a map said to be huge": b"\xdf\xff\xff\xff\xff",
    "a text said to be huge": b"\xdb\xff\xff\xff\xff",
    "bytes said to be huge": b"\xc6\xff\xff\xff\xff",
    "an extension said to be huge": b"\xc9\xff\xff\xff\xff\x01",
}


@pytest.mark.parametrize("place", ["state", "extra", "task_id", "generator"])
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_quickly(bomb: bytes, place: str) -> None:
    data = spliced(bomb, into=place)
    began = time.process_time()
    with pytest.raises(SnapshotError):
        Snapshot.from_bytes(data)
    assert time.process_time() - began < 2.0


def test_depth_is_counted_exactly() -> None:
    inside = MAX_DEPTH - 1  # the snapshot itself is one map
    at_limit = b"\x91" * (inside - 1) + b"\x90"
    assert Snapshot.from_bytes(spliced(b"\x81\xa1a" + at_limit[1:], into="extra")).extra
    with pytest.raises(SnapshotError, match=f"more than {MAX_DEPTH} deep"):
        Snapshot.from_bytes(spliced(b"\x81\xa1a" + at_limit, into="extra"))
    wide = b"\x81\xa1a\xdd\x00\x00\xff\xff" + b"\x91\x90" * 0xFFFF  # many, but never deep
    assert len(Snapshot.from_bytes(spliced(wide, into="extra")).extra["a"]) == 0xFFFF


@settings(max_examples=50)
@given(
    st.recursive(
        st.none() | st.text() | st.binary() | st.integers(-(2**63), 2**64 - 1) | st.floats(), st.lists
    )
)
def test_every_plain_value_passes_the_depth_check(value: Any) -> None:
    snapshot = msgspec.structs.replace(
        started(CountEnv()).snapshot(), extra={"value": value, "pad": [[]] * 70}
    )
    assert Snapshot.from_bytes(snapshot.to_bytes()) == snapshot


def nesting(value: Any) -> tuple[int, int]:
    """(depth, number) of the lists and dicts in `value`, by recursion."""
    if not isinstance(value, list | dict):
        return 0, 0
    inner = [nesting(item) for item in (value.values() if isinstance(value, dict) else value)]
    return 1 + max((depth for depth, _ in inner), default=0), 1 + sum(number for _, number in inner)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, 127, 128, 255, 256, 2**16, 2**32, -1, -32, -33, -129, -(2**15) - 1, -(2**31) - 1]),
    st.floats(),
    st.builds(lambda length: "é" * length, st.sampled_from([0, 1, 15, 16, 127, 128, 40_000])),
    st.builds(bytes, st.sampled_from([0, 1, 255, 256, 70_000])),
    st.builds(
        lambda size: msgspec.msgpack.Ext(5, b"\x91" * size), st.sampled_from([0, 1, 2, 3, 4, 8, 16, 17, 300])
    ),
)


@settings(max_examples=100)
@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner)))
def test_the_depth_is_read_off_the_bytes_of_every_kind_of_item(value: Any) -> None:
    assert _nesting(msgspec.msgpack.encode(value)) == nesting(value)


def test_a_bomb_does_not_crash_an_interpreter_without_recursion_limit() -> None:
    program = """
import sys
from trace_gym.env import Snapshot
from trace_gym.errors import SnapshotError
sys.setrecursionlimit(10**9)
for bomb in (b"\\x91" * 10**6, b"\\x81\\xa1a" * 10**6):
    try:
        Snapshot.from_bytes(bomb)
    except SnapshotError:
        print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "refused\nrefused\n"), done.stderr


def test_pickled_bytes_are_never_loaded(tmp_path: Path) -> None:
    trace = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return Path.touch, (trace,)

    payload = pickle.dumps(Evil())
    for data in (payload, wire(state=payload), wire(extra={"a": payload}), wire(task_id=payload)):
        try:
            snapshot = Snapshot.from_bytes(data)
            CountEnv().restore(snapshot)
        except SnapshotError:
            continue
    assert not trace.exists()
    pickle.loads(payload)
    assert trace.exists()  # the payload would have worked


class FussyEnv(CountEnv):
    """Makes no sense of a total beyond 100."""

    def instructions(self, state: Count) -> str:
        return super().instructions(state) + " " * [1, 2, 3][state.total // 50]


def test_a_restore_that_fails_changes_nothing() -> None:
    env = started(FussyEnv(misheard=0.5))
    env.step("1")
    before, generator = env.snapshot(), env.np_random
    for data in (wire(state={"target": 9, "total": 1000}), wire(state={"target": "x"}), wire(env_id="else")):
        with pytest.raises(SnapshotError):
            env.restore(Snapshot.from_bytes(data))
        assert env.snapshot() == before
        assert env.np_random is generator


def test_restore_takes_snapshots_of_its_own_state_type() -> None:
    env = started(CountEnv())
    with pytest.raises(SnapshotError, match="takes a Snapshot, not bytes"):
        env.restore(env.snapshot().to_bytes())  # type: ignore[arg-type]
    with pytest.raises(SnapshotError, match="the snapshot's state is a Purse, not a Count"):
        env.restore(msgspec.structs.replace(env.snapshot(), state=Purse(4)))


def test_messages_about_foreign_snapshots_are_short() -> None:
    with pytest.raises(SnapshotError) as caught:
        CountEnv().restore(Snapshot.from_bytes(wire(env_id="\n" * 10**6)))
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_only_pcg64_generators_can_be_kept() -> None:
    env = started(CountEnv())
    env.np_random = np.random.Generator(np.random.MT19937(0))
    with pytest.raises(SnapshotError, match="PCG64 generator, not MT19937"):
        env.snapshot()


@given(st.integers(0, 2**64), st.integers(0, 5))
def test_generators_come_back_exactly(seed: int, draws: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        rng.integers(10, dtype=np.uint32)  # leaves half a word in store
    twin = GeneratorState.of(rng).generator()
    assert twin.bit_generator.state == rng.bit_generator.state
    assert [twin.random() for _ in range(3)] == [rng.random() for _ in range(3)]


# ---- playing -------------------------------------------------------------------------------------------------


def test_calls_at_the_wrong_time_are_refused() -> None:
    env = CountEnv(misheard=0.0)
    for call in (env.snapshot, env.fork, env.state_key, env.expert_action, lambda: env.step("1")):
        with pytest.raises(EpisodeError, match="call reset"):
            call()
    started(env, "4")
    run(env, ["2", "2"])
    for _ in range(2):
        with pytest.raises(EpisodeError, match="the episode is over"):
            env.step("1")
    env.restore(env.snapshot())
    with pytest.raises(EpisodeError, match="the episode is over"):
        env.step("1")


@pytest.mark.parametrize("action", [None, 3, b"1", ["1"]])
def test_actions_are_strings(action: Any) -> None:
    env = started(CountEnv())
    with pytest.raises(EpisodeError, match="an action is a string"):
        env.step(action)


@given(st.text(st.characters(), max_size=50))  # surrogates included
def test_any_string_is_an_action_and_costs_a_turn(action: str) -> None:
    env = started(CountEnv())
    observation, *_ = env.step(action)
    observation.encode()
    assert env.snapshot().turn == 1


class EchoEnv(CountEnv):
    """Shows the action, as often as the target says."""

    def advance(self, state: Count, action: str, rng: np.random.Generator) -> Turn[Count]:
        return Turn.go(state, action * state.target, extra={"heard": action})


def test_lone_surrogates_are_replaced() -> None:
    env = started(EchoEnv(), "4")
    observation, _, _, _, info = env.step("a\ud800b\udfff")
    assert observation == "a?b?" * 4
    assert info["heard"] == "a?b?"
    assert Snapshot.from_bytes(env.snapshot().to_bytes()).observation == observation


@pytest.mark.parametrize("length", [2047, 2048, 2049, 250_000])
def test_long_observations_are_cut_with_a_note(length: int) -> None:
    env = started(EchoEnv(), "4")
    observation, *_ = env.step("é" * length)
    assert len(observation) == min(4 * length, MAX_OBSERVATION_CHARS)
    assert observation in env.observation_space
    if 4 * length > MAX_OBSERVATION_CHARS:
        assert observation.endswith(f"é\n[cut: {4 * length} characters in all]")


def test_tools_are_shown_when_they_change_and_are_nobodys_property() -> None:
    env = started(SteadyPurseEnv(), "4")
    _, opening = env.reset(options={"task": "4"})
    assert [tool["function"]["name"] for tool in opening["tools"]] == ["open"]
    opening["tools"][0]["function"]["parameters"]["type"] = "spoilt"
    assert "tools" not in env.step("?")[4]
    info = env.step(OPEN)[4]
    assert [tool["function"]["name"] for tool in info["tools"]] == ["open", "put"]
    info["tools"][0]["function"]["parameters"].clear()
    assert "tools" not in env.step(PUT_1)[4]
    shown = env.restore(env.snapshot())[1]["tools"]
    assert shown == [tool.schema() for tool in env.tools(env.state)]
    assert shown[0]["function"]["parameters"] == {"type": "object", "properties": {}}


class NewToolsEnv(CountEnv):
    """Makes its tools anew at each call."""

    def tools(self, state: Count) -> list[Tool]:
        parameters = {"type": "object", "properties": {"n": {"type": "integer", "maximum": state.total}}}
        return [Tool(name="add", description="Add.", parameters=parameters)]


def test_tools_made_anew_are_shown_only_when_they_differ() -> None:
    env = started(NewToolsEnv(misheard=0.0))
    assert "tools" not in env.step("?")[4]
    info = env.step("2")[4]
    assert info["tools"][0]["function"]["parameters"]["properties"]["n"]["maximum"] == 2


def test_an_irreversible_call_forbids_every_later_fork() -> None:
    env = started(IrreversiblePurseEnv(), "9")
    env.rolls = 0.0  # type: ignore[attr-defined]
    run(env, [OPEN, PUT_2])
    before = env.snapshot()
    env.step(PUT_2)
    for call in (env.snapshot, env.fork):
        with pytest.raises(IrreversibleError, match="irreversible tool was called"):
            call()
    env.step("?")  # it plays on all the same
    with pytest.raises(IrreversibleError):
        env.snapshot()
    env.restore(before)
    assert env.fork().snapshot() == before


def test_an_irreversible_last_call_forbids_forks_too() -> None:
    turn = Turn.end(Count(4), "posted", success=True, irreversible=True)
    assert turn.irreversible
    assert turn.reward == 1.0


class GivingEnv(CountEnv):
    """Gives whatever turn it was told to."""

    given: Turn[Count]

    def advance(self, state: Count, action: str, rng: np.random.Generator) -> Turn[Count]:
        return self.given


def test_a_turn_says_how_the_episode_goes_on() -> None:
    state = Count(9)
    cases: list[tuple[Turn[Count], tuple[float, bool, bool], str, bool | None]] = [
        (Turn.go(state, ""), (0.0, False, False), "running", None),
        (Turn.go(state, "", reward=0.5), (0.5, False, False), "running", None),
        (Turn.end(state, "", success=True), (1.0, True, False), "done", True),
        (Turn.end(state, "", success=False), (0.0, True, False), "done", False),
        (Turn.end(state, "", success=False, reward=0.25), (0.25, True, False), "done", False),
        (Turn.cut(state, ""), (0.0, False, True), "truncated", False),
    ]
    for turn, shown, status, success in cases:
        env = GivingEnv()
        env.given = turn
        _, *rest, info = started(env).step("x")
        assert tuple(rest) == shown
        assert info.get("success") is success
        snapshot = env.snapshot()
        assert (snapshot.status, snapshot.success) == (status, success)
        assert ("success" in env.restore(snapshot)[1]) == (success is not None)


def test_extra_info_may_not_take_the_names_of_the_contract() -> None:
    env = GivingEnv()
    env.given = Turn.go(Count(9), "", extra={"success": True, "task_id": "x"})
    with pytest.raises(EnvironmentContractError, match=r"\['success', 'task_id'\]; rename them"):
        started(env).step("x")


def test_reset_draws_a_task_by_seed_and_names_what_it_cannot_do() -> None:
    env = CountEnv()
    drawn = [env.reset(seed=seed)[1]["task_id"] for seed in range(50)]
    assert set(drawn) == set(env.tasks("train"))
    assert drawn == [CountEnv().reset(seed=seed)[1]["task_id"] for seed in range(50)]
    with pytest.raises(TaskError, match="no task '99'"):
        env.reset(options={"task": "99"})
    with pytest.raises(TaskError, match="must be a task id"):
        env.reset(options={"task": 9})
    with pytest.raises(ConfigError, match="unknown reset option 'level', 'tsk'"):
        env.reset(options={"tsk": "9", "level": 2})


def test_an_empty_train_split_says_what_to_do() -> None:
    class Empty(CountEnv):
        def tasks(self, split: str) -> list[str]:
            return []

    with pytest.raises(TaskError, match="name one with options="):
        Empty().reset()


class BareEnv(ForkableEnv[Count]):
    """Declares nothing beyond what it must."""

    env_id = "tests/Bare-v0"
    state_type = Count

    def begin(self, task_id: str, rng: np.random.Generator) -> Opening[Count]:
        return Opening(Count(0), "hello", turn_limit=2)


def test_the_optional_parts_have_defaults() -> None:
    env = BareEnv()
    observation, info = env.reset(options={"task": "any"})
    assert (observation, info) == ("hello", {"task_id": "any", "role": "user", "system": "", "tools": []})
    for call in (env.expert_action, lambda: env.tasks("train"), lambda: env.step("x")):
        with pytest.raises(NotImplementedError):
            call()


# ---- gymnasium -----------------------------------------------------------------------------------------------


def test_gymnasiums_checker_passes(recwarn: pytest.WarningsRecorder) -> None:
    gymnasium_check_env(gymnasium.make("examples/Count-v0"))
    assert [str(warning.message) for warning in recwarn] == []


def test_make_gives_the_environment_itself() -> None:
    env = gymnasium.make("examples.count_env:examples/Count-v0", misheard=0.0)
    assert type(env) is CountEnv
    assert env.unwrapped is env
    assert env.misheard == 0.0
    assert "examples/Count-v0" in str(env.spec)
    assert examples.count_env.__doc__ is not None


def test_vector_environments_work_over_pipes() -> None:
    def make() -> CountEnv:
        return CountEnv(misheard=0.0)

    envs = gymnasium.vector.AsyncVectorEnv([make, make], shared_memory=False, context="spawn")
    try:
        observations, _ = envs.reset(seed=0, options={"task": "4"})
        assert tuple(observations) == ("Reach 4. The total is 0.",) * 2
        observations, rewards, *_ = envs.step(("3", "2"))
        assert tuple(observations) == ("Heard 3. The total is 3.", "Heard 2. The total is 2.")
        _, rewards, terminated, _, infos = envs.step(("1", "1"))
        assert list(rewards) == [1.0, 0.0]
        assert list(terminated) == [True, False]
        assert list(infos["success"]) == [True, False]
    finally:
        envs.close()


def test_shared_memory_is_refused_because_it_would_show_stale_text() -> None:
    with pytest.raises(ConfigError, match="shared_memory=False"):
        gymnasium.vector.AsyncVectorEnv([CountEnv], shared_memory=True)


def test_the_text_space_holds_any_string_up_to_its_length() -> None:
    space = UnicodeText(5)
    space.seed(0)
    assert all(text in space for text in ("", "é\n\x00", "12345", "\ud800"))
    assert not any(thing in space for thing in ("123456", 5, None, b"1"))
    samples = [space.sample() for _ in range(200)]
    assert all(sample in space for sample in samples)
    assert len(set(samples)) > 50
    assert repr(space) == "UnicodeText(5)"
    for sample in samples:
        sample.encode()


def test_every_error_here_is_one_a_user_can_catch() -> None:
    assert issubclass(SnapshotError, TraceGymError)
    assert issubclass(IrreversibleError, SnapshotError)
