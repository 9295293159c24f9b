# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Patch saliency from spectral indices: semantic richness and internal heterogeneity.

The SIGMAE paper (arXiv:2603.07463) describes its semantic saliency map in words:
richness is the sum of the absolute indices, and it is joined with the heterogeneity
inside the patch. The formulas here are our reading of that text; see
``docs/choices.md`` for what the paper leaves open.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..bands import BandSet
from ..patches import cut_patches, rank_patches, valid_patches, valid_values
from .indices import (
    DEFAULT_INDICES,
    NormalizedImageCheck,
    SpectralIndex,
    get_index,
    index_channels,
    require_float,
    spectral_indices,
)

__all__ = ('PatchSaliency', 'patch_saliency', 'patch_statistics')

#: A richness or heterogeneity map whose range within an image is smaller than this says
#: nothing but rounding noise, and becomes 0 instead of a ranking.
FLAT_RANGE = 1e-3


def patch_statistics(
    indices: Tensor, patch_size: int, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Compute semantic richness and internal heterogeneity of every patch.

    With K indices :math:`I_k` and the valid pixels of patch p,

    .. math::

       R_p = \operatorname{mean}_{pixels} \frac{1}{K} \sum_k |I_k|, \qquad
       H_p = \operatorname{mean}_{k} \operatorname{std}_{pixels}(I_k),

    with the population standard deviation, from centered values: the textbook shortcut
    :math:`E[x^2] - E[x]^2` gives negative variances in float32.

    Args:
        indices: Spectral indices ``(..., K, H, W)``.
        patch_size: Side of a patch in pixels; must divide H and W.
        valid: Which pixels count, boolean ``(..., H, W)``, or ``(..., K, H, W)`` by
            index; None if all do.

    Returns:
        Richness and heterogeneity, each ``(..., H / patch_size, W / patch_size)`` in
        float32, over the indices that have a valid pixel in the patch. Patches without
        one are 0.
    """
    _, std = index_moments(indices, patch_size, valid)
    with torch.autocast(indices.device.type, enabled=False):
        magnitude = _patch_mean(*_cut_valid(indices.float().abs(), patch_size, valid))
    if valid is None or valid.ndim < indices.ndim:
        return magnitude.mean(dim=-3), std.mean(dim=-3)
    # Both are 0 where an index has no valid pixel.
    count = valid_patches(valid, patch_size).sum(dim=-3).clamp(min=1)
    return magnitude.sum(dim=-3) / count, std.sum(dim=-3) / count


def index_moments(
    indices: Tensor, patch_size: int, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute mean and population standard deviation of indices in every patch.

    Arguments are those of :func:`patch_statistics`; both results are ``(..., K, H / p,
    W / p)`` in float32, 0 in patches without a valid pixel.
    """
    # Autocast must not touch statistics whose differences make a ranking.
    with torch.autocast(indices.device.type, enabled=False):
        x, v = _cut_valid(indices.float(), patch_size, valid)
        mean = _patch_mean(x, v)
        variance = _patch_mean((x - mean.unsqueeze(-1)).square(), v)
        return mean, variance.sqrt()


def _cut_valid(
    x: Tensor, patch_size: int, valid: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Cut ``(..., K, H, W)`` and its valid pixels into patches."""
    patches = cut_patches(x, patch_size).flatten(-2)
    if valid is None:
        return patches, None
    if valid.ndim < x.ndim:
        valid = valid.unsqueeze(-3)
    return patches, cut_patches(valid, patch_size).flatten(-2)


def _patch_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Average the valid pixels of patches ``(..., p * p)``; 0 where there is none."""
    if valid is None:
        return x.mean(dim=-1)
    return torch.where(valid, x, 0).sum(dim=-1) / valid.sum(dim=-1).clamp(min=1)


def patch_saliency(
    image: Tensor,
    bands: Sequence[str],
    patch_size: int,
    indices: Sequence[str | SpectralIndex] = DEFAULT_INDICES,
    alpha: float = 0.5,
    combine: str = 'minmax',
    valid: Tensor | None = None,
) -> Tensor:
    r"""Compute the saliency of every patch of an image.

    Richness R and heterogeneity H (:func:`patch_statistics`) are scaled to [0, 1]
    within each image and joined:

    .. math::

       S_p = \alpha R'_p + (1 - \alpha) H'_p

    A map whose range within the image is under 1e-3 becomes 0, so that constant chips
    are ranked at random downstream and never by rounding noise. On EuroSAT patches
    \|NDVI\| and \|NDWI\| correlate at 0.88, so R favors vegetation and water.

    Args:
        image: Reflectance or digital numbers proportional to it, ``(..., C, H, W)``,
            floating point. NaN and infinite values are missing. An index counts where
            all its bands are there.
        bands: Names of the C channels, in order; a
            :class:`~torchgeo_sigmae.bands.BandSet` for another sensor than Sentinel-2.
        patch_size: Side of a patch in pixels; must divide H and W.
        indices: Spectral indices to use.
        alpha: Weight of richness against heterogeneity, in [0, 1].
        combine: ``'minmax'`` (as above), ``'rank'`` (within-image ranks scaled to
            [0, 1] in place of values), or ``'product'`` (:math:`R'_p H'_p`, without
            *alpha*).
        valid: Which values count besides, boolean ``(..., C, H, W)`` or, for all bands,
            ``(..., H, W)``; None for every finite value.

    Returns:
        Saliency ``(..., H / patch_size, W / patch_size)`` in [0, 1], float32; 0 for
        patches where no index counts. Carries no gradient.
    """
    check_combination(alpha, combine)
    require_float(image, 'image')
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        if valid is None and image.sum().isfinite():
            layers = spectral_indices(image, bands, indices)
            richness, heterogeneity = patch_statistics(layers, patch_size)
            patches = torch.ones_like(richness, dtype=torch.bool)
            return join_statistics(richness, heterogeneity, patches, alpha, combine)
        counted = valid_values(image)
        if valid is not None:
            valid = valid.bool()
            counted = counted & (
                valid if valid.ndim == image.ndim else valid[..., None, :, :]
            )
        layers, counted = masked_indices(image, bands, indices, counted)
        richness, heterogeneity = patch_statistics(layers, patch_size, counted)
        patches = valid_patches(counted, patch_size).any(dim=-3)
        return join_statistics(richness, heterogeneity, patches, alpha, combine)


def masked_indices(
    image: Tensor,
    bands: Sequence[str],
    indices: Sequence[str | SpectralIndex],
    valid: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute indices of an image with missing values, and where they count.

    An index counts where all its bands are *valid* ``(..., C, H, W)``. Both results are
    ``(..., K, H, W)``; the indices are finite everywhere.
    """
    named = BandSet.from_data(bands)
    layers = spectral_indices(torch.where(valid, image, 0), named, indices)
    channels = [index_channels(get_index(index), named) for index in indices]
    counted = [valid[..., wanted, :, :].all(dim=-3) for wanted in channels]
    return layers, torch.stack(counted, dim=-3)


def join_statistics(
    richness: Tensor,
    heterogeneity: Tensor,
    patches: Tensor,
    alpha: float = 0.5,
    combine: str = 'minmax',
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> Tensor:
    """Join richness and heterogeneity ``(..., h, w)``, see :func:`patch_saliency`.

    *patches* marks those that hold data; others get 0. *limits* are smallest and
    largest richness, and heterogeneity, of the image that the patches are a part of;
    None if they are all of it. Ranks need all of it.
    """
    if combine == 'rank':
        r, h = (_rank_scale(x, patches) for x in (richness, heterogeneity))
    else:
        r_limits, h_limits = limits or (None, None)
        r = _minmax_scale(richness, patches, r_limits)
        h = _minmax_scale(heterogeneity, patches, h_limits)
    return r * h if combine == 'product' else alpha * r + (1 - alpha) * h


class PatchSaliency(nn.Module):
    """Add patch saliency to a sample.

    Works as ``transforms=`` of any TorchGeo dataset and on batches. The image must not
    be normalized yet: a normalized difference of z-scores is meaningless. Note that
    kornia moves keys that start with ``image`` or ``mask`` only, so a later crop
    leaves ``sample['saliency']`` uncropped; inside
    :class:`~torchgeo_sigmae.tasks.SIGMAETask` saliency is computed after augmentation.

    Convention: input ``(C, H, W)`` or ``(B, C, H, W)``, reflectance or digital numbers
    proportional to it; output in [0, 1].

    Example:
        >>> import torch
        >>> transform = PatchSaliency(['B03', 'B04', 'B08', 'B11'], patch_size=8)
        >>> sample = transform({'image': torch.rand(4, 64, 64)})
        >>> sample['saliency'].shape
        torch.Size([8, 8])
    """

    def __init__(
        self,
        bands: Sequence[str],
        patch_size: int = 8,
        indices: Sequence[str | SpectralIndex] = DEFAULT_INDICES,
        alpha: float = 0.5,
        combine: str = 'minmax',
        nodata: float | None = 0.0,
        scale: float = 1.0,
        offset: float = 0.0,
    ) -> None:
        """Initialize a new PatchSaliency instance.

        Args:
            bands: Names of the image's channels, in order and in any spelling; a
                :class:`~torchgeo_sigmae.bands.BandSet` for another sensor than
                Sentinel-2.
            patch_size: Side of a patch in pixels.
            indices: Spectral indices to use.
            alpha: Weight of richness against heterogeneity, in [0, 1].
            combine: ``'minmax'``, ``'rank'`` or ``'product'``, see
                :func:`patch_saliency`.
            nodata: Pixels whose bands all equal this value are left out; None to keep
                them.
            scale: Reflectance per unit of the image. Normalized differences do not need
                it; EVI and SAVI do.
            offset: Reflectance at 0.
        """
        super().__init__()
        check_combination(alpha, combine)
        self._check = NormalizedImageCheck()
        self.bands = BandSet(bands)
        self.patch_size = patch_size
        self.indices = tuple(get_index(index) for index in indices)
        self.alpha = alpha
        self.combine = combine
        self.nodata = nodata
        self.scale = scale
        self.offset = offset
        if not self.indices:
            raise ValueError(
                'indices: none given. Pass at least one, for example '
                f'{list(DEFAULT_INDICES)}.'
            )
        for index in self.indices:
            index_channels(index, self.bands)

    def saliency(self, image: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute the saliency of raw images ``(..., C, H, W)``.

        *valid* says which values count, boolean ``(..., C, H, W)`` or ``(..., H, W)``;
        None derives it from *image* and ``nodata``.
        """
        require_float(image, 'image')
        if valid is None and self.nodata is not None:
            valid = valid_values(image, self.nodata)
        if (self.scale, self.offset) != (1.0, 0.0):
            image = image * self.scale + self.offset
        return patch_saliency(
            image,
            self.bands,
            self.patch_size,
            self.indices,
            self.alpha,
            self.combine,
            valid,
        )

    def moments(self, image: Tensor, valid: Tensor) -> Tensor:
        """Compute means, then standard deviations of the indices in every patch.

        The result is ``(..., 2 K, H / p, W / p)``; NaN where an index has no valid
        pixel in the patch.
        """
        image = image * self.scale + self.offset
        layers, counted = masked_indices(image, self.bands, self.indices, valid)
        moments = index_moments(layers, self.patch_size, counted)
        some = valid_patches(counted, self.patch_size)
        return torch.cat([x.where(some, torch.nan) for x in moments], dim=-3)

    def forward(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Add ``sample['saliency']`` to a sample or batch with the key ``'image'``."""
        self._check(sample['image'], type(self).__name__)
        sample['saliency'] = self.saliency(sample['image'])
        return sample

    def extra_repr(self) -> str:
        """Describe the settings."""
        names = [index.name for index in self.indices]
        return f'indices={names}, patch_size={self.patch_size}, alpha={self.alpha}'


def check_combination(alpha: float, combine: str) -> None:
    """Refuse settings of :func:`patch_saliency` that mean nothing."""
    if not 0 <= alpha <= 1:
        raise ValueError(
            f'alpha: {alpha} is not in [0, 1]. 1 is richness only, 0 heterogeneity '
            'only, 0.5 the mean of both.'
        )
    if combine not in ('minmax', 'rank', 'product'):
        raise ValueError(
            f"combine: {combine!r} is unknown. Use 'minmax', 'rank' or 'product'."
        )


def _minmax_scale(
    x: Tensor, patches: Tensor, limits: tuple[float, float] | None = None
) -> Tensor:
    """Scale ``(..., h, w)`` to [0, 1] over its valid patches; flat maps become 0."""
    if limits is None:
        low = torch.where(patches, x, torch.inf).amin(dim=(-2, -1), keepdim=True)
        high = torch.where(patches, x, -torch.inf).amax(dim=(-2, -1), keepdim=True)
    else:
        low, high = x.new_tensor(limits)
    spread = high - low
    usable = patches & (spread >= FLAT_RANGE)
    return torch.where(usable, (x - low) / spread.clamp(min=FLAT_RANGE), 0)


def _rank_scale(x: Tensor, patches: Tensor) -> Tensor:
    """Replace ``(..., h, w)`` by ranks in [0, 1]; flat maps become 0."""
    usable = patches & (_minmax_scale(x, patches) > 0).any(dim=(-2, -1), keepdim=True)
    rank = rank_patches(x.flatten(-2), patches.flatten(-2)).unflatten(-1, x.shape[-2:])
    return torch.where(usable, rank, 0)
