"""A real llama.cpp beside our own forward pass: both read the candidate, so they have to say the same.

llama.cpp rounds activations (to BF16, F16, or 8 bits for quantized weights), so only an F32 file can agree to the last
digits; of the others only the divergence is judged.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import InputError, MachineError
from gguf_mla.forward import walk
from gguf_mla.forward.layers import Pass
from verify import rounding
from verify.findings import Finding
from verify.limits import exceeds
from verify.sections import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gguf_mla.files.readable import AnyPath
    from gguf_mla.forward.architecture import State
    from gguf_mla.forward.model import Yarn
    from gguf_mla.forward.place import Place
    from gguf_mla.forward.tensors import Weights
    from verify.sections import Section

LEVEL = "engine"
LENGTHS = (8, 16, 32, 64, 128)  # tokens of the prompts
LISTED = 2048  # likeliest tokens that are compared
LETTER = 68  # a plain letter in every byte-level vocabulary of the family
ROUNDED = 0.02  # mean divergence for other files, in nats


@dataclass(frozen=True)
class EngineAgreement:
    """What llama.cpp says after a prompt, against our forward pass over the same file.

    difference  largest |Δ log-probability| over the likeliest tokens
    kld         divergence of llama.cpp's distribution over them from ours, in nats
    same_top    whether the likeliest token is the same
    """

    length: int
    difference: float
    kld: float
    same_top: bool


def require(candidate: AnyPath) -> None:
    """Raise InputError where llama.cpp is not installed, or cannot open the file."""
    if not isinstance(candidate, Path):
        raise InputError("--engine needs a file on this machine", file=candidate, remedy="Download it")
    if importlib.util.find_spec("xllamacpp") is None:
        raise InputError("--engine needs llama.cpp", remedy="pip install xllamacpp")


class Ours:
    """Our forward pass over prefixes of one token sequence [T], a section after the other.

    state  what goes on to the next section
    log    log-probabilities after the prefixes, float64 [prefixes, vocabulary], once the head is through
    """

    def __init__(self, candidate: Weights, tokens: NDArray[np.int64], place: Place) -> None:
        self.pass_ = Pass(candidate, place=place)
        self.lengths = [length for length in LENGTHS if length <= tokens.size] or [tokens.size]
        self.tokens = tokens[: max(self.lengths)]
        self.state: State = None
        self.log: NDArray[Any] = np.empty((0, 0))

    def run(self, section: Section) -> None:
        """Go through the next section; layers that predict are not asked."""
        if section.kind is Kind.EMBEDDINGS:
            self.state = walk.embed(self.pass_, self.tokens[None])
        elif section.kind is Kind.LAYER:
            self.state = walk.run_layer(self.pass_, section.layer, self.state, self.tokens[None])
        elif section.kind is Kind.HEAD:
            last = walk.finish(self.pass_, self.state)[0, [length - 1 for length in self.lengths]]
            self.log = self.pass_.linear(last, "output.weight").double().log_softmax(dim=1).numpy(force=True)

    def ask(self, path: AnyPath) -> tuple[list[EngineAgreement], float]:
        """Ask llama.cpp for what follows these prefixes; MachineError when it cannot load the file.

        The number is the largest |Δ log-probability| that float32 explains, if the file is in F32.
        """
        model, longest = self.pass_.model, max(self.lengths)
        engine = _Engine(path, self.pass_.place.threads, longest + 8, model.yarn)
        count = min(LISTED, model.vocab)
        results = [
            _compare(length, expected, *engine.next_tokens(self.tokens[:length].tolist(), count))
            for length, expected in zip(self.lengths, self.log, strict=True)
        ]
        spread = float(self.log.std(axis=1).max())
        return results, rounding.largest(model, longest, spread, count * len(self.lengths))


def _compare(length: int, ours: NDArray[Any], ids: NDArray[Any], theirs: NDArray[Any]) -> EngineAgreement:
    # llama.cpp's probabilities add up to 1.0001 … 1.0004: both are normalised over the tokens that are listed.
    expected, found = ours[ids] - _log_sum_exp(ours[ids]), theirs - _log_sum_exp(theirs)
    kld = float((np.exp(expected) * (expected - found)).sum())
    return EngineAgreement(length, float(np.abs(found - expected).max()), max(kld, 0.0), bool(ids[0] == ours.argmax()))


def _log_sum_exp(x: NDArray[Any]) -> Any:
    peak = x.max(axis=-1, keepdims=True)
    return peak + np.log(np.exp(x - peak).sum(axis=-1, keepdims=True))


def judge(results: Sequence[EngineAgreement], exact: float | None) -> Finding | None:
    """Return what llama.cpp computes otherwise; `exact` is the largest difference for a file with F32 matrices only."""
    worst = float(np.max([result.difference for result in results]))  # NaN if one is
    mean = float(np.mean([result.kld for result in results]))
    if exact is not None and exceeds(worst, exact):
        what = "computes otherwise than the forward pass: largest |Δ log-probability|"
        return Finding(LEVEL, "llama.cpp", what, f"at most {exact:.2g} for F32", f"{worst:.3g}")
    if exceeds(mean, ROUNDED):
        what = "computes otherwise than the forward pass: mean KL divergence"
        return Finding(LEVEL, "llama.cpp", what, f"at most {ROUNDED:g}", f"{mean:.3g}")
    return None


class _Engine:
    """One loaded llama.cpp, in float32 as far as it goes: F32 cache, and no flash attention, which lowers it."""

    def __init__(self, path: AnyPath, threads: int, context: int, yarn: Yarn | None) -> None:
        import xllamacpp  # noqa: PLC0415 - optional

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = params.n_batch = params.n_ubatch = max(256, context)
        params.n_parallel, params.n_gpu_layers = 1, 0
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if (
            yarn is not None
        ):  # it does not read these of a deepseek2 file, so they are passed as its user has to pass them
            params.yarn_beta_fast, params.yarn_beta_slow = yarn.fast, yarn.slow
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.fit_params = params.warmup = False
        params.verbosity = -1
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise MachineError(f"llama.cpp cannot load it ({error})", file=path) from None

    def next_tokens(self, prompt: list[int], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the likeliest tokens after a prompt and their log-probabilities, likeliest first."""
        # An answer that is the end token or half a character carries no list, so it is forced to be a letter; the
        # listed values are those before that.
        request = {
            "prompt": prompt, "temperature": 1.0, "samplers": [], "cache_prompt": False, "max_tokens": 1,
            "n_probs": count, "logit_bias": [[LETTER, 1000.0]],
        }  # fmt: skip
        answer = self._server.handle_completions(request)
        return read_answer(answer)


def read_answer(answer: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the tokens that an answer lists and their log-probabilities; MachineError when it lists none.

    JSON has no NaN: llama.cpp writes null in its place, which becomes NaN again.
    """
    try:
        content = json.loads(answer) if isinstance(answer, str) else answer
        listed = content["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        ids = np.array([entry["id"] for entry in listed], np.int64)
        values = np.array([entry["logprob"] for entry in listed], np.float64)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise MachineError(f"llama.cpp's answer cannot be read ({type(error).__name__}: {error!s:.80})") from None
    if not ids.size:
        raise MachineError("llama.cpp lists no tokens in its answer")
    return ids, values
