# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Attentive probing: a learned query weighs patches, a linear layer classifies."""

from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, ClassifierMixin
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

__all__ = ('AttentiveClassifier',)


class AttentiveClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """One learned query attends to the tokens of an image; a linear layer classifies.

    Masked autoencoders are often probed in this way, first by `CAE
    <https://arxiv.org/abs/2202.03026>`__, because their training does not make the mean
    of their tokens a good summary. Tokens are standardized first. The optimizer is
    AdamW, with a half cosine to 0.
    """

    def __init__(
        self,
        epochs: int = 60,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        """Initialize with the settings of AdamW; *lr* is the one at the start."""
        self.epochs = epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.seed = seed

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Learn from tokens ``(N, T, D)`` and the class of every sample, ``(N,)``."""
        tokens = torch.from_numpy(X).float()
        self.classes_, codes = np.unique(y, return_inverse=True)
        labels = torch.from_numpy(codes)
        self.mean_ = tokens.mean(dim=(0, 1))
        self.std_ = tokens.std(dim=(0, 1)).clamp(min=1e-6)
        steps = self.epochs * -(-len(tokens) // self.batch_size)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seed)
            self.model_ = _build(tokens.shape[-1], len(self.classes_))
            optimizer = torch.optim.AdamW(
                self.model_.parameters(), self.lr, weight_decay=self.weight_decay
            )
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in range(self.epochs):
                for some in torch.randperm(len(tokens)).split(self.batch_size):
                    logits = self.model_(self._standardize(tokens[some]))
                    loss = F.cross_entropy(logits, labels[some])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
        return self

    @torch.no_grad()
    def predict(self, X: np.ndarray) -> np.ndarray:
        """Classify tokens ``(N, T, D)``."""
        parts = torch.from_numpy(X).float().split(self.batch_size)
        logits = torch.cat([self.model_(self._standardize(part)) for part in parts])
        return self.classes_[logits.argmax(dim=-1).numpy()]

    def _standardize(self, tokens: Tensor) -> Tensor:
        """Bring every feature to mean 0 and standard deviation 1."""
        return (tokens - self.mean_) / self.std_


def _build(dim: int, classes: int) -> Any:
    """Make the pooling and the classifier."""
    heads = next(heads for heads in (8, 4, 3, 2, 1) if dim % heads == 0)
    pool = AttentionPoolLatent(dim, num_heads=heads, mlp_ratio=1.0)
    return nn.Sequential(pool, nn.Linear(dim, classes))
