"""Episodes played again are the same, or say where they part."""

from typing import Any

import gymnasium
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import text_games
from tests.support.text_games import CapturedGuessEnv, GuessEnv, HonestGuessEnv, MoodyGuessEnv
from trace_gym.env import ForkableEnv, Snapshot
from trace_gym.errors import ConfigError, EpisodeError, ReplayDivergence, SnapshotError, TaskError
from trace_gym.replay import DEFAULT_TURNS, ReplayEnv, ReplayState

GUESSES = st.lists(st.sampled_from([*"12345678", "", "nine"]), max_size=6)
TASKS = {"train": ["8"], "test": ["3", "4"]}  # the secret number


class CountedGuessEnv(GuessEnv):
    """Counts what is asked of it."""

    resets = 0
    steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.resets += 1
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> Any:
        self.steps += 1
        return super().step(action)


def run(env: ForkableEnv[ReplayState], actions: list[str]) -> list[Any]:
    shown = []
    for action in actions:
        if env.snapshot().status != "running":
            break
        shown.append(env.step(action))
    return shown


@given(before=GUESSES, after=GUESSES, seed=st.integers(0, 2**31), noise=st.none() | st.integers(0, 2**31))
def test_a_replayed_state_goes_on_the_same_in_a_new_instance(
    before: list[str], after: list[str], seed: int, noise: int | None
) -> None:
    env = ReplayEnv(GuessEnv, tasks=TASKS)
    env.reset(seed=seed)
    run(env, before)
    snapshot = env.snapshot()
    other = ReplayEnv(GuessEnv, tasks=TASKS)
    first = env.restore(snapshot, seed=noise)
    assert other.restore(Snapshot.from_bytes(snapshot.to_bytes()), seed=noise) == first
    assert run(other, after) == run(env, after)
    assert other.snapshot() == env.snapshot()


@given(left=GUESSES, right=GUESSES)
def test_forks_have_inner_environments_of_their_own(left: list[str], right: list[str]) -> None:
    env = ReplayEnv(GuessEnv, tasks=TASKS)
    env.reset(seed=1)
    env.step("1")
    alone = run(env.fork(), left), run(env.fork(), right)
    one, other = env.fork(), env.fork()
    assert isinstance(one, ReplayEnv)
    assert isinstance(other, ReplayEnv)
    shown: tuple[list[Any], list[Any]] = ([], [])
    for turn in range(6):
        shown[0].extend(run(one, left[turn : turn + 1]))
        shown[1].extend(run(other, right[turn : turn + 1]))
    assert shown == alone
    assert run(env, left) == alone[0]


def test_a_restore_replays_no_more_than_it_must() -> None:
    inner = CountedGuessEnv()
    env = ReplayEnv(lambda: inner, tasks=TASKS)
    env.reset(seed=0, options={"task": "8"})
    start = env.snapshot()
    run(env, ["1", "2", "3"])
    assert (inner.resets, inner.steps) == (1, 3)
    env.restore(env.snapshot())  # it stands there
    env.restore(Snapshot.from_bytes(env.snapshot().to_bytes()))
    assert (inner.resets, inner.steps) == (1, 3)
    later = env.snapshot()
    env.restore(start)
    assert (inner.resets, inner.steps) == (2, 3)
    env.restore(later)
    assert (inner.resets, inner.steps) == (3, 6)
    env.step("nine")  # is refused, and may have left anything behind
    env.step("4")
    assert (inner.resets, inner.steps) == (4, 11)


def test_a_replay_that_parts_from_the_record_names_the_turn() -> None:
    env = ReplayEnv(MoodyGuessEnv, tasks=TASKS)
    env.reset(seed=0, options={"task": "8"})
    start = env.snapshot()
    run(env, ["1", "2"])
    snapshot = env.snapshot()
    env.restore(start)
    with pytest.raises(ReplayDivergence, match=r"replay:MoodyGuessEnv: turn 1 of 2 answers otherwise"):
        env.restore(snapshot)
    assert env.snapshot() == start  # and stays where it was


def changed(snapshot: Snapshot, **changes: Any) -> Snapshot:
    return msgspec.structs.replace(snapshot, state=msgspec.structs.replace(snapshot.state, **changes))


def test_every_part_of_the_record_is_compared() -> None:
    env = ReplayEnv(HonestGuessEnv, tasks=TASKS)
    env.reset(seed=0, options={"task": "8"})
    run(env, ["1", "2"])
    good = env.snapshot()
    first, second = good.state.turns
    other = msgspec.structs.replace(second, digest=first.digest)
    for snapshot, message in (
        (changed(good, opening=b"something else"), "shows another text"),
        (changed(good, turns=(first, other)), "turn 2 of 2"),
        (changed(good, turns=(msgspec.structs.replace(first, action="8"), second)), "turn 1 of 2"),
        (changed(good, turns=(msgspec.structs.replace(first, action="nine"), second)), "turn 1 of 2"),
        (changed(good, turns=(msgspec.structs.replace(first, noise=-1), second)), "turn 1 of 2"),
    ):
        with pytest.raises(ReplayDivergence, match=message):
            ReplayEnv(HonestGuessEnv, tasks=TASKS).restore(Snapshot.from_bytes(snapshot.to_bytes()))


