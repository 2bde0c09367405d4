"""What users of the office ask for: kinds of requests, each with its wordings and with what has to stand afterwards.

A request's `facts` are rows that the office must hold once it is done (a `Gone` one it must not hold); `slip` is what a
tempting misreading leaves behind instead: the wrong one of two namesakes, a day counted wrongly, an order that was
never confirmed. A question has an expected value instead of facts.

Invariant: a request is drawn from the office as all earlier requests leave it, so that whole tasks can be done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from msgspec.structs import replace

from trace_gym.envs.draws import Draw
from trace_gym.envs.tool_api.office import (
    PRICES,
    Booking,
    Contact,
    Event,
    File,
    Message,
    Office,
    Order,
    Payment,
    Scene,
    balance_of,
    cost_of,
)
from trace_gym.envs.tool_api.services import BALANCE_SHOWN, LAST_DAY

__all__ = [
    "CITIES",
    "FILES",
    "FIRST",
    "FOLDERS",
    "KINDS",
    "LAST",
    "TITLES",
    "Drawn",
    "Fact",
    "Gone",
    "Kind",
    "Question",
    "apply",
]

FIRST = ("Ann", "Ben", "Eva", "Jim", "Kim", "Leo", "Mia", "Tom")
LAST = ("Adler", "Berg", "Cole", "Diaz", "Fox", "Hall", "Lane", "Moss", "Reed", "Wood")
CITIES = ("Bonn", "Lyon", "Oslo", "Pisa", "Riga", "Rome", "Turin", "York")
FILES = ("plan", "budget", "report", "contract", "minutes", "roster")
FOLDERS = ("drafts", "archive", "shared", "inbox")
TITLES = ("review", "workshop", "interview", "training", "inspection", "lunch", "planning", "briefing")
TEXTS = (
    "the room is booked", "the report is ready", "lunch is at noon", "please call back", "the train is late",
    "the plan has changed", "the door is open", "bring the contract", "the order has arrived", "thank you",
)  # fmt: skip


class Gone(NamedTuple):
    """The fact that there is no event of this title."""

    title: str


Fact = Contact | File | Event | Message | Order | Payment | Booking | Gone


class Question(NamedTuple):
    """What has to be answered, and how it is found out: by a lookup that shows the row `needs`."""

    lookup: tuple[str, dict[str, str | int]]
    needs: int
    value: str
    slip: str | None  # what a misreading answers
    others: tuple[str, ...] = ()  # words that a right answer does not hold


class Drawn(NamedTuple):
    """What one draw of a kind gives; `slots` fill the wording, and their values place the task in a split."""

    slots: dict[str, str | int]
    facts: tuple[Fact, ...] = ()
    slip: tuple[Fact, ...] | None = None
    question: Question | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of request. `tools`: what it takes; where there is a `sole` tool, nothing else can do it. `short` is a
    wording that lacks the parameter `lacks`, and `supply` the message that gives it."""

    service: str
    wordings: tuple[str, ...]
    draw: Callable[[Draw, Office, Scene], Drawn | None]
    tools: tuple[str, ...]
    sole: str = ""
    short: str = ""
    supply: str = ""
    lacks: Literal["", "amount", "day", "person", "city"] = ""


def apply(office: Office, fact: Fact) -> Office:
    """`office` once `fact` stands. Rows that are made have the id 0."""
    match fact:
        case Message():
            return replace(office, messages=(*office.messages, fact))
        case Payment():
            return replace(office, payments=(*office.payments, fact))
        case Contact():
            others = tuple(row for row in office.contacts if row.name != fact.name)
            return replace(office, contacts=(*others, fact))
        case File():
            return replace(office, files=(*(row for row in office.files if row.id != fact.id), fact))
        case Event():
            return replace(office, events=(*(r for r in office.events if r.title != fact.title), fact))
        case Gone():
            return replace(office, events=tuple(row for row in office.events if row.title != fact.title))
        case Order():
            return replace(office, orders=_ordered(office.orders, fact))
        case Booking():
            others_ = tuple(row for row in office.bookings if row.trip != fact.trip)
            return replace(office, bookings=others_ if _undone(fact) else (*others_, fact))


def _undone(row: Order | Booking) -> bool:
    """Whether it was made and cancelled since the start: it then leaves nothing behind."""
    return row.id == 0 and row.status == "cancelled"


def _ordered(orders: tuple[Order, ...], fact: Order) -> tuple[Order, ...]:
    others = tuple(row for row in orders if row.item != fact.item)
    return others if _undone(fact) else (*others, fact)


