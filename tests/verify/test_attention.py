"""Every form of attention computes what the vanilla form does, at the family's real head sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gguf_mla.forward import attention, indexer, rope
from gguf_mla.forward.attention import FORMS, Inputs, RowLayout
from tests.support import hub
from tests.verify.test_forward import checkpoint_weights
from verify.measures import agreement

MODEL = checkpoint_weights(hub.BUNDLED).model
RANK, NOPE, ROPE, VALUE = 512, 128, 64, 128


def inputs(queries: int, cached: int, heads: int, seed: int = 0) -> Inputs:
    """Inputs of a trained model's size: latents are normed, and scores have a spread of a few units."""
    rng = np.random.default_rng(seed)

    def bell(*shape: int, deviation: float = 1.0) -> np.ndarray:
        return rng.standard_normal(shape, np.float32) * np.float32(deviation)

    return Inputs(
        bell(queries, heads, NOPE, deviation=1.5),
        bell(queries, heads, ROPE, deviation=1.5),
        bell(cached, RANK),
        bell(cached, ROPE),
        bell(heads, RANK, NOPE, deviation=RANK**-0.5),
        bell(heads, VALUE, RANK, deviation=RANK**-0.5),
        MODEL.softmax_scale,
    )


def exact(x: Inputs) -> np.ndarray:
    """Vanilla attention in float64, straight from its definition."""
    wide = {
        name: value.astype(np.float64)
        for name, value in vars(x).items()
        if isinstance(value, np.ndarray) and name != "chosen"
    }
    key = np.einsum("sr,hrn->shn", wide["latent"], wide["k_b"])
    value = np.einsum("sr,hvr->shv", wide["latent"], wide["v_b"])
    scores = np.einsum("thn,shn->hts", wide["q_nope"], key) + np.einsum("thp,sp->hts", wide["q_pe"], wide["k_pe"])
    queries, cached = scores.shape[1:]
    hidden = np.arange(cached)[None] > np.arange(queries)[:, None] + cached - queries
    if x.chosen is not None:
        hidden = ~(x.chosen[:, :, None] == np.arange(cached)).any(axis=1)
    scores = np.where(hidden, -np.inf, scores * x.scale)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hts,shv->thv", weights / weights.sum(axis=-1, keepdims=True), value)


@pytest.mark.parametrize(("queries", "cached"), [(1, 1), (37, 37), (1, 63), (5, 49), (16, 32)])
@pytest.mark.parametrize("form", FORMS)
def test_forms_agree_with_the_definition(form: str, queries: int, cached: int) -> None:
    x = inputs(queries, cached, heads=3)
    measured = agreement(FORMS[form](x), exact(x))
    assert measured.cosine >= 0.9999999
    assert measured.wmape <= 1e-5  # float32 sums of 576 products; 2e-6 measured


def chosen(queries: int, cached: int, top_k: int, seed: int = 1) -> np.ndarray:
    """Random choices of at most `top_k` of the tokens up to a query's own."""
    scores = np.random.default_rng(seed).standard_normal((queries, cached), np.float32)
    scores[np.triu(np.ones_like(scores, bool), cached - queries + 1)] = -np.inf
    return indexer.best(scores, top_k)


@pytest.mark.parametrize(
    ("queries", "cached", "top_k"), [(1, 1, 1), (37, 37, 5), (1, 63, 8), (70, 90, 16), (9, 20, 40)]
)
@pytest.mark.parametrize("form", FORMS)
def test_sparse_forms_agree_with_the_definition(form: str, queries: int, cached: int, top_k: int) -> None:
    x = replace(inputs(queries, cached, heads=3), chosen=chosen(queries, cached, top_k))
    measured = agreement(FORMS[form](x), exact(x))
    assert measured.cosine >= 0.9999999
    assert measured.wmape <= 1e-5  # as without a choice


@pytest.mark.parametrize(
    ("masked", "gathered"), [("absorbed", "gathered"), ("absorbed", "union"), ("vanilla", "vanilla-union")]
)
def test_a_gathered_form_computes_what_the_masked_one_does(masked: str, gathered: str) -> None:
    x = replace(inputs(70, 130, heads=2), chosen=chosen(70, 130, 16))
    unread = np.setdiff1d(np.arange(130), x.chosen)
    x.latent[unread] = 1e3  # finite, so that the mask hides it
    measured = agreement(FORMS[gathered](x), FORMS[masked](x))
    assert measured.wmape <= 1e-6  # the same sums with zeros between the terms
    x.latent[unread] = np.nan
    assert np.isfinite(FORMS[gathered](x)).all()


@pytest.mark.parametrize("form", ["absorbed", "pe-first"])
@pytest.mark.parametrize(("stored", "wmape"), [("F16", 1e-3), ("BF16", 8e-3), ("Q8_0", 2e-2)])
def test_cache_types_cost_what_their_rounding_does(form: str, stored: str, wmape: float) -> None:
    # Values are off by 2^-12, 2^-9 or 1/440 of the block's peak on average, once in the scores and once in the sum.
    x = inputs(24, 48, heads=4)
    found = attention.absorbed(x, pe_first=form == "pe-first", stored=stored)
    measured = agreement(found, exact(x))
    assert wmape / 20 < measured.wmape <= wmape
    assert measured.cosine > 0.9995


