"""Projection-weighted canonical correlation analysis (PWCCA) of two views of the same frames, from covariances alone.

Canonical correlation analysis finds the linear maps h_i = X a_i of one view and their partners in the other that
correlate most, with correlations ρ_1 ≥ ρ_2 ≥ …. PWCCA averages the ρ_i, each weighted by how much of the first view its
direction accounts for: α_i = Σ_j |⟨h_i, x_j⟩| over the channels x_j (columns of X).

No frame has to be kept for that. With centred views, ⟨h_i, x_j⟩ = a_iᵀ Xᵀ x_j = n · a_iᵀ Σ_xx e_j, and with
Σ_xx = V Λ Vᵀ and the singular value decomposition of the whitened cross-covariance
Λ_x^-½ V_xᵀ Σ_xy V_y Λ_y^-½ = U diag(ρ) Wᵀ, the directions are A = V_x Λ_x^-½ U, so that the weights are the absolute column
sums of Σ_xx A = V_x Λ_x^½ U.

PWCCA is 1 for X and any invertible linear map of it, and does not change when such a map is put on its *second* view; a
map of the first view changes the weights. Where several ρ_i are exactly equal, their directions are fixed up to a
rotation only, and the weights with them.

Source: Morcos, Raghu and Bengio 2018 (arXiv 1806.05759), sections 2 and 3; Wachter 1980 for the level of noise.
Shapes: T frames, P and Q channels of the two views, K canonical correlations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asrkit.errors import AsrkitError

CUT_OFF = 1e-10
"""Directions with less than this share of the largest eigenvalue of a view's covariance are left out.

