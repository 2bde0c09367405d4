"""Does our verdict on BFCL's multi-turn tasks agree with BFCL's own checker?

    trace-gym data get bfcl
    python -m trace_gym.benchmarks.bfcl_agreement                  every task: gold, and gold with one change of each kind
    python -m trace_gym.benchmarks.bfcl_agreement --tasks 20       of each category

Call sequences are the gold ones, as they are and with one change: a call dropped, a call made twice, two calls swapped
(of one turn, or of two), an argument altered. Nothing but these is ever given to BFCL's checker, for it evaluates what it
checks; it runs in a process of its own. Both sides see the same calls.

One leak of BFCL's classes is closed on its side too, or agreement would depend on what was checked before: a default
argument that is a list (`TwitterAPI.post_tweet`) is one object for all instances, model's and gold's alike, and `mention`
changes it. `--as-it-is` leaves it open.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trace_gym.data import folder_of
from trace_gym.envs.tool_api.bfcl import CATEGORIES, BfclWorld, GoldCall, raw_entry
from trace_gym.runs import environment_facts
from trace_gym.seeding import keyed_rng

__all__ = ["CHANGES", "Case", "cases", "main", "our_verdict", "their_verdicts"]

CHANGES = ("none", "dropped", "repeated", "swapped", "altered")
DEADLINE_S = 1800.0

Turns = tuple[tuple[GoldCall, ...], ...]

THEIR_CHECKER = """
import functools, copy, inspect, json, sys
folder, as_it_is = sys.argv[1], sys.argv[2] == "as it is"
sys.path.insert(0, folder)
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils as utils
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.posting_api import TwitterAPI

def own_defaults(function):
    signature = inspect.signature(function)
    @functools.wraps(function)
    def call(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        given = set(bound.arguments)
        bound.apply_defaults()
        fresh = {k: v if k in given else copy.copy(v) for k, v in bound.arguments.items()}
        return function(**fresh)
    return call

if not as_it_is:
    TwitterAPI.post_tweet = own_defaults(TwitterAPI.post_tweet)
for line in sys.stdin:
    job = json.loads(line)
    kept = set(vars(utils))
    try:
        verdict = multi_turn_checker(job["calls"], job["gold"], job["entry"], "", "m")
        print(json.dumps([bool(verdict["valid"]), verdict.get("error_type", "")]), flush=True)
    except Exception as error:
        print(json.dumps([None, f"{type(error).__name__}: {error}"[:200]]), flush=True)
    for name in set(vars(utils)) - kept:
        del vars(utils)[name]
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A task and the calls to judge, turn by turn."""

    task_id: str
    change: str
    turns: Turns


def cases(world: BfclWorld, task_ids: Sequence[str], *, seed: int) -> Iterator[Case]:
    """For each task the gold calls, and gold with one change of each kind that can be made to it."""
    for task_id in task_ids:
        turns: Turns = world.begin(task_id).gold.calls
        for change in CHANGES:
            changed = _change(turns, change, keyed_rng(seed, task_id, change))
            if changed is not None:
                yield Case(task_id, change, changed)


def our_verdict(world: BfclWorld, case: Case) -> bool:
    """Ours, call by call through the world that the environment plays in."""
    episode = world.begin(case.task_id)
    state = episode.state
    for turn, calls in enumerate(case.turns):
        for call in calls:
            state = world.call(episode, state, call.name, call.arguments).state
        judged = world.judge(episode, state, turn, "done")
        if judged.success is not None:
            return judged.success
        state = judged.state
    raise AssertionError("the last turn has a verdict")


def their_verdicts(
    folder: Path, given: Sequence[Case], *, as_it_is: bool = False
) -> list[tuple[bool | None, str]]:
    """BFCL's, each with its error type; None where its checker raised."""
    jobs = []
    for case in given:
        entry, gold = raw_entry(folder, case.task_id)
        calls = [[[_text(call)] for call in turn] for turn in case.turns]
        jobs.append(json.dumps({"entry": entry, "gold": gold, "calls": calls}))
    command = [sys.executable, "-c", THEIR_CHECKER, str(folder), "as it is" if as_it_is else "closed"]
    done = subprocess.run(
        command, input="\n".join(jobs), capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    verdicts = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(verdicts) == len(jobs), done.stderr[-2000:]
    return [(valid, error) for valid, error in verdicts]


def _text(call: GoldCall) -> str:
    return f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})"


