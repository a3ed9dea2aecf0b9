"""The compact form of the published files of one seed: records as JSON Lines, arrays as packed safetensors.

``records-seed-S.jsonl`` begins with the tables that occur in several records, one in each line: ``{"name": N, "table":
{...}}``. In later lines, the string ``"$N"`` stands for such a table; any other string that begins with ``$`` is
written with one more ``$``. The other lines are records, one in each line:

    {"stage": ..., "key": ..., "record": {...}, "provenance": {"common": ..., "inputs": [stages], ...}}

Reading adds stage, key and the keys of the inputs to the provenance and puts it into the record. ``common`` contains
the fields that many records share, such as the library versions. A provenance whose stage, key or keys of the inputs
differ from those of the lines stays in the record, unchanged.

``arrays-seed-S.safetensors`` holds one tensor for each dtype and shape, such as ``float16 360x9``, with one row for
each array. The metadata field ``rows`` lists the names of the rows (``STAGE|ARRAY``) of each tensor. Booleans are
stored as bits, and signed integers in the smallest type that holds them; reading restores dtype and shape.
"""

from __future__ import annotations

import copy
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paperlib.atomic_files import read_tensors, replacing, write_tensors
from paperlib.errors import StoreError
from paperlib.paths import shown

Json = dict[str, Any]
REFERENCE = "$"
SHORTEST = 60  # characters of a table that is worth a reference
DESCRIBING = ("class", "name", "kind")  # fields of a table that become part of its name
SINGLE = ("created", "seconds")  # fields of a provenance that differ from record to record


