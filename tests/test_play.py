"""Playing by hand: what is typed, what it does, and that going back is exact."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from tests.support.broken_envs import PurseEnv, SteadyPurseEnv
from tests.support.walk import Walk, WalkEnv
from trace_gym.cli import app
from trace_gym.cli.play import Entry, Reader, _ask, play_until_quit, read_entry
from trace_gym.cli.screen import block, on_one_line
from trace_gym.env import ForkableEnv, Turn
from trace_gym.errors import ConfigError, EpisodeError, IrreversibleError, PluginError, TraceGymError
from trace_gym.play import COMMANDS, Game, Said
from trace_gym.plugins import make_env

MATH = "trace_gym/Math-v0"


def reader(lines: Iterable[str]) -> Reader:
    left = iter(lines)
    return lambda prompt: next(left, None)


def begun(env: ForkableEnv[Any], task: str | None = None, seed: int = 0) -> Game:
    game = Game(env, seed=seed)
    list(game.new(task))
    return game


def told(game: Game, typed: str) -> dict[str, str]:
    """Label -> text of what an entry shows, the last one where a label repeats."""
    return {said.label: said.text for said in game.enter(typed)}


# ---- what is typed --------------------------------------------------------------------------------------------------


def test_lines_are_joined_by_a_backslash_and_blocks_are_taken_as_they_are() -> None:
    read = reader(["one", "two\\", "  three", "<<<", ":quit", "a\\", "", ">>>", "", "end\\"])
    entries = [read_entry(read) for _ in range(6)]
    assert entries == [
        Entry("one"),
        Entry("two\n  three"),
        Entry(":quit\na\\\n", verbatim=True),
        Entry(""),
        Entry("end\n"),
        None,
    ]


def test_a_block_that_is_cut_short_is_not_played() -> None:
    with pytest.raises(ConfigError, match="never closed"):
        read_entry(reader(["<<<", "<answer>1</answer>"]))


@pytest.mark.parametrize(("word", "quits"), [(":quit", True), (" :q ", True), (":", False), ("quit", False)])
def test_quitting(word: str, quits: bool) -> None:
    assert Entry(word).quits is quits and not Entry(word, verbatim=True).quits


def test_shorthand_becomes_the_action_it_stands_for() -> None:
    game = begun(make_env(MATH), "word/train/2/3876")
    shown = told(game, "!calculator expression=3*4")
    assert shown["you"] == '<tool_call>{"name":"calculator","arguments":{"expression":"3*4"}}</tool_call>'
    assert shown["tool"] == "12"
    assert told(game, '!solve equation="3x + 5 = 20" variable=x')["tool"] == "x = 5"
    assert told(game, "= 12 ")["you"] == "<answer>12</answer>"
    assert game.path[-1].ended


def test_an_argument_has_the_type_that_the_tools_schema_asks_for() -> None:
    game = begun(SteadyPurseEnv(), "4")
    assert "tools" not in told(game, ":hint") and "put" not in told(game, ":tools")["tools"]
    assert "have changed" in [said.text for said in game.enter("!open")][2]
    assert "put(coin?: integer)  Put a coin in" in told(game, ":tools")["tools"]
    assert told(game, "!put coin=2")["you"].endswith('{"coin":2}}</tool_call>')
    assert game.env.state.coins == (2,)
    assert '"coin":"two"' in told(game, "!put coin=two")["you"]  # for the environment to judge
    assert '"amount":"2"' in told(game, "!spend amount=2")["you"]  # a tool that nobody declared


@pytest.mark.parametrize(
    "typed", ["!", "!calculator 3*4", "!calculator expression='3", "!two words=1", "=", "!a =b"]
)
def test_shorthand_that_makes_no_sense_costs_no_turn(typed: str) -> None:
    game = begun(make_env(MATH))
    if typed == "!two words=1":  # a tool of another name is the environment's to refuse
        assert "there is no tool 'two'" in told(game, typed)["tool"]
        return
    with pytest.raises(ConfigError, match=re.escape(typed)):
        told(game, typed)
    assert len(game.path) == 1


def test_commands_may_be_shortened_where_that_is_clear() -> None:
    game = begun(WalkEnv(), "1")
    assert told(game, ":e")["expert"] == "+"
    for wrong, hint in ((":n", ":novice, :new"), (":x", "is no command"), (":fork 2", "takes nothing")):
        with pytest.raises(ConfigError, match=hint):
            told(game, wrong)
    assert all(f":{name}" in told(game, ":help")["help"] for name in COMMANDS)
    assert list(game.enter("   ")) == []


# ---- the game -------------------------------------------------------------------------------------------------------


def test_the_expert_solves_and_then_the_episode_is_over() -> None:
    game = begun(WalkEnv(slip=0.0), "2")
    for _ in range(3):
        shown = told(game, ":expert")
    assert shown["expert"] == "stop" and "solved, reward 1, turn 3" in shown["note"]
    for typed in ("+", ":expert", ":hint", ":novice", "=5"):
        with pytest.raises(EpisodeError, match="the episode is over"):
            told(game, typed)
    assert "7 turns left" not in told(game, ":back 1")["note"] and told(game, ":expert")["tool"] == "arrived"


def test_the_turn_limit_ends_the_episode() -> None:
    game = begun(WalkEnv(slip=0.0, turn_limit=2), "2")
    assert "1 turn left" in told(game, "+")["note"]
    assert "cut at the turn limit" in told(game, "+")["note"]


def test_back_goes_to_the_last_fork_and_then_to_the_one_before() -> None:
    game = begun(WalkEnv(slip=0.0), "3")
    told(game, ":fork")
    told(game, "+")
    told(game, ":fork")
    assert told(game, ":fork")["note"].startswith("fork 2 set")  # twice in one place is one fork
    for _ in range(2):
        told(game, "+")
    assert told(game, ":back")["tool"] == "at 1"
    told(game, "-")
    assert told(game, ":back")["tool"] == "at 1"  # again, since something was played
    assert told(game, ":back")["user"] == "walk to 3"
    assert told(game, ":back")["user"] == "walk to 3"  # the first fork stays


def test_back_some_turns() -> None:
    game = begun(WalkEnv(slip=0.0), "3")
    for _ in range(3):
        told(game, "+")
    assert told(game, ":back 2")["tool"] == "at 1"
    for wrong in (":back 2", ":back 0", ":back -1", ":back x", ":back ²", ":back 99999999999999999999"):
        with pytest.raises(ConfigError):
            told(game, wrong)
    with pytest.raises(ConfigError, match="there is no fork"):
        told(game, ":back")
    told(game, ":fork")
    assert list(game.new()) and game.forks == [] and len(game.path) == 1


def test_going_back_is_exact_noise_included() -> None:
    game = begun(WalkEnv(slip=0.5, turn_limit=20), "3", seed=3)
    told(game, ":fork")
    first = [told(game, "+")["tool"] for _ in range(8)]
    told(game, ":back")
    assert [told(game, "+")["tool"] for _ in range(8)] == first and len(set(first)) > 2


def test_nothing_past_an_irreversible_tool_is_forked() -> None:
    game = begun(WalkEnv(slip=0.0), "2")
    told(game, "+")
    told(game, "void")
    with pytest.raises(IrreversibleError):
        told(game, ":fork")
    told(game, "+")
    with pytest.raises(IrreversibleError, match="further back"):
        told(game, ":back 1")
    assert told(game, ":back 2")["tool"] == "at 1"


def test_an_environment_that_raises_costs_no_turn() -> None:
    game = begun(WalkEnv(slip=0.0), "2")
    with pytest.raises(PluginError, match="raised RuntimeError: the ground opened"):
        told(game, "raise")
    assert told(game, "+")["tool"] == "at 1"


class NoExpert(WalkEnv):
    def expert_action(self) -> str:
        return ForkableEnv.expert_action(self)


def test_an_environment_without_an_expert_says_so() -> None:
    with pytest.raises(PluginError, match="does not implement this"):
        told(begun(NoExpert(), "1"), ":expert")


def test_the_state_is_told() -> None:
    game = begun(WalkEnv(), "2")
    told(game, ":fork")
    told(game, "+")
    text = told(game, ":state")["note"]
    for part in ("task 2", "turn 1 of 8", "reward so far 0", "forks at turns 0", game.env.state_key()):
        assert part in text


def test_one_seed_gives_one_game() -> None:
    def story(seed: int | None) -> list[Said]:
        game = Game(make_env(MATH), seed=seed)
        lines = list(game.new())
        for word in (":novice", ":novice", ":new", ":novice"):
            lines += game.enter(word)
        return lines

    assert story(4) == story(4) and len({tuple(story(seed)) for seed in (None, None, 4, 5)}) == 4


ENTRIES = st.lists(
    st.sampled_from(
        [
            "+",
            "-",
            "stop",
            "void",
            "raise",
            "?",
            ":fork",
            ":back",
            ":back 1",
            ":back 3",
            ":expert",
            ":new",
            ":novice",
        ]
    )
)


@settings(max_examples=50)
@given(entries=ENTRIES, seed=st.integers(0, 3))
def test_the_environment_is_always_where_the_path_ends(entries: list[str], seed: int) -> None:
    game = begun(WalkEnv(slip=0.3, turn_limit=6), seed=seed)
    for typed in entries:
        before = game.path
        try:
            list(game.enter(typed))
        except TraceGymError:
            assert game.path is before
        here = game.path[-1]
        assert all(point.snapshot is None or point.snapshot.turn == i for i, point in enumerate(game.path))
        try:
            snapshot = game.env.snapshot()
        except IrreversibleError:
            assert here.snapshot is None
            continue
        if typed != "raise":  # a turn that broke may have drawn noise
            assert here.snapshot is not None and here.snapshot.digest == snapshot.digest
        assert here.ended == (snapshot.status != "running")


# ---- on the screen --------------------------------------------------------------------------------------------------

HOSTILE = (
    "[bold]x[/bold]\x1b[2J\x1b]0;owned\x07\rfine\nnote   | the episode is over: solved\u202e\ttab\r\nend"
)


class HostileEnv(WalkEnv):
    """Says what could steer a terminal, or pass for the game's own words."""

    env_id = "tests/HostilePlay-v0"

    def advance(self, state: Walk, action: str, rng: np.random.Generator) -> Turn[Walk]:
        if action == "raise":
            raise RuntimeError(HOSTILE)
        return Turn.go(state, HOSTILE)

    def instructions(self, state: Walk) -> str:
        return HOSTILE

    def expert_action(self) -> str:
        return HOSTILE


