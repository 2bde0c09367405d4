"""Two scripted agents of the office: an expert that plans from what is missing, and a novice that slips.

The expert compares the office with the one that the requests so far require: it takes back what is too much, adds what
is missing, and looks up every id that it has not been shown. So it can take over from any agent in any state; where
something cannot be taken back it still does the rest.

The novice works on the present request alone and, where that has a tempting misreading, follows it with one fixed
probability and does not notice. An agent trained on its demonstrations has decisions to improve, not only noise to lose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from trace_gym.envs.actions import format_answer, format_call
from trace_gym.envs.tool_api.office import (
    Booking,
    Contact,
    Event,
    File,
    Message,
    Office,
    Order,
    Payment,
    Row,
    Scene,
)
from trace_gym.envs.tool_api.request_kinds import Fact, Gone
from trace_gym.envs.tool_api.tasks import Request, Task

__all__ = ["expert_action", "novice_action"]

Call = tuple[str, dict[str, str | int]]
ASKS = {"amount": "which amount?", "day": "which day?", "person": "which person?", "city": "which city?"}


def expert_action(
    task: Task, tools: frozenset[str], office: Office, seen: Sequence[int], user_turn: int
) -> str:
    """The next call towards what the requests up to `user_turn` require, or the answer to the present one. `tools` are
    the names of those there are; what only another could do is left."""
    view = _View(task.scene, tools, office, frozenset(seen))
    request, required = task.requests[user_turn], task.required[user_turn]
    calls = chain(view.undo(required), view.missing(_facts(required)))
    call = next((call for call in calls if call[0] in tools), None) or view.lookup(request)
    return format_call(*call) if call else _finish(request)


def novice_action(
    task: Task,
    tools: frozenset[str],
    office: Office,
    seen: Sequence[int],
    user_turn: int,
    rng: np.random.Generator,
    *,
    slip: float,
    noise: float,
) -> str:
    """The next call of the present request, misread with probability `slip` where there is a misreading; with
    probability `noise` a random mistake instead."""
    view = _View(task.scene, tools, office, frozenset(seen))
    request = task.requests[user_turn]
    call = next(view.missing(request.facts), None) or view.lookup(request)
    slips = bool(rng.random() < slip)
    if rng.random() < noise:
        return _mistake(call, request, rng)
    if request.slip is not None:
        tempting = next(view.missing(request.slip), None)
        if tempting is None:
            call = None if slips or not _goes_on(call) else call
        elif _goes_on(tempting) or (slips and not _goes_on(call)):
            call = tempting
    return format_call(*call) if call else _finish(request, slips=slips)


def _goes_on(call: Call | None) -> bool:
    """Whether the call completes what was begun."""
    return call is not None and call[0].startswith("confirm_")


def _mistake(call: Call | None, request: Request, rng: np.random.Generator) -> str:
    if call is None or rng.random() < 0.3:
        return _finish(request, slips=True)
    name, arguments = call
    wrong = {k: v + int(rng.integers(1, 4)) if isinstance(v, int) else v for k, v in arguments.items()}
    return format_call(name, wrong)


def _finish(request: Request, *, slips: bool = False) -> str:
    if request.expected == "value":
        question = request.question
        assert question is not None
        return format_answer(question.slip if slips and question.slip else question.value)
    if slips or request.expected == "done":
        return format_answer("done")
    return format_answer(ASKS[request.lacks] if request.expected == "ask" else "cannot")


def _facts(required: Office) -> tuple[Fact, ...]:
    tables = (required.contacts, required.files, required.events, required.orders, required.bookings)
    return (*(row for table in tables for row in table), *required.messages, *required.payments)


@dataclass(frozen=True, slots=True)
class _View:
    """The office as an agent knows it: `seen` are the ids that it was shown."""

    scene: Scene
    tools: frozenset[str]
    office: Office
    seen: frozenset[int]

    def lookup(self, request: Request) -> Call | None:
        """What still has to be looked up for the answer."""
        question = request.question
        return question.lookup if question is not None and question.needs not in self.seen else None

    def missing(self, facts: Sequence[Fact]) -> Iterator[Call]:
        """The next call for each fact that does not stand."""
        for fact in facts:
            call = _ACHIEVE[type(fact)](self, fact)
            if call is not None:
                yield call

    def undo(self, required: Office) -> Iterator[Call]:
        """A call for each thing that is there and should not be, where it can be taken back."""
        titles = {row.title for row in required.events}
        right = {(row.title, row.day, row.hour) for row in required.events}
        for event in self.office.events:
            twice = sum(row.title == event.title for row in self.office.events) > 1
            if event.title not in titles or (twice and (event.title, event.day, event.hour) not in right):
                yield self.first(self.find_event(event), ("cancel_event", {"event": event.id}))
        names = {row.name for row in required.contacts}
        for person in self.office.contacts:
            if person.name not in names and person.id in self.scene.fresh:
                yield "remove_contact", {"contact": person.id}
        for file in self.office.files:
            allowed = next((row.shared for row in required.files if row.id == file.id), file.shared)
            for name in set(file.shared) - set(allowed):
                if (contact := self.contact(name)) is not None:
                    yield self.first(
                        self.find_file(file),
                        self.find_contact(contact),
                        ("unshare_file", {"file": file.id, "contact": contact.id}),
                    )
        yield from self._undo_orders(required)
        yield from self._undo_bookings(required)

    def _undo_orders(self, required: Office) -> Iterator[Call]:
        wanted = [(row.id, row.item, row.quantity) for row in required.orders if row.status == "confirmed"]
        for row in sorted(self.office.orders, key=lambda row: row.status):  # confirmed before open
            key = (self.made(row), row.item, row.quantity)
            if key in wanted:
                wanted.remove(key)
            elif row.status != "cancelled":
                yield self.first(self.find_order(row), ("cancel_order", {"order": row.id}))

    def _undo_bookings(self, required: Office) -> Iterator[Call]:
        wanted = [(row.id, row.trip) for row in required.bookings if row.status == "confirmed"]
        for row in sorted(self.office.bookings, key=lambda row: row.status):
            key = (self.made(row), row.trip)
            if key in wanted:
                wanted.remove(key)
            elif row.status != "cancelled":
                yield self.first(self.find_booking(row), ("cancel_booking", {"booking": row.id}))

    def made(self, row: Row) -> int:
        """The row's id; 0 for one that was made since the start, as in required offices."""
        return 0 if row.id in self.scene.fresh else row.id

    @staticmethod
    def first(*calls: Call | None) -> Call:
        return next(call for call in calls if call is not None)

    # lookups: None where the row's id is known, or cannot be looked up

    def _look(self, row: Row, tool: str, argument: str, value: str) -> Call | None:
        known = row.id in self.seen or row.id in self.scene.fresh
        return None if known or tool not in self.tools else (tool, {argument: value})

    def contact(self, name: str) -> Contact | None:
        return next((row for row in self.office.contacts if row.name == name), None)

    def find_contact(self, row: Contact) -> Call | None:
        return self._look(row, "find_contact", "name", row.name.split()[0])

    def find_file(self, row: File) -> Call | None:
        return self._look(row, "find_file", "name", row.name)

    def find_event(self, row: Event) -> Call | None:
        return self._look(row, "find_event", "title", row.title)

    def find_order(self, row: Order) -> Call | None:
        return self._look(row, "find_order", "item", row.item)

    def find_booking(self, row: Booking) -> Call | None:
        trip = self.scene.trip(row.trip)
        return self._look(row, "find_booking", "city", trip.city) if trip is not None else None


