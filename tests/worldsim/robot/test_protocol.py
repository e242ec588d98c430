"""The wire format against bytes worked out by hand and a reader written from its description; everything else is refused."""

import pickle
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openpi import decode, encode

from worldsim.robot.protocol import MAX_DEPTH, MAX_ITEMS, pack, unpack

# 8n: map of n, an: str of n bytes, c4: bytes with their number, c3: true, 9n: list of n, cb: float; 1 is 3f800000, -2 is c0000000.
ARRAY = (
    b"\x81\xa1s\x84\xc4\x0b__ndarray__\xc3\xc4\x04data\xc4\x08\x00\x00\x80\x3f\x00\x00\x00\xc0"
    b"\xc4\x05dtype\xa3<f4\xc4\x05shape\x91\x02"
)
SCALAR = b"\x83\xc4\x0d__npgeneric__\xc3\xc4\x04data\xcb\x3f\xe0\x00\x00\x00\x00\x00\x00\xc4\x05dtype\xa3<f4"

NUMBERS = ("?", "i1", "u1", "<i2", ">i2", "<u4", "<i8", "<u8", "<f2", "<f4", ">f4", "<f8")


def array(**changes: Any) -> bytes:
    """An array of two float32 with other fields."""
    fields = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    fields |= {key.encode(): value for key, value in changes.items()}
    return msgpack.packb({key: value for key, value in fields.items() if value is not ...})


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_bytes_are_those_of_openpi() -> None:
    assert pack({"s": np.array([1, -2], np.float32)}) == ARRAY
    assert pack(np.float32(0.5)) == SCALAR
    np.testing.assert_array_equal(unpack(ARRAY)["s"], np.array([1, -2], np.float32))
    scalar = unpack(SCALAR)
    assert scalar == 0.5 and type(scalar) is np.float32


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(st.sampled_from(NUMBERS).map(np.dtype), hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)))
def test_arrays_cross_in_both_directions(values: np.ndarray) -> None:
    message = {"a": [values, values.T], "b": {"c": values.reshape(-1)[:1]}, "d": None, "e": "é", "f": b"\x00", "g": True, "h": -7}
    ours, theirs = pack(message), msgpack.packb(message, default=encode)
    assert ours == theirs
    for got in (unpack(theirs), msgpack.unpackb(ours, object_hook=decode)):
        for mine, expected in ((got["a"][0], values), (got["a"][1], values.T), (got["b"]["c"], values.reshape(-1)[:1])):
            assert mine.dtype == expected.dtype and mine.shape == expected.shape
            assert mine.tobytes() == expected.tobytes()
        assert {key: got[key] for key in "defgh"} == {key: message[key] for key in "defgh"}


@pytest.mark.parametrize("scalar", [np.bool_(True), np.uint8(255), np.int64(-(2**63)), np.float16(0.5), np.float32(np.inf)])
def test_scalars_keep_their_type(scalar: np.generic) -> None:
    got = unpack(pack({"x": scalar}))["x"]
    assert got == scalar and type(got) is type(scalar)