# ---- drawing -------------------------------------------------------------------------------------------------------


def _namesake(office: Office, person: Contact) -> Contact | None:
    """Whom one gets by taking the first of those who share the first name, if it is somebody else."""
    first = person.name.split()[0]
    listed = sorted((row for row in office.contacts if row.id and first in row.name), key=lambda row: row.id)
    return listed[0] if listed[0] != person else None


def _person(draw: Draw, office: Office) -> Contact:
    """One who was there from the start; more often than not one with a namesake."""
    people = [row for row in office.contacts if row.id]
    named = [row for row in people if _namesake(office, row)]
    return draw.one(named if named and draw.below(3) else people)


def _later(draw: Draw, scene: Scene) -> tuple[int, str]:
    """A day to come, and how one speaks of it today."""
    days = 1 + draw.below(min(9, LAST_DAY - scene.today))
    return scene.today + days, "tomorrow" if days == 1 else f"in {days} days"


def _a_day_less(scene: Scene, day: int) -> int | None:
    """The day that one gets by counting today as the first; nobody counts so from today to tomorrow."""
    return day - 1 if day - scene.today > 1 else None


def _message(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    person, text = _person(draw, office), draw.one(TEXTS)
    wrong = _namesake(office, person)
    if any(row.text == text for row in office.messages):
        return None
    slip = (Message(wrong.name, text),) if wrong else None
    return Drawn({"who": person.name, "text": text}, (Message(person.name, text),), slip)


def _pay(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    person, amount = _person(draw, office), 5 + draw.below(75)
    if amount > balance_of(office, scene) or any(row.to == person.name for row in office.payments):
        return None
    wrong = _namesake(office, person)
    slip = (Payment(wrong.name, amount),) if wrong else None
    return Drawn({"who": person.name, "n": amount}, (Payment(person.name, amount),), slip)


def _moved_away(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    person = _person(draw, office)
    city = draw.one([city for city in CITIES if city != person.city])
    wrong = _namesake(office, person)
    slip = (replace(wrong, city=city),) if wrong and wrong.city != city else None
    return Drawn({"who": person.name, "city": city}, (replace(person, city=city),), slip)


def _new_contact(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    name, city = f"{draw.one(FIRST)} {draw.one(LAST)}", draw.one(CITIES)
    if any(row.name == name for row in office.contacts):
        return None
    return Drawn({"who": name, "city": city}, (Contact(0, name, city),))


def _where_lives(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    person = _person(draw, office)
    wrong = _namesake(office, person)
    question = Question(
        ("find_contact", {"name": person.name.split()[0]}),
        person.id,
        person.city,
        wrong.city if wrong and wrong.city != person.city else None,
        tuple(city for city in CITIES if city != person.city),
    )
    return Drawn({"who": person.name}, question=question)


def _file_away(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    file = draw.one(office.files)
    folder = draw.one([folder for folder in FOLDERS if folder != file.folder])
    if any(row.name == file.name and row.folder == folder for row in office.files):
        return None
    same = sorted((row for row in office.files if row.name == file.name), key=lambda row: row.id)
    slip = (replace(same[0], folder=folder),) if same[0] != file else None
    return Drawn(
        {"file": file.name, "from": file.folder, "to": folder}, (replace(file, folder=folder),), slip
    )


def _share(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    file, person = draw.one(office.files), _person(draw, office)
    if person.name in file.shared or sum(row.name == file.name for row in office.files) > 1:
        return None
    wrong = _namesake(office, person)
    slip = (_shared(file, wrong.name),) if wrong and wrong.name not in file.shared else None
    return Drawn({"file": file.name, "who": person.name}, (_shared(file, person.name),), slip)


def _shared(file: File, name: str) -> File:
    return replace(file, shared=tuple(sorted({*file.shared, name})))


def _free(office: Office, day: int, hour: int) -> bool:
    return all((row.day, row.hour) != (day, hour) for row in office.events)


def _event(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    title, hour = draw.one(TITLES), 8 + draw.below(10)
    day, when = _later(draw, scene)
    if any(row.title == title for row in office.events) or not _free(office, day, hour):
        return None
    wrong = _a_day_less(scene, day)
    slip = (Event(0, title, wrong, hour),) if wrong and _free(office, wrong, hour) else None
    return Drawn({"title": title, "when": when, "n": hour}, (Event(0, title, day, hour),), slip)


def _put_off(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    if not office.events:
        return None
    event = draw.one(office.events)
    day, when = _later(draw, scene)
    wrong = _a_day_less(scene, day)
    if day == event.day or wrong == event.day or not _free(office, day, event.hour):
        return None
    slip = (replace(event, day=wrong),) if wrong and _free(office, wrong, event.hour) else None
    return Drawn({"title": event.title, "when": when}, (replace(event, day=day),), slip)


def _call_off(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    if not office.events:
        return None
    event = draw.one(office.events)
    return Drawn({"title": event.title}, (Gone(event.title),))


def _when_is(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    events = [row for row in office.events if row.id]
    if not events:
        return None
    event = draw.one(events)
    question = Question(("find_event", {"title": event.title}), event.id, str(event.day), str(event.hour))
    return Drawn({"title": event.title}, question=question if event.day != event.hour else None)


def _order(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    item, quantity = draw.one(tuple(PRICES)), 2 + draw.below(8)
    new = Order(0, item, quantity, "confirmed")
    if any(row.item == item for row in office.orders) or cost_of(new) > balance_of(office, scene):
        return None
    return Drawn({"n": quantity, "item": item}, (new,), (replace(new, status="open"),))


def _cancel_order(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    orders = [row for row in office.orders if row.status == "confirmed"]
    if not orders:
        return None
    order = draw.one(orders)
    return Drawn({"item": order.item}, (replace(order, status="cancelled"),))


def _how_many(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    orders = [row for row in office.orders if row.status == "confirmed" and row.id]
    if not orders:
        return None
    order = draw.one(orders)
    question = Question(("find_order", {"item": order.item}), order.id, str(order.quantity), None)
    return Drawn({"item": order.item}, question=question)


def _money_left(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    question = Question(("balance", {}), BALANCE_SHOWN, str(balance_of(office, scene)), None)
    return Drawn({}, question=question)


def _journey(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    trip = draw.one(scene.trips)
    day, city = trip.day, trip.city
    if not scene.today < day <= scene.today + 9:
        return None
    same = sorted((t for t in scene.trips if (t.day, t.city) == (day, city)), key=lambda t: t.id)
    cheapest = min(same, key=lambda t: t.price)
    taken = {row.trip for row in office.bookings}
    if taken & {t.id for t in same} or cheapest.price > balance_of(office, scene):
        return None
    days = day - scene.today
    when = "tomorrow" if days == 1 else f"in {days} days"
    first = same[0] if same[0] != cheapest and same[0].price <= balance_of(office, scene) else None
    slip = Booking(0, first.id, "confirmed") if first else Booking(0, cheapest.id, "open")
    return Drawn({"city": city, "when": when}, (Booking(0, cheapest.id, "confirmed"),), (slip,))


def _stay(draw: Draw, office: Office, scene: Scene) -> Drawn | None:
    rows = [row for row in office.bookings if row.status == "confirmed"]
    if not rows:
        return None
    row = draw.one(rows)
    trip = scene.trip(row.trip)
    assert trip is not None
    towards = [other for other in rows if (there := scene.trip(other.trip)) and there.city == trip.city]
    return Drawn({"city": trip.city}, (replace(row, status="cancelled"),)) if len(towards) == 1 else None


KINDS: Mapping[str, Kind] = {
    "message": Kind(
        service="messages",
        wordings=("Tell {who}: {text}.", "Send {who} the message: {text}.", "Let {who} know: {text}."),
        draw=_message,
        tools=("find_contact", "send_message"),
        sole="send_message",
        short="Send the message: {text}.",
        supply="To {who}.",
        lacks="person",
    ),
    "pay": Kind(
        service="payments",
        wordings=("Pay {who} {n}.", "{who} gets {n} from us. Pay it.", "Transfer {n} to {who}."),
        draw=_pay,
        tools=("find_contact", "pay"),
        sole="pay",
        short="Pay {who} what we owe.",
        supply="It is {n}.",
        lacks="amount",
    ),
    "balance": Kind(
        service="payments",
        wordings=("How much money is left?", "What is the balance?", "What have we left in the account?"),
        draw=_money_left,
        tools=("balance",),
    ),
    "moved": Kind(
        service="contacts",
        wordings=(
            "{who} lives in {city} now. Note it.",
            "{who} has moved to {city}. Change the contact.",
            "Set the city of {who} to {city}.",
        ),
        draw=_moved_away,
        tools=("find_contact", "update_contact"),
        sole="update_contact",
        short="{who} has moved. Change the contact.",
        supply="The city is {city}.",
        lacks="city",
    ),
    "contact": Kind(
        service="contacts",
        wordings=(
            "Add {who} in {city} to the contacts.",
            "A new contact: {who}, {city}. Add it.",
            "Put {who} from {city} in the contacts.",
        ),
        draw=_new_contact,
        tools=("add_contact",),
        sole="add_contact",
        short="Add {who} to the contacts.",
        supply="The city is {city}.",
        lacks="city",
    ),
    "where": Kind(
        service="contacts",
        wordings=("In what city does {who} live?", "Where does {who} live?", "Which city is {who} in?"),
        draw=_where_lives,
        tools=("find_contact",),
    ),
    "file": Kind(
        service="files",
        wordings=(
            "Move the {file} in {from} to {to}.",
            "Put the {file} from {from} into {to}.",
            "The {file} in {from} belongs in {to}. Move it.",
        ),
        draw=_file_away,
        tools=("find_file", "move_file"),
        sole="move_file",
    ),
    "share": Kind(
        service="files",
        wordings=(
            "Share the {file} with {who}.",
            "Let {who} read the {file}.",
            "{who} needs the {file}. Share it.",
        ),
        draw=_share,
        tools=("find_file", "find_contact", "share_file"),
        sole="share_file",
        short="Share the {file} with somebody.",
        supply="With {who}.",
        lacks="person",
    ),
    "event": Kind(
        service="calendar",
        wordings=(
            "Plan the {title} {when} at {n}.",
            "Put the {title} in the calendar, {when} at {n}.",
            "The {title} is {when} at {n}. Add it.",
        ),
        draw=_event,
        tools=("add_event",),
        sole="add_event",
        short="Plan the {title} at {n}.",
        supply="The day is {when}.",
        lacks="day",
    ),
    "postpone": Kind(
        service="calendar",
        wordings=(
            "Move the {title} to the same hour {when}.",
            "The {title} will be {when}, same hour.",
            "Put off the {title}: {when}, same hour.",
        ),
        draw=_put_off,
        tools=("find_event", "move_event"),
    ),
    "call off": Kind(
        service="calendar",
        wordings=(
            "Cancel the {title}.",
            "The {title} will not take place. Take it out.",
            "Call off the {title}.",
        ),
        draw=_call_off,
        tools=("find_event", "cancel_event"),
        sole="cancel_event",
    ),
    "when": Kind(
        service="calendar",
        wordings=(
            "On what day is the {title}?",
            "Which day is the {title} on?",
            "When is the {title}? The day is enough.",
        ),
        draw=_when_is,
        tools=("find_event",),
    ),
    "order": Kind(
        service="orders",
        wordings=(
            "Order {n} of the {item}.",
            "We need {n} of the {item}. Order them.",
            "Get us {n} of the {item}.",
        ),
        draw=_order,
        tools=("place_order", "confirm_order"),
        sole="place_order",
        short="Order some of the {item}.",
        supply="We need {n}.",
        lacks="amount",
    ),
    "cancel order": Kind(
        service="orders",
        wordings=(
            "Cancel the order of the {item}.",
            "We do not want the {item} any more. Cancel the order.",
            "Take back the order of the {item}.",
        ),
        draw=_cancel_order,
        tools=("find_order", "cancel_order"),
        sole="cancel_order",
    ),
    "how many": Kind(
        service="orders",
        wordings=(
            "How many of the {item} have we ordered?",
            "Of the {item}, how many are on order?",
            "Tell me how many of the {item} we ordered.",
        ),
        draw=_how_many,
        tools=("find_order",),
    ),
    "journey": Kind(
        service="travel",
        wordings=(
            "Book the cheapest trip to {city} {when}.",
            "I travel to {city} {when}, as cheap as can be. Book it.",
            "I have to be in {city} {when}. Book what costs least.",
        ),
        draw=_journey,
        tools=("find_trips", "book_trip", "confirm_booking"),
        sole="book_trip",
        short="Book the cheapest trip to {city}.",
        supply="I travel {when}.",
        lacks="day",
    ),
    "stay": Kind(
        service="travel",
        wordings=(
            "Cancel my trip to {city}.",
            "I do not travel to {city} after all. Cancel it.",
            "Take back my booking to {city}.",
        ),
        draw=_stay,
        tools=("find_booking", "cancel_booking"),
        sole="cancel_booking",
    ),
}
