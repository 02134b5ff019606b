"""An architecture for tests: two residual streams, experts by token id, a mean over the past for attention.

It reads checkpoints of DeepSeek-V3's form whose config.json names another class, and their embeddings, experts and
norms only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from gguf_mla.forward.architecture import Architecture, Experts
from gguf_mla.forward.layers import Pass, lookup, mixed, rms_norm
from gguf_mla.forward.mla import FIRST_ROLES, LAST_ROLES, LAYER_ROLES, PREDICTING
from gguf_mla.forward.model import Model
from gguf_mla.forward.of_config import model_of_config
from gguf_mla.forward.tensors import Roles

if TYPE_CHECKING:
    from collections.abc import Container


EXPERTS = ("ffn_norm.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight")
LAYER = {name: LAYER_ROLES[name] for name in EXPERTS}


@dataclass(frozen=True, kw_only=True)
class TwinModel(Model):
    architecture: ClassVar[str] = "twin"

    streams: int = 2


def conditions(_model: TwinModel, layer: int | None) -> set[str]:
    return {"always", "untied" if layer is None else "moe"}


def of_config(config: Any, names: Container[str]) -> TwinModel:
    like = model_of_config(config, names)
    return TwinModel(**{field.name: getattr(like, field.name) for field in fields(Model)})


def of_gguf(_file: Any) -> TwinModel:
    raise NotImplementedError


def embed(pass_: Pass, tokens: torch.Tensor) -> torch.Tensor:
    """[B, T, streams, hidden]"""
    one = lookup(pass_, "token_embd.weight", tokens)
    return torch.stack([one, -one], dim=2)


def attention(_pass: Pass, _layer: int, hidden: torch.Tensor, _tokens: torch.Tensor) -> torch.Tensor:
    return hidden.cumsum(dim=1) / torch.arange(1, hidden.shape[1] + 1)[:, None]


def attend(pass_: Pass, number: int, state: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    mean = state.mean(dim=2) + attention(pass_, number, state[:, :, 0], tokens)
    return torch.stack([state[:, :, 0], mean], dim=2)


def feed(pass_: Pass, number: int, state: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    flat = state.flatten(0, 1)
    rows = enter(pass_, number, flat)
    chosen, shares = route(pass_, number, rows, tokens.reshape(-1))
    added = mixed(pass_, f"blk.{number}.", rows, chosen, shares)
    return leave(pass_, number, flat, added).reshape(state.shape)


def enter(pass_: Pass, number: int, state: torch.Tensor) -> torch.Tensor:
    return rms_norm(state[:, 1], pass_.vector(f"blk.{number}.ffn_norm.weight"), pass_.model.eps)


def route(pass_: Pass, _number: int, _rows: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = tokens[:, None] % pass_.model.routing.experts
    return chosen, torch.ones(chosen.shape)


def leave(_pass: Pass, _number: int, state: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    first, mean = state.unbind(1)
    return torch.stack([first + added, mean], dim=1)


def finish(pass_: Pass, state: torch.Tensor) -> torch.Tensor:
    return rms_norm(state.mean(dim=2), pass_.vector("output_norm.weight"), pass_.model.eps)


ARCHITECTURE = Architecture(
    name="twin",
    classes=("TwinForCausalLM",),
    gguf_names=("twin",),
    of_config=of_config,
    of_gguf=of_gguf,
    roles=Roles(FIRST_ROLES, LAYER, LAST_ROLES, "model.layers.{layer}.", conditions),
    attends=(),
    embed=embed,
    attend=attend,
    feed=feed,
    finish=finish,
    attention=attention,
    experts=Experts(enter, route, leave),
    predicting=PREDICTING,
)