REFUSED = {
    "object": (array(dtype="|O", data=bytes(16)), "dtype must be a boolean or a number"),
    "object by name": (array(dtype="object", data=bytes(16)), "dtype must be"),
    "void": (array(dtype="|V4"), "dtype must be"),
    "record": (array(dtype="i4,(9999999,)i4"), "dtype must be"),
    "text": (array(dtype="<U2"), "dtype must be"),
    "date": (array(dtype="<M8[s]", data=bytes(16)), "dtype must be"),
    "complex": (array(dtype="<c8", data=bytes(16)), "dtype must be"),
    "dtype is a list": (array(dtype=[["a", "O"]]), "got a list"),
    "dtype is a pickle": (array(dtype=pickle.dumps(print)), "got a bytes"),
    "too few bytes": (array(data=bytes(7)), "must have 8 bytes, got 7 bytes"),
    "too many bytes": (array(data=bytes(9)), "must have 8 bytes, got 9 bytes"),
    "data is text": (array(data="12345678"), "got a str"),
    "data is a list": (array(data=[0, 0]), "got a list"),
    "negative size": (array(shape=[-2]), "sizes"),
    "two negative sizes": (array(shape=[-1, -2]), "sizes"),
    "size is a float": (array(shape=[2.0]), "sizes"),
    "size is true": (array(shape=[2, True]), "sizes"),
    "shape is a number": (array(shape=2), "sizes"),
    "huge shape": (array(shape=[2**31, 2**31, 2**31]), "bytes"),
    "huge and empty": (array(shape=[2**63 - 1, 0], data=b""), "sizes"),
    "nine dimensions": (array(shape=[1] * 8 + [2]), "sizes"),
    "no shape": (array(shape=...), "other keys"),
    "no data": (array(data=...), "other keys"),
    "one key more": (array(order="F"), "other keys"),
    "scalar of objects": (msgpack.packb({b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}), "dtype must be"),
    "scalar too large": (msgpack.packb({b"__npgeneric__": True, b"data": 256, b"dtype": "|u1"}), "fits"),
    "scalar of text": (msgpack.packb({b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}), "fits"),
    "scalar of a list": (msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}), "fits"),
    "scalar without data": (msgpack.packb({b"__npgeneric__": True, b"dtype": "<f4"}), "other keys"),
    "deep list": (msgpack.packb(nested(MAX_DEPTH + 1)), "nested"),
    "deep map": (b"\x81\xa1a" * (MAX_DEPTH + 1) + b"\xc0", "nested"),
    "very deep": (b"\x91" * 100_000, "not a MessagePack message"),
    "many items": (msgpack.packb([0] * (MAX_ITEMS + 1)), "MessagePack"),
    "many lists": (msgpack.packb([[[]] * 100] * 100), "items"),
    "many maps": (msgpack.packb([[{}] * 100] * 100), "items"),
    "list without an end": (b"\xdd\xff\xff\xff\xff", "MessagePack"),
    "lists without an end": (b"\xdd\x00\x00\x04\x00" * 4000, "MessagePack"),
    "map without an end": (b"\xdf\xff\xff\xff\xff", "MessagePack"),
    "text without an end": (b"\xdb\xff\xff\xff\xff", "MessagePack"),
    "bytes without an end": (b"\xc6\xff\xff\xff\xff", "MessagePack"),
    "extension": (msgpack.packb(msgpack.ExtType(42, b"x")), "extensions, got a ExtType"),
    "time": (msgpack.packb({"t": msgpack.Timestamp(0)}), "extensions, got a Timestamp"),
    "unused byte": (b"\xc1", "MessagePack message: malformed"),
    "not UTF-8": (b"\xa1\xff", "utf-8"),
    "key is a number": (b"\x81\x01\x02", "MessagePack"),
    "key is a list": (b"\x81\x90\x02", "MessagePack"),
    "two messages": (b"\x80\x80", "extra data"),
    "nothing": (b"", "incomplete"),
    "a pickle": (pickle.dumps({"a": 1}), "MessagePack"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_belong_is_refused_in_one_line(name: str) -> None:
    message, words = REFUSED[name]
    with pytest.raises(ValueError, match=words) as error:
        unpack(message)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("head", [b"\xdd\x00\x0f\x00\x00" * 50, b"\xdf\x00\x07\x00\x00" * 50, b"\xdc\x03\xff" + b"\x80" * 2**20])
def test_what_a_message_promises_takes_no_memory(head: bytes) -> None:
    message = head + bytes(2**20)  # as long as its first list says
    tracemalloc.start()
    with pytest.raises(ValueError, match="MessagePack"):
        unpack(message)
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


def test_the_deepest_and_fullest_messages_pass() -> None:
    assert unpack(msgpack.packb(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    assert len(unpack(msgpack.packb([0] * (MAX_ITEMS - 1)))) == MAX_ITEMS - 1


def test_text_and_too_large_messages_are_refused() -> None:
    with pytest.raises(ValueError, match="got text"):
        unpack("hello")
    message = pack({"a": bytes(100)})
    assert unpack(message, max_bytes=len(message)) == {"a": bytes(100)}
    with pytest.raises(ValueError, match=f"{len(message) - 1} bytes, got {len(message)}"):
        unpack(message, max_bytes=len(message) - 1)


@pytest.mark.parametrize(
    "value",
    [object(), {"a": np.array([None])}, np.zeros(1, "V4"), np.array(["a"]), 2**70, {1j: 1}, np.zeros(1, "c8"), nested(3000)],
)
def test_what_cannot_travel_is_not_packed(value: Any) -> None:
    with pytest.raises(ValueError, match="message holds|recursion"):
        pack(value)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    survive(data)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_any_damage_to_a_message_is_read_or_refused(data: st.DataObject) -> None:
    message = bytearray(ARRAY[:-1] + b"\x02" + SCALAR if data.draw(st.booleans()) else ARRAY)
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    survive(bytes(message[: data.draw(st.integers(1, len(message)))]))


def survive(message: bytes) -> None:
    try:
        value = unpack(message)
    except ValueError:
        return
    pack(value)  # what was read can travel again, so it holds nothing but data