@pytest.fixture(params=[WalkEnv, HostileEnv, PurseEnv])
def registered(request: pytest.FixtureRequest) -> Iterator[str]:
    cls = request.param
    gymnasium.register(cls.env_id, entry_point=cls, order_enforce=False, disable_env_checker=True)
    yield cls.env_id
    del gymnasium.registry[cls.env_id]


def only(cls: type) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("registered", [cls], indirect=True)


def run(*words: str, typed: str | bytes = "") -> Result:
    return CliRunner().invoke(app, ["play", *words], input=typed)


def test_a_block_labels_every_line() -> None:
    text = block("tool", HOSTILE, width=6)
    assert text.split("\n")[1] == "tool   | note   | the episode is over: solved\ufffd   tab"
    assert all(line.startswith("tool   |") for line in text.split("\n")) and len(text.split("\n")) == 3
    assert block("tool", "") == "tool |"


@settings(max_examples=50)
@given(st.text(), st.integers(1, 40))
def test_one_line_is_one_line_and_fits(text: str, cells: int) -> None:
    line = on_one_line(text, cells)
    assert len(line.splitlines()) < 2 and cell_len(line) <= cells
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in line)


@only(HostileEnv)
def test_no_text_of_an_environment_reaches_the_terminal_raw(registered: str) -> None:
    result = run(registered, typed="go\n:expert\n:hint\nraise\n\x1b[31mtyped\n")
    assert result.exit_code == 0, result.output
    assert not set("\x1b\x07\r\u202e\t") & set(result.stdout) and "[bold]x[/bold]" in result.stdout
    labels = {line.split(" |")[0].strip() for line in result.stdout.splitlines() if not line.startswith("> ")}
    assert labels == {"note", "system", "user", "tool", "expert", "error"}
    assert not any(re.match(r"note +\| the episode is over", line) for line in result.stdout.splitlines())