# ---- changes -------------------------------------------------------------------------------------------------------


def _change(turns: Turns, change: str, rng: np.random.Generator) -> Turns | None:
    """The calls with one change, or None where it cannot be made."""
    if change == "none":
        return turns
    places = [(turn, place) for turn, calls in enumerate(turns) for place in range(len(calls))]
    lists = [list(calls) for calls in turns]
    turn, place = places[int(rng.integers(len(places)))]
    if change == "dropped":
        del lists[turn][place]
    elif change == "repeated":
        lists[turn].insert(place, lists[turn][place])
    elif change == "swapped":
        others = [other for other in places if turns[other[0]][other[1]] != turns[turn][place]]
        if not others:
            return None
        near = [other for other in others if other[0] == turn]
        pool = near if near and rng.random() < 0.7 else others
        other, there = pool[int(rng.integers(len(pool)))]
        lists[turn][place], lists[other][there] = lists[other][there], lists[turn][place]
    else:
        with_arguments = [(t, p) for t, p in places if turns[t][p].arguments]
        if not with_arguments:
            return None
        turn, place = with_arguments[int(rng.integers(len(with_arguments)))]
        lists[turn][place] = _altered(turns, turns[turn][place], rng)
    return tuple(map(tuple, lists))


def _altered(turns: Turns, call: GoldCall, rng: np.random.Generator) -> GoldCall:
    """The call with another value for one argument: of the same kind, where there is one elsewhere in the task."""
    key = sorted(call.arguments)[int(rng.integers(len(call.arguments)))]
    value = call.arguments[key]
    known = [v for turn in turns for other in turn for v in other.arguments.values()]
    alike = [v for v in known if type(v) is type(value) and v != value]
    if alike and rng.random() < 0.7:
        new = alike[int(rng.integers(len(alike)))]
    else:
        new = _another(value, rng)
    return GoldCall(call.name, {**call.arguments, key: new})


def _another(value: Any, rng: np.random.Generator) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + int(rng.integers(1, 5))
    if isinstance(value, str):
        return value[:-1] if value and rng.random() < 0.5 else f"{value}x"
    if isinstance(value, list):
        return value[:-1] if value and rng.random() < 0.5 else [*value, "x"]
    return {}


# ---- the report ----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, default=200, help="of each category")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--as-it-is", action="store_true")
    words = parser.parse_args()
    folder = folder_of("bfcl")
    world = BfclWorld(folder, CATEGORIES)
    ids = [f"multi_turn_{name}_{place}" for name in CATEGORIES for place in range(words.tasks)]
    given = list(cases(world, ids, seed=words.seed))
    ours = [our_verdict(world, case) for case in given]
    theirs = their_verdicts(folder, given, as_it_is=words.as_it_is)
    count: Counter[tuple[str, str]] = Counter()
    for case, mine, (valid, error) in zip(given, ours, theirs, strict=True):
        count[case.change, "cases"] += 1
        count[case.change, "valid for BFCL"] += valid is True
        count[case.change, "agreed"] += mine is valid
        if mine is not valid:
            print(f"{case.task_id} {case.change}: ours {mine}, BFCL's {valid} {error}", file=sys.stderr)
    columns = ("cases", "valid for BFCL", "agreed")
    print(f"| change | {' | '.join(columns)} |\n|---|---|---|---|")
    for change in CHANGES:
        print(f"| {change} | {' | '.join(str(count[change, name]) for name in columns)} |")
    total = (sum(count[change, name] for change in CHANGES) for name in columns)
    print(f"| all | {' | '.join(map(str, total))} |")
    print("\n" + ", ".join(f"{k} {v}" for k, v in environment_facts().items()))


if __name__ == "__main__":
    main()
