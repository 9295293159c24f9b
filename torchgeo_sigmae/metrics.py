# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Metrics of pretraining: reconstruction error, and visibility of salient patches."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric
from torchmetrics.functional.image import (
    spectral_angle_mapper,
    structural_similarity_index_measure,
)
from torchmetrics.image import PeakSignalNoiseRatio

from .patches import rank_patches

__all__ = ('ReconstructionMetrics', 'VisibilityRatio')

#: Images per call of structural similarity, which takes ten times their memory.
_SSIM_BATCH = 16


class ReconstructionMetrics(nn.Module):
    """Loss and reflectance metrics over the predicted valid pixels of an epoch.

    * ``loss``: mean squared error in the space of the target;
    * ``baseline_loss``: the same error of predicting, for every band, the mean of the
      image's visible tokens;
    * ``psnr``: peak signal-to-noise ratio in dB, for a reflectance range of 1;
    * ``spectral_angle``: mean angle between predicted and true spectra, in degrees,
      over pixels whose whole spectrum was predicted;
    * ``rmse`` and ``rmse_<band>``: root mean squared error in reflectance;
    * ``ssim``, with *structure*: structural similarity for a reflectance range of 1,
      averaged over the predicted values of images with the predictions filled in.

    With ``norm_pix_loss``, a reconstruction needs the mean and the standard deviation
    of the hidden patch itself. The reflectance metrics are then named ``oracle_...``:
    they cannot be compared with those of other runs.
    """

    def __init__(
        self,
        bands: Sequence[str],
        prefix: str = 'val_',
        oracle: bool = False,
        structure: bool = False,
    ) -> None:
        """Initialize a new ReconstructionMetrics instance.

        Args:
            bands: Names of the bands, for the names of the metrics.
            prefix: Put before every name.
            oracle: Whether the reconstructions use oracle statistics.
            structure: Whether to measure structural similarity, which is slow.
        """
        super().__init__()
        self.bands = tuple(bands)
        self.prefix = prefix
        self.oracle = 'oracle_' if oracle else ''
        self.structure = structure
        # Sums, because torchmetrics' MeanMetric either drops NaN, so that a diverged
        # model looks fine, or with nan_strategy='disable' drops the weights.
        self.loss = SumMetric(nan_strategy='disable')
        self.baseline_loss = SumMetric(nan_strategy='disable')
        self.pixels = SumMetric()
        self.psnr = PeakSignalNoiseRatio(data_range=1.0)
        self.angle = SumMetric(nan_strategy='disable')
        self.spectra = SumMetric()
        self.similarity = SumMetric(nan_strategy='disable')
        self.compared = SumMetric()
        self.error = _BandErrors(len(self.bands))

    def update_losses(self, loss: Tensor, baseline_loss: Tensor, pixels: int) -> None:
        """Add the losses of a batch of so many predicted valid pixels."""
        if pixels:
            self.loss.update(loss * pixels)
            self.baseline_loss.update(baseline_loss * pixels)
            self.pixels.update(pixels)

    def update_images(
        self, prediction: Tensor, target: Tensor, predicted: Tensor
    ) -> None:
        """Add reflectance images ``(B, C, H, W)`` without NaN, predictions filled in.

        Images are larger than 5 pixels. *predicted*, boolean, marks the values that
        are predictions and count.
        """
        images = (prediction, target, predicted)
        if self.structure and predicted.any():
            for image, truth, counted in zip(
                *(x.split(_SSIM_BATCH) for x in images), strict=True
            ):
                _, similarity = structural_similarity_index_measure(
                    image.float(), truth.float(), data_range=1.0, return_full_image=True
                )
                self.similarity.update(similarity[counted].sum())
            self.compared.update(predicted.sum())
        # (B, C, H, W) to a list of pixels, (B * H * W, C).
        self.update(*(x.movedim(1, -1).flatten(0, -2) for x in images))

    def update(
        self, prediction: Tensor, target: Tensor, predicted: Tensor | None = None
    ) -> None:
        """Add pixels ``(pixels, bands)`` in reflectance; *predicted* ones count."""
        prediction, target = prediction.float(), target.float()
        if predicted is None:
            predicted = torch.ones_like(target, dtype=torch.bool)
        if not predicted.any():
            return
        self.psnr.update(prediction[predicted], target[predicted])
        self.error.update(prediction, target, predicted)
        # The angle of a zero spectrum is undefined.
        whole = (prediction.norm(dim=1) > 0) & (target.norm(dim=1) > 0)
        whole &= predicted.all(dim=1)
        if len(self.bands) > 1 and whole.any():
            # A list of spectra is an image one pixel wide.
            image, truth = (x[whole].T[None, :, :, None] for x in (prediction, target))
            angle = spectral_angle_mapper(image, truth, reduction='sum')
            self.angle.update(torch.rad2deg(angle))
            self.spectra.update(whole.sum())

    def compute(self) -> dict[str, Tensor]:
        """Compute all metrics by name; nothing if no valid pixel was added."""
        with warnings.catch_warnings():
            # Every process computes every metric, even without data of its own: the
            # other processes wait for its sums.
            warnings.filterwarnings('ignore', message='The ``compute`` method')
            pixels, spectra = self.pixels.compute(), self.spectra.compute()
            compared, similarity = self.compared.compute(), self.similarity.compute()
            # torchmetrics squeezes the value of a single band.
            squared = torch.atleast_1d(self.error.compute())
            metrics = {
                'loss': self.loss.compute() / pixels,
                'baseline_loss': self.baseline_loss.compute() / pixels,
                f'{self.oracle}psnr': self.psnr.compute(),
                f'{self.oracle}spectral_angle': self.angle.compute() / spectra,
                f'{self.oracle}rmse': squared.mean().sqrt(),
            }
            if compared:
                metrics[f'{self.oracle}ssim'] = similarity / compared
            for band, value in zip(self.bands, squared.sqrt(), strict=True):
                metrics[f'{self.oracle}rmse_{band}'] = value
            if not pixels:
                return {}
        return {f'{self.prefix}{name}': value for name, value in metrics.items()}

    def reset(self) -> None:
        """Forget what was added."""
        # A state made in inference mode could not be updated by a later fit.
        with torch.inference_mode(False):
            for metric in self.modules():
                if isinstance(metric, Metric):
                    metric.reset()


