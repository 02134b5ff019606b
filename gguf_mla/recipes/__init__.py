"""Which ggml type every tensor gets: llama.cpp's file types as tables, the user's overrides, and what fits a row.

`choose` answers for all tensors of a file at once, because some rules count tensors. docs/recipes.md says it in prose.
"""

from gguf_mla.recipes.budget import Budget, Offer, candidates, check_enough, sensitivity, spend, target
from gguf_mla.recipes.choose import Choice, Tensor, choose, needing_importance, needs_importance, undecided
from gguf_mla.recipes.file_types import COPY, FILE_TYPES, FileType, file_type, without_type
from gguf_mla.recipes.model import RecipeModel
from gguf_mla.recipes.overrides import Overrides, parse_tensor_type, read_tensor_types
from gguf_mla.recipes.rules import types_in

__all__ = [
    "COPY",
    "FILE_TYPES",
    "Budget",
    "Choice",
    "FileType",
    "Offer",
    "Overrides",
    "RecipeModel",
    "Tensor",
    "candidates",
    "check_enough",
    "choose",
    "file_type",
    "needing_importance",
    "needs_importance",
    "parse_tensor_type",
    "read_tensor_types",
    "sensitivity",
    "spend",
    "target",
    "types_in",
    "undecided",
    "without_type",
]