def test_a_recipe_that_makes_no_sense_is_a_snapshot_error() -> None:
    env = ReplayEnv(GuessEnv)
    env.reset(seed=0)
    for snapshot in (changed(env.snapshot(), seed=-1), changed(env.snapshot(), seed=2**70)):
        with pytest.raises(SnapshotError):
            ReplayEnv(GuessEnv).restore(Snapshot.from_bytes(snapshot.to_bytes()))


def test_a_refused_action_costs_a_turn_and_is_not_carried_out() -> None:
    env = ReplayEnv(HonestGuessEnv, tasks=TASKS)
    env.reset(seed=0, options={"task": "8"})
    observation, reward, terminated, truncated, info = env.step("nine")
    assert observation.startswith("The action was refused (ValueError: invalid literal")
    assert (reward, terminated, truncated, info["format_error"]) == (0.0, False, False, True)
    assert env.snapshot().turn == 1
    observation, _, _, _, info = env.step("1")
    assert observation == "Higher than 1."
    assert info["guesses"] == 1


class BreakingEnv(HonestGuessEnv):
    """Loses its connection in the middle of its second step."""

    steps = 0

    def step(self, action: str) -> Any:
        shown = super().step(action)
        self.steps += 1
        if self.steps == 2:
            raise ConnectionError("the server is gone")
        return shown


def test_a_failure_of_the_inner_environment_is_no_refusal_and_spoils_nothing() -> None:
    env = ReplayEnv(BreakingEnv, tasks=TASKS)
    env.reset(seed=0, options={"task": "8"})
    env.step("1")
    with pytest.raises(ConnectionError):
        env.step("2")
    assert env.snapshot().turn == 1
    assert env.step("2")[4]["guesses"] == 2  # and not 3, as where the failed step left off


@pytest.mark.parametrize("game", [GuessEnv, CapturedGuessEnv])
def test_seeds_draw_fresh_inner_noise(game: type[GuessEnv]) -> None:
    env = ReplayEnv(game, tasks=TASKS)
    env.reset(seed=0, options={"task": "8"})
    env.step("1")
    snapshot = env.snapshot()

    def hints(seed: int | None) -> tuple[str, ...]:
        env.restore(snapshot, seed=seed)
        return tuple(shown[0] for shown in run(env, ["1"] * 5))

    assert len({hints(seed) for seed in range(20)}) > 5
    assert hints(3) == hints(3)
    assert hints(None) == hints(None)


def test_without_reseeding_the_reset_seed_fixes_all_noise() -> None:
    env = ReplayEnv(GuessEnv, tasks=TASKS, reseed=False)
    env.reset(seed=0, options={"task": "8"})
    snapshot = env.snapshot()
    courses = set()
    for seed in (None, 1, 2):
        env.restore(snapshot, seed=seed)
        courses.add(tuple(shown[0] for shown in run(env, ["1"] * 8)))
    bare = GuessEnv()
    bare.reset(seed=env.state.seed, options={"task": "8"})
    assert courses == {tuple(bare.step("1")[0] for _ in range(8))}


def test_equal_courses_have_equal_keys_where_no_noise_was_drawn() -> None:
    keys = set()
    for seed in range(5):
        env = ReplayEnv(HonestGuessEnv)
        env.reset(seed=seed, options={"task": "17"})
        run(env, ["1", "x", "8"])
        keys.add(env.state_key())
    assert len(keys) == 1
    env.step("2")
    assert env.state_key() not in keys


def test_a_task_is_a_reset_seed_unless_tasks_are_given() -> None:
    env = ReplayEnv(GuessEnv)
    assert list(env.tasks("train"))[:2] == ["0", "1"]
    assert not set(env.tasks("train")) & set(env.tasks("test"))
    env.reset(seed=5, options={"task": "17"})
    assert env.state == ReplayState("17", 17, env.state.opening)
    for task in ("-1", "x", "", "1.0", "٣", "9" * 10):
        with pytest.raises(TaskError, match="a task is a reset seed"):
            env.reset(options={"task": task})
    named = ReplayEnv(GuessEnv, tasks=TASKS)
    assert list(named.tasks("test")) == ["3", "4"]
    named.reset(options={"task": "4"})
    assert named.step("4")[1:4] == (1.0, True, False)
    with pytest.raises(TaskError, match="no task '5'"):
        named.reset(options={"task": "5"})
    with pytest.raises(TaskError, match="no split 'dev'; there are 'train', 'test'"):
        named.tasks("dev")


