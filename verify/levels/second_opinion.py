"""Whether independent libraries decode both files as gguf-mla does: a wrong decoder must not judge by itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import gguf.quants
import numpy as np

from gguf_mla import codec, ggtypes
from gguf_mla.forward.tensors import CheckpointWeights
from gguf_mla.ggtypes.shared import floats
from verify.findings import Finding
from verify.levels.weights import LEVEL
from verify.raw_rows import open_raw

if TYPE_CHECKING:
    from gguf_mla.container.reader import GgufTensor
    from gguf_mla.forward.tensors import GgufWeights
    from gguf_mla.sources.checkpoint import Checkpoint
    from gguf_mla.sources.tensor import SourceTensor
    from verify.raw_rows import RawRows

JUDGED_ROWS = 2  # rows per tensor of a GGUF file that gguf-py decodes, too
AGREED = 1e-6  # of a row's largest value: both decode with a float32 rounding or two


def of_reference(weights: CheckpointWeights | GgufWeights, threads: int) -> list[Finding]:
    """Compare what is read from the reference with what ml_dtypes or gguf-py makes of the same bytes.

    Two rows of every tensor. A finding names the tensor and blames the reader: nothing can be said of the candidate.
    """
    if isinstance(weights, CheckpointWeights):
        return of_checkpoint(weights.checkpoint, threads)
    return [finding for tensor in weights.file.tensors.values() if (finding := of_gguf(tensor))]


def of_checkpoint(checkpoint: Checkpoint, threads: int) -> list[Finding]:
    """Compare two rows of every tensor of a checkpoint with ml_dtypes' decoding of the stored bytes, bit by bit.

    Of shards that lie elsewhere nothing is judged: a row of every tensor would be a request for each.
    """
    shards = [file.path for file in checkpoint.files if isinstance(file.path, Path)]
    if not shards:
        return []
    quantization = checkpoint.config.get("quantization_config") or {}
    raw = open_raw(Path(checkpoint.folder.path), shards, quantization)
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda tensor: _of_source(tensor, raw), checkpoint.tensors.values())
        return [finding for finding in found if finding]


def _of_source(tensor: SourceTensor, raw: RawRows) -> Finding | None:
    for row in raw.judged(tensor.name):
        ours = floats.to_float32(tensor.read(row, row + 1), tensor.values).reshape(-1)
        theirs = raw.row(tensor.name, row)
        if not np.array_equal(ours, theirs, equal_nan=True):
            return _misread(tensor, row, ours, theirs)
    return None


def _misread(tensor: SourceTensor, row: int, ours: np.ndarray, theirs: np.ndarray) -> Finding:
    what = f"gguf-mla's reader is at fault, not the file: ml_dtypes decodes {tensor.stored} otherwise, in row {row}"
    if ours.shape != theirs.shape:
        return Finding(LEVEL, tensor.name, what, f"{theirs.size} columns", ours.size)
    col = int(np.argmax((ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs))))
    return Finding(LEVEL, tensor.name, f"{what}, column {col}", f"{theirs[col]:.9g}", f"{ours[col]:.9g}")


def of_gguf(tensor: GgufTensor) -> Finding | None:
    """Compare our decoding of a tensor's first rows with gguf-py's; None when they agree or it has no decoder."""
    rows = tensor.read(0, min(JUDGED_ROWS, tensor.rows))
    try:
        theirs = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(ggtypes.by_name(tensor.type).id))
    except (NotImplementedError, ValueError):
        return None
    ours = codec.decode(rows, tensor.type)
    held = np.abs(theirs[np.isfinite(theirs)]).max(initial=0)
    if np.allclose(ours, theirs, rtol=0, atol=AGREED * held, equal_nan=True):
        return None
    return Finding(LEVEL, tensor.name, f"gguf-py decodes {tensor.type} otherwise than gguf-mla")
