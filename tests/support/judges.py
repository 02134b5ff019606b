"""Independent programs that say what a model computes: llama.cpp for a GGUF file, transformers for a checkpoint."""

from __future__ import annotations

import json
import socket
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Prompt = list[int]
LETTER = 68  # a plain ASCII letter in every byte-level vocabulary of the family


class Engine:
    """A GGUF file in a real llama.cpp (xllamacpp), in float32 throughout; one loaded server, many prompts.

    F32 key and value cache and no flash attention: on a CPU flash attention drops the cache to lower precision.
    """

    def __init__(self, path: Path, *, threads: int = 2, context: int = 256, beta_fast: float = -1.0) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.yarn_beta_fast = beta_fast  # the file's is not read
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.fit_params = params.warmup = False
        params.verbosity = -1
        self._server = xllamacpp.Server(params)

    def next_logprobs(self, prompt: Prompt, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` likeliest tokens after `prompt`, likeliest first, and their log-probabilities (float64)."""
        # An answer that happens to be the end token or half a character carries no list, so the answer is forced to be
        # a letter; the listed logprobs are those before that bias.
        answer = self._complete(prompt, max_tokens=1, n_probs=count, logit_bias=[[LETTER, 1000.0]])
        listed = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        assert len(listed) == count, f"{len(listed)} of {count} tokens"
        return np.array([e["id"] for e in listed]), np.array([e["logprob"] for e in listed])

    def _complete(self, prompt: Prompt, **options: Any) -> dict[str, Any]:
        request = {"prompt": prompt, "temperature": 1.0, "samplers": [], "cache_prompt": False, **options}
        answer = self._server.handle_completions(request)
        return dict(json.loads(answer) if isinstance(answer, str) else answer)


class DraftingEngine:
    """A GGUF file in a real llama.cpp that drafts the token after the next by multi-token prediction, greedily.

    The prediction is in the file, or in `draft`, another one.
    """

    def __init__(self, path: Path, draft: Path | None = None) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = params.n_batch = params.n_ubatch = 256
        params.n_gpu_layers, params.n_parallel, params.verbosity = 0, 1, -1
        params.fit_params = params.warmup = False
        params.load_mtp = True
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_MTP]
        params.speculative.draft.n_max = 1
        if draft is not None:
            params.speculative.draft.mparams.path = str(draft)
        self._server = xllamacpp.Server(params)

    def accepted(self, prompt: Prompt, count: int) -> float:
        """The part of its drafts that the model agreed to, while it wrote `count` tokens after `prompt`."""
        _, drafted, agreed = self.written(prompt, count)
        return agreed / drafted

    def written(self, prompt: Prompt, count: int) -> tuple[Prompt, int, int]:
        """The `count` tokens that it wrote after `prompt`, how many it drafted, and to how many the model agreed.

        Of the tokens those are left out that are a part of a character.
        """
        request = {"prompt": prompt, "temperature": 0.0, "max_tokens": count, "cache_prompt": False, "ignore_eos": True}
        answer = self._server.handle_completions({**request, "n_probs": 1})
        found = dict(json.loads(answer) if isinstance(answer, str) else answer)
        listed, timings = found["choices"][0]["logprobs"]["content"], found["timings"]
        return [entry["id"] for entry in listed], int(timings["draft_n"]), int(timings["draft_n_accepted"])


class TokenizingEngine:
    """A GGUF file in llama.cpp's server, asked for ids."""

    def __init__(self, path: Path) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_gpu_layers, params.verbosity = 256, 0, -1
        params.fit_params = params.warmup = False
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            params.port = free.getsockname()[1]
        self._server = xllamacpp.Server(params)

    def ids(self, text: str, *, special: bool = False) -> list[int]:
        body = json.dumps({"content": text, "add_special": special}).encode()
        request = urllib.request.Request(self._server.listening_address + "/tokenize", body)
        with urllib.request.urlopen(request) as answer:
            found: list[int] = json.load(answer)["tokens"]
        return found


class Transformers:
    """A checkpoint in transformers, float32; block-FP8 and packed INT4 weights are decoded here, in torch, first."""

    def __init__(self, directory: Path) -> None:
        import torch
        import transformers

        architecture = json.loads((directory / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        model = getattr(transformers, architecture)
        config = model.config_class.from_pretrained(directory)
        config.model_type = model.config_class.model_type  # Kimi-K2 has another name for it
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        self.vocabulary: int = config.vocab_size
        self._model, report = model.from_pretrained(
            None,
            config=config,
            state_dict=decoded_weights(directory, config.num_hidden_layers),
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
        self._model.eval()
        assert not any(report[part] for part in ("missing_keys", "unexpected_keys", "mismatched_keys")), report

    def logits(self, prompt: Prompt) -> np.ndarray:
        """Logits at every position of `prompt`, float64 [positions, vocabulary]."""
        import torch

        with torch.inference_mode():
            return np.asarray(self._model(torch.tensor([prompt]), use_cache=False).logits[0].double())

    def next_logprobs(self, prompt: Prompt) -> np.ndarray:
        """Log-probabilities of every token after `prompt`, float64 [vocabulary]."""
        import torch

        with torch.inference_mode():
            logits = self._model(torch.tensor([prompt]), use_cache=False, logits_to_keep=1).logits[0, -1]
        return np.asarray(logits.double().log_softmax(-1))


def decoded_weights(directory: Path, layers: int) -> dict[str, Any]:
    """The tensors of the first `layers` layers as float32 torch; e4m3 codes and INT4 times their block's scale."""
    from safetensors.torch import load_file

    weights: dict[str, Any] = {}
    for shard in sorted(directory.glob("*.safetensors")):
        weights.update(load_file(shard))
    weights = {name: weight for name, weight in weights.items() if f".layers.{layers}." not in name}
    scales = {name: weights.pop(name) for name in list(weights) if name.endswith("_scale_inv")}
    for name, scale in scales.items():
        weight = weights[name.removesuffix("_scale_inv")]
        spread = scale_values(scale).repeat_interleave(128, 0).repeat_interleave(128, 1)
        weights[name.removesuffix("_scale_inv")] = weight.float() * spread[: weight.shape[0], : weight.shape[1]]
    for name in [name for name in weights if name.endswith("_packed")]:
        base = name.removesuffix("_packed")
        shape, scale = weights.pop(base + "_shape"), weights.pop(base + "_scale")
        weights[base] = unpacked(weights.pop(name), scale, tuple(shape.tolist()))
    return {name: weight.float() for name, weight in weights.items()}


def unpacked(words: Any, scale: Any, shape: tuple[int, int]) -> Any:
    """INT4 as float32 torch [M, N]: eight nibbles in an int32, the lowest first, less 8, times their group's scale."""
    import torch

    nibbles = (words[:, :, None] >> torch.arange(0, 32, 4)) & 15
    values = (nibbles.reshape(shape[0], -1)[:, : shape[1]] - 8).float()
    return values * scale.float().repeat_interleave(-(-shape[1] // scale.shape[1]), 1)[:, : shape[1]]


def scale_values(scale: Any) -> Any:
    """Scales as float32 torch; a uint8 is a biased exponent."""
    import torch

    return torch.exp2(scale.float() - 127) if scale.dtype == torch.uint8 else scale.float()


def largest_difference(tokens: np.ndarray, found: np.ndarray, expected: np.ndarray) -> float:
    """The largest |Δ logprob| among `tokens`, both sides normalised over them.

    llama.cpp's probabilities add up to 1.0001 … 1.0004, so its logprobs are comparable only up to a constant.
    """
    expected = expected[tokens]
    return float(np.abs((found - _log_sum_exp(found)) - (expected - _log_sum_exp(expected))).max())


def _log_sum_exp(x: np.ndarray) -> float:
    return float(x.max() + np.log(np.exp(x - x.max()).sum()))


def prompts(vocabulary: int, lengths: Sequence[int], seed: int = 7) -> list[Prompt]:
    """Token prompts, each beginning with bos (0), the other ids free of special tokens."""
    rng = np.random.default_rng(seed)
    return [[0, *rng.integers(100, vocabulary - 100, length - 1).tolist()] for length in lengths]
