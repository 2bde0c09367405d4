from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from trace_gym.envs.actions import Call, format_answer, format_call, parse_action
from trace_gym.envs.tool_api.builtin import answers
from trace_gym.envs.tool_api.env import ToolAPIEnv
from trace_gym.envs.tool_api.plan import novice_action
from trace_gym.envs.tool_api.request_kinds import Question
from trace_gym.envs.tool_api.services import SERVICES
from trace_gym.envs.tool_api.tasks import FAMILIES, Request, make_task
from trace_gym.errors import ConfigError


def find(family: str, kind: str, depth: int = 1, split: str = "train") -> str:
    """The first task of this family that opens with a request of this kind."""
    for index in range(3000):
        task = make_task(f"{family}/{split}/{depth}/{index}")
        if task.template[0].rsplit(" ", 1)[0] == kind:
            return task.id
    raise AssertionError(kind)


def finish(env: ToolAPIEnv, act: Any = None) -> dict[str, Any]:
    """Play on to the end; the last info."""
    while True:
        _, _, terminated, truncated, info = env.step((act or env.expert_action)())
        if terminated or truncated:
            return info


def start(task: str, **options: Any) -> ToolAPIEnv:
    env = ToolAPIEnv(**options)
    env.reset(seed=0, options={"task": task})
    return env


def until_answer(env: ToolAPIEnv) -> None:
    """The expert's calls of the open user turn."""
    while isinstance(parse_action(env.expert_action()), Call):
        env.step(env.expert_action())


def test_the_expert_solves_every_kind_of_task_with_two_turns_and_more_to_spare() -> None:
    env = ToolAPIEnv()
    for family in FAMILIES:
        for split in ("train", "test"):
            for depth in (2, 5):
                for index in range(2):
                    task = f"{family}/{split}/{depth}/{index}"
                    env.reset(seed=0, options={"task": task})
                    assert finish(env)["success"], task
                    now = env.snapshot()
                    assert now.turn_limit - now.turn == depth + 2


# ---- what the end is judged by -----------------------------------------------------------------------------------


def test_another_way_to_the_same_office_is_as_good() -> None:
    env = start(find("calendar", "postpone"))
    task = make_task(env.snapshot().task_id)
    (event,) = task.requests[0].facts
    env.step(format_call("find_event", {"title": event.title}))  # type: ignore[union-attr]
    env.step(format_call("cancel_event", {"event": event.id}))  # type: ignore[union-attr]
    slot = {"day": event.day, "hour": event.hour}  # type: ignore[union-attr]
    env.step(format_call("add_event", {"title": event.title, **slot}))  # type: ignore[union-attr]
    _, reward, *_ = env.step("All moved.")
    assert reward == 1


@pytest.mark.parametrize(
    "extra",
    [
        ("add_event", {"title": "party", "day": 29, "hour": 3}),
        ("place_order", {"item": "pen", "quantity": 1}),
        ("add_contact", {"name": "Zoe Zink", "city": "Rome"}),
    ],
)
def test_anything_more_than_was_asked_for_is_a_failure(extra: tuple[str, dict[str, Any]]) -> None:
    family = next(name for name, tools in SERVICES.items() if extra[0] in tools)
    task = f"{family}/train/2/0"
    solution = _solution(task)
    env = start(task)
    assert not env.step(format_call(*extra))[0].startswith("error")
    assert finish(env)["success"]  # the expert takes it back
    env.reset(options={"task": task})
    env.step(format_call(*extra))
    info = finish(env, iter_actions(solution))
    assert not info["success"] and info["judged"] == "not what was asked for"


def _solution(task: str) -> list[str]:
    env = start(task)
    actions: list[str] = []
    over = False
    while not over:
        actions.append(env.expert_action())
        _, _, terminated, truncated, _ = env.step(actions[-1])
        over = terminated or truncated
    return actions


def iter_actions(actions: Sequence[str]) -> Any:
    left = iter(actions)
    return lambda: next(left)


def test_to_say_done_is_not_to_do() -> None:
    env = start("office/train/2/1")
    info = finish(env, lambda: format_answer("done"))
    assert not info["success"]
    assert finish(start("missing/train/1/0"), lambda: format_answer("done"))["judged"] == "wrong answer"


def test_a_missing_tool_is_not_offered_and_the_answer_is_that_it_cannot_be_done() -> None:
    for index in range(40):
        task = make_task(f"missing/train/1/{index}")
        env = start(task.id, distractors=12)
        _, info = env.reset(options={"task": task.id})
        assert task.gone and task.gone not in {tool["function"]["name"] for tool in info["tools"]}
        *_, info = env.step("I am sorry, no tool can do that.")
        assert info["success"]


def test_a_missing_parameter_has_to_be_asked_for() -> None:
    task = next(
        f"asking/train/2/{i}"
        for i in range(100)
        if make_task(f"asking/train/2/{i}").requests[0].lacks == "amount"
    )
    for said, good in (
        ("Which amount?", True),
        ("how much is it", True),
        ("done", False),
        ("which day?", False),
    ):
        env = start(task)
        observation, _, terminated, _, info = env.step(said)
        assert terminated is not good and (good or info["judged"] == "wrong answer")
        if good:
            assert observation == make_task(task).requests[1].text and info["role"] == "user"
            assert finish(env)["success"]


