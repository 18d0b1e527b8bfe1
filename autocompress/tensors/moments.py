"""Mean and covariance of a layer's inputs, and how far chance made them."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Running sums over patches of one layer, apart for every other example, so that the halves tell how sure they are."""

    def __init__(self, groups: int, width: int) -> None:
        self._total = torch.zeros(2, groups, width)
        self._square = torch.zeros(2, groups, width, width)
        self._count = [0, 0]
        self._examples = 0

    def add(self, patches: Tensor, examples: int) -> None:
        """Add the patches (groups, n, d) of so many examples, equally many of each."""
        apart = patches.reshape(len(patches), examples, -1, patches.shape[2])  # (groups, examples, patches, d)
        for half in range(2):
            part = apart[:, (half - self._examples) % 2 :: 2].flatten(1, 2)
            self._total[half] += part.sum(dim=1)
            self._square[half] += part.transpose(1, 2) @ part
            self._count[half] += part.shape[1]
        self._examples += examples

    @property
    def mean(self) -> Tensor:
        """(groups, d)."""
        return self._total.sum(0) / sum(self._count)

    @property
    def second_moment(self) -> Tensor:
        """(groups, d, d)."""
        return self._square.sum(0) / sum(self._count)

    @property
    def shrinkage(self) -> Tensor:
        """Share of the covariance's squared distance from m I that is chance, shape (groups,); 1 where one half is empty.

        Two halves C1 and C2 are independent estimates, so a quarter of the squared difference between them is the expected
        squared error of their mean (Ledoit and Wolf 2004, theorem 2.1; there from single examples, but the patches of one image
        are not independent).
        """
        if not all(self._count):
            return torch.ones(len(self._total[0]))
        one, other = (_covariance(self._total[half], self._square[half], self._count[half]) for half in range(2))
        mean = (one + other) / 2
        level = mean.diagonal(dim1=1, dim2=2).mean(1)
        chance = (one - other).square().sum((1, 2)) / 4
        distance = (mean - level[:, None, None] * torch.eye(mean.shape[1])).square().sum((1, 2))
        return torch.where(distance > 0, chance / distance.clamp_min(1e-38), 0.0).clamp(max=1.0)


def _covariance(total: Tensor, square: Tensor, count: int) -> Tensor:
    mean = total / count
    return square / count - mean[:, :, None] * mean[:, None, :]
