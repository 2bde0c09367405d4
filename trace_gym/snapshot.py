"""A snapshot is the whole mutable condition of an episode, as a value that can be kept, compared and moved.

Invariants: bytes hold plain data only (msgpack, read into declared types, never pickle), so bytes from a file
or another host cannot run code; whatever is wrong with them raises `SnapshotError` within fixed limits of
size, depth and memory; and a snapshot equals what comes back from its bytes.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np

from trace_gym.errors import SnapshotError
from trace_gym.text import MAX_OBSERVATION_CHARS

__all__ = [
    "MAX_CONTAINERS",
    "MAX_DEPTH",
    "MAX_SNAPSHOT_BYTES",
    "GeneratorState",
    "Role",
    "Snapshot",
    "StateT",
    "Status",
    "plain_bytes",
]

MAX_SNAPSHOT_BYTES = 16 * 2**20
MAX_DEPTH = 64  # lists and maps inside one another; deeper ones could exhaust the stack of a decoder
MAX_CONTAINERS = 2**18  # lists and maps in all: an empty one is 1 byte in msgpack and 64 in memory

Role = Literal["user", "tool"]
Status = Literal["running", "done", "truncated"]
StateT = TypeVar("StateT", bound=msgspec.Struct)

_Word = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class GeneratorState(msgspec.Struct, frozen=True, array_like=True):
    """The state of a PCG64 generator; its 128-bit words as bytes, for they exceed msgpack's integers."""

    state: _Word
    inc: _Word
    has_uint32: Annotated[int, msgspec.Meta(ge=0, le=1)]
    uinteger: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]

    @classmethod
    def of(cls, generator: np.random.Generator) -> GeneratorState:
        """The state of `generator`. Raises `SnapshotError` unless it is a PCG64, gymnasium's own kind."""
        raw = generator.bit_generator.state
        if raw["bit_generator"] != "PCG64":
            raise SnapshotError(f"np_random must be a PCG64 generator, not {raw['bit_generator']}")
        state, inc = (raw["state"][name].to_bytes(16, "big") for name in ("state", "inc"))
        return cls(state, inc, raw["has_uint32"], raw["uinteger"])

    def generator(self) -> np.random.Generator:
        """A new generator in this state."""
        if not self.inc[-1] & 1:  # PCG's increment is odd; with an even one the stream would be short
            raise SnapshotError("the snapshot holds no state of a PCG64 generator: take it with snapshot()")
        bits = np.random.PCG64(0)
        bits.state = {
            "bit_generator": "PCG64",
            "state": {"state": int.from_bytes(self.state, "big"), "inc": int.from_bytes(self.inc, "big")},
            "has_uint32": self.has_uint32,
            "uinteger": self.uinteger,
        }
        return np.random.Generator(bits)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The whole mutable state of an episode, as a value: equal to another when their bytes are.

    `state` is the environment's frozen struct; in a snapshot that came from bytes it is still encoded
    (`msgspec.Raw`) until `restore` decodes it into the type the environment declares.
    """

    env_id: str
    schema_version: int
    task_id: str
    state: Any
    generator: GeneratorState
    turn: Annotated[int, msgspec.Meta(ge=0)]
    turn_limit: Annotated[int, msgspec.Meta(ge=0)]
    status: Status
    observation: Annotated[str, msgspec.Meta(max_length=MAX_OBSERVATION_CHARS)]
    role: Role
    success: bool | None = None
    extra: dict[str, Any] = msgspec.field(
        default_factory=dict
    )  # what else `info` held; plain data, never mutated
    irreversible: bool = False

    def to_bytes(self) -> bytes:
        """msgpack. Raises `SnapshotError` when the state is not plain data or the result passes a limit."""
        data = plain_bytes(self, self.env_id)
        _check_limits(data, f"{self.env_id}: the snapshot")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Snapshot:
        """The snapshot in `data`. Raises `SnapshotError` for anything else; runs no code from the bytes."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise SnapshotError(f"a snapshot is read from bytes, not from {type(data).__name__}")
        data = bytes(data)
        _check_limits(data, "these bytes are not a snapshot: the data")
        try:
            wire = _DECODER.decode(data)
        except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
            raise SnapshotError(
                f"these bytes are not a snapshot ({error}); were they cut off or changed?"
            ) from error
        return cls(**{name: getattr(wire, name) for name in cls.__struct_fields__})

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes, as hex."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and (self is other or self.to_bytes() == other.to_bytes())

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def state_as(self, state_type: type[StateT]) -> StateT:
        """`state`, decoded where it came from bytes. Raises `SnapshotError` when it is no `state_type`."""
        if isinstance(self.state, state_type):
            return self.state
        if not isinstance(self.state, msgspec.Raw):
            found, wanted = type(self.state).__name__, state_type.__name__
            raise SnapshotError(f"{self.env_id}: the snapshot's state is a {found}, not a {wanted}")
        try:
            return msgspec.msgpack.decode(self.state, type=state_type)
        except (msgspec.DecodeError, RecursionError, ValueError, OverflowError) as error:
            raise SnapshotError(f"{self.env_id:.80}: the snapshot's state cannot be read: {error}") from error