@pytest.mark.parametrize(
    ("value", "others", "good", "bad"),
    [
        ("Rome", ("Oslo", "York"), ("Rome", "She lives in ROME.", "rome"), ("Oslo", "Rome or Oslo", "", "done", "Romeo")),
        ("15", (), ("15", "It is day 15.", "15."), ("16", "day 15 or 16", "115", "fifteen", "1 5")),
    ],
)  # fmt: skip
def test_an_answer_tells_the_value_and_nothing_that_could_be_meant_instead(
    value: str, others: tuple[str, ...], good: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    question = Question(("balance", {}), 0, value, None, others)
    request = Request("?", "value", question=question)
    assert all(answers(request, text) for text in good)
    assert not any(answers(request, text) for text in bad)


def test_a_refusal_is_no_answer_to_what_can_be_done() -> None:
    request = Request("Do it.", "done")
    assert answers(request, "Done.") and not answers(request, "I can’t do that.")
    assert not answers(request, "This cannot be done") and answers(Request("Do it.", "cannot"), "CANNOT")


# ---- demonstrators -----------------------------------------------------------------------------------------------


def harmless(env: ToolAPIEnv, rng: np.random.Generator) -> str:
    """An action that can be taken back, or does nothing."""
    names = {tool.name for tool in env.tools(env.state)}
    office = env.state.world.office
    undone = {"add_event": "cancel_event", "place_order": "cancel_order", "book_trip": "cancel_booking"}
    undone |= {"add_contact": "remove_contact", "share_file": "unshare_file"}
    names -= {name for name, other in undone.items() if other not in names}
    choices = ["<tool_call>{}</tool_call>", format_call("find_contact", {"name": "A"})]
    if "add_event" in names:
        choices.append(
            format_call("add_event", {"title": "party", "day": int(rng.integers(1, 31)), "hour": 3})
        )
        choices += [format_call("move_event", {"event": e.id, "day": 30, "hour": 22}) for e in office.events]
    if "place_order" in names:
        choices.append(format_call("place_order", {"item": "pen", "quantity": int(rng.integers(1, 9))}))
        choices += [format_call("confirm_order", {"order": o.id}) for o in office.orders]
    if "book_trip" in names:
        trips = make_task(env.state.task_id).scene.trips
        choices += [format_call("book_trip", {"trip": trip.id}) for trip in trips[:3]]
        choices += [format_call("confirm_booking", {"booking": b.id}) for b in office.bookings]
    if "add_contact" in names:
        choices.append(format_call("add_contact", {"name": "Zoe Zink", "city": "Rome"}))
        choices += [format_call("update_contact", {"contact": c.id, "city": "Ulm"}) for c in office.contacts]
    if "share_file" in names:
        choices += [format_call("move_file", {"file": f.id, "folder": "attic"}) for f in office.files]
        people = office.contacts[:2]
        choices += [
            format_call("share_file", {"file": f.id, "contact": c.id}) for f in office.files for c in people
        ]
    return choices[int(rng.integers(len(choices)))]


def test_the_expert_takes_over_from_anybody_while_there_is_a_way() -> None:
    rng = np.random.default_rng(0)
    env = ToolAPIEnv(max_turns=90)
    for index in range(60):
        task = f"office/train/{1 + index % 4}/{index}"
        env.reset(seed=0, options={"task": task})
        over = False
        while not over:
            meddle = rng.random() < 0.35 and env.snapshot().turn < 25
            action = harmless(env, rng) if meddle else env.expert_action()
            _, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
        assert info["success"], task


def test_the_expert_uses_no_id_that_it_was_not_shown() -> None:
    env = ToolAPIEnv()
    for index in range(80):
        env.reset(seed=0, options={"task": f"office/train/3/{index}"})
        known = env.snapshot().observation
        over = False
        while not over:
            act = parse_action(env.expert_action())
            if isinstance(act, Call):
                for key, value in act.arguments.items():
                    if key in ("contact", "file", "event", "order", "booking", "trip"):
                        assert str(value) in known, (act, known)
            observation, _, terminated, truncated, _ = env.step(env.expert_action())
            known += observation
            over = terminated or truncated


def test_the_novice_fails_often_succeeds_often_and_depends_on_its_generator_alone() -> None:
    env = ToolAPIEnv()

    def success(index: int) -> bool:
        rng = np.random.default_rng(index)
        env.reset(seed=0, options={"task": f"office/train/2/{index}"})
        return bool(finish(env, lambda: env.novice_action(rng))["success"])

    rate = np.mean([success(index) for index in range(150)])
    assert 0.2 < rate < 0.7
    assert [success(index) for index in range(20)] == [success(index) for index in range(20)]


@pytest.mark.parametrize("kind", ["message", "pay", "moved", "where", "file", "event", "order", "journey"])
def test_a_slip_is_carried_through_and_fails(kind: str) -> None:
    tried = 0
    for index in range(400):
        task = make_task(f"office/train/1/{index}")
        request = task.requests[0]
        tempting = request.slip is not None or (request.question and request.question.slip)
        if task.template[0] != f"{kind} 0" or not tempting:
            continue
        rng = np.random.default_rng(index)
        env = start(task.id)

        def slip(env: ToolAPIEnv = env, rng: np.random.Generator = rng, task: Any = task) -> str:
            world = env.state.world
            return novice_action(
                task, frozenset(task.tools), world.office, world.seen, 0, rng, slip=1.0, noise=0.0
            )

        assert not finish(env, slip)["success"], task.id
        tried += 1
        if tried == 3:
            return
    assert tried


def test_settings_are_read_or_refused() -> None:
    assert len(ToolAPIEnv(distractors=0).tasks("train")) == 8192
    for options, says in (
        ({"distractors": 13}, "distractors is a whole number from 0 to 12"),
        ({"families": "shop"}, "unknown family"),
        ({"difficulty": "9"}, "difficulty '9'"),
        ({"source": "builtin:x"}, "takes nothing after it"),
    ):
        with pytest.raises(ConfigError, match=says):
            ToolAPIEnv(**options)
