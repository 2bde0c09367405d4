"""The state of a small organisation: contacts, files, calendar, messages, orders, payments, bookings.

All that tools can change is one frozen `Office` of sorted tuples; a change replaces rows. What no tool changes (the
day, the money at the start, the timetable) is the `Scene`. The money left is computed, so the two cannot disagree.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "PRICES",
    "Booking",
    "Contact",
    "Event",
    "File",
    "Message",
    "Office",
    "Order",
    "Payment",
    "Row",
    "Scene",
    "Trip",
    "balance_of",
    "cost_of",
    "fare_of",
]

PRICES = {
    "lamp": 12, "desk": 45, "chair": 30, "pen": 2, "printer": 60, "phone": 50, "screen": 55, "cable": 4,
    "mug": 6, "clock": 9, "shelf": 25, "plant": 8,
}  # fmt: skip

Status = Literal["open", "confirmed", "cancelled"]  # open: not confirmed yet, without effect


class Row(msgspec.Struct, frozen=True, array_like=True):
    id: int  # three digits, nowhere given twice


class Contact(Row, frozen=True, array_like=True):
    name: str
    city: str


class File(Row, frozen=True, array_like=True):
    name: str
    folder: str
    shared: tuple[str, ...] = ()  # names, sorted


class Event(Row, frozen=True, array_like=True):
    title: str
    day: int
    hour: int


class Message(msgspec.Struct, frozen=True, array_like=True):
    to: str
    text: str


class Order(Row, frozen=True, array_like=True):
    item: str
    quantity: int
    status: Status


class Payment(msgspec.Struct, frozen=True, array_like=True):
    to: str
    amount: int


class Booking(Row, frozen=True, array_like=True):
    trip: int
    status: Status


class Trip(Row, frozen=True, array_like=True):
    city: str
    day: int
    hour: int
    price: int


class Office(msgspec.Struct, frozen=True, array_like=True):
    """What the tools change. Rows with an id are sorted by it, messages and payments stand in their order."""

    contacts: tuple[Contact, ...] = ()
    files: tuple[File, ...] = ()
    events: tuple[Event, ...] = ()
    messages: tuple[Message, ...] = ()
    orders: tuple[Order, ...] = ()
    payments: tuple[Payment, ...] = ()
    bookings: tuple[Booking, ...] = ()
    made: int = 0  # ids given out so far


class Scene(msgspec.Struct, frozen=True):
    """What no tool changes."""

    today: int
    money: int
    trips: tuple[Trip, ...]
    fresh: tuple[int, ...]  # ids for what will be made, in order

    def trip(self, trip_id: int) -> Trip | None:
        return next((trip for trip in self.trips if trip.id == trip_id), None)


def balance_of(office: Office, scene: Scene) -> int:
    """The money left. Only what was made since the start has to be paid from it."""
    spent = sum(payment.amount for payment in office.payments)
    spent += sum(cost_of(order) for order in office.orders if _new_and_confirmed(order, scene))
    spent += sum(fare_of(booking, scene) for booking in office.bookings if _new_and_confirmed(booking, scene))
    return scene.money - spent


def cost_of(order: Order) -> int:
    return PRICES[order.item] * order.quantity


def fare_of(booking: Booking, scene: Scene) -> int:
    trip = scene.trip(booking.trip)
    return trip.price if trip is not None else 0


def _new_and_confirmed(row: Order | Booking, scene: Scene) -> bool:
    return row.status == "confirmed" and (row.id == 0 or row.id in scene.fresh)
