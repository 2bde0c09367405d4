"""The contract checker: good environments pass, and each defect is named by the rule it breaks."""

import re
from typing import Any

import gymnasium
import pytest

from examples.count_env import CountEnv
from tests.support import broken_envs as broken
from tests.support import text_games
from trace_gym.check import RULES, Report, check_env
from trace_gym.env import ForkableEnv
from trace_gym.errors import ConfigError, EnvironmentContractError
from trace_gym.replay import ReplayEnv

PROCESS = "new-process"  # the one rule that takes a while


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, PROCESS)


def broken_rules(env: Any) -> dict[str, str]:
    """Rule -> message of those that `check_env` finds broken."""
    with pytest.raises(EnvironmentContractError) as caught:
        check_env(env)
    lines = str(caught.value).splitlines()[1:]
    return dict(line.strip().split(": ", 1) for line in lines)


# ---- good environments ---------------------------------------------------------------------------------------


def test_a_registered_environment_keeps_every_rule() -> None:
    report = check_env("examples/Count-v0")
    assert report == Report("examples/Count-v0", tuple(RULES), {})
    assert [line.split(":")[0] for line in str(report).splitlines()[1:]] == [
        f"  ok  {name}" for name in RULES
    ]


def test_a_class_is_checked_without_being_registered() -> None:
    report = check_env(broken.PurseEnv)
    assert set(report.exercised) == set(RULES) - {"no-wrapper"}
    assert report.unexercised == {"no-wrapper": "gymnasium.make did not make it"}


def test_what_cannot_be_exercised_is_said(no_process: None) -> None:
    report = check_env(broken.SteadyPurseEnv)
    assert "no environment noise was seen" in report.unexercised["fresh-noise"]
    assert "--  fresh-noise: not exercised: no environment noise" in str(report)


def test_an_irreversible_tool_is_no_defect(no_process: None) -> None:
    assert "forks" in check_env(broken.IrreversiblePurseEnv).exercised


def test_what_an_environment_prints_does_no_harm(capfd: pytest.CaptureFixture[str]) -> None:
    assert PROCESS in check_env(broken.ChattyPurseEnv).exercised
    assert set(capfd.readouterr().out.splitlines()) == {"a coin falls"}


def test_an_instance_that_cannot_be_made_again_is_checked_as_far_as_it_goes() -> None:
    report = check_env(CountEnv(misheard=0.5))
    assert {"new-instance", PROCESS} <= report.unexercised.keys()
    assert "pass its id" in report.unexercised["new-instance"]
    assert "restore-from-bytes" in report.exercised


def test_an_instance_that_gymnasium_made_is_made_again() -> None:
    report = check_env(gymnasium.make("examples/Count-v0", misheard=0.5))
    assert {"new-instance", PROCESS, "no-wrapper"} <= set(report.exercised)


def test_a_function_is_no_address_for_another_process() -> None:
    report = check_env(lambda: CountEnv(misheard=0.5))
    assert report.unexercised[PROCESS].startswith("another process cannot import")
    assert "new-instance" in report.exercised


@pytest.mark.parametrize("tasks", [None, {"train": ["2", "3"], "test": ["4"]}])
@pytest.mark.parametrize(
    "game", [text_games.GuessEnv, text_games.HonestGuessEnv, text_games.CapturedGuessEnv, "tests/Guess-v0"]
)
def test_replayed_environments_keep_the_contract(game: Any, tasks: Any, no_process: None) -> None:
    report = check_env(lambda: ReplayEnv(game, tasks=tasks))
    assert report.unexercised.keys() - {"no-wrapper"} == (
        {"fresh-noise"} if game is text_games.HonestGuessEnv else set()
    )


def test_two_checks_of_one_environment_ask_the_same(no_process: None) -> None:
    seen: list[list[str]] = [[], []]

    def listening(log: list[str]) -> type[CountEnv]:
        class Listening(CountEnv):
            def step(self, action: str) -> Any:
                log.append(action)
                return super().step(action)

        return Listening

    for log in seen:
        check_env(listening(log))
    assert seen[0] == seen[1]
    assert len(seen[0]) > 100


# ---- deliberately broken ones --------------------------------------------------------------------------------

