"""Columns of data files as arrays, and what may stand in them: one rule for reading a dataset and for listing its faults.

A label that is neither 0 nor 1, or a row of another length than the rest, would be learned from like any other. Read
`lerobot_reader.py` next, which stops at the first such row, and `faults.py`, which counts them.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Num

from worldsim.data import lerobot_format as fmt

# What the rows that `wrong_rows` finds are, as an error says it, in every column of which an episode consists.
WRONG = {key: "are not finite" for key in ("observation.state", "action", "next.reward", "timestamp")}
WRONG |= {"success": "are neither 0 nor 1 nor unknown (NaN)", "next.success": "are neither 0 nor 1 nor unknown (NaN)"}
WRONG |= {"progress": "are neither in [0, 1] nor unknown (NaN)"}


def wrong_rows(key: str, values: Num[np.ndarray, "n d"]) -> Bool[np.ndarray, " n"]:
    """Rows of a column of `WRONG` that no learner may see."""
    if key == "progress":
        fine = np.isnan(values) | ((values >= 0) & (values <= 1))
    elif key in fmt.LABELS:
        fine = np.isnan(values) | (values == 0) | (values == 1)
    else:
        fine = np.isfinite(values)
    return ~fine.all(axis=1)


def vectors(path: Path, table: pa.Table, key: str, width: int) -> Num[np.ndarray, "n {width}"]:
    """Scalar or list column `key` of a data file, writable; `path` is what an error names.

    Raises:
        ValueError: if a row holds another number of values, or something else than numbers.
    """
    flat = _flat(path, table, key, width)
    if flat.null_count:
        raise ValueError(f"{path}: {flat.null_count} values of column {key} are missing, expected {width} per row; copy it again")
    return flat.to_numpy(zero_copy_only=False).reshape(-1, width).copy()


def joined(path: Path, table: pa.Table, columns: Mapping[str, int]) -> Num[np.ndarray, "n d"]:
    """Columns of these widths side by side, writable; zeros [n, 1] where there are none.

    Raises:
        ValueError: as `vectors`.
    """
    if not columns:
        return np.zeros((table.num_rows, 1), np.float32)
    parts = [vectors(path, table, key, width) for key, width in columns.items()]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def label(path: Path, table: pa.Table, key: str) -> Float[np.ndarray, " n"]:
    """Column `key` of success or progress as float32, NaN where nobody knows: a null, NaN, or no such column.

    Raises:
        ValueError: if a row holds several values, or something else than numbers.
    """
    if key not in table.column_names:
        return np.full(table.num_rows, np.nan, np.float32)
    return _flat(path, table, key, 1).to_numpy(zero_copy_only=False).astype(np.float32)


def pictures(path: Path, table: pa.Table, key: str) -> list[bytes | None]:
    """The encoded pictures of column `key` of a data file, [n]; None where one is missing.

    Raises:
        ValueError: if the column holds something else.
    """
    column = table[key].combine_chunks()
    if not pa.types.is_struct(column.type) or column.type.get_field_index("bytes") < 0:
        raise ValueError(f"{path}: column {key} holds {column.type}, expected pictures {{bytes, path}}; record or convert it again")
    return column.field("bytes").to_pylist()


def _flat(path: Path, table: pa.Table, key: str, width: int) -> pa.Array:
    """All numbers of a scalar or list column, row after row."""
    column = table[key].combine_chunks()
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        lengths = pc.call_function("list_value_length", [column]).fill_null(0).to_numpy(zero_copy_only=False)
        flat = column.flatten()
    else:
        lengths, flat = np.ones(len(column), int), column
    if odd := int((lengths != width).sum()):
        other = int(lengths[lengths != width][0])
        raise ValueError(
            f"{path}: {odd} of {len(column)} rows of column {key} do not hold {width} values, one holds {other}; copy or record it "
            "again"
        )
    if not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type) or pa.types.is_boolean(flat.type)):
        raise ValueError(f"{path}: column {key} holds {flat.type}, expected numbers; record or convert it again")
    return flat
