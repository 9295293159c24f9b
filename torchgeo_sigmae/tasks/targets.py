# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Targets of the prediction: pixels in the space of the target, and spectra."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..masking import TokenMask
from ..models import TokenLayout, normalize_patches
from ..models.tokens import gather_tokens
from .statistics import BatchStatistics
from .token_batch import TokenBatch

__all__ = (
    'TARGETS',
    'TargetSpace',
    'baseline_prediction',
    'spectral_loss',
    'spectral_target',
)

#: Spaces of the target.
TARGETS = ('standardized', 'unit', 'reflectance')


@dataclass(frozen=True)
class TargetSpace:
    """The space in which hidden pixels are predicted.

    S2MAE's slides compare three: without normalization, [0, 1] and standardized. They
    do not say which limits become 0 and 1; here two standard deviations to both sides
    of the mean, clipped, as is usual for Sentinel-2.

    The model's outputs always count standard deviations from the mean. They are brought
    to the space before the loss, which a head would take hundreds of steps to learn.

    Attributes:
        name: ``'standardized'`` (per band, what the encoder sees), ``'unit'`` ([0, 1]
            per band) or ``'reflectance'``.
        norm_pix: Whether every token is then normalized by its own mean and variance.
        statistics: What batches hold.
    """

    name: str
    norm_pix: bool
    statistics: BatchStatistics

    def encode(self, tokens: TokenBatch, index: Tensor) -> Tensor:
        """Look up the targets ``(B, P, L)`` of tokens ``(B, P)``."""
        patches = self._from_standardized(
            gather_tokens(tokens.patches, index), tokens, index
        )
        if self.name == 'unit':
            patches = patches.clamp(0, 1)
        if self.norm_pix:
            pixels = None if tokens.whole else gather_tokens(tokens.pixels, index)
            return normalize_patches(patches, pixels)[0]
        return patches

    def from_output(self, output: Tensor, tokens: TokenBatch, index: Tensor) -> Tensor:
        """Bring outputs of the model to the space, to compare with :meth:`encode`."""
        if self.norm_pix:
            return output
        return self._from_standardized(output, tokens, index)

    def decode(self, prediction: Tensor, tokens: TokenBatch, index: Tensor) -> Tensor:
        """Bring predictions to the space of the image, float32.

        Undoing *norm_pix* needs the hidden token's own mean and standard deviation, an
        oracle.
        """
        prediction = prediction.float()
        if self.norm_pix:
            unnormalized = TargetSpace(self.name, False, self.statistics)
            truth = unnormalized.encode(tokens, index)
            pixels = gather_tokens(tokens.pixels, index)
            _, mean, std = normalize_patches(truth, pixels)
            prediction = prediction * std + mean
        if self.name == 'standardized':
            return prediction
        scale, shift = self._scale_and_shift(tokens, index)
        return (prediction - shift) / scale

    def center(self, layout: TokenLayout) -> Tensor:
        """Mean of the training data in the space, per band of a group ``(G, m)``."""
        center = torch.zeros(layout.num_groups, layout.group_size)
        if self.norm_pix or self.name == 'standardized':
            return center
        if self.name == 'unit':
            return center + 0.5
        mean, _ = self._reflectance()
        return mean[layout.padded()].view_as(center)

    def _from_standardized(
        self, values: Tensor, tokens: TokenBatch, index: Tensor
    ) -> Tensor:
        """Bring standardized values of tokens to the space, without *norm_pix*."""
        if self.name == 'standardized':
            return values
        scale, shift = self._scale_and_shift(tokens, index)
        return values * scale + shift

    def _scale_and_shift(
        self, tokens: TokenBatch, index: Tensor
    ) -> tuple[Tensor | float, Tensor | float]:
        """From standard deviations to the space, for every value of tokens."""
        if self.name == 'unit':
            return 0.25, 0.5
        layout, group = tokens.layout, index // tokens.positions

        def per_value(per_band: Tensor) -> Tensor:
            table: Tensor = per_band.to(index.device)[layout.padded()]
            table = table.unflatten(0, (layout.num_groups, -1))
            return table.repeat_interleave(layout.patch_size**2, dim=1)[group]

        mean, std = self._reflectance()
        return per_value(std), per_value(mean)

    def _reflectance(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the reflectance of the model's bands."""
        raw = self.statistics
        mean, std = torch.tensor(raw.model_mean), torch.tensor(raw.model_std)
        return mean * raw.scale + raw.offset, std * raw.scale


def baseline_prediction(
    tokens: TokenBatch, mask: TokenMask, target: TargetSpace
) -> Tensor:
    """Predict, for every band, the mean of the image's visible tokens.

    A model has learned something once it beats this.

    Returns:
        Predictions for the masked tokens in the space of the target, ``(B, M, L)``.
    """
    layout = tokens.layout
    seen = target.encode(tokens, mask.keep)
    valid = gather_tokens(tokens.pixels, mask.keep)
    # One sum per band of a group, (B, V, m), then one per group, (B, G, m).
    sums = torch.where(valid, seen, 0).unflatten(-1, (layout.group_size, -1)).sum(-1)
    counts = valid.unflatten(-1, (layout.group_size, -1)).sum(-1).to(sums.dtype)
    group = (mask.keep // tokens.positions).unsqueeze(-1).expand_as(sums)
    empty = sums.new_zeros(len(sums), layout.num_groups, layout.group_size)
    total, count = (empty.scatter_add(1, group, values) for values in (sums, counts))
    # A group that is hidden everywhere: the mean of the training data.
    mean = torch.where(
        count > 0, total / count.clamp(min=1), target.center(layout).to(total)
    )
    mean = mean.repeat_interleave(layout.patch_size**2, dim=-1)
    return gather_tokens(mean, mask.masked // tokens.positions)


def spectral_target(tokens: TokenBatch, index: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the spectral target of tokens, which is ours and not the paper's.

    ``norm_pix_loss`` takes level and spectrum out of the pixels of a patch; the
    spectral target is just these.

    Args:
        tokens: The batch, with ``moments``.
        index: Token indices ``(B, P)``.

    Returns:
        Statistics ``(B, P, m + 2 K)``: standardized mean in each of the m bands of a
        token, then mean and standard deviation of each of the K indices over the valid
        pixels of its patch; and which of them are defined, boolean, same shape.
    """
    assert tokens.moments is not None
    groups, bands = tokens.layout.num_groups, tokens.layout.group_size
    values, valid = (
        gather_tokens(x, index).unflatten(-1, (bands, -1))
        for x in (tokens.patches, tokens.pixels)
    )
    count = valid.sum(dim=-1)
    mean = torch.where(valid, values, 0).sum(dim=-1) / count.clamp(min=1)
    moments = gather_tokens(tokens.moments.repeat(1, groups, 1), index)
    defined = moments.isfinite()
    target = torch.cat([mean, torch.where(defined, moments, 0)], dim=-1)
    return target, torch.cat([count > 0, defined], dim=-1)


def spectral_loss(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Smooth L1 error in float32 over the entries that count; 0 where none does."""
    error = F.smooth_l1_loss(prediction.float(), target.float(), reduction='none')
    return torch.where(counted, error, 0).sum() / counted.sum().clamp(min=1)
