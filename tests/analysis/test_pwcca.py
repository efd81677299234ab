"""PWCCA: against decompositions of the data matrices themselves, its invariances, and its level under noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asrkit.analysis.pwcca import Moments, compare, noise_level, pwcca
from asrkit.errors import AsrkitError


def views(frames: int = 300, x_dim: int = 6, y_dim: int = 9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return two views that share something, with means and scales of their own."""
    random = np.random.default_rng(seed)
    shared = random.standard_normal((frames, 4))
    x = shared @ random.standard_normal((4, x_dim)) + random.standard_normal((frames, x_dim))
    y = shared @ random.standard_normal((4, y_dim)) + random.standard_normal((frames, y_dim))
    return x * random.uniform(0.1, 10, x_dim) + 5, y * random.uniform(0.1, 10, y_dim) - 100


def by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Return pwcca(X, Y) from orthonormal bases of the data matrices, with frames in full."""

    def basis(view: np.ndarray) -> np.ndarray:
        left, values, _ = np.linalg.svd(view - view.mean(0), full_matrices=False)
        return left[:, values > 1e-5 * values[0]]

    left, correlations, _ = np.linalg.svd(basis(x).T @ basis(y), full_matrices=False)
    variables = basis(x) @ left
    weights = np.abs(variables.T @ (x - x.mean(0))).sum(1)
    return float((weights * correlations).sum() / weights.sum())


def by_qr(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the canonical correlations of views of full rank, by Björck and Golub's QR."""
    x_basis, y_basis = (np.linalg.qr(view - view.mean(0))[0] for view in (x, y))
    return np.linalg.svd(x_basis.T @ y_basis, compute_uv=False)


def streamed(x: np.ndarray, y: np.ndarray, cuts: list[int] | None = None) -> Moments:
    moments = Moments(x.shape[1], y.shape[1])
    for part in np.split(np.arange(len(x)), sorted(cuts or [])):
        moments.add(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    return moments


@pytest.mark.parametrize(("x_dim", "y_dim"), [(6, 9), (9, 6), (7, 7), (1, 5), (1, 1)])
def test_covariances_give_what_the_data_matrices_give(x_dim: int, y_dim: int) -> None:
    x, y = views(x_dim=x_dim, y_dim=y_dim)
    found = compare(streamed(x, y))
    assert found.x_to_y == pytest.approx(by_definition(x, y), abs=1e-9)
    assert found.y_to_x == pytest.approx(by_definition(y, x), abs=1e-9)
    assert found.pwcca == (found.x_to_y + found.y_to_x) / 2
    np.testing.assert_allclose(found.correlations, by_qr(x, y), atol=1e-9)
    assert pwcca(x, y) == found.x_to_y
    assert pwcca(y, x) == pytest.approx(found.y_to_x)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), condition=st.floats(0, 2))
def test_a_linear_map_of_the_second_view_changes_nothing(seed: int, condition: float) -> None:
    x, y = views(seed=seed)
    random = np.random.default_rng(seed)

    def invertible(dim: int) -> np.ndarray:
        turns = [np.linalg.qr(random.standard_normal((dim, dim)))[0] for _ in range(2)]
        return turns[0] * 10 ** random.uniform(-condition, condition, dim) @ turns[1]

    assert pwcca(x, x @ invertible(6) + 3) == pytest.approx(1, abs=1e-9)
    assert pwcca(x, y @ invertible(9) - 7) == pytest.approx(pwcca(x, y), abs=1e-8)


def test_a_map_of_the_first_view_does_change_it() -> None:
    """One channel is shared, the other is noise: what counts is how loud each of them is in the first view."""
    random = np.random.default_rng(0)
    x, other = random.standard_normal((5000, 2)), random.standard_normal((5000, 1))
    y = np.concatenate([x[:, :1], other], axis=1)
    assert pwcca(x, y) == pytest.approx(0.5, abs=0.03)
    assert pwcca(x * [3, 1], y) == pytest.approx(0.75, abs=0.03)
    assert pwcca(y, x * [3, 1]) == pytest.approx(0.5, abs=0.03)