class _Wire(Snapshot, frozen=True, kw_only=True, eq=False):
    """A snapshot as it is read: the state stays encoded until its type is known."""

    state: msgspec.Raw


_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
_DECODER = msgspec.msgpack.Decoder(_Wire)


def plain_bytes(value: object, owner: str) -> bytes:
    """`value` in msgpack, the same bytes for equal values. Raises `SnapshotError` unless it is plain data."""
    try:
        return _ENCODER.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SnapshotError(f"{owner}: the state is not plain data that msgpack can hold: {error}") from error


# ---- limits ------------------------------------------------------------------------------------------------
# msgpack by first byte: how long an item is, or where its length stands (msgpack's spec.md).

_CONTAINERS = (*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF)
_SCALARS = bytes(set(range(256)) - set(_CONTAINERS))
_BODY = {0xCA: 4, 0xCB: 8}  # bytes after the first byte of an item of fixed length; none for those not listed
_BODY |= {0xCC + i: 2 ** (i % 4) for i in range(8)}  # integers
_BODY |= {0xD4 + i: 1 + 2**i for i in range(5)}  # short extensions
_BODY |= {0xA0 + i: i for i in range(32)}  # short strings
_LENGTH = {
    0xC4: 1,
    0xC5: 2,
    0xC6: 4,
    0xC7: 1,
    0xC8: 2,
    0xC9: 4,
    0xD9: 1,
    0xDA: 2,
    0xDB: 4,
}  # bytes of the length


def _check_limits(data: bytes, what: str) -> None:
    if len(data) > MAX_SNAPSHOT_BYTES:
        raise SnapshotError(f"{what} has {len(data)} bytes; the limit is {MAX_SNAPSHOT_BYTES}")
    if len(data.translate(None, _SCALARS)) <= MAX_DEPTH:  # too few bytes that could open a container
        return
    depth, containers = _nesting(data)
    if depth > MAX_DEPTH:
        raise SnapshotError(f"{what} nests lists or maps more than {MAX_DEPTH} deep")
    if containers > MAX_CONTAINERS:
        raise SnapshotError(f"{what} holds more than {MAX_CONTAINERS} lists and maps")


def _nesting(data: bytes) -> tuple[int, int]:
    """(depth, number) of the containers in msgpack `data`, read without recursion up to the limits.

    Malformed data is left to the decoder, which refuses it.
    """
    position = deepest = containers = 0
    missing: list[int] = []  # items still to come in each open container
    while position < len(data) and deepest <= MAX_DEPTH and containers <= MAX_CONTAINERS:
        head = data[position]
        position += 1
        while missing and missing[-1] == 0:
            missing.pop()
        if missing:
            missing[-1] -= 1
        if 0x80 <= head < 0xA0 or 0xDC <= head < 0xE0:
            width = 0 if head < 0xA0 else 2 if head in (0xDC, 0xDE) else 4
            count = int.from_bytes(data[position : position + width], "big") if width else head & 0x0F
            is_map = head < 0x90 or head >= 0xDE
            position += width
            containers += 1
            missing.append(2 * count if is_map else count)
            deepest = max(deepest, len(missing))
        elif width := _LENGTH.get(head, 0):
            extension_type = 0xC7 <= head <= 0xC9
            position += width + extension_type + int.from_bytes(data[position : position + width], "big")
        else:
            position += _BODY.get(head, 0)
    return deepest, containers
