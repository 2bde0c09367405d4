"""The tools of a small organisation, and what calling them leads to.

Invariant: `call` is a pure function and never raises for arguments that fit a tool's schema. What it refuses it answers
with a line that begins with "error:" and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec.structs import replace

from trace_gym.env import Effect, Tool
from trace_gym.envs.tool_api.office import (
    PRICES,
    Booking,
    Contact,
    Event,
    Message,
    Office,
    Order,
    Payment,
    Row,
    Scene,
    balance_of,
    cost_of,
    fare_of,
)

__all__ = ["BALANCE_SHOWN", "LAST_DAY", "SERVICES", "TOOLS", "Result", "call"]

LAST_DAY = 30
MAX_CHARS = 200  # of any text that is stored
BALANCE_SHOWN = 0  # stands among the ids shown for the balance


@dataclass(frozen=True, slots=True)
class Result:
    """What a call led to. `shown`: ids of the rows that the observation tells about."""

    office: Office
    text: str
    effect: Effect
    shown: tuple[int, ...] = ()


class _Refused(Exception):
    """Why a tool does not do it."""


def call(office: Office, scene: Scene, name: str, arguments: Mapping[str, Any]) -> Result:
    """Call the tool `name`, whose schema `arguments` fit."""
    values = {key: int(value) if isinstance(value, float) else value for key, value in arguments.items()}
    for value in values.values():
        if isinstance(value, str) and not 0 < len(value.strip()) <= MAX_CHARS:
            return Result(office, f"error: a text has 1 to {MAX_CHARS} characters", "pure")
    try:
        after, text, *shown = _FUNCTIONS[name](office, scene, **values)
    except _Refused as reason:
        return Result(office, f"error: {reason}", "pure")
    effect: Effect = "pure" if after is office else "stateful"
    return Result(after, text, effect, tuple(shown))


# ---- rows ----------------------------------------------------------------------------------------------------------

_Row = TypeVar("_Row", bound=Row)


def _find(rows: tuple[_Row, ...], row_id: int, what: str) -> _Row:
    for row in rows:
        if row.id == row_id:
            return row
    raise _Refused(f"there is no {what} {row_id}")


def _with(rows: tuple[_Row, ...], new: _Row) -> tuple[_Row, ...]:
    """`rows` with `new` in the place of the row of the same id, or added."""
    return tuple(sorted((*(row for row in rows if row.id != new.id), new), key=lambda row: row.id))


def _without(rows: tuple[_Row, ...], row_id: int) -> tuple[_Row, ...]:
    return tuple(row for row in rows if row.id != row_id)


def _fresh(office: Office, scene: Scene) -> int:
    if office.made >= len(scene.fresh):
        raise _Refused("too much was made already")
    return scene.fresh[office.made]


def _matches(text: str, wanted: str) -> bool:
    return wanted.strip().casefold() in text.casefold()


def _listed(lines: list[str]) -> str:
    return "; ".join(lines) or "none"


# ---- tools ---------------------------------------------------------------------------------------------------------

_Answer = tuple[Any, ...]  # the office afterwards, the text, ids shown
_FUNCTIONS: dict[str, Callable[..., _Answer]] = {}
TOOLS: dict[str, Tool] = {}
SERVICES: dict[str, tuple[str, ...]] = {}  # service -> its tools
_TYPES = {int: "integer", str: "string"}


def _tool(
    service: str, description: str, **parameters: type
) -> Callable[[Callable[..., _Answer]], Callable[..., _Answer]]:
    def register(function: Callable[..., _Answer]) -> Callable[..., _Answer]:
        name = function.__name__
        schema = {
            "type": "object",
            "properties": {key: {"type": _TYPES[kind]} for key, kind in parameters.items()},
            "required": list(parameters),
        }
        effect: Effect = (
            "pure" if service == "others" or name.startswith(("find_", "balance")) else "stateful"
        )
        TOOLS[name] = Tool(name=name, description=description, parameters=schema, effect=effect)
        SERVICES[service] = (*SERVICES.get(service, ()), name)
        _FUNCTIONS[name] = function
        return function

    return register


@_tool("contacts", "People whose name contains the text: id, name, city.", name=str)
def find_contact(office: Office, scene: Scene, name: str) -> _Answer:
    found = [row for row in office.contacts if _matches(row.name, name)]
    return office, _listed([f"{r.id} {r.name} {r.city}" for r in found]), *(r.id for r in found)


@_tool("contacts", "Add a person.", name=str, city=str)
def add_contact(office: Office, scene: Scene, name: str, city: str) -> _Answer:
    if any(row.name.casefold() == name.strip().casefold() for row in office.contacts):
        raise _Refused(f"{name} is there already")
    new = Contact(_fresh(office, scene), name.strip(), city.strip())
    after = replace(office, contacts=_with(office.contacts, new), made=office.made + 1)
    return after, f"contact {new.id} added", new.id


@_tool("contacts", "Set the city where a person lives.", contact=int, city=str)
def update_contact(office: Office, scene: Scene, contact: int, city: str) -> _Answer:
    row = replace(_find(office.contacts, contact, "contact"), city=city.strip())
    return replace(office, contacts=_with(office.contacts, row)), "updated", row.id


@_tool("contacts", "Remove a person that was added today.", contact=int)
def remove_contact(office: Office, scene: Scene, contact: int) -> _Answer:
    if _find(office.contacts, contact, "contact").id not in scene.fresh:
        raise _Refused("only what was added today can be removed")
    return replace(office, contacts=_without(office.contacts, contact)), "removed"


@_tool("files", "Files whose name contains the text: id, name, folder.", name=str)
def find_file(office: Office, scene: Scene, name: str) -> _Answer:
    found = [row for row in office.files if _matches(row.name, name)]
    return office, _listed([f"{r.id} {r.name} in {r.folder}" for r in found]), *(r.id for r in found)


@_tool("files", "Move a file to another folder.", file=int, folder=str)
def move_file(office: Office, scene: Scene, file: int, folder: str) -> _Answer:
    row = _find(office.files, file, "file")
    taken = any(r.name == row.name and r.folder == folder.strip() and r.id != file for r in office.files)
    if taken:
        raise _Refused(f"{folder} holds a file {row.name} already")
    return replace(office, files=_with(office.files, replace(row, folder=folder.strip()))), "moved", file


@_tool("files", "Let a person read a file.", file=int, contact=int)
def share_file(office: Office, scene: Scene, file: int, contact: int) -> _Answer:
    row, person = _find(office.files, file, "file"), _find(office.contacts, contact, "contact")
    shared = tuple(sorted({*row.shared, person.name}))
    return replace(office, files=_with(office.files, replace(row, shared=shared))), "shared"


@_tool("files", "Let a person no longer read a file.", file=int, contact=int)
def unshare_file(office: Office, scene: Scene, file: int, contact: int) -> _Answer:
    row, person = _find(office.files, file, "file"), _find(office.contacts, contact, "contact")
    shared = tuple(name for name in row.shared if name != person.name)
    return replace(office, files=_with(office.files, replace(row, shared=shared))), "no longer shared"


@_tool("calendar", "Events whose title contains the text: id, title, day, hour.", title=str)
def find_event(office: Office, scene: Scene, title: str) -> _Answer:
    found = [row for row in office.events if _matches(row.title, title)]
    lines = [f"{r.id} {r.title} day {r.day} at {r.hour}" for r in found]
    return office, _listed(lines), *(r.id for r in found)


@_tool("calendar", "Put an event in the calendar.", title=str, day=int, hour=int)
def add_event(office: Office, scene: Scene, title: str, day: int, hour: int) -> _Answer:
    new = Event(_fresh(office, scene), title.strip(), day, hour)
    _check_slot(office, new)
    after = replace(office, events=_with(office.events, new), made=office.made + 1)
    return after, f"event {new.id} added", new.id


@_tool("calendar", "Move an event.", event=int, day=int, hour=int)
def move_event(office: Office, scene: Scene, event: int, day: int, hour: int) -> _Answer:
    row = replace(_find(office.events, event, "event"), day=day, hour=hour)
    _check_slot(office, row)
    return replace(office, events=_with(office.events, row)), "moved", event


@_tool("calendar", "Take an event out of the calendar.", event=int)
def cancel_event(office: Office, scene: Scene, event: int) -> _Answer:
    _find(office.events, event, "event")
    return replace(office, events=_without(office.events, event)), "cancelled"


def _check_slot(office: Office, wanted: Event) -> None:
    if not (1 <= wanted.day <= LAST_DAY and 0 <= wanted.hour <= 23):
        raise _Refused(f"days are 1 to {LAST_DAY}, hours 0 to 23")
    for row in office.events:
        if row.id != wanted.id and (row.day, row.hour) == (wanted.day, wanted.hour):
            raise _Refused(f"day {wanted.day} at {wanted.hour} is taken by {row.title}")


@_tool("messages", "Send a person a message. It cannot be taken back.", contact=int, text=str)
def send_message(office: Office, scene: Scene, contact: int, text: str) -> _Answer:
    new = Message(_find(office.contacts, contact, "contact").name, text.strip())
    return replace(office, messages=(*office.messages, new)), "sent"


@_tool("orders", "Orders of an item: id, quantity, item, status.", item=str)
def find_order(office: Office, scene: Scene, item: str) -> _Answer:
    found = [row for row in office.orders if _matches(row.item, item)]
    lines = [f"{r.id} {r.quantity} {r.item} {r.status}" for r in found]
    return office, _listed(lines), *(r.id for r in found)


@_tool("orders", "Prepare an order; it counts once confirmed.", item=str, quantity=int)
def place_order(office: Office, scene: Scene, item: str, quantity: int) -> _Answer:
    if item not in PRICES:
        raise _Refused(f"there is no {item}; there are {', '.join(PRICES)}")
    if not 1 <= quantity <= 99:
        raise _Refused("a quantity is 1 to 99")
    new = Order(_fresh(office, scene), item, quantity, "open")
    after = replace(office, orders=_with(office.orders, new), made=office.made + 1)
    return after, f"order {new.id} open, costs {cost_of(new)}", new.id


@_tool("orders", "Confirm an open order and pay for it.", order=int)
def confirm_order(office: Office, scene: Scene, order: int) -> _Answer:
    row = _find(office.orders, order, "order")
    if row.status != "open":
        raise _Refused(f"order {order} is {row.status}")
    _check_money(office, scene, cost_of(row))
    after = replace(office, orders=_with(office.orders, replace(row, status="confirmed")))
    return after, "confirmed", order


@_tool("orders", "Cancel an order; one made today disappears and its money comes back.", order=int)
def cancel_order(office: Office, scene: Scene, order: int) -> _Answer:
    return replace(office, orders=_cancelled(office.orders, order, "order", scene)), "cancelled"


def _cancelled(rows: tuple[Any, ...], row_id: int, what: str, scene: Scene) -> tuple[Any, ...]:
    row = _find(rows, row_id, what)
    if row.id in scene.fresh:
        return _without(rows, row.id)
    if row.status == "cancelled":
        raise _Refused(f"{what} {row_id} is cancelled")
    return _with(rows, replace(row, status="cancelled"))


def _check_money(office: Office, scene: Scene, amount: int) -> None:
    if amount > balance_of(office, scene):
        raise _Refused(f"{amount} is more than the balance of {balance_of(office, scene)}")


@_tool("payments", "The money that is left.")
def balance(office: Office, scene: Scene) -> _Answer:
    return office, f"balance {balance_of(office, scene)}", BALANCE_SHOWN


@_tool("payments", "Pay a person. It cannot be taken back.", contact=int, amount=int)
def pay(office: Office, scene: Scene, contact: int, amount: int) -> _Answer:
    if amount < 1:
        raise _Refused("an amount is 1 or more")
    person = _find(office.contacts, contact, "contact")
    _check_money(office, scene, amount)
    return replace(office, payments=(*office.payments, Payment(person.name, amount))), "paid"


@_tool("travel", "Trips to a city on a day: id, hour, price.", city=str, day=int)
def find_trips(office: Office, scene: Scene, city: str, day: int) -> _Answer:
    found = [trip for trip in scene.trips if trip.day == day and _matches(trip.city, city)]
    return office, _listed([f"{t.id} at {t.hour} for {t.price}" for t in found]), *(t.id for t in found)


@_tool("travel", "Hold a seat on a trip; it counts once confirmed.", trip=int)
def book_trip(office: Office, scene: Scene, trip: int) -> _Answer:
    if scene.trip(trip) is None:
        raise _Refused(f"there is no trip {trip}")
    if any(row.trip == trip and row.status != "cancelled" for row in office.bookings):
        raise _Refused(f"there is a booking of trip {trip} already")
    new = Booking(_fresh(office, scene), trip, "open")
    after = replace(office, bookings=_with(office.bookings, new), made=office.made + 1)
    return after, f"booking {new.id} open, costs {fare_of(new, scene)}", new.id


@_tool("travel", "Confirm an open booking and pay for it.", booking=int)
def confirm_booking(office: Office, scene: Scene, booking: int) -> _Answer:
    row = _find(office.bookings, booking, "booking")
    if row.status != "open":
        raise _Refused(f"booking {booking} is {row.status}")
    _check_money(office, scene, fare_of(row, scene))
    after = replace(office, bookings=_with(office.bookings, replace(row, status="confirmed")))
    return after, "confirmed", booking


@_tool("travel", "Bookings of trips to a city: id, day, hour, status.", city=str)
def find_booking(office: Office, scene: Scene, city: str) -> _Answer:
    found = [(row, trip) for row in office.bookings if (trip := scene.trip(row.trip)) is not None]
    found = [(row, trip) for row, trip in found if _matches(trip.city, city)]
    lines = [f"{row.id} day {trip.day} at {trip.hour} {row.status}" for row, trip in found]
    return office, _listed(lines), *(row.id for row, _ in found)


@_tool("travel", "Cancel a booking; one made today disappears and its money comes back.", booking=int)
def cancel_booking(office: Office, scene: Scene, booking: int) -> _Answer:
    return replace(office, bookings=_cancelled(office.bookings, booking, "booking", scene)), "cancelled"


# ---- tools that no task needs --------------------------------------------------------------------------------------


@_tool("others", "The weather in a city.", city=str)
def get_weather(office: Office, scene: Scene, city: str) -> _Answer:
    return office, f"{city.strip()[:40]}: dry"


@_tool("others", "The number of words in a text.", text=str)
def count_words(office: Office, scene: Scene, text: str) -> _Answer:
    return office, str(len(text.split()))


@_tool("others", "The hours at which the building is open on a day.", day=int)
def opening_hours(office: Office, scene: Scene, day: int) -> _Answer:
    return office, "8 to 18"


@_tool("others", "The price of an item, without an order.", item=str)
def price_of(office: Office, scene: Scene, item: str) -> _Answer:
    if item not in PRICES:
        raise _Refused(f"there is no {item}")
    return office, str(PRICES[item])


@_tool("others", "Who is on duty on a day.", day=int)
def on_duty(office: Office, scene: Scene, day: int) -> _Answer:
    return office, "nobody"


@_tool("others", "A text in capitals.", text=str)
def capitals(office: Office, scene: Scene, text: str) -> _Answer:
    return office, text.strip().upper()[:MAX_CHARS]
