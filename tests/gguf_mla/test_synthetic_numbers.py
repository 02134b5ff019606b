"""The generator's own roundings against torch, so that golden digests rest on right inputs."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_mla.synthetic import numbers

EDGES = [0.0, -0.0, 448.0, -448.0, 447.0, 2.0**-9, 2.0**-10, 1.01 * 2.0**-10, 2.0**-6, 0.99 * 2.0**-6, 17.0, 18.0, 19.0]


@pytest.mark.parametrize("scale", [0.001, 0.01, 1.0, 100.0, 129.0])
def test_e4m3_rounds_as_torch_does(scale: float) -> None:
    import torch

    x = np.concatenate([numbers.bell("e4m3", 1, (10000,)) * np.float32(scale), np.array(EDGES, np.float32)])
    theirs = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(numbers.to_e4m3(x), theirs)


def test_bf16_rounds_as_torch_does() -> None:
    import torch

    x = np.concatenate([numbers.bell("bf16", 1, (10000,)), np.array([*EDGES, 1e-40, 3e38], np.float32)])
    theirs = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(numbers.to_bf16(x), theirs)


def test_e8m0_holds_every_power_of_two() -> None:
    exponents = np.arange(-126, 128)
    powers = np.ldexp(np.float32(1), exponents).astype(np.float32)
    np.testing.assert_array_equal(numbers.to_e8m0(powers), exponents + 127)


def test_bell_depends_on_name_and_seed_alone() -> None:
    x = numbers.bell("a", 1, (1000, 1001))
    assert abs(float(x.mean())) < 0.005
    assert abs(float(x.std()) - 1) < 0.005
    np.testing.assert_array_equal(x.reshape(-1)[:10], numbers.bell("a", 1, (10,)))
    assert not np.array_equal(x[0], numbers.bell("b", 1, (1001,)))
    assert not np.array_equal(x[0], numbers.bell("a", 2, (1001,)))