# ---- what makes a fact stand -----------------------------------------------------------------------------------------


def _contact(view: _View, fact: Contact) -> Call | None:
    row = view.contact(fact.name)
    if row is None:
        return "add_contact", {"name": fact.name, "city": fact.city}
    if row.city == fact.city:
        return None
    return view.first(view.find_contact(row), ("update_contact", {"contact": row.id, "city": fact.city}))


def _file(view: _View, fact: File) -> Call | None:
    row = next((row for row in view.office.files if row.id == fact.id), None)
    if row is None:
        return None
    if row.folder != fact.folder:
        return view.first(view.find_file(row), ("move_file", {"file": row.id, "folder": fact.folder}))
    for name in fact.shared:
        contact = view.contact(name)
        if name not in row.shared and contact is not None:
            share: Call = ("share_file", {"file": row.id, "contact": contact.id})
            return view.first(view.find_file(row), view.find_contact(contact), share)
    return None


def _event(view: _View, fact: Event) -> Call | None:
    rows = [row for row in view.office.events if row.title == fact.title]
    if any((row.day, row.hour) == (fact.day, fact.hour) for row in rows):
        return None
    slot: dict[str, str | int] = {"day": fact.day, "hour": fact.hour}
    if not rows:
        return "add_event", {"title": fact.title, **slot}
    return view.first(view.find_event(rows[0]), ("move_event", {"event": rows[0].id, **slot}))


def _gone(view: _View, fact: Gone) -> Call | None:
    for row in view.office.events:
        if row.title == fact.title:
            return view.first(view.find_event(row), ("cancel_event", {"event": row.id}))
    return None


def _message(view: _View, fact: Message) -> Call | None:
    contact = view.contact(fact.to)
    if fact in view.office.messages or contact is None:
        return None
    return view.first(
        view.find_contact(contact), ("send_message", {"contact": contact.id, "text": fact.text})
    )


def _payment(view: _View, fact: Payment) -> Call | None:
    contact = view.contact(fact.to)
    if fact in view.office.payments or contact is None:
        return None
    return view.first(view.find_contact(contact), ("pay", {"contact": contact.id, "amount": fact.amount}))


def _order(view: _View, fact: Order) -> Call | None:
    same = [row for row in view.office.orders if (row.item, row.quantity) == (fact.item, fact.quantity)]
    rows = [row for row in same if view.made(row) == fact.id]
    if fact.status == "cancelled":
        row = next((row for row in rows if row.status != "cancelled"), None)
        return view.first(view.find_order(row), ("cancel_order", {"order": row.id})) if row else None
    if fact.id or any(row.status in ("confirmed", fact.status) for row in rows):
        return None  # it stands, or was there from the start and cannot be brought back
    if rows:
        return "confirm_order", {"order": rows[0].id}
    return "place_order", {"item": fact.item, "quantity": fact.quantity}


def _booking(view: _View, fact: Booking) -> Call | None:
    rows = [row for row in view.office.bookings if (row.trip, view.made(row)) == (fact.trip, fact.id)]
    if fact.status == "cancelled":
        row = next((row for row in rows if row.status != "cancelled"), None)
        return view.first(view.find_booking(row), ("cancel_booking", {"booking": row.id})) if row else None
    if fact.id or any(row.status in ("confirmed", fact.status) for row in rows):
        return None
    if rows:
        return "confirm_booking", {"booking": rows[0].id}
    trip = view.scene.trip(fact.trip)
    assert trip is not None
    look: Call = ("find_trips", {"city": trip.city, "day": trip.day})
    return ("book_trip", {"trip": trip.id}) if trip.id in view.seen else look


_ACHIEVE: Mapping[type, Callable[[_View, Any], Call | None]] = {
    Contact: _contact,
    File: _file,
    Event: _event,
    Gone: _gone,
    Message: _message,
    Payment: _payment,
    Order: _order,
    Booking: _booking,
}
