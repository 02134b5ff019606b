"""What is collected: against llama-imatrix, against transformers, against a pass that holds everything at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gguf_mla.container.reader import open_gguf
from gguf_mla.errors import InputError
from gguf_mla.forward import prediction, sweep, walk
from gguf_mla.forward.attention import FORMS
from gguf_mla.forward.layers import Pass
from gguf_mla.forward.opening import open_weights
from gguf_mla.text.tokens import SAMPLE
from quantize.imatrix.asked import Wanted, work_of
from quantize.imatrix.entries import OUTPUT, Collector
from quantize.imatrix.job import FORM, How, collect
from tests.support import hub
from tests.support.command import gguf_mla

if TYPE_CHECKING:
    from collections.abc import Callable

    from quantize.imatrix.job import Work

RECORDED = Path(__file__).with_name("llama-imatrix-b11434.npz")
CLOSE = 1e-4  # relative, in norm


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """That of the bundled checkpoint, from the text and with the options of the recording."""
    out = tmp_path_factory.mktemp("imatrix") / "m.gguf"
    options = ("--context", 128, "--chunks", 12, "--process-output", "--threads", 1)
    answer = gguf_mla("imatrix", hub.BUNDLED, out, "--text", SAMPLE, *options)
    assert answer.status == 0, answer.output
    assert "perplexity 31.558" in answer.output  # llama-imatrix says 31.5582
    return arrays(out)


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {
        name: tensor.file.read(tensor.offset, tensor.nbytes).view(np.float32).reshape(tensor.shape)
        for name, tensor in open_gguf(path).tensors.items()
    }


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(float) - expected) / np.linalg.norm(expected))


def test_the_sums_are_those_of_llama_imatrix(matrix: dict[str, np.ndarray]) -> None:
    """Recorded with llama.cpp b11434 from an F32 file, F32 cache, without flash attention."""
    with np.load(RECORDED) as recorded:
        expected = dict(recorded)
    assert {name for name in matrix if not name.endswith(".in_sum")} == set(expected)
    for name, sums in expected.items():
        assert matrix[name].shape == sums.shape
        if name.endswith(".counts"):
            np.testing.assert_array_equal(matrix[name], sums)
        else:
            assert distance(matrix[name], sums) < CLOSE, name


@pytest.mark.usefixtures("judges")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_rows_are_those_that_transformers_multiplies(tmp_path: Path) -> None:
    from tests.support.judges import Transformers

    judge, chunks = Observed(Transformers(hub.BUNDLED)), sample_chunks()
    judge.run(chunks)
    weights = open_weights(hub.BUNDLED)
    work = work_of(weights, chunks, Wanted(output=False, prediction=False, perplexity=False), [])
    matrix = arrays(collect(work, tmp_path / "m.gguf", How()).path)
    assert set(judge.sums) == {name.removesuffix(".in_sum2") for name in matrix if name.endswith(".in_sum2")}
    for name, (squares, plain, counts) in judge.sums.items():
        np.testing.assert_array_equal(matrix[name + ".counts"].ravel(), counts)
        assert distance(matrix[name + ".in_sum2"].ravel(), squares.ravel()) < CLOSE, name
        assert distance(matrix[name + ".in_sum"].ravel(), plain.ravel()) < CLOSE, name


def sample_chunks() -> np.ndarray:
    """Chunks of the sample, by the package tokenizers alone."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(hub.BUNDLED / "tokenizer.json"))
    ids = tokenizer.encode(SAMPLE.read_text("utf-8").removesuffix("\n"), add_special_tokens=False).ids
    bos = tokenizer.token_to_id("<｜begin▁of▁sentence｜>")
    chunks = np.array([bos, *ids][: 3 * 64]).reshape(3, 64)
    chunks[:, 0] = bos
    return chunks