@settings(max_examples=40)
@given(cuts=st.lists(st.integers(0, 300), max_size=12), offset=st.floats(-1e4, 1e4))
def test_how_frames_are_batched_does_not_matter(cuts: list[int], offset: float) -> None:
    x, y = views()
    x = x + offset
    once, often = streamed(x, y), streamed(x, y, cuts)
    assert often.frames == once.frames == 300
    covariances = [once.covariances(), often.covariances()]
    for mine, its, numpys in zip(*covariances, covariance_by_numpy(x, y), strict=True):
        np.testing.assert_allclose(its, mine, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(its, numpys, rtol=1e-7, atol=1e-7)
    assert compare(often).pwcca == pytest.approx(compare(once).pwcca, abs=1e-9)


def covariance_by_numpy(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    whole = np.cov(np.concatenate([x, y], axis=1), rowvar=False, bias=True)
    return whole[:6, :6], whole[6:, 6:], whole[:6, 6:]


def test_a_far_mean_costs_no_digits() -> None:
    x, y = views()
    assert compare(streamed(x + 1e6, y - 1e6, [100, 101])).pwcca == pytest.approx(
        compare(streamed(x, y)).pwcca, abs=1e-7
    )


@pytest.mark.parametrize(("frames", "x_dim", "y_dim"), [(600, 20, 30), (600, 30, 30), (500, 200, 100), (2000, 64, 64)])
def test_noise_has_the_level_of_wachters_law(frames: int, x_dim: int, y_dim: int) -> None:
    """Squares have the mean max(P, Q) / (n - 1) exactly; means of roots and PWCCA follow the law."""
    expected = noise_level(frames, x_dim, y_dim)
    found, squares = [], []
    for seed in range(12):
        random = np.random.default_rng(seed)
        mixed = random.standard_normal((frames, x_dim)) @ random.standard_normal((x_dim, x_dim))
        comparison = compare(streamed(mixed, random.standard_normal((frames, y_dim))))
        assert comparison.noise == expected
        found += [comparison.x_to_y, comparison.y_to_x]
        squares.append(np.mean(comparison.correlations**2))
    assert np.mean(found) == pytest.approx(expected, rel=0.02)
    assert np.mean(squares) == pytest.approx(max(x_dim, y_dim) / (frames - 1), rel=0.02)


def test_the_level_of_noise_falls_as_the_root_of_the_frames() -> None:
    """Far from its edge the law is a quarter circle of radius 2√c, whose mean is 8/(3π) √c."""
    for frames in (10**5, 10**7):
        assert noise_level(frames, 100, 100) == pytest.approx(8 / (3 * np.pi) * np.sqrt(100 / frames), rel=2e-3)
    assert noise_level(frames, 30, 100) == noise_level(frames, 100, 30)
    assert noise_level(201, 100, 100) == 1


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_directions_that_are_not_there_are_left_out(kind: type) -> None:
    """Channels that repeat others or never change: neither the rank nor the result takes notice."""
    x, y = (view.astype(kind) for view in views())
    random = np.random.default_rng(1)
    constant = np.full((len(x), 2), 0.3, kind)
    # Sums of float32 channels are rounded, as the outputs of a layer norm are, which sum to zero.
    wide = np.concatenate([y, y @ random.standard_normal((9, 3)).astype(kind), constant], axis=1)
    found = compare(streamed(x, wide))
    assert (found.x_rank, found.y_rank) == (6, 9)
    assert found.x_to_y == pytest.approx(pwcca(x, y), abs=1e-4)
    with_silence = np.concatenate([x, constant], axis=1)
    assert pwcca(with_silence, y) == pytest.approx(pwcca(x, y), abs=1e-9)
    assert pwcca(with_silence, with_silence) == pytest.approx(1)


def test_the_cut_off_is_relative_to_the_largest_eigenvalue() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 200, 2)) * [1.0, 1e-3]
    for scale in (1e-8, 1.0, 1e8):
        assert compare(streamed(x * scale, y), cut_off=1e-7).x_rank == 2
        assert compare(streamed(x * scale, y), cut_off=1e-5).x_rank == 1


@pytest.mark.parametrize(
    ("frames", "says"),
    [(0, r"0 frame\(s\)"), (1, r"1 frame\(s\)"), (5, "take more speech"), (16, "16 frames for 6 and 9 directions")],
)
def test_too_few_frames_are_refused(frames: int, says: str) -> None:
    x, y = views(17)
    with pytest.raises(AsrkitError, match=says):
        pwcca(x[:frames], y[:frames])
    assert pwcca(x, y) < 1


def test_features_that_say_nothing_are_refused() -> None:
    x, y = views()
    with pytest.raises(AsrkitError, match="never change"):
        pwcca(np.ones((300, 4)), y)
    x[7, 2] = np.nan
    with pytest.raises(AsrkitError, match="not finite"):
        pwcca(x, y)