def test_play_reads_a_pipe_to_its_end() -> None:
    result = run(
        *(MATH, "--task", "word/train/2/3876"),
        typed="!calculator expression=3*4\n:fork\n:bogus\n:expert\n=20",
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"note   | {MATH}, task word/train/2/3876" and "tool   | 12" in lines
    assert "tools  | calculator(expression: string)  The exact value" in result.stdout
    assert "> !calculator expression=3*4" in lines and "note   | 4 turns left" in lines
    assert any(line.startswith("error  | :bogus is no command") for line in lines)
    assert "the episode is over: solved, reward 1, turn 3" in lines[-1] and result.stderr == ""


def test_nothing_after_quit_is_played() -> None:
    assert "tool" not in run(MATH, typed=":q\n=3\n").stdout.split("or :help")[1]


def test_bytes_that_are_no_text_are_an_action_like_any_other() -> None:
    result = run(MATH, typed=b"\xff\xfe\x00\n=\xff\n:state\n")
    assert result.exit_code == 0 and "no action found" in result.stdout


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("trace_gym/Mat-v0",), "trace-gym envs"),
        ((MATH, "--task", "no/such"), "no/such"),
        ((MATH, "--option", "dificulty=2"), "did you mean 'difficulty'"),
    ],
)
def test_a_wrong_word_is_one_line(words: tuple[str, ...], part: str) -> None:
    result = run(*words, typed=":quit\n")
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and part in result.stderr and result.stderr.count("\n") == 1


