from collections import Counter

import pytest

from trace_gym.envs.draws import Draw, split_of


def test_choices_depend_on_the_key_alone_and_stay_what_they_were() -> None:
    first, again, other = ([draw.below(1000) for _ in range(4)] for draw in (Draw("a"), Draw("a"), Draw("b")))
    assert first == again != other
    assert first == [160, 805, 221, 652]  # of every release: tasks are named by their keys


def test_some_are_different_and_in_random_order() -> None:
    orders = {tuple(Draw(str(key)).some("abc", 3)) for key in range(100)}
    assert len(orders) == 6 and all(sorted(order) == ["a", "b", "c"] for order in orders)
    with pytest.raises(ZeroDivisionError):
        Draw("x").some("ab", 3)


def test_splits_have_their_shares() -> None:
    count = Counter(split_of(str(number)) for number in range(5000))
    assert {name: round(count[name] / 5000, 1) for name in count} == {"train": 0.6, "dev": 0.2, "test": 0.2}
