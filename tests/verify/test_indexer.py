"""The indexer's parts against their definitions, torch's FP8, and each other."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gguf_mla.forward import indexer, rope
from gguf_mla.forward.attention import unseen
from gguf_mla.forward.choice import Chooser
from gguf_mla.forward.indexer import NOTHING, Index
from gguf_mla.forward.model import Indexer, Model
from tests.support.attention import bundled_model, score_size, score_terms
from tests.support.close import close, limit, turned, within
from verify.levels.choice import Follower, compare, same_choice

HEADS, SIZE, ROPE = 32, 128, 64
DENSE = bundled_model()


def model(*, interleaved: bool = False, fp8: bool = False) -> Model:
    return replace(DENSE, indexer=Indexer(HEADS, SIZE, 16, interleaved, (True,) * DENSE.layers, fp8))


def bell(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))


def prepared(described: Model, tokens: int = 50, seed: int = 0) -> Index:
    q, k, weights = (bell(tokens, width, seed=seed + n) for n, width in enumerate((HEADS * SIZE, SIZE, HEADS)))
    norm = 1 + 0.1 * bell(SIZE, seed=seed + 3), 0.1 * bell(SIZE, seed=seed + 4)
    return indexer.prepare(q, k, weights, norm, described)


@pytest.mark.parametrize("size", [1, 2, 8, 128])
def test_the_hadamard_transform_is_sylvesters(size: int) -> None:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    x = bell(3, 5, size)
    reached = np.linalg.norm(x, axis=-1, keepdims=True) / size**0.5
    close(indexer.hadamard(x), x.numpy() @ matrix / size**0.5, size, reached)
    close(indexer.hadamard(indexer.hadamard(x)), x, 2 * size, reached)  # two such sums


def test_the_transform_leaves_the_scores() -> None:
    # What transformers relies on, which leaves it out: Hq · Hk = q · k.
    q, k = bell(7, SIZE), bell(9, SIZE, seed=1)
    # Four sums that stray: both products, and the transforms of either side.
    reached = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(k, axis=1) / SIZE**0.5
    close(indexer.hadamard(q) @ indexer.hadamard(k).T, q @ k.T, 4 * SIZE, reached)


@pytest.mark.usefixtures("judges")
def test_the_keys_norm_is_a_layer_norm() -> None:
    x, weight, bias = 3 * bell(6, SIZE) + 2, bell(SIZE, seed=1), bell(SIZE, seed=2)
    expected = torch.nn.functional.layer_norm(x, (SIZE,), weight, bias, 1e-6)
    # The mean's error moves every value by its weight, the variance's in proportion to itself.
    reached = (expected - bias).abs() + weight.abs() + bias.abs()
    close(indexer.layer_norm(x, weight, bias), expected, 2 * SIZE, reached.numpy())


@pytest.mark.parametrize("interleaved", [False, True])
def test_the_leading_part_is_rotated(interleaved: bool) -> None:
    described = model(interleaved=interleaved)
    x, positions = bell(40, HEADS, SIZE), torch.arange(40)
    found = indexer._rotated(x, positions, described).numpy()
    x = x.numpy()
    np.testing.assert_array_equal(found[..., ROPE:], x[..., ROPE:])
    angles = positions.numpy()[:, None, None] * rope.frequencies(described).double().numpy()
    pairs = np.arange(ROPE).reshape(-1, 2).T if interleaved else np.arange(ROPE).reshape(2, -1)
    expected = (x[..., pairs[0]] + 1j * x[..., pairs[1]]) * np.exp(1j * angles)
    limits = turned(angles, np.abs(expected))
    within(found[..., pairs[0]], expected.real, limits)
    within(found[..., pairs[1]], expected.imag, limits)


def test_scores_are_those_of_the_definition() -> None:
    index = prepared(model())
    products = torch.einsum("thd,sd->ths", index.queries.double(), index.keys.double())
    expected = torch.einsum("th,ths->ts", index.weights.double(), products.relu()).numpy()
    expected[np.triu(np.ones_like(expected, bool), 1)] = -np.inf
    found = indexer.scores(index, 0, 50)
    close(found, expected, score_terms(index), score_size(index))
    close(indexer.scores(index, 20, 27), found[20:27], score_terms(index), score_size(index)[20:27])
    assert np.array_equal(found == -torch.inf, expected == -np.inf)


def test_weights_are_scaled_by_heads_and_size() -> None:
    norm = torch.ones(SIZE), torch.zeros(SIZE)
    index = indexer.prepare(bell(1, HEADS * SIZE), bell(1, SIZE), torch.ones(1, HEADS), norm, model())
    np.testing.assert_allclose(index.weights, HEADS**-0.5 * SIZE**-0.5, rtol=1e-6, atol=0)


@pytest.mark.parametrize("top_k", [1, 16, 49, 50, 200])
def test_the_best_are_chosen_whatever_the_blocks(top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    index = prepared(model())
    found = indexer.choose(index, top_k)
    scores = indexer.scores(index, 0, 50)
    for token, positions in enumerate(found.numpy()):
        expected = np.sort(np.argsort(-scores[token, : token + 1].numpy(), kind="stable")[:top_k])
        np.testing.assert_array_equal(positions[positions != NOTHING], expected)
        assert (positions[len(expected) :] == NOTHING).all()
    monkeypatch.setattr(indexer, "PRODUCTS", 7 * HEADS * 50)
    assert [block.stop - block.start for block in indexer.blocks(index)] == [7] * 7 + [1]
    assert same_choice(indexer.choose(index, top_k), found, scores).all()


@pytest.mark.usefixtures("judges")
def test_fp8_is_torchs() -> None:
    spread = bell(4000).numpy() * np.exp2(np.random.default_rng(1).integers(-12, 9, 4000)).astype(np.float32)
    values = np.clip(
        np.concatenate([spread, np.ldexp(np.float32(1), np.arange(-12, 9)), [0, -0.0, 448, 2**-10]]), -448, 448
    )
    expected = torch.tensor(values, dtype=torch.float32).to(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(indexer.e4m3(torch.from_numpy(values.astype(np.float32))), expected)


def test_fp8_blocks_have_scales_of_powers_of_two() -> None:
    x = torch.stack([bell(256) * 1000, bell(256) * 1e-6])
    found = indexer.round_fp8(x).reshape(2, 2, 128)
    for block, values in zip(found.reshape(4, 128), x.reshape(4, 128), strict=True):
        scale = 2.0 ** np.ceil(np.log2(max(float(values.abs().max()), 1e-4) / 448))
        np.testing.assert_array_equal(block, indexer.e4m3(values / scale) * scale)
    assert (found[0].flatten() / x[0] - 1).abs().max() <= 2**-4  # three mantissa bits


def test_fp8_moves_choices_a_little() -> None:
    exact, rounded = (prepared(model(fp8=fp8)) for fp8 in (False, True))
    chooser, indexes = Chooser(), [rounded]
    chooser.take([exact], 16)
    found = compare(chooser, indexes, [indexer.choose(rounded, 16)])
    assert 0.01 < found.scores.wmape < 0.1  # a step of e4m3 is 1/16 of a value, in q and in k
    assert 0.9 < found.common < 1


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_context_shift_undoes_the_transform_and_turns_the_leading_part(interleaved: bool) -> None:
    described = model(interleaved=interleaved)
    raw, positions = bell(40, SIZE), torch.arange(100, 140)
    before, after = (indexer.hadamard(indexer._rotated(raw, positions - by, described)) for by in (0, 64))
    # Three turns, of which the transform spreads the errors over the row, and four transforms.
    turns = 3 * turned(139 * rope.frequencies(described).numpy(), float(raw.abs().max()) * 2**0.5)
    transforms = limit(4 * SIZE, np.linalg.norm(raw, axis=1).max() / SIZE**0.5)
    within(indexer.shift(before, -64, described), after, 2 * np.sum(turns) / SIZE**0.5 + transforms)
    wrong = indexer._rotated(before, torch.full((40,), -64), described)  # as if rows were cached before the transform
    assert (wrong - after).abs().max() > 0.5
    behind = indexer.hadamard(before).roll(ROPE, dims=1)  # its last part turned, as of a row of the latent cache
    wrong = indexer.hadamard(indexer._rotated(behind, torch.full((40,), -64), described).roll(-ROPE, dims=1))
    assert (wrong - after).abs().max() > 0.5


# ------------------------------------------------------------------------------------------------------- choices


def choice(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def test_choices_are_the_same_up_to_ties() -> None:
    scores = torch.tensor([[3, 2, 1, 1, 0, -torch.inf]])
    first = choice([0, 1, 2])
    assert same_choice(first, choice([0, 1, 2]), scores).all()
    assert same_choice(first, choice([0, 1, 3]), scores).all()  # 2 and 3 tie
    assert not same_choice(first, choice([0, 1, 4]), scores).any()
    assert not same_choice(first, choice([1, 2, 3]), scores).any()
    assert not same_choice(first, choice([0, 1, NOTHING]), scores).any()  # another number
    assert not same_choice(first, choice([0, 1, 5]), scores).any()  # behind the query
    assert same_choice(first, choice([0, 1, 3]), torch.tensor([[3, 2, 1, 1 + 2e-5, 0, -torch.inf]])).all()
    assert not same_choice(first, choice([0, 1, 3]), torch.tensor([[3, 2, 1, 1.001, 0, -torch.inf]])).any()


@given(
    scores=hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 12)), elements=st.integers(-3, 3)),
    top_k=st.integers(1, 14),
    seed=st.integers(0, 1000),
)
def test_ties_may_be_broken_in_any_way(scores: np.ndarray, top_k: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(scores.shape[1])
    found = indexer.best(torch.from_numpy(scores), top_k).numpy()
    elsewhere = np.sort(order[indexer.best(torch.from_numpy(scores[:, order]), top_k).numpy()], axis=1)

    def alike(*arrays: np.ndarray) -> bool:
        return bool(same_choice(*map(torch.from_numpy, arrays)).all())

    assert alike(found, elsewhere, scores)
    taken = np.take_along_axis(scores, found, axis=1)
    np.testing.assert_array_equal(np.sort(taken, axis=1), np.sort(scores, axis=1)[:, -taken.shape[1] :])
    for row, (ours, theirs) in enumerate(zip(found, elsewhere, strict=True)):
        worse = np.setdiff1d(np.flatnonzero(scores[row] < scores[row, ours].min()), theirs)
        if worse.size:  # any token that scores less makes it another choice
            broken = np.sort(np.append(ours[1:], worse[0]))[None]
            assert not alike(ours[None], broken, scores[row : row + 1])


def test_agreement_of_choices_by_hand() -> None:
    keys = torch.tensor([[4.0], [3], [2], [1]])
    index, other = Index(torch.ones(4, 1, 1), keys, torch.ones(4, 1)), keys.flip(0)
    reference = Chooser()
    np.testing.assert_array_equal(reference.take([index], 2)[0], [[0, NOTHING], [0, 1], [0, 1], [0, 1]])
    theirs = Index(index.queries, other, index.weights)
    found = compare(reference, [theirs], [indexer.choose(theirs, 2)])
    # Queries 0 and 1 see no more than two; 2 and 3 take the last two instead of the first.
    assert (found.sets, found.same, found.wrong) == (2, 0, 0)
    assert found.common == (1 + 2 + 1 + 0) / 7
    wrong = compare(reference, [index], [indexer.choose(index, 3)])
    assert (wrong.sets, wrong.same, wrong.wrong) == (2, 0, 2)
    assert wrong.scores.wmape == 0


def test_a_layer_without_an_indexer_keeps_the_choice_and_a_follower_takes_the_references() -> None:
    ours, theirs, other = (prepared(model(), seed=seed) for seed in (0, 10, 20))
    reference = Chooser()
    follower = Follower(reference, alone=1)
    expected = reference.take([ours, other], 16)  # its second sequence is nobody's to follow
    own, followed = follower.take([theirs, theirs], 16)
    np.testing.assert_array_equal(own, indexer.choose(theirs, 16))
    np.testing.assert_array_equal(followed, expected[0])
    assert follower.agreement is not None
    assert follower.agreement.same < follower.agreement.sets == 50 - 16
    np.testing.assert_array_equal(reference.take(None, 16)[0], expected[0])
    assert [each.tolist() for each in follower.take(None, 16)] == [own.tolist(), followed.tolist()]
    assert follower.agreement is None


def test_what_is_not_seen_is_masked() -> None:
    hidden = unseen(choice([0, 2, NOTHING], [1, 2, 3]), 2, 4)
    np.testing.assert_array_equal(hidden, [[False, True, False, True], [True, False, False, False]])
