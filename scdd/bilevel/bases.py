"""Bases and coefficients: principal components, other starts, and orthonormalisation (Boost).

A basis is [K, D], coefficients are [m, K], and rows of samples come back as mean + C B.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from scdd.config.condense_pairs import BasesConfig

BLOCK = 4096
"""Rows that are brought to float64 at once."""


class Factors(NamedTuple):
    """Rows as coefficients of a basis; all in one dtype."""

    mean: Tensor
    """[D]"""
    basis: Tensor
    """[K, D]"""
    coefficients: Tensor
    """[m, K]"""

    def rows(self) -> Tensor:
        """What they stand for, [m, D]."""
        return self.mean + self.coefficients @ self.basis


def factorise(
    cfg: BasesConfig, samples: Tensor, rows: Tensor, count: int, draw: torch.Generator
) -> Factors:
    """Return a basis of `count` vectors and coefficients, as they are at the start; float64.

    Args:
        cfg: how bases and coefficients start.
        samples: [N, D] that the mean and the basis are computed from.
        rows: [m, D] that the coefficients stand for.
        count: K, at most D, and for real samples at most N.
        draw: on the CPU, for random starts.
    """
    mean = mean_of(samples)
    device, dim = samples.device, samples.shape[1]
    if cfg.start == "pca":
        basis = principal_components(samples, mean, count)
    elif cfg.start == "real_samples":
        chosen = torch.randperm(len(samples), generator=draw)[:count].to(device)
        basis = _unit(samples[chosen].double() - mean)
    else:
        gaussian = torch.randn(count, dim, generator=draw, dtype=torch.float64).to(device)
        basis = gaussian / dim**0.5
        if cfg.start == "random_orthonormal":
            basis, _ = orthonormalised(basis)
    centred = rows.double() - mean
    # The least-squares solution, which for an orthonormal basis is the projection.
    nearest = centred @ torch.linalg.pinv(basis)
    if cfg.coefficients == "random":
        noise = torch.randn(nearest.shape, generator=draw, dtype=torch.float64).to(device)
        nearest = noise * nearest.square().mean().sqrt()
    return Factors(mean, basis, nearest)


def mean_of(samples: Tensor) -> Tensor:
    """Mean [D] of samples [N, D] in float64."""
    return torch.stack([block.double().sum(dim=0) for block in samples.split(BLOCK)]).sum(
        dim=0
    ) / len(samples)


def principal_components(samples: Tensor, mean: Tensor, count: int) -> Tensor:
    """Leading `count` components [count, D] of samples [N, D] about `mean`: orthonormal, float64.

    Eigenvectors of the covariance, largest first; the entry of largest magnitude of each is
    positive, so that the same samples give the same signs.
    """
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=samples.device)
    for block in samples.split(BLOCK):
        centred = block.double() - mean
        covariance += centred.T @ centred
    _, vectors = torch.linalg.eigh(covariance / len(samples))
    return _with_fixed_signs(vectors.flip(1)[:, :count].T)


def orthonormalised(basis: Tensor, *coefficients: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return an orthonormal basis of the same span, and coefficients that give the same rows.

    With B^T = Q R the rows C B are (C R^T) Q^T, so that nothing is lost. Computed in float64 and
    returned in the dtype of `basis`, which is [K, D] with K <= D.
    """
    q, r = torch.linalg.qr(basis.double().T)
    # The signs of Q are free; these make of an orthonormal basis itself.
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(r)
    q, r = q * signs, signs[:, None] * r
    absorbed = [(c.double() @ r.T).to(basis.dtype) for c in coefficients]
    return q.T.to(basis.dtype).contiguous(), absorbed


def orthogonality_penalty(basis: Tensor) -> Tensor:
    """||B B^T - I||_F^2 [] of a basis [K, D]."""
    return (basis @ basis.T - torch.eye(len(basis)).to(basis)).square().sum()


def _with_fixed_signs(basis: Tensor) -> Tensor:
    largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest < 0, -basis, basis).contiguous()


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
