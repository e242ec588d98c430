"""openpi's wire format: MessagePack in which an array is a map of its bytes, its dtype and its shape.

Robots already speak it, so a policy that is served in it needs no new client. A stranger's message can be refused but never run:
there is no pickle, no array of objects and no size that the sender alone decides. Read `server.py` next.
"""

import math
from typing import Any

import msgpack
import numpy as np

MAX_MESSAGE_BYTES = 16 * 2**20
MAX_ITEMS = 1024  # of all maps and lists of a message together; pixels travel as bytes, so this is plenty
MAX_DEPTH = 16
MAX_DIMENSIONS = 8

# Booleans and numbers, by the name that travels. Objects, voids, records, strings and dates have no place in it.
_NAMES = ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
_DTYPES = {dtype.str: dtype for name in _NAMES for dtype in (np.dtype(f"<{name}"), np.dtype(f">{name}"))}
_ARRAY_KEYS = {b"__ndarray__", b"data", b"dtype", b"shape"}
_SCALAR_KEYS = {b"__npgeneric__", b"data", b"dtype"}
_PLAIN = (str, bytes, int, float, bool, type(None))


def pack(value: Any) -> bytes:
    """A message of maps, lists, strings, numbers and numpy arrays, byte for byte as openpi's client and server write it.

    Raises:
        ValueError: if something in it cannot travel, such as an array of objects.
    """
    try:
        return msgpack.packb(value, default=_encode)  # type: ignore[return-value]
    except (TypeError, OverflowError) as error:
        raise ValueError(f"a message holds maps, lists, strings, numbers and arrays: {error}; convert it first") from error


def unpack(message: bytes | str, *, max_bytes: int = MAX_MESSAGE_BYTES) -> Any:
    """What `pack` packed. Arrays are read-only views of the message.

    Args:
        message: a binary frame; openpi sends text frames only to report an error.
        max_bytes: of the message.

    Raises:
        ValueError: if it is text, too large, not MessagePack or truncated, holds more than 1,024 items, is nested deeper than 16 or
            holds an array or a scalar that is no boolean or number or whose bytes do not fit its shape.
    """
    if isinstance(message, str):
        raise ValueError("expected a binary MessagePack frame, got text; send observations packed")
    if len(message) > max_bytes:
        raise ValueError(f"a message may have {max_bytes} bytes, got {len(message)}; send smaller images")
    items = 0

    def count(container: Any) -> Any:
        nonlocal items
        items += 1 + len(container)
        if items > MAX_ITEMS:
            raise ValueError(f"more than {MAX_ITEMS} items; send arrays instead of lists")
        return container

    limits = {"max_array_len": MAX_ITEMS, "max_map_len": MAX_ITEMS}
    try:
        value = msgpack.unpackb(message, object_hook=count, list_hook=count, **limits)
    except ValueError as error:
        raise ValueError(f"this is not a MessagePack message: {str(error) or 'malformed'}") from error
    return _decode(value, 0)


def _encode(value: Any) -> dict[bytes, Any]:
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"got a {type(value).__name__}")
    if value.dtype.str not in _DTYPES:
        raise TypeError(f"got an array of {value.dtype}")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _decode(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError(f"a message may be nested {MAX_DEPTH} deep, this one is nested deeper; flatten it")
    if isinstance(value, dict):
        if b"__ndarray__" in value:
            return _array(value)
        if b"__npgeneric__" in value:
            return _scalar(value)
        return {key: _decode(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item, depth + 1) for item in value]
    if type(value) not in _PLAIN:
        raise ValueError(f"a message may not hold MessagePack extensions, got a {type(value).__name__}; remove it")
    return value


def _array(fields: dict[Any, Any]) -> np.ndarray:
    if fields.keys() != _ARRAY_KEYS:
        raise ValueError("an array travels as a map of __ndarray__, data, dtype and shape (as bytes), this one has other keys")
    data, shape, dtype = fields[b"data"], fields[b"shape"], _dtype(fields[b"dtype"])
    sizes_are_valid = isinstance(shape, list) and all(type(size) is int and 0 <= size <= 2**31 for size in shape)
    if not sizes_are_valid or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"an array's shape must be a list of at most {MAX_DIMENSIONS} sizes, this one is not")
    expected = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != expected:
        got = f"{len(data)} bytes" if isinstance(data, bytes) else f"a {type(data).__name__}"
        raise ValueError(f"an array of {dtype} and shape {shape} must have {expected} bytes, got {got}")
    return np.ndarray(shape, dtype, buffer=data)


def _scalar(fields: dict[Any, Any]) -> np.generic:
    if fields.keys() != _SCALAR_KEYS:
        raise ValueError("a scalar travels as a map of __npgeneric__, data and dtype (as bytes), this one has other keys")
    data, dtype = fields[b"data"], _dtype(fields[b"dtype"])
    if dtype.kind == "b":
        fits = type(data) is bool
    elif dtype.kind == "f":
        fits = type(data) in (int, float)
    else:
        fits = type(data) is int and np.iinfo(dtype).min <= data <= np.iinfo(dtype).max
    if not fits:
        raise ValueError(f"a scalar of {dtype} must be a number that fits it, this one is not")
    with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite there, and refused where finite values are due
        return dtype.type(data)


def _dtype(name: Any) -> np.dtype:
    # A table instead of np.dtype(name), which would parse records, shapes and objects out of a stranger's text.
    if not isinstance(name, str) or name not in _DTYPES:
        got = repr(name[:20]) if isinstance(name, str) else f"a {type(name).__name__}"
        raise ValueError(f"a dtype must be a boolean or a number such as '|u1' or '<f4', got {got}; convert it first")
    return _DTYPES[name]
