"""Every form of attention computes what the vanilla form does, at the family's real head sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gguf_mla.forward import attention, rope
from gguf_mla.forward.attention import FORMS, Inputs, RowLayout
from tests.support.attention import RANK, ROPE, bundled_model, chosen, exact, inputs, terms
from tests.support.close import close, close_together, turned, within
from verify.measures import agreement

MODEL = bundled_model()


@pytest.mark.parametrize(("queries", "cached"), [(1, 1), (37, 37), (1, 63), (5, 49), (16, 32)])
@pytest.mark.parametrize("form", FORMS)
def test_forms_agree_with_the_definition(form: str, queries: int, cached: int) -> None:
    x = inputs(queries, cached, heads=3)
    found, expected = FORMS[form](x), exact(x)
    assert agreement(found, expected).cosine >= 0.9999999
    close_together(found, expected, terms(cached))


@pytest.mark.parametrize(
    ("queries", "cached", "top_k"), [(1, 1, 1), (37, 37, 5), (1, 63, 8), (70, 90, 16), (9, 20, 40)]
)
@pytest.mark.parametrize("form", FORMS)
def test_sparse_forms_agree_with_the_definition(form: str, queries: int, cached: int, top_k: int) -> None:
    x = replace(inputs(queries, cached, heads=3), chosen=chosen(queries, cached, top_k))
    found, expected = FORMS[form](x), exact(x)
    assert agreement(found, expected).cosine >= 0.9999999
    close_together(found, expected, terms(cached))


@pytest.mark.parametrize(
    ("masked", "gathered"), [("absorbed", "gathered"), ("absorbed", "union"), ("vanilla", "vanilla-union")]
)
def test_a_gathered_form_computes_what_the_masked_one_does(masked: str, gathered: str) -> None:
    x = replace(inputs(70, 130, heads=2), chosen=chosen(70, 130, 16))
    unread = torch.from_numpy(np.setdiff1d(np.arange(130), x.chosen))
    x.latent[unread] = 1e3  # finite, so that the mask hides it
    # the same sums with zeros between the terms, which BLAS groups otherwise
    close_together(FORMS[gathered](x), FORMS[masked](x), terms(130))
    x.latent[unread] = torch.nan
    assert FORMS[gathered](x).isfinite().all()


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
    f32 = attention.absorbed(x)
    assert agreement(f32, reference).cosine >= 0.9999999
    close_together(f32, reference, terms(128))
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
    pages = torch.full((sum(counts) + 1, page_size, RANK + ROPE), torch.nan)
    indptr = np.cumsum([0, *counts])
    for number, x in enumerate(requests):
        rows = layout.join(x.latent, x.k_pe)
        for page, place in enumerate(order[indptr[number] : indptr[number + 1]]):
            piece = rows[page * page_size : (page + 1) * page_size]
            pages[place, : len(piece)] = piece
    found, lse = attention.decode_paged(
        torch.cat([attention.absorb(x) for x in requests]),
        torch.cat([x.q_pe for x in requests]),
        attention.Pages(pages, *map(torch.tensor, (indptr, order, lengths))),
        MODEL.softmax_scale,
    )
    for number, x in enumerate(requests):
        expanded = np.einsum("hr,hvr->hv", found[number], x.v_b)
        close_together(expanded, exact(x)[0], terms(lengths[number]))
        expected, spread = log_sum_exp(x)
        close(lse[number], expected, terms(lengths[number]), spread)


def log_sum_exp(x: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Natural log-sum-exp of the scaled scores of the last query in float64, and what a score's sum reaches, [H]."""
    latent, k_pe, k_b, q_nope, q_pe = (
        part.double().numpy() for part in (x.latent, x.k_pe, x.k_b, x.q_nope[-1], x.q_pe[-1])
    )
    query = np.concatenate([np.einsum("hn,hrn->hr", q_nope, k_b), q_pe], axis=1)
    rows = np.concatenate([latent, k_pe], axis=1)
    scores = query @ rows.T * x.scale
    peak = scores.max(axis=1)
    size = np.sqrt((query**2 @ (rows**2).T).max(axis=1)) * x.scale
    return peak + np.log(np.exp(scores - peak[:, None]).sum(axis=1)), np.maximum(size, np.abs(peak))


@pytest.mark.parametrize("pe_first", [False, True])
def test_context_shift_turns_only_the_rotated_part(pe_first: bool) -> None:
    rng = np.random.default_rng(5)
    latent, raw = (torch.from_numpy(rng.standard_normal((40, width), np.float32)) for width in (RANK, ROPE))
    layout = RowLayout(RANK, ROPE, pe_first)
    positions = torch.arange(100, 140)
    before = layout.join(latent, rope.rotate(raw, positions, MODEL))
    after = layout.join(latent, rope.rotate(raw, positions - 64, MODEL))
    shifted = attention.shift(before, layout, -64, MODEL)
    np.testing.assert_array_equal(shifted[:, layout.latent], latent)
    # turned twice on one side, by up to 139 and 64, once on the other, by up to 75
    within(shifted, after, 3 * turned(139, float(raw.abs().max()) * 2**0.5))
    wrong = attention.shift(before, RowLayout(RANK, ROPE, not pe_first), -64, MODEL)
    assert (wrong - after).abs().max() > 0.1


def test_context_shift_leaves_the_attention_as_it_was() -> None:
    rng = np.random.default_rng(6)
    x = inputs(8, 40, heads=2)
    shapes = (8, 2, ROPE), (40, ROPE)
    raw_q, raw_k = (torch.from_numpy(rng.standard_normal(shape, np.float32)) for shape in shapes)
    layout, positions = RowLayout(RANK, ROPE), torch.arange(300, 340)

    def attended(rows: torch.Tensor, query_positions: torch.Tensor) -> torch.Tensor:
        queries = layout.join(attention.absorb(x), rope.rotate(raw_q, query_positions, MODEL))
        return attention.attend(queries, rows, layout, x.scale)

    rows = layout.join(x.latent, rope.rotate(raw_k, positions, MODEL))
    moved = attention.shift(rows, layout, -200, MODEL)
    measured = agreement(attended(moved, positions[-8:] - 200), attended(rows, positions[-8:]))
    assert measured.wmape < 1e-4  # keys and queries turned by up to 340, of which float32 loses 340 · 2^-24 = 2e-5 each
