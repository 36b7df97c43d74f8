"""Criteria that change when they are called."""

import torch
import torch.nn.functional as F
from torch import nn


class Criterion(nn.Module):
    """One that counts, keeps a mean and draws."""

    def __init__(self, weight=None, smoothing=0.1):
        super().__init__()
        self.calls, self.smoothing, self.loss = 0, smoothing, F.cross_entropy
        self.register_buffer("mean", torch.ones(()), persistent=False)
        self.register_buffer("weight", weight)
        self.rng = torch.Generator().manual_seed(1)

    def forward(self, outputs, y):
        self.calls += 1
        loss = self.loss(outputs, y, weight=self.weight, label_smoothing=self.smoothing)
        with torch.no_grad():
            self.mean.lerp_(loss, 0.5)
        return loss / self.mean * (torch.rand((), generator=self.rng) + 1 / self.calls)


class CriterionThatIsNoModule:
    def __init__(self, smoothing=0.1):
        self.calls, self.smoothing = 0, smoothing

    def __call__(self, outputs, y):
        self.calls += 1
        return F.cross_entropy(outputs, y, label_smoothing=self.smoothing) / self.calls
