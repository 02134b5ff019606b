"""What the forward pass computes with, by name: tensors of torch on one device, and numpy's arrays where files end.

torch and numpy do not mix by accident: a function that says `Floats` takes and returns tensors, and only `place` makes
them of `Rows`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

Floats = torch.Tensor
"""float32, on the device of its pass."""
Numbers = torch.Tensor
"""int64, on the device of its pass."""
Mask = torch.Tensor
"""bool, on the device of its pass."""
Rows = NDArray[np.float32]
"""Stored values as they are read, on the host."""
Ids = NDArray[np.int64] | torch.Tensor
"""Token ids as a caller has them: int64, an array of numpy's or a tensor on any device."""
