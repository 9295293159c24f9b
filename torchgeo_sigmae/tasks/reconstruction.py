# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What is hidden, what is to be predicted, and how predictions become reflectance.

Pure functions of tensors between the batch and the model, used by every step of
:class:`~torchgeo_sigmae.tasks.SIGMAETask`. Missing values take part in nothing.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..masking import TokenMask
from ..models import (
    MaskedAutoencoder,
    TokenLayout,
    gather_tokens,
    normalize_patches,
    scatter_tokens,
)
from ..patches import valid_values
from ..transforms import PatchSaliency
from .statistics import BatchStatistics

__all__ = (
    'TARGETS',
    'TargetSpace',
    'TokenBatch',
    'baseline_prediction',
    'fill_in',
    'hide_bands',
    'make_tokens',
    'reconstruct',
)


class TokenBatch(NamedTuple):
    """A batch as the model sees it.

    Attributes:
        image: Normalized images ``(B, C, H, W)``, 0 at missing values.
        patches: Their tokens, ``(B, G * N, L)``.
        pixels: Which entries of the tokens hold data, boolean, same shape.
        valid: Which tokens hold data, boolean ``(B, G * N)``.
        saliency: Saliency per token in [0, 1], ``(B, G * N)``; 0 if not asked for.
        moments: Mean and standard deviation of the indices of every patch ``(B, N, 2
            K)``, NaN where an index has no valid pixel; None if not asked for.
        layout: What a token is.
        whole: Whether every entry of every token holds data.
    """

    image: Tensor
    patches: Tensor
    pixels: Tensor
    valid: Tensor
    saliency: Tensor
    moments: Tensor | None
    layout: TokenLayout
    whole: bool


#: Known spaces of the target.
TARGETS = ('standardized', 'unit', 'reflectance')


@dataclass(frozen=True)
class TargetSpace:
    """In what space hidden pixels are predicted.

    S2MAE's slides ablate three: without normalisation, [0, 1] and standardised. Which
    limits they scale to [0, 1] they do not say; we take two standard deviations to both
    sides of the mean and clip, as is usual for Sentinel-2.

    The model's outputs always count standard deviations from the mean; they are brought
    to the space of the target before the loss. A head could learn that, but it would
    take hundreds of steps.

    Attributes:
        name: ``'standardized'`` (per band, what the encoder sees), ``'unit'`` ([0, 1]
            per band) or ``'reflectance'``.
        norm_pix: Whether every token is then normalised by its own mean and variance.
        mean: Mean reflectance of every band the model sees.
        std: Standard deviation of the reflectance, likewise.
    """

    name: str
    norm_pix: bool
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a space that is not known.

        Raises:
            ValueError: If it is not.
        """
        if self.name not in TARGETS:
            raise ValueError(
                f'target: {self.name!r} is unknown. Use one of {", ".join(TARGETS)}.'
            )

    def encode(self, tokens: TokenBatch, index: Tensor) -> Tensor:
        """Look up what is to be predicted.

        Args:
            tokens: The batch.
            index: Token indices ``(B, P)``.

        Returns:
            Targets ``(B, P, L)``.
        """
        patches = self._scale(tokens, index)
        if self.norm_pix:
            pixels = None if tokens.whole else gather_tokens(tokens.pixels, index)
            return normalize_patches(patches, pixels)[0]
        return patches

    def place(self, output: Tensor, tokens: TokenBatch, index: Tensor) -> Tensor:
        """Bring outputs of the model to the space of the target.

        Args:
            output: ``(B, P, L)``.
            tokens: The batch.
            index: Token indices ``(B, P)``.

        Returns:
            Predictions ``(B, P, L)``, to compare with :meth:`encode`.
        """
        if self.norm_pix or self.name == 'standardized':
            return output
        if self.name == 'unit':
            return output / 4 + 0.5
        mean, std = self._per_value(tokens, index)
        return output * std + mean

    def decode(self, prediction: Tensor, tokens: TokenBatch, index: Tensor) -> Tensor:
        """Bring predictions from the space of the target to that of the image.

        Undoing *norm_pix* needs the hidden token's own mean and standard deviation, an
        oracle.

        Args:
            prediction: ``(B, P, L)``.
            tokens: The batch.
            index: Token indices ``(B, P)``.

        Returns:
            Predictions in the space of the image, float32.
        """
        prediction = prediction.float()
        if self.norm_pix:
            truth, pixels = (
                self._scale(tokens, index),
                gather_tokens(tokens.pixels, index),
            )
            _, mean, std = normalize_patches(truth, pixels)
            prediction = prediction * std + mean
        if self.name == 'unit':
            return (prediction - 0.5) * 4
        if self.name == 'reflectance':
            mean, std = self._per_value(tokens, index)
            return (prediction - mean) / std
        return prediction

    def centre(self, layout: TokenLayout) -> Tensor:
        """Where the mean of the training data lies in the space of the target.

        Args:
            layout: What a token is.

        Returns:
            One value per band of a group, ``(G, m)``.
        """
        centre = torch.zeros(layout.num_groups, layout.group_size)
        if self.norm_pix or self.name == 'standardized':
            return centre
        if self.name == 'unit':
            return centre + 0.5
        return torch.tensor(self.mean)[layout.padded()].view_as(centre)

    def _scale(self, tokens: TokenBatch, index: Tensor) -> Tensor:
        """Tokens in the space of the target, without *norm_pix*."""
        patches = gather_tokens(tokens.patches, index)
        if self.name == 'unit':
            return (patches / 4 + 0.5).clamp(0, 1)
        if self.name == 'reflectance':
            mean, std = self._per_value(tokens, index)
            return patches * std + mean
        return patches

    def _per_value(self, tokens: TokenBatch, index: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std for every value of tokens, each ``(B, P, L)``."""
        layout = tokens.layout
        group = index // (tokens.patches.shape[1] // layout.num_groups)
        found = []
        for values in (self.mean, self.std):
            table = torch.tensor(values, device=index.device)[layout.padded()]
            table = table.unflatten(0, (layout.num_groups, -1))
            found.append(table.repeat_interleave(layout.patch_size**2, dim=1)[group])
        return found[0], found[1]