def test_the_inner_step_limit_cuts_the_episode() -> None:
    env = ReplayEnv("tests/Guess-v0", tasks=TASKS)
    env.reset(seed=0, options={"task": "8"})
    assert env.snapshot().turn_limit == 6
    *_, last = run(env, ["1"] * 9)
    assert (last[1:4], last[4]["success"], env.snapshot().turn) == ((0.0, False, True), False, 6)
    assert env.env_id == "replay:tests/Guess-v0"
    bare = ReplayEnv(GuessEnv, max_turns=3)
    bare.reset(seed=0)
    assert bare.snapshot().turn_limit == 3
    assert ReplayEnv(GuessEnv)._turn_limit == DEFAULT_TURNS


class RewardingEnv(GuessEnv):
    """Rewards every guess, ends with nothing, and is cut from within after three."""

    def step(self, action: str) -> Any:
        self.guesses += 1
        return "", 0.5 if self.guesses < 3 else -1.0, action == "8", self.guesses == 3, {}


def test_rewards_and_cuts_pass_through() -> None:
    env = ReplayEnv(RewardingEnv, dense_reward=True)
    assert env.dense_reward
    env.reset(seed=0)
    assert [step[1:4] for step in run(env, ["1"] * 5)] == [
        (0.5, False, False),
        (0.5, False, False),
        (-1.0, False, True),
    ]
    env.reset(seed=0)
    *_, last = run(env, ["1", "1", "8"])
    assert (last[1:4], last[4]["success"]) == ((-1.0, True, False), False)  # no success without a reward


def test_inner_info_becomes_plain_data() -> None:
    env = ReplayEnv(GuessEnv, tasks=TASKS)
    _, info = env.reset(seed=0, options={"task": "8"})
    assert info == {"guesses": 0, "task_id": "8", "role": "user", "system": "", "tools": []}
    assert type(info["guesses"]) is int
    info = env.step("8")[4]
    assert info == {"guesses": 1, "task_id": "8", "role": "user", "success": True}
    assert info["success"] is True


def test_the_solution_comes_from_the_inner_environment_or_from_a_function() -> None:
    env = ReplayEnv(GuessEnv, tasks=TASKS, system="Guess.")
    _, info = env.reset(seed=0, options={"task": "8"})
    assert info["system"] == "Guess."
    assert env.expert_action() == "8"
    told = ReplayEnv(GuessEnv, tasks=TASKS, expert=lambda inner: f"0{inner.get_wrapper_attr('secret')}")
    with pytest.raises(EpisodeError):
        told.expert_action()
    told.reset(seed=0, options={"task": "8"})
    assert told.expert_action() == "08"
    dull = ReplayEnv(text_games.DullEnv)
    dull.reset(seed=0)
    with pytest.raises(ConfigError, match="pass ReplayEnv"):
        dull.expert_action()


def test_what_it_can_be_made_of() -> None:
    made = ReplayEnv(gymnasium.make("tests/Guess-v0", disable_env_checker=True))
    made.reset(seed=0)
    made.step("1")
    twin = made.fork()
    assert isinstance(twin, ReplayEnv)
    assert twin._inner is not made._inner
    assert twin.snapshot() == made.snapshot()
    with pytest.raises(ConfigError, match="cannot make a second GuessEnv"):
        ReplayEnv(GuessEnv())
    assert ReplayEnv(GuessEnv, env_id="mine/Guess-v0").env_id == "mine/Guess-v0"
    with pytest.raises(ConfigError, match="observations must be text, not int"):
        ReplayEnv(text_games.DiceEnv).reset(seed=0)


def test_snapshots_of_differently_named_environments_do_not_mix() -> None:
    env = ReplayEnv(GuessEnv)
    env.reset(seed=0)
    with pytest.raises(SnapshotError, match="cannot be restored into 'replay:HonestGuessEnv'"):
        ReplayEnv(HonestGuessEnv).restore(env.snapshot())


def test_closing_closes_the_inner_environment() -> None:
    closed = []

    class Closing(GuessEnv):
        def close(self) -> None:
            closed.append(self)

    env = ReplayEnv(Closing)
    env.close()
    assert closed == [env._inner]


def test_an_expert_is_given_the_unwrapped_inner_environment() -> None:
    env = ReplayEnv("tests/Guess-v0", tasks=TASKS, expert=lambda inner: str(inner.secret))  # type: ignore[attr-defined]
    env.reset(seed=0, options={"task": "8"})
    assert env.expert_action() == "8"
    with pytest.raises(TaskError, match=r"no task '5'; tasks\(split\) lists those of train, test"):
        env.reset(options={"task": "5"})
