"""The published models on torch's `meta` device: shapes and the memory held, without a value or a GPU.

What computes on meta has no step that only the CPU can do; the largest that is held at a time is counted, not guessed.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gguf_mla.forward import layers, sweep
from gguf_mla.forward.attention import FORMS
from gguf_mla.forward.layers import Pass
from gguf_mla.forward.mla import attention
from gguf_mla.forward.of_config import model_of_config
from gguf_mla.forward.place import Place
from gguf_mla.forward.tensors import Stack, shapes
from gguf_mla.sources.config import Config
from gguf_mla.synthetic.shapes import SHAPES

if TYPE_CHECKING:
    from gguf_mla.forward.model import MlaModel

MIB = 1 << 20
META = torch.device("meta")


@dataclass(frozen=True)
class Nowhere(Place):
    """A place on the meta device, where weights are their shapes."""

    device: torch.device = META

    def rows(self, stack: Stack, _index: int, start: int, stop: int) -> torch.Tensor:
        return torch.empty(stop - start, stack.cols, device=META)


@dataclass(frozen=True)
class Shapes:
    """A model's tensors without values."""

    model: MlaModel

    def holds(self, name: str) -> bool:
        return name in shapes(self.model)

    def stack(self, name: str) -> Stack:
        count, rows, cols = (1, 1, *shapes(self.model)[name])[-3:]
        return Stack(name, count, rows, cols, "BF16", lambda *_: np.empty(0, np.float32))


@dataclass
class Held(TorchDispatchMode):
    """Counts the bytes of what is held, and the most that ever was."""

    now: int = 0
    peak: int = 0
    known: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor)
        return found

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self.known.get(key):
            self.now += size
        self.known[key] = self.known.get(key, 0) + 1
        self.peak = max(self.peak, self.now)
        weakref.finalize(tensor, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known[key] -= 1
        if not self.known[key]:
            self.now -= size


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v3.2", "kimi-k2-thinking"])
def test_a_layer_of_a_published_model_computes_without_values(name: str) -> None:
    config = SHAPES[name]
    model = model_of_config(Config(config, Path("config.json")))
    form = FORMS["expanded-keys"]  # that of importance matrices
    pass_ = Pass(Shapes(model), form, chooser=sweep.EveryToken(), place=Nowhere())  # type: ignore[arg-type]
    block = sweep.Text.of(np.zeros((213, 512), np.int64), model).block
    hidden = torch.empty(block, 512, model.hidden, device=META)
    with Held() as held:
        attended = attention(pass_, model.layers - 1, hidden, torch.empty(block, 512, dtype=torch.int64, device=META))
        dense = layers.feed_forward(pass_, 0, attended)
        x = layers.rms_norm(dense.flatten(0, 1), pass_.vector("blk.4.ffn_norm.weight"), model.eps)
        chosen, shares = layers.routed(pass_, "blk.4.", x)
        given = layers.mlp(pass_, "blk.4.", "_exps", x, model.routing.experts - 1)
    assert attended.shape == dense.shape == hidden.shape
    assert chosen.shape == shares.shape == (block * 512, config["num_experts_per_tok"])
    assert given.shape == x.shape
    assert held.peak < 1.5 * 1024 * MIB


def test_what_is_held_is_counted() -> None:
    with Held() as held:
        x = torch.empty(1024, 1024, device=META)
        assert held.now == 4 * MIB
        y = x[:10] + 1
        del x
        assert held.now == y.nbytes
    assert held.peak > 4 * MIB