class Observed:
    """Hooks on transformers' modules that add up what llama.cpp's tensors of the same name are multiplied with."""

    def __init__(self, judge: Any) -> None:
        self.model = judge._model
        self.sums: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for number, layer in enumerate(self.model.model.layers):
            self._attention(f"blk.{number}.", layer.self_attn)
            self._feed_forward(f"blk.{number}.", layer.mlp)

    def run(self, chunks: np.ndarray) -> None:
        import torch

        with torch.inference_mode():
            for chunk in chunks:
                self.model(torch.tensor(chunk[None]), use_cache=False)

    def add(self, name: str, rows: Any, index: int = 0, matrices: int = 1, *, counted: bool = False) -> None:
        x = rows.detach().double().numpy()
        x = x.reshape(-1, x.shape[-1])
        shape = (matrices, x.shape[1])
        new = np.zeros(shape), np.zeros(shape), np.zeros(matrices if counted else 1)
        squares, plain, counts = self.sums.setdefault(name, new)
        squares[index] += (x * x).sum(0)
        plain[index] += x.sum(0)
        if counted or index == 0:
            counts[index if counted else 0] += len(x)

    def _input(self, name: str) -> Callable[..., None]:
        return lambda _module, inputs: self.add(name, inputs[0])

    def _attention(self, at: str, module: Any) -> None:
        for ours, theirs in {
            "attn_q_a": module.q_a_proj, "attn_q_b": module.q_b_proj, "attn_kv_a_mqa": module.kv_a_proj_with_mqa,
            "attn_output": module.o_proj,
        }.items():  # fmt: skip
            theirs.register_forward_pre_hook(self._input(f"{at}{ours}.weight"))
        heads, nope, kept = self.model.config.num_attention_heads, module.qk_nope_head_dim, {}

        def queries(_module: Any, _inputs: Any, output: Any) -> None:
            parts = output.reshape(-1, heads, module.qk_head_dim)[..., :nope]
            for head in range(heads):
                self.add(f"{at}attn_k_b.weight", parts[:, head], head, heads)

        def attended(_module: Any, _inputs: Any, output: Any) -> None:
            latents = output[1][0] @ kept["latent"]  # [heads, T, T] of [T, rank]
            for head in range(heads):
                self.add(f"{at}attn_v_b.weight", latents[head], head, heads)

        module.q_b_proj.register_forward_hook(queries)
        module.kv_a_layernorm.register_forward_hook(lambda _m, _i, output: kept.update(latent=output[0]))
        module.register_forward_hook(attended)

    def _feed_forward(self, at: str, module: Any) -> None:
        if not hasattr(module, "experts"):
            self._mlp(at, "", module)
            return
        self._mlp(at, "_shexp", module.shared_experts)
        module.gate.register_forward_pre_hook(self._input(f"{at}ffn_gate_inp.weight"))
        module.experts.register_forward_pre_hook(lambda experts, inputs: self._experts(at, experts, *inputs[:2]))

    def _mlp(self, at: str, suffix: str, module: Any) -> None:
        for part in ("gate", "up", "down"):
            getattr(module, f"{part}_proj").register_forward_pre_hook(self._input(f"{at}ffn_{part}{suffix}.weight"))

    def _experts(self, at: str, experts: Any, x: Any, chosen: Any) -> None:
        import torch

        count = experts.num_experts
        for expert in range(count):
            rows = x[(chosen == expert).any(dim=-1)]
            gate, up = (rows @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
            inner = torch.nn.functional.silu(gate) * up
            for part, values in (("gate", rows), ("up", rows), ("down", inner)):
                self.add(f"{at}ffn_{part}_exps.weight", values, expert, count, counted=True)


# ------------------------------------------------------------------------------------------ by blocks, and all at once


def everything_at_once(work: Work) -> Collector:
    """Observe a pass that holds all tokens and all layers' states, as the forward pass is without this program."""
    collector, tokens = Collector(dict(work.entries)), work.chunks
    pass_ = Pass(work.weights, FORMS[FORM], observe=collector)
    states = walk.hidden_states(pass_, tokens)
    pass_.linear(states, OUTPUT)
    for layer in range(pass_.model.layers, pass_.model.blocks):
        entered = prediction.enter(pass_, layer, states, tokens)
        tokens = tokens[:, 1:]
        states = prediction.leave(pass_, layer, walk.run_layer(pass_, layer, entered, tokens))
        if prediction.head(layer) in work.entries:
            pass_.linear(states, prediction.head(layer))
    return collector


def test_streamed_is_what_everything_at_once_gives_bit_for_bit(
    work: Work, made: Callable[..., bytes], tmp_path: Path
) -> None:
    whole = everything_at_once(work)
    made("m.gguf")
    found = arrays(tmp_path / "m.gguf")
    for entry in work.entries.values():
        squares, counts, plain = whole.done(entry).rounded()
        np.testing.assert_array_equal(found[entry.name + ".in_sum2"].ravel(), squares.ravel(), err_msg=entry.name)
        np.testing.assert_array_equal(found[entry.name + ".in_sum"].ravel(), plain.ravel(), err_msg=entry.name)
        np.testing.assert_array_equal(found[entry.name + ".counts"].ravel(), counts)


def test_blocks_change_no_more_than_rounding(
    made: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("m.gguf")
    monkeypatch.setattr(sweep, "BLOCK_BYTES", 1 << 20)  # one sequence at a time, and some rows of an expert
    made("blocks.gguf")
    whole, blocks = arrays(tmp_path / "m.gguf"), arrays(tmp_path / "blocks.gguf")
    for name, expected in whole.items():
        if name.endswith(".counts"):
            np.testing.assert_array_equal(blocks[name], expected)
        else:
            assert distance(blocks[name], expected) < 1e-5


def test_what_is_not_finite_is_named_with_its_layer(
    work: Work, made: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = Pass.vector

    def damaged(pass_: Pass, name: str) -> Any:
        found = right(pass_, name)
        return found * np.nan if name == "blk.1.ffn_norm.weight" else found

    monkeypatch.setattr(Pass, "vector", damaged)
    with pytest.raises(InputError, match=r"blk\.1\.ffn_.*in layer 1 with values that are not finite"):
        made("m.gguf")
    assert list(tmp_path.iterdir()) == []
    assert work.layers == 3


def test_an_expert_that_no_token_reaches_has_count_0(work: Work, made: Callable[..., bytes], tmp_path: Path) -> None:
    made("m.gguf", chunks=work.chunks[:1, :8], entries={**work.entries})
    found = arrays(tmp_path / "m.gguf")
    counts, sums = (found[f"blk.1.ffn_up_exps.weight.{part}"] for part in ("counts", "in_sum2"))
    empty = counts.ravel() == 0
    assert empty.any()
    assert not sums[empty].any()
    assert (sums[~empty] > 0).any()