Float32 features carry rounding of some 1e-14 of the largest variance, which would otherwise count as directions of its
own (a layer norm leaves one such direction). Everything that rises above rounding stays in.
"""


class Moments:
    """Means and scatter of two views, gathered batch by batch in float64: its size does not depend on the frames.

    Batches are merged by Chan, Golub and LeVeque's update, which never subtracts large numbers from one another.
    """

    def __init__(self, x_dim: int, y_dim: int, device: torch.device | str = "cpu") -> None:
        self.frames = 0
        self._x_mean = torch.zeros(x_dim, dtype=torch.float64, device=device)
        self._y_mean = torch.zeros(y_dim, dtype=torch.float64, device=device)
        self._xx = torch.zeros(x_dim, x_dim, dtype=torch.float64, device=device)
        self._yy = torch.zeros(y_dim, y_dim, dtype=torch.float64, device=device)
        self._xy = torch.zeros(x_dim, y_dim, dtype=torch.float64, device=device)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add frames: x (T, P) and y (T, Q), row by row the same frames."""
        count = x.shape[0]
        if count == 0:
            return
        x, y = x.to(torch.float64), y.to(torch.float64)
        x_mean, y_mean = x.mean(0), y.mean(0)
        x, y = x - x_mean, y - y_mean
        x_step, y_step = x_mean - self._x_mean, y_mean - self._y_mean
        total = self.frames + count
        share = self.frames * count / total
        self._xx += x.T @ x + share * torch.outer(x_step, x_step)
        self._yy += y.T @ y + share * torch.outer(y_step, y_step)
        self._xy += x.T @ y + share * torch.outer(x_step, y_step)
        self._x_mean += x_step * (count / total)
        self._y_mean += y_step * (count / total)
        self.frames = total

    def covariances(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return Σ_xx (P, P), Σ_yy (Q, Q) and Σ_xy (P, Q), scatter divided by the number of frames."""
        xx, yy, xy = (scatter.cpu().numpy() / max(1, self.frames) for scatter in (self._xx, self._yy, self._xy))
        return xx, yy, xy


@dataclass(frozen=True)
class Comparison:
    """How alike two views are."""

    x_to_y: float
    """pwcca(X, Y): weighted by how much of X a direction accounts for."""
    y_to_x: float
    """pwcca(Y, X)."""
    correlations: np.ndarray
    """Canonical correlations, falling, (K,)."""
    x_rank: int
    """Directions of X above the cut-off."""
    y_rank: int
    """Directions of Y above the cut-off."""
    noise: float
    """What two views without any relation would give, if the frames were independent; see `noise_level`."""

    @property
    def pwcca(self) -> float:
        """The symmetrised ½ (pwcca(X, Y) + pwcca(Y, X))."""
        return (self.x_to_y + self.y_to_x) / 2


def compare(moments: Moments, cut_off: float = CUT_OFF) -> Comparison:
    """Compare the two views whose moments were gathered.

    Args:
        moments: of all frames.
        cut_off: see `CUT_OFF`.

    Raises:
        AsrkitError: if a view is not finite or never changes, or there are so few frames that any two views correlate.
    """
    if moments.frames < 2:
        raise AsrkitError(f"{moments.frames} frame(s) to compare", mend="take more speech")
    xx, yy, xy = moments.covariances()
    x_values, x_vectors = _directions(xx, cut_off)
    y_values, y_vectors = _directions(yy, cut_off)
    x_rank, y_rank = len(x_values), len(y_values)
    # In a space of as many dimensions as frames (less one, for the means) two larger subspaces must meet.
    if moments.frames - 1 <= x_rank + y_rank:
        raise AsrkitError(
            f"{moments.frames} frames for {x_rank} and {y_rank} directions: so few make anything correlate perfectly",
            mend=f"take more speech, 20 times {x_rank + y_rank} frames or more",
        )
    whitened = (x_vectors / np.sqrt(x_values)).T @ xy @ (y_vectors / np.sqrt(y_values))
    left, correlations, right = np.linalg.svd(whitened, full_matrices=False)
    correlations = correlations.clip(0.0, 1.0)
    x_weights = np.abs((x_vectors * np.sqrt(x_values)) @ left).sum(0)
    y_weights = np.abs((y_vectors * np.sqrt(y_values)) @ right.T).sum(0)
    return Comparison(
        x_to_y=float(np.average(correlations, weights=x_weights)),
        y_to_x=float(np.average(correlations, weights=y_weights)),
        correlations=correlations,
        x_rank=x_rank,
        y_rank=y_rank,
        noise=noise_level(moments.frames, x_rank, y_rank),
    )


def pwcca(x: np.ndarray | Tensor, y: np.ndarray | Tensor, cut_off: float = CUT_OFF) -> float:
    """Return pwcca(X, Y) of x (T, P) and y (T, Q); it is not symmetric. Raises as `compare` does."""
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    moments = Moments(x.shape[1], y.shape[1], x.device)
    moments.add(x, y)
    return compare(moments, cut_off).x_to_y


def _directions(covariance: np.ndarray, cut_off: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues (R,) above the cut-off and their eigenvectors (P, R)."""
    if not np.isfinite(covariance).all():
        raise AsrkitError("the features hold values that are not finite numbers", mend="did the training diverge?")
    values, vectors = np.linalg.eigh(covariance)
    if values[-1] <= 0:
        raise AsrkitError("the features never change", mend="did the model collapse? see `asrkit report`")
    kept = values > cut_off * values[-1]
    return values[kept], vectors[:, kept]


def noise_level(frames: int, x_dim: int, y_dim: int) -> float:
    """Return the mean canonical correlation of two unrelated Gaussian views of so many independent frames.

    This is also the PWCCA of such views: their weights know nothing of the correlations. The squared correlations of
    n = frames - 1 degrees of freedom follow Wachter's law with c = min(P, Q)/n and d = max(P, Q)/n: the density
    √((λ₊ - λ)(λ - λ₋)) / (2π c λ (1 - λ)) between λ± = (√(c(1 - d)) ± √(d(1 - c)))². It holds for many dimensions, and is
    a good guide for few. Frames of speech are not independent, so that features without any relation lie above it.
    """
    freedom = frames - 1
    c, d = min(x_dim, y_dim) / freedom, max(x_dim, y_dim) / freedom
    if c + d >= 1:
        return 1.0
    centre = c * (1 - d) + d * (1 - c)
    half = 2 * math.sqrt(c * (1 - d) * d * (1 - c))
    # With λ = centre + half · cos θ the square root becomes half · sin θ: a smooth integrand at both ends.
    angles = np.pi * np.arange(1, _NODES) / _NODES
    squares = centre + half * np.cos(angles)
    density = half**2 * np.sin(angles) ** 2 / (2 * np.pi * c * squares * (1 - squares))
    return float((np.sqrt(squares) * density).sum() * np.pi / _NODES)


_NODES = 4096
"""Points of the integral over Wachter's law."""