DEFECTS = {
    broken.ForgottenGenerator: "restore",
    broken.CounterOutside: "restore",
    broken.StaleTools: "restore",
    broken.ObservationChanged: "restore",
    broken.NeedsOldInstance: "new-instance",
    broken.OrderDependent: "siblings",
    broken.AliasedList: "no-aliasing",
    broken.InfoAliased: "no-aliasing",
    broken.NotFrozen: "plain-state",
    broken.PickleOnly: "plain-state",
    broken.PickledInside: "plain-state",
    broken.ChangedByBytes: "restore-from-bytes",
    broken.SeedIgnored: "restore-with-seed",
    broken.TakesAnything: "bad-snapshots",
    broken.CrashesOnDamage: "bad-snapshots",
    broken.ForksToItself: "forks",
    broken.KeyHasNoise: "state-keys",
    broken.GlobalRandom: "global-generators",
    broken.SeedsGlobal: "global-generators",
    broken.FreshEntropy: "same-seed-same-episode",
    broken.NoSuccess: "info-keys",
    broken.ObjectInInfo: "info-keys",
    broken.NoTasks: "task-ids",
    broken.EarlyReward: "rewards",
    broken.TooLong: "observations",
    broken.HalfCharacters: "observations",
    broken.StepsOn: "order-of-calls",
    broken.RaisesOnStrangeCoins: "any-action",
    broken.RaisesOnGarbage: "any-action",
    broken.NoRoom: "room-for-a-wasted-turn",
    broken.LostExpert: "solvable",
    broken.ShuffledTasks: "task-ids",
    broken.TakesAnyTask: "task-ids",
    broken.RewardsTime: "turn-limit",
    broken.RepeatsInfo: "gymnasium-api",
    broken.CannotReset: "playable",
}
ONLY_ELSEWHERE = (broken.SharedCache, broken.WordOrder, broken.HashedStart, broken.DiesElsewhere)


@pytest.mark.parametrize(
    ("env", "rule"), DEFECTS.items(), ids=lambda value: getattr(value, "__name__", value)
)
def test_a_defect_is_named(env: type[ForkableEnv[Any]], rule: str, no_process: None) -> None:
    assert rule in broken_rules(env)


@pytest.mark.parametrize("env", ONLY_ELSEWHERE, ids=lambda env: env.__name__)
def test_a_defect_that_shows_in_another_process_is_named(env: type[ForkableEnv[Any]]) -> None:
    assert PROCESS in broken_rules(env)


def test_every_rule_has_a_defect_that_breaks_it() -> None:
    unbroken = set(RULES) - set(DEFECTS.values()) - {PROCESS, "no-wrapper"}
    assert unbroken == {"fresh-noise"}  # which nothing breaks: it only says whether there is noise


def test_all_broken_rules_are_named_at_once_on_one_line_each(no_process: None) -> None:
    found = broken_rules(broken.CounterOutside)
    assert len(found) > 3
    assert re.search(
        r"restored to task '4', seed 20, turn \d: turn \d shows the observation", found["restore"]
    )
    assert found["restore"].endswith("(outside the state it changes asked)")


def test_a_wrapper_and_its_counter_are_named(no_process: None) -> None:
    assert broken_rules(broken.Counting(broken.PurseEnv())).keys() == {"no-wrapper"}


@pytest.mark.parametrize("settings", [{"max_episode_steps": 9}, {"order_enforce": True}])
def test_a_registration_that_adds_a_wrapper_is_named(settings: dict[str, Any], no_process: None) -> None:
    plain = {"order_enforce": False, "disable_env_checker": True}
    entry = "tests.support.broken_envs:PurseEnv"
    gymnasium.register("tests/Wrapped-v0", entry_point=entry, **{**plain, **settings})
    try:
        assert broken_rules("tests/Wrapped-v0").keys() == {"no-wrapper"}
    finally:
        del gymnasium.registry["tests/Wrapped-v0"]


def test_an_id_that_is_not_the_classs_own_is_a_warning(no_process: None) -> None:
    gymnasium.register(
        "tests/Renamed-v0",
        entry_point="tests.support.broken_envs:PurseEnv",
        order_enforce=False,
        disable_env_checker=True,
    )
    try:
        report = check_env("tests/Renamed-v0")
    finally:
        del gymnasium.registry["tests/Renamed-v0"]
    assert f"registered as tests/Renamed-v0, its env_id is {broken.PurseEnv.env_id}" in report.warnings[0]
    assert f"\n  !!  {report.warnings[0]}" in str(report)


@pytest.mark.parametrize("given", ["nobody/Knows-v0", "no_such_module:Env-v0", ReplayEnv])
def test_what_cannot_be_made_is_one_clear_error(given: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be made: "):
        check_env(given)


def test_no_task_is_too_few() -> None:
    with pytest.raises(ConfigError, match="at least one task"):
        check_env(broken.PurseEnv, max_tasks=0)


def test_an_environment_of_another_kind_is_refused_with_advice() -> None:
    with pytest.raises(EnvironmentContractError, match="ReplayEnv"):
        check_env(text_games.GuessEnv)


def test_an_environment_whose_moods_defy_replay_is_named(no_process: None) -> None:
    assert "same-seed-same-episode" in broken_rules(lambda: ReplayEnv(text_games.MoodyGuessEnv))
