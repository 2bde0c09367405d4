"""Where built-in tasks begin: people, files, events, orders, trips and bookings, drawn from a task's stream.

Invariant: no id is given twice, and every scene holds what tempts to a mistake: namesakes, two files of one name, and
trips of which the first listed is not the cheapest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from trace_gym.envs.draws import Draw
from trace_gym.envs.tool_api.office import (
    PRICES,
    Booking,
    Contact,
    Event,
    File,
    Office,
    Order,
    Row,
    Scene,
    Trip,
)
from trace_gym.envs.tool_api.request_kinds import CITIES, FILES, FIRST, FOLDERS, LAST, TITLES

__all__ = ["draw_scene"]

_Row = TypeVar("_Row", bound=Row)

FRESH = 64  # more than an episode has turns to make things in


def draw_scene(draw: Draw) -> tuple[Scene, Office]:
    """A scene and its office."""
    ids = iter(draw.some(range(100, 1000), FRESH + 40))
    today = 1 + draw.below(18)
    trips = _trips(draw, ids, today)
    scene = Scene(
        today=today, money=150 + draw.below(350), trips=trips, fresh=tuple(next(ids) for _ in range(FRESH))
    )
    items = draw.some(tuple(PRICES), 2)
    taken = draw.one(trips)
    office = Office(
        contacts=_sorted(Contact(next(ids), name, draw.one(CITIES)) for name in _names(draw)),
        files=_sorted(File(next(ids), name, folder) for name, folder in _files(draw)),
        events=_sorted(
            Event(next(ids), title, today + 1 + place, 8 + draw.below(10))
            for place, title in enumerate(draw.some(TITLES, 2))
        ),
        orders=_sorted(Order(next(ids), item, 2 + draw.below(8), "confirmed") for item in items),
        bookings=(Booking(next(ids), taken.id, "confirmed"),),
    )
    return scene, office


def _sorted(rows: Iterable[_Row]) -> tuple[_Row, ...]:
    return tuple(sorted(rows, key=lambda row: row.id))


def _names(draw: Draw) -> list[str]:
    """Four people, of whom two pairs share the first name."""
    firsts, lasts = draw.some(FIRST, 2), draw.some(LAST, 4)
    return [f"{firsts[place % 2]} {last}" for place, last in enumerate(lasts)]


def _files(draw: Draw) -> list[tuple[str, str]]:
    """Three files, of which two have the same name."""
    same, other = draw.some(FILES, 2)
    first, second = draw.some(FOLDERS, 2)
    return [(same, first), (same, second), (other, draw.one(FOLDERS))]


def _trips(draw: Draw, ids: Iterator[int], today: int) -> tuple[Trip, ...]:
    """Two or three trips on each of four days and cities, no two at one price."""
    trips = []
    for city in draw.some(CITIES, 4):
        day = today + 1 + draw.below(9)
        for hour in sorted(draw.some(range(6, 22), 2 + draw.below(2))):
            trips.append((city, day, hour))
    prices = draw.some(range(20, 100), len(trips))
    rows = [Trip(next(ids), *where, price) for where, price in zip(trips, prices, strict=True)]
    return tuple(sorted(rows, key=lambda row: row.id))
