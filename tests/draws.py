"""Random inputs of the op tests: seeded tensors, and token spaces with everything that the ops read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

seeds = st.integers(0, 10**6)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def integers(seed: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def subsets(seed: int, B: int, N: int, K: int) -> torch.Tensor:
    """[B, K] int64, ascending: K of N, others in each image."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(N, generator=generator)[:K].sort().values for _ in range(B)])


@dataclass(frozen=True)
class Space:
    """K of N tokens kept, on `before` prefix and `after` suffix tokens.

    kept [B, K], owner [B, N] (kept tokens own themselves), size [B, N] in 1..4.
    """

    B: int
    N: int
    K: int
    before: int
    after: int
    seed: int

    @property
    def L(self) -> int:
        return self.before + self.N + self.after

    @property
    def kept(self) -> torch.Tensor:
        return subsets(self.seed, self.B, self.N, self.K)

    @property
    def owner(self) -> torch.Tensor:
        owner = integers(self.seed + 1, self.K, self.B, self.N)
        return owner.scatter(1, self.kept, torch.arange(self.K).expand(self.B, self.K))

    @property
    def size(self) -> torch.Tensor:
        return 1 + integers(self.seed + 2, 4, self.B, self.N).float()

    def stream(self, channels: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return normal(self.seed + 3, self.B, self.L, channels, dtype=dtype)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    N = draw(st.integers(1, 12))
    return Space(B=draw(st.integers(1, 3)), N=N, K=draw(st.integers(1, N)), before=draw(st.integers(0, 2)),
                 after=draw(st.integers(0, 2)), seed=draw(seeds))
