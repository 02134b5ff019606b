"""A plan as JSON-ready data and back, equal in every field: what one machine has planned, others can carry out.

Values keep their types, which JSON does not know. Numbers that JSON cannot say (NaN, infinity) are written as strings.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gguf_mla.container.values import Kind, Value
from gguf_mla.container.writer import Foreign
from gguf_mla.errors import InputError
from gguf_mla.plan.jobs import Part, Plan, TensorJob

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1  # of the data; another one is refused

_FLOATS = (Kind.F32, Kind.F64)


def to_data(plan: Plan) -> dict[str, Any]:
    """Return all of a plan as data that `json.dumps` takes."""
    return {
        "format": FORMAT,
        "metadata": {key: _of_value(value) for key, value in plan.metadata.items()},
        "tensors": [asdict(job) for job in plan.tensors],
        "dropped": dict(plan.dropped),
        "warnings": list(plan.warnings),
        "substituted": dict(plan.substituted),
    }


def from_data(data: Mapping[str, Any]) -> Plan:
    """Return the plan that `to_data` has written; InputError for data that it has not written."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        remedy = "Make the plan with this version of gguf-mla"
        raise InputError("the plan has an unknown format", expected=FORMAT, found=found, remedy=remedy)
    try:
        return Plan(
            metadata={key: _to_value(value) for key, value in data["metadata"].items()},
            tensors=tuple(map(_to_job, data["tensors"])),
            dropped=dict(data["dropped"]),
            warnings=tuple(data["warnings"]),
            substituted=dict(data["substituted"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the plan is damaged ({type(error).__name__}: {error})", remedy="Make the plan again"
        ) from None


def _of_value(value: Value) -> dict[str, Any]:
    if value.item is None:
        return {"type": value.kind.name, "data": _of_item(value.kind, value.data)}
    items = [_of_item(value.item, item) for item in value.data]
    return {"type": value.kind.name, "items": value.item.name, "data": items}


def _to_value(data: Mapping[str, Any]) -> Value:
    kind = Kind[data["type"]]
    if "items" not in data:
        return Value(kind, _to_item(kind, data["data"]))
    item = Kind[data["items"]]
    return Value(kind, [_to_item(item, one) for one in data["data"]], item)


def _of_item(kind: Kind, item: Any) -> Any:
    return repr(item) if kind in _FLOATS and not math.isfinite(item) else item


def _to_item(kind: Kind, item: Any) -> Any:
    return float(item) if kind in _FLOATS else item


def _to_job(data: Mapping[str, Any]) -> TensorJob:
    parts = tuple(Part(**part) for part in data["parts"])
    foreign = Foreign(**data["foreign"]) if data.get("foreign") else None
    return TensorJob(**{**data, "shape": tuple(data["shape"]), "parts": parts, "foreign": foreign})
