"""Opening a model to compute it: a checkpoint directory or a GGUF file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_mla.container.splits import open_gguf_parts
from gguf_mla.errors import InputError
from gguf_mla.files.readable import any_path
from gguf_mla.forward.architecture import read_config, read_gguf
from gguf_mla.forward.sound import check_model, check_tensors
from gguf_mla.forward.tensors import CheckpointWeights, GgufWeights
from gguf_mla.sources.checkpoint import Choices, open_partial
from gguf_mla.sources.config import Config

if TYPE_CHECKING:
    from gguf_mla.container.splits import GgufParts
    from gguf_mla.files.readable import AnyPath
    from gguf_mla.sources.checkpoint import Checkpoint

BESIDE = (".json", ".jinja", ".model", ".txt")  # files of a checkpoint's directory that decide about it


def open_weights(path: AnyPath, choices: Choices | None = None) -> CheckpointWeights | GgufWeights:
    """Open a model and find every tensor it needs; `choices` decide where there are two readings of a checkpoint.

    Raises InputError for what is neither a checkpoint nor a GGUF file, and for a model that cannot be computed.
    """
    choices = choices or Choices()
    if path.is_dir():
        checkpoint = open_partial(path, choices)
        weights = checkpoint_weights(checkpoint, Config(checkpoint.config, path / "config.json"))
        check_tensors(weights)
        return weights
    if choices != Choices():
        raise InputError("--weights, --prefix and --set are for a checkpoint", file=path)
    opened = gguf_weights(open_gguf_parts(path))
    check_tensors(opened)
    return opened


def files_of(weights: CheckpointWeights | GgufWeights) -> list[AnyPath]:
    """Return the files that decide what a model computes: its weights' and, in a checkpoint, those beside."""
    if isinstance(weights, GgufWeights):
        return [part.path for part in weights.file.files]
    folder = weights.checkpoint.folder
    beside = [folder.path / name for name in folder.names() if name.endswith(BESIDE)]
    return [any_path(path) for path in (*(file.path for file in weights.checkpoint.files), *beside)]


def checkpoint_weights(checkpoint: Checkpoint, config: Config) -> CheckpointWeights:
    """Return a checkpoint's tensors with the model that its configuration describes; InputError for an impossible one.

    Tensors that it lacks are missed when they are asked for.
    """
    model = read_config(config, checkpoint.names)
    check_model(model, config.file)
    if model.layers > len(checkpoint.tensors):
        raise config.refuse(
            "num_hidden_layers", f"at most {len(checkpoint.tensors)}, the number of tensors", model.layers
        )
    return CheckpointWeights(checkpoint, model)


def gguf_weights(file: GgufParts) -> GgufWeights:
    """Return a file's tensors with the model that its metadata describe; InputError for an impossible one."""
    model = read_gguf(file)
    check_model(model, file.path)
    if model.alone:
        raise InputError(
            "holds multi-token prediction alone, without the layers that it follows",
            file=file.path,
            expected="tensors of blk.0",
            found="nothing",
            remedy="Give the model's own file, or its checkpoint",
        )
    return GgufWeights(file, model)