def test_published_table_at_real_size() -> None:
    """FlashInfer PR 551: 128 heads, rows of 512 + 64, absorbed against vanilla; in f32 and with an f16 cache."""
    x = inputs(4, 128, heads=128)
    reference = exact(x)
    f32 = agreement(attention.absorbed(x), reference)
    assert f32.cosine >= 0.9999999
    assert f32.wmape <= 1e-5
    f16 = agreement(attention.absorbed(x, stored="F16"), reference)
    assert f16.cosine >= 0.9997
    assert f16.wmape <= 0.02


@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_paged_decode_of_a_ragged_batch(page_size: int) -> None:
    lengths, heads = [1, 17, 64, 5], 3
    requests = [inputs(1, length, heads, seed) for seed, length in enumerate(lengths)]
    layout = RowLayout(RANK, ROPE)
    counts = [-(-length // page_size) for length in lengths]
    # Pages of the requests lie mixed, with rows of NaN where no token is, and one page that nobody uses.
    order = np.random.default_rng(3).permutation(sum(counts) + 1)[: sum(counts)]
    pages = np.full((sum(counts) + 1, page_size, RANK + ROPE), np.nan, np.float32)
    indptr = np.cumsum([0, *counts])
    for number, x in enumerate(requests):
        rows = layout.join(x.latent, x.k_pe)
        for page, place in enumerate(order[indptr[number] : indptr[number + 1]]):
            piece = rows[page * page_size : (page + 1) * page_size]
            pages[place, : len(piece)] = piece
    found, lse = attention.decode_paged(
        np.concatenate([attention.absorb(x) for x in requests]),
        np.concatenate([x.q_pe for x in requests]),
        attention.Pages(pages, indptr, order.astype(np.int64), np.array(lengths)),
        MODEL.softmax_scale,
    )
    for number, x in enumerate(requests):
        expanded = np.einsum("hr,hvr->hv", found[number], x.v_b)
        assert agreement(expanded, exact(x)[0]).wmape <= 1e-5
        np.testing.assert_allclose(lse[number], log_sum_exp(x), rtol=1e-5, atol=1e-5)


def log_sum_exp(x: Inputs) -> np.ndarray:
    """Natural log-sum-exp of the scaled scores of the last query, [H]."""
    key = np.einsum("sr,hrn->shn", x.latent, x.k_b)
    scores = np.einsum("hn,shn->hs", x.q_nope[-1], key) + np.einsum("hp,sp->hs", x.q_pe[-1], x.k_pe)
    scores = scores.astype(np.float64) * x.scale
    peak = scores.max(axis=1)
    return peak + np.log(np.exp(scores - peak[:, None]).sum(axis=1))


@pytest.mark.parametrize("pe_first", [False, True])
def test_context_shift_turns_only_the_rotated_part(pe_first: bool) -> None:
    rng = np.random.default_rng(5)
    latent, raw = (rng.standard_normal((40, width), np.float32) for width in (RANK, ROPE))
    layout = RowLayout(RANK, ROPE, pe_first)
    positions = np.arange(100, 140)
    before = layout.join(latent, rope.rotate(raw, positions, MODEL))
    after = layout.join(latent, rope.rotate(raw, positions - 64, MODEL))
    shifted = attention.shift(before, layout, -64, MODEL)
    np.testing.assert_array_equal(shifted[:, layout.latent], latent)
    np.testing.assert_allclose(shifted, after, atol=2e-5)  # angles of up to 140 in float32: 140 · 2^-24 = 8e-6
    wrong = attention.shift(before, RowLayout(RANK, ROPE, not pe_first), -64, MODEL)
    assert np.abs(wrong - after).max() > 0.1


def test_context_shift_leaves_the_attention_as_it_was() -> None:
    rng = np.random.default_rng(6)
    x = inputs(8, 40, heads=2)
    raw_q, raw_k = (rng.standard_normal(shape, np.float32) for shape in ((8, 2, ROPE), (40, ROPE)))
    layout, positions = RowLayout(RANK, ROPE), np.arange(300, 340)

    def attended(rows: np.ndarray, query_positions: np.ndarray) -> np.ndarray:
        queries = layout.join(attention.absorb(x), rope.rotate(raw_q, query_positions, MODEL))
        return attention.attend(queries, rows, layout, x.scale)

    rows = layout.join(x.latent, rope.rotate(raw_k, positions, MODEL))
    moved = attention.shift(rows, layout, -200, MODEL)
    measured = agreement(attended(moved, positions[-8:] - 200), attended(rows, positions[-8:]))
    assert measured.wmape < 1e-4  # angles of up to 340 in float32
