from collections import Counter, defaultdict

import pytest

from trace_gym.envs.tool_api.request_kinds import KINDS
from trace_gym.envs.tool_api.tasks import (
    FAMILIES,
    SIZES,
    Task,
    make_task,
    read_difficulty,
    read_families,
    task_ids,
)
from trace_gym.errors import ConfigError, TaskError


def ids(per: int = 3) -> list[str]:
    return [
        f"{family}/{split}/{depth}/{index}"
        for family in FAMILIES
        for split in SIZES
        for depth in (1, 2, 5)
        for index in range(per)
        if (family, depth) != ("asking", 1)
    ]


def texts(task: Task) -> tuple[str, ...]:
    return tuple(request.text for request in task.requests)


def test_every_family_has_tasks_of_every_split_and_depth() -> None:
    for task_id in ids(1):
        family, _, depth, _ = task_id.split("/")
        task = make_task(task_id)
        assert len(task.requests) == len(task.required) == int(depth)
        assert len(set(texts(task))) == len(task.requests)
        expected = Counter(request.expected for request in task.requests)
        assert expected["ask"] == (family == "asking") and expected["cannot"] == (family == "missing")


def test_a_task_is_a_function_of_its_id() -> None:
    for task_id in ids(1)[:20]:
        task = make_task(task_id)
        make_task.cache_clear()
        assert make_task(task_id) == task
    assert texts(make_task("office/train/2/1")) == GOLDEN  # of every release


GOLDEN = ("Day 7. Kim Adler lives in Bonn now. Note it.", "Plan the workshop in 9 days at 10.")


def test_splits_share_no_template_and_no_text() -> None:
    templates: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    wordings: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for split in SIZES:
        for depth in (1, 2, 3):
            for index in range(40):
                task = make_task(f"office/{split}/{depth}/{index}")
                templates[split].add(task.template)
                wordings[split].add(texts(task))
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not templates[one] & templates[other]
        assert not wordings[one] & wordings[other]


def test_every_kind_and_from_depth_two_every_wording_is_in_train() -> None:
    seen = {step for index in range(400) for step in make_task(f"office/train/3/{index}").template}
    assert seen >= {f"{name} {place}" for name, kind in KINDS.items() for place in range(len(kind.wordings))}
    firsts = {make_task(f"office/train/1/{index}").template[0] for index in range(200)}
    assert all(step.endswith(" 0") for step in firsts)


def test_the_list_of_a_split_takes_turns() -> None:
    listed = task_ids("train", 1, 3, read_families("all"))
    assert len(listed) == len(set(listed)) == SIZES["train"]
    stretch = [task_id.split("/") for task_id in listed[:24]]
    assert Counter(depth for _, _, depth, _ in stretch) == {"1": 8, "2": 8, "3": 8}
    assert {family for family, *_ in stretch} == {"office", "asking", "missing"}
    for task_id in listed[:24]:
        make_task(task_id)


def test_ids_of_anything_else_are_refused() -> None:
    for task_id in (
        "", "office/train/7/1", "office/train/0/1", "office/train/1/01", "shop/train/1/1", "asking/train/1/0",
        "office/train/1/1 ", "office/all/1/1", "office/train/1/" + "9" * 10,
    ):  # fmt: skip
        with pytest.raises(TaskError, match="unknown task"):
            make_task(task_id)


def test_difficulty_and_families_are_read_or_refused() -> None:
    assert (
        read_difficulty("3") == (3, 3)
        and read_difficulty("1-6") == (1, 6)
        and read_difficulty("hard") == (4, 6)
    )
    assert read_families("orders, messages") == ("orders", "messages")
    for text in ("", "0", "7", "3-1", "1-7", "x"):
        with pytest.raises(ConfigError, match="difficulty"):
            read_difficulty(text)
    with pytest.raises(ConfigError, match="unknown family 'shop'; there are office"):
        read_families("orders,shop")


def test_what_tempts_leads_elsewhere() -> None:
    """A slip that led to the same office would teach nothing, and one that is no slip would be a wrong label."""
    slips = 0
    for index in range(200):
        for request in make_task(f"office/train/3/{index}").requests:
            if request.slip is not None:
                slips += 1
                assert request.slip != request.facts
            if request.question is not None and request.question.slip is not None:
                assert request.question.slip != request.question.value
    assert slips > 100
