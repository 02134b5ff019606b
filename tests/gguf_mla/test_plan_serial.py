"""A plan that was written as JSON is the plan again, whatever its values."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.plan import plan_conversion
from gguf_mla.container.reader import open_gguf
from gguf_mla.container.values import Kind, Value, array, f32, string
from gguf_mla.container.writer import lay_out
from gguf_mla.errors import InputError
from gguf_mla.plan.jobs import Part, Plan, TensorJob
from gguf_mla.plan.serial import from_data, to_data
from gguf_mla.sources.checkpoint import open_checkpoint
from tests.support.hub import BUNDLED

CONTENT: dict[Kind, st.SearchStrategy[Any]] = {
    **{kind: st.integers(0, 2 ** (8 << at) - 1) for at, kind in enumerate((Kind.U8, Kind.U16, Kind.U32, Kind.U64))},
    **{
        kind: st.integers(-(2 ** ((8 << at) - 1)), 2 ** ((8 << at) - 1) - 1)
        for at, kind in enumerate((Kind.I8, Kind.I16, Kind.I32, Kind.I64))
    },
    Kind.F32: st.floats(width=32, allow_nan=False),
    Kind.F64: st.floats(allow_nan=False),
    Kind.BOOL: st.booleans(),
    Kind.STRING: st.text(),
}
SCALARS = st.sampled_from([*CONTENT]).flatmap(lambda kind: st.builds(Value, st.just(kind), CONTENT[kind]))
ARRAYS = st.sampled_from([*CONTENT]).flatmap(lambda kind: st.builds(array, st.just(kind), st.lists(CONTENT[kind])))
ROWS = st.integers(0, 2**40)
PARTS = st.builds(Part, st.text(), ROWS, ROWS, st.none() | ROWS)
JOBS = st.builds(
    TensorJob,
    st.text(),
    st.lists(ROWS, min_size=1, max_size=4).map(tuple),
    st.text(),
    st.lists(PARTS, max_size=4).map(tuple),
    st.text(),
    st.text(),
    st.none() | st.text(),
)
PLANS = st.builds(
    Plan,
    st.dictionaries(st.text(), SCALARS | ARRAYS),
    st.lists(JOBS, max_size=3).map(tuple),
    st.dictionaries(st.text(), st.text()),
    st.lists(st.text()).map(tuple),
)


def through_json(plan: Plan) -> Plan:
    return from_data(json.loads(json.dumps(to_data(plan), allow_nan=False)))


@given(PLANS)
@settings(max_examples=200)
def test_a_plan_reads_back_equal_and_typed_alike(plan: Plan) -> None:
    found = through_json(plan)
    assert found == plan
    assert list(found.metadata) == list(plan.metadata)
    assert [type(value.data) for value in found.metadata.values()] == [
        type(value.data) for value in plan.metadata.values()
    ]


def test_nan_stays_nan() -> None:
    plan = Plan({"x": f32(math.nan), "y": array(Kind.F32, [math.nan, -math.inf, 1.5])}, ())
    found = through_json(plan).metadata
    assert math.isnan(found["x"].data)
    assert math.isnan(found["y"].data[0])
    assert found["y"].data[1:] == [-math.inf, 1.5]


def test_a_real_plan_makes_the_same_head(tmp_path: Any) -> None:
    [(plan, _)] = plan_conversion(open_checkpoint(BUNDLED), ["Q4_K_M"])
    found = through_json(plan)
    assert found == plan
    specs = [job.spec for job in plan.tensors]
    layout = lay_out(plan.metadata, specs)
    assert lay_out(found.metadata, [job.spec for job in found.tensors]) == layout
    (tmp_path / "head.gguf").write_bytes(layout.head + bytes(layout.size - len(layout.head)))
    stored = Plan(open_gguf(tmp_path / "head.gguf").values, plan.tensors)  # its strings decode late
    assert through_json(stored) == stored


@pytest.mark.parametrize("format_", [0, 2, None, "1"])
def test_data_of_another_format_are_refused(format_: Any) -> None:
    data = to_data(Plan({"general.name": string("x")}, ())) | {"format": format_}
    with pytest.raises(InputError, match="the plan has an unknown format"):
        from_data(data)


@pytest.mark.parametrize(
    "damage",
    [
        {"metadata": []},
        {"metadata": {"x": {"type": "U33", "data": 1}}},
        {"metadata": {"x": {"type": "F32", "data": "one"}}},
        {"tensors": [{}]},
        {"tensors": 7},
        {"tensors": [{"name": "x", "surprise": 1, "shape": [], "parts": []}]},
        {"dropped": 1},
    ],
)
def test_damaged_data_are_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the plan is damaged"):
        from_data(to_data(Plan({}, ())) | damage)