def write_records(path: Path, records: Json) -> None:
    """Write the records of one seed as a whole or not at all.

    Args:
        records: ``{"key": ..., "record": ...}`` by stage name.

    Raises:
        StoreError: the file cannot be written, or a record contains NaN or infinity.
    """
    try:
        text = encode_records(records)
    except ValueError as error:
        raise StoreError(f"{shown(path)}: cannot write ({error})") from error
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_records(path: Path) -> Json:
    """What `write_records` wrote. Raises StoreError for a missing or damaged file."""
    try:
        return decode_records(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{shown(path)}: not readable ({error})") from error


def write_arrays(path: Path, arrays: Mapping[str, Tensor]) -> None:
    """Write the arrays of one seed, by ``STAGE|ARRAY``, as a whole or not at all. Raises StoreError."""
    write_tensors(path, *pack_arrays(arrays))


def read_arrays(path: Path) -> dict[str, Tensor]:
    """What `write_arrays` wrote, with the same dtypes and shapes. Raises StoreError for a missing or damaged file."""
    tensors, notes = read_tensors(path)
    try:
        return unpack_arrays(tensors, notes)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise StoreError(f"{shown(path)}: not readable ({error})") from error


# -- records ---------------------------------------------------------------------------------------------------------


def encode_records(records: Json) -> str:
    """Records by stage name as JSON Lines, sorted by stage. Raises ValueError for NaN and infinity."""
    plain = json.loads(json.dumps(records, sort_keys=True, allow_nan=False))
    keys = {stage: entry["key"] for stage, entry in plain.items()}
    bodies = [_without_repetition(stage, entry, keys) for stage, entry in plain.items()]
    counts = Counter(_text(table) for body in bodies for table in _tables([*body.values()]))
    references: dict[str, str] = {}
    definitions: list[Json] = []

    def encode(value: Any) -> Any:
        if isinstance(value, str):
            return REFERENCE + value if value.startswith(REFERENCE) else value
        if isinstance(value, list):
            return [encode(item) for item in value]
        if not isinstance(value, dict):
            return value
        text = _text(value)
        if text not in references:
            inner = {name: encode(item) for name, item in value.items()}
            if counts[text] < 2 or len(text) < SHORTEST:
                return inner
            words = [value[field] for field in DESCRIBING if isinstance(value.get(field), str)]
            name = " ".join([str(len(definitions) + 1), *words])
            definitions.append({"name": name, "table": inner})
            references[text] = REFERENCE + name
        return references[text]

    lines = [
        {"stage": stage, "key": keys[stage], **{part: encode(value) for part, value in body.items()}}
        for stage, body in zip(keys, bodies, strict=True)
    ]
    return "".join(_text(line) + "\n" for line in (*definitions, *lines))


def decode_records(text: str) -> Json:
    """The inverse of `encode_records`. Raises ValueError, KeyError, TypeError or AttributeError for a damaged text."""
    tables: Json = {}

    def decode(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(REFERENCE):
            name = value.removeprefix(REFERENCE)
            return name if name.startswith(REFERENCE) else copy.deepcopy(tables[name])
        if isinstance(value, list):
            return [decode(item) for item in value]
        return {name: decode(item) for name, item in value.items()} if isinstance(value, dict) else value

    lines = []
    for line in map(json.loads, filter(None, text.split("\n"))):
        if "stage" in line:
            lines.append({**line, **{part: decode(line[part]) for part in ("record", "provenance") if part in line}})
        else:
            tables[line["name"]] = decode(line["table"])
    keys = {line["stage"]: line["key"] for line in lines}
    return {line["stage"]: {"key": line["key"], "record": _with_repetition(line, keys)} for line in lines}


def _without_repetition(stage: str, entry: Json, keys: Mapping[str, str]) -> Json:
    """The parts of the line: the record, and its provenance without fields that the line contains anyway."""
    record = entry["record"]
    facts = record.get("provenance")
    inputs = facts.get("inputs") if isinstance(facts, dict) else None
    if (
        not isinstance(inputs, dict)
        or (facts.get("stage"), facts.get("key")) != (stage, entry["key"])
        or any(keys.get(name) != key for name, key in inputs.items())
    ):
        return {"record": record}
    single = {name: facts[name] for name in SINGLE if name in facts}
    common = {name: value for name, value in facts.items() if name not in (*SINGLE, "stage", "key", "inputs")}
    rest = {name: value for name, value in record.items() if name != "provenance"}
    return {"record": rest, "provenance": {"common": common, "inputs": [*inputs], **single}}


def _with_repetition(line: Json, keys: Mapping[str, str]) -> Json:
    """The inverse of `_without_repetition`."""
    if "provenance" not in line:
        return dict(line["record"])
    single = dict(line["provenance"])
    common, inputs = single.pop("common"), {name: keys[name] for name in single.pop("inputs")}
    facts = {**common, **single, "stage": line["stage"], "key": line["key"], "inputs": inputs}
    return dict(sorted({**line["record"], "provenance": dict(sorted(facts.items()))}.items()))


def _tables(value: Any) -> Iterator[Json]:
    """Every table in a JSON value, the value itself included."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tables(inner)


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


# -- arrays ----------------------------------------------------------------------------------------------------------


def pack_arrays(arrays: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Arrays of the same dtype and shape as one tensor with one row for each, and the names of the rows as JSON."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, array in sorted(arrays.items()):
        groups[f"{str(array.dtype).removeprefix('torch.')} {'x'.join(map(str, array.shape))}"].append(name)
    tensors = {group: _packed(torch.stack([arrays[name].cpu() for name in names])) for group, names in groups.items()}
    return tensors, {"rows": _text(groups)}  # one field, because safetensors writes several in random order


def unpack_arrays(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> dict[str, Tensor]:
    """The inverse of `pack_arrays`. Raises ValueError, KeyError and other errors for a damaged file."""
    arrays: dict[str, Tensor] = {}
    names = json.loads(notes["rows"])
    for group, packed in tensors.items():
        dtype, _, sizes = group.partition(" ")
        shape = torch.Size(int(size) for size in sizes.split("x") if size)
        rows = _unpacked(packed, getattr(torch, dtype), shape)
        arrays |= {name: row.clone() for name, row in zip(names[group], rows, strict=True)}
    return arrays


def _packed(rows: Tensor) -> Tensor:
    if rows.dtype == torch.bool:
        return torch.from_numpy(np.packbits(rows.reshape(len(rows), rows[0].numel()).numpy(), axis=1))
    if rows.dtype in (torch.int16, torch.int32, torch.int64) and rows.numel():
        for smaller in (torch.int8, torch.int16, torch.int32):
            limits = torch.iinfo(smaller)
            if limits.min <= int(rows.min()) and int(rows.max()) <= limits.max:
                return rows.to(smaller)
    return rows


def _unpacked(packed: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """The rows in their own dtype, each of the given shape."""
    if dtype == torch.bool:
        packed = torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=shape.numel()))
    return packed.to(dtype).view(len(packed), *shape)