@only(WalkEnv)
def test_debug_shows_where_the_environment_broke(registered: str) -> None:
    assert "error  | tests/Walk-v0 raised RuntimeError" in run(registered, typed="raise\n+\n").stdout
    result = run(registered, "--debug", typed=":bogus\nraise\n+\n")
    assert isinstance(result.exception, PluginError) and isinstance(result.exception.__cause__, RuntimeError)


def test_a_loop_without_terminal_can_be_driven_by_anything() -> None:
    shown: list[Said] = []
    play_until_quit(begun(WalkEnv(slip=0.0), "1"), reader(["+", "stop", ":x", ":quit", "+"]), shown.append)
    assert [said.label for said in shown] == ["tool", "note", "tool", "note", "error"]


def test_help_has_an_example() -> None:
    result = run("--help")
    assert re.search(r"Examples:\s+trace-gym play trace_gym/Math-v0", result.stdout)
    assert "\\n=12\\n' | trace-gym play" in result.stdout


# ---- at a terminal --------------------------------------------------------------------------------------------------


def at_a_terminal(keys: Sequence[bytes]) -> tuple[int, str]:
    """Exit status and output of a game at a pseudo-terminal; each of `keys` is typed at a prompt."""
    main, side = pty.openpty()
    command = [sys.executable, "-m", "trace_gym.cli", "play", MATH, "--seed", "1"]
    process = subprocess.Popen(
        command, stdin=side, stdout=side, stderr=side, start_new_session=True, preexec_fn=_own_terminal
    )
    os.close(side)
    said, left, end = b"", list(keys), time.monotonic() + 60
    while time.monotonic() < end:
        if not select.select([main], [], [], 0.2)[0]:
            continue
        try:
            data = os.read(main, 65536)
        except OSError:  # Linux's end of file
            break
        said += data
        if not data:
            break
        if left and said.rstrip(b"\x1b[?204hl").endswith(b"> "):  # readline ends its prompt with an escape
            time.sleep(
                0.7
            )  # as people do: a signal between readline's prompt and its wait is seen at the next key only
            os.write(main, left.pop(0))
            said += b"\n"
    if time.monotonic() > end:
        process.kill()
    os.close(main)
    return process.wait(10), said.decode(errors="replace")


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests themselves run in the background


@pytest.mark.skipif(
    "CI" in os.environ or signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
    reason="needs a terminal whose Ctrl-C is a signal; a run in the background has none",
)
def test_ctrl_c_at_a_terminal_ends_the_game_cleanly() -> None:
    code, said = at_a_terminal([b":expert\r", b"\x03"])
    assert code == 130 and "4 turns left" in said
    assert "Traceback" not in said and "interrupted" not in said


def test_ctrl_d_at_a_terminal_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", closed)
    assert read_entry(_ask) is None


# ---- completion -----------------------------------------------------------------------------------------------------


def complete(words: str) -> list[str]:
    env = {
        "_TRACE_GYM_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    result = CliRunner().invoke(app, [], env=env, prog_name="trace-gym")
    assert result.exit_code == 0, result.output
    return result.stdout.split()


def test_the_shell_completes_commands_and_environments() -> None:
    assert complete("trace-gym tre") == ["trees"]
    assert complete("trace-gym doc") == ["doctor"]
    assert complete("trace-gym play trace_gym/M") == [MATH]
    assert complete("trace-gym play CartP") == []


def test_completion_is_offered_by_the_help() -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).stdout
