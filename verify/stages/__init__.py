"""How each level goes through a model, a section at a time."""

from verify.stages.passes import Attention, Engine, Logits
from verify.stages.tensors import Exact, Weights

STAGES = (Weights, Attention, Logits, Exact, Engine)  # in the order in which their findings count