@torch.no_grad()
def make_tokens(
    image: Tensor,
    valid: Tensor,
    statistics: BatchStatistics,
    saliency: PatchSaliency | None,
    layout: TokenLayout,
    salient: bool = True,
    spectral: bool = False,
) -> TokenBatch:
    """Select bands, find saliency in reflectance, and cut into tokens.

    Args:
        image: Normalized batch ``(B, len(data_bands), H, W)``, NaN at missing values.
        valid: Pixels that are no padding, boolean ``(B, 1, H, W)``.
        statistics: What the batch holds.
        saliency: The saliency of the model's bands; None without indices.
        layout: What a token is; each takes the saliency of its patch.
        salient: Whether the saliency is needed.
        spectral: Whether moments of the indices are needed.

    Returns:
        The batch as the model sees it.

    Raises:
        ValueError: If the patch size does not divide the images.
    """
    image = statistics.select(image)
    # A sum is not finite where a value is not; one pass where nothing is missing.
    whole = bool(valid.all() & image.sum().isfinite())
    valid = valid.expand_as(image)
    if not whole:
        valid = valid & valid_values(image)
        whole = bool(valid.all())
    scores = moments = None
    if saliency is not None and (salient or spectral):
        reflectance = statistics.reflectance(image)
        if salient:
            known = None if whole else valid
            scores = saliency.saliency(reflectance, known).flatten(1)
        if spectral:
            moments = saliency.moments(reflectance, valid).flatten(2).transpose(1, 2)
    if not whole:
        image = torch.where(valid, image, 0)
    patches = layout.patchify(image)
    places = patches.shape[1] // layout.num_groups
    pixels = layout.slots(image.device).repeat_interleave(places, dim=0)
    some = pixels.any(dim=-1).expand(patches.shape[:2])
    pixels = pixels.expand_as(patches)
    if not whole:
        pixels = pixels & layout.patchify(valid)
        some = pixels.any(dim=-1)
    if scores is None:
        scores = image.new_zeros(len(image), places)
    return TokenBatch(
        image,
        patches,
        pixels,
        some,
        scores.repeat(1, layout.num_groups),
        moments,
        layout,
        whole and layout.channels == layout.num_groups * layout.group_size,
    )


def hide_bands(tokens: TokenBatch, hidden: Tensor) -> Tensor:
    """Hide bands from the encoder: their values become 0, the mean.

    Args:
        tokens: The batch.
        hidden: Hidden bands, boolean ``(B, C)``.

    Returns:
        The tokens without these bands, ``(B, G * N, L)``.
    """
    layout = tokens.layout
    values = hidden[:, layout.padded()].unflatten(1, (layout.num_groups, -1))
    values = values.repeat_interleave(layout.patch_size**2, dim=-1)
    positions = tokens.patches.shape[1] // layout.num_groups
    return tokens.patches.masked_fill(values.repeat_interleave(positions, dim=1), 0)