class _BandErrors(Metric):
    """Mean squared error of every band; NaN without a value."""

    full_state_update = False
    is_differentiable = False

    squared: Tensor
    count: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.add_state('squared', torch.zeros(bands), 'sum')
        self.add_state('count', torch.zeros(bands, dtype=torch.long), 'sum')

    def update(self, prediction: Tensor, target: Tensor, counted: Tensor) -> None:
        """Add pixels ``(pixels, bands)``, of which those that are *counted*."""
        error = (prediction - target).square().where(counted, 0)
        self.squared += error.sum(dim=0)
        self.count += counted.sum(dim=0)

    def compute(self) -> Tensor:
        """Compute the mean per band."""
        return self.squared / self.count


class VisibilityRatio(Metric):
    """How many times more likely the least salient patches are visible.

    Counts the visible tokens among the least and the most salient tenth of each image.
    The ratio is 1 under random masking, and above 1 where salient patches are hidden
    more often. Patches of equal saliency share a rank, so images without any contrast
    do not count.
    """

    full_state_update = False
    is_differentiable = False

    least: Tensor
    most: Tensor

    def __init__(self) -> None:
        """Initialize a new VisibilityRatio instance."""
        super().__init__()
        self.add_state('least', torch.tensor(0.0), dist_reduce_fx='sum')
        self.add_state('most', torch.tensor(0.0), dist_reduce_fx='sum')

    def update(self, score: Tensor, keep: Tensor, valid: Tensor | None = None) -> None:
        """Count the visible tokens in both tenths.

        *score* is the saliency per token, ``(B, N)``; *keep* the indices of the visible
        ones, ``(B, V)``; *valid* marks tokens that hold data, boolean ``(B, N)``.
        """
        rank = rank_patches(score, valid).gather(-1, keep)
        if valid is not None:
            rank = torch.where(valid.gather(-1, keep), rank, 0.5)
        self.least += (rank < 0.1).sum()
        self.most += (rank > 0.9).sum()

    def compute(self) -> Tensor:
        """Compute the ratio, with half a token in place of a count of zero."""
        return self.least.clamp(min=0.5) / self.most.clamp(min=0.5)
