# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Reconstruct masked images, and measure how good the reconstruction is."""

import torch
from torch import Tensor

from ..masking import TokenMask
from ..metrics import ReconstructionMetrics
from ..models import MaskedAutoencoder, masked_mse
from ..models.tokens import gather_tokens, scatter_tokens
from .targets import TargetSpace, baseline_prediction
from .token_batch import TokenBatch

__all__ = ('fill_in', 'measure', 'reconstruct')


def predict_masked(
    model: MaskedAutoencoder, tokens: TokenBatch, mask: TokenMask, target: TargetSpace
) -> Tensor:
    """Predict the masked tokens in the space of the target, ``(B, M, L)``."""
    output = model(tokens.image, mask.keep, mask.masked, tokens.patches)
    output = output[..., : tokens.layout.token_size]
    return target.from_output(output, tokens, mask.masked)


def fill_in(
    tokens: TokenBatch, index: Tensor, prediction: Tensor
) -> tuple[Tensor, Tensor]:
    """Replace tokens ``(B, P)`` by predictions ``(B, P, L)`` in the image's space.

    Returns:
        Images ``(B, C, H, W)``, and which of their values are predictions.
    """
    patches = scatter_tokens(tokens.patches, index, prediction)
    hidden = torch.zeros_like(tokens.valid).scatter(1, index, True)
    return tokens.layout.unpatchify(patches, tokens.grid), spread(tokens, hidden)


def spread(tokens: TokenBatch, flags: Tensor) -> Tensor:
    """Give a flag of every token ``(B, G * N)`` to its values, ``(B, C, H, W)``."""
    flags = flags.unsqueeze(-1).expand_as(tokens.patches)
    return tokens.layout.unpatchify(flags, tokens.grid)


def measure(
    model: MaskedAutoencoder,
    tokens: TokenBatch,
    mask: TokenMask,
    target: TargetSpace,
    metrics: ReconstructionMetrics,
) -> None:
    """Add a masked batch to the metrics of a stage."""
    prediction = predict_masked(model, tokens, mask, target)
    baseline = baseline_prediction(tokens, mask, target)
    truth = target.encode(tokens, mask.masked)
    counted = gather_tokens(tokens.pixels, mask.masked)
    metrics.update_losses(
        masked_mse(prediction, truth, counted),
        masked_mse(baseline, truth, counted),
        int(counted.sum()),
    )
    prediction = target.decode(prediction, tokens, mask.masked)
    filled, hidden = fill_in(tokens, mask.masked, prediction)
    valid = tokens.layout.unpatchify(tokens.pixels, tokens.grid)
    reflectance = target.statistics.reflectance
    metrics.update_images(
        reflectance(filled), reflectance(tokens.image), hidden & valid
    )


@torch.no_grad()
def reconstruct(
    model: MaskedAutoencoder, tokens: TokenBatch, mask: TokenMask, target: TargetSpace
) -> dict[str, Tensor]:
    """Reconstruct whole images: visible tokens as they are, hidden ones predicted.

    Returns:
        See :meth:`.SIGMAETask.predict_step`.
    """
    prediction = predict_masked(model, tokens, mask, target)
    prediction = target.decode(prediction, tokens, mask.masked)
    filled, hidden = fill_in(tokens, mask.masked, prediction)
    layout, reflectance = tokens.layout, target.statistics.reflectance
    valid = layout.unpatchify(tokens.pixels, tokens.grid)
    # A partly valid token is predicted whole, one without data not at all.
    predicted = hidden & spread(tokens, tokens.valid)
    saliency = tokens.saliency[:, : tokens.positions].unflatten(-1, tokens.grid)
    return {
        'image': torch.where(valid, reflectance(tokens.image), torch.nan),
        'reconstruction': torch.where(
            valid | predicted, reflectance(filled), torch.nan
        ),
        'mask': hidden if layout.num_groups > 1 else hidden[:, 0],
        'saliency': saliency,
    }