def baseline_prediction(
    tokens: TokenBatch, mask: TokenMask, target: TargetSpace
) -> Tensor:
    """Predict, for every band, the mean of the image's visible tokens.

    What a model has to beat to have learned anything.

    Args:
        tokens: The batch.
        mask: Its mask.
        target: The space of the target, in which the mean is taken.

    Returns:
        Predictions for the masked tokens, ``(B, M, L)``.
    """
    layout = tokens.layout
    places = tokens.patches.shape[1] // layout.num_groups
    seen = target.encode(tokens, mask.keep)
    valid = gather_tokens(tokens.pixels, mask.keep)
    # One sum per band of a group, (B, V, m), then one per group, (B, G, m).
    sums = torch.where(valid, seen, 0).unflatten(-1, (layout.group_size, -1)).sum(-1)
    counts = valid.unflatten(-1, (layout.group_size, -1)).sum(-1).to(sums.dtype)
    group = (mask.keep // places).unsqueeze(-1).expand_as(sums)
    empty = sums.new_zeros(len(sums), layout.num_groups, layout.group_size)
    total, count = (empty.scatter_add(1, group, values) for values in (sums, counts))
    # A group that is hidden everywhere: the mean of the training data.
    mean = torch.where(
        count > 0, total / count.clamp(min=1), target.centre(layout).to(total)
    )
    mean = mean.repeat_interleave(layout.patch_size**2, dim=-1)
    return gather_tokens(mean, mask.masked // places)


def fill_in(
    tokens: TokenBatch, index: Tensor, prediction: Tensor
) -> tuple[Tensor, Tensor]:
    """Put predictions in the place of tokens.

    Args:
        tokens: The batch.
        index: Indices of the predicted tokens, ``(B, P)``.
        prediction: Their values in the space of the image, ``(B, P, L)``.

    Returns:
        Images ``(B, C, H, W)``, and which of their values are predictions.
    """
    layout, size = tokens.layout, tokens.layout.patch_size
    grid = tokens.image.shape[-2] // size, tokens.image.shape[-1] // size
    patches = scatter_tokens(tokens.patches, index, prediction)
    hidden = torch.zeros_like(tokens.valid).scatter(1, index, True)
    hidden = hidden.unsqueeze(-1).expand_as(patches)
    return layout.unpatchify(patches, grid), layout.unpatchify(hidden, grid)


@torch.no_grad()
def reconstruct(
    model: MaskedAutoencoder,
    tokens: TokenBatch,
    mask: TokenMask,
    statistics: BatchStatistics,
    target: TargetSpace,
) -> dict[str, Tensor]:
    """Reconstruct whole images: visible tokens as they are, hidden ones predicted.

    Args:
        model: The model.
        tokens: The batch.
        mask: Its mask.
        statistics: What the batch holds.
        target: The space the model predicts in.

    Returns:
        ``'image'`` and ``'reconstruction'`` in reflectance ``(B, C, H, W)``, NaN where
        there is no data; ``'mask'``, True where hidden, ``(B, H, W)`` or, where every
        place has several tokens, ``(B, C, H, W)``; ``'saliency'`` ``(B, H / p, W / p)``
        in [0, 1].
    """
    prediction = model(tokens.image, mask.keep, mask.masked, tokens.patches)
    prediction = prediction[..., : tokens.layout.token_size]
    prediction = target.place(prediction, tokens, mask.masked)
    prediction = target.decode(prediction, tokens, mask.masked)
    found, hidden = fill_in(tokens, mask.masked, prediction)
    layout, grid = tokens.layout, model.grid(tokens.image)
    known = layout.unpatchify(tokens.pixels, grid)
    # A partly valid token is predicted whole, one without data not at all.
    held = tokens.valid.unsqueeze(-1).expand_as(tokens.pixels)
    predicted = hidden & layout.unpatchify(held, grid)
    image, result = (statistics.reflectance(x) for x in (tokens.image, found))
    places = tokens.saliency.shape[1] // layout.num_groups
    return {
        'image': torch.where(known, image, torch.nan),
        'reconstruction': torch.where(known | predicted, result, torch.nan),
        'mask': hidden if layout.num_groups > 1 else hidden[:, 0],
        'saliency': tokens.saliency[:, :places].unflatten(-1, grid),
    }
