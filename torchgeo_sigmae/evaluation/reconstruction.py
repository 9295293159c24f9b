# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""How well hidden pixels are reconstructed."""

import warnings
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, Metric, SumMetric
from torchmetrics.functional.image import (
    spectral_angle_mapper,
    structural_similarity_index_measure,
)
from torchmetrics.image import PeakSignalNoiseRatio

__all__ = ('ReconstructionMetrics',)

#: Images of which structural similarity is measured at a time: it takes ten times the
#: memory of its images.
_FEW = 16


class ReconstructionMetrics(nn.Module):
    """Loss and reflectance metrics over the predicted valid pixels of an epoch.

    * ``loss``: mean squared error in the space of the target;
    * ``baseline_loss``: the same error of predicting, for every band, the mean of the
      image's visible tokens;
    * ``psnr``: peak signal-to-noise ratio in dB, for a reflectance range of 1;
    * ``spectral_angle``: mean angle between predicted and true spectra, in degrees,
      over pixels whose whole spectrum was predicted;
    * ``rmse`` and ``rmse_<band>``: root mean squared error in reflectance;
    * ``ssim``, if asked for: structural similarity for a reflectance range of 1, of the
      image with its predictions filled in, where they are; bands alike.

    Where the reconstruction had to borrow the hidden patch's own mean and standard
    deviation (``norm_pix_loss``), the reflectance metrics are named ``oracle_...``:
    they cannot be compared with honest ones.
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
            structure: Whether to measure structural similarity, for which images are
                filtered once more.
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
        self.error = nn.ModuleList(MeanSquaredError() for _ in self.bands)

    def update_losses(self, loss: Tensor, baseline_loss: Tensor, pixels: int) -> None:
        """Add the losses of a batch.

        Args:
            loss: Mean squared error over the predicted valid pixels.
            baseline_loss: The baseline's, over the same pixels.
            pixels: Their number; nothing is added where it is 0.
        """
        if pixels:
            self.loss.update(loss * pixels)
            self.baseline_loss.update(baseline_loss * pixels)
            self.pixels.update(pixels)

    def update_images(
        self, prediction: Tensor, target: Tensor, predicted: Tensor
    ) -> None:
        """Add images, predictions filled in.

        Args:
            prediction: Reflectance ``(B, C, H, W)``, without NaN, larger than 5 pixels.
            target: True reflectance, same shape.
            predicted: Which values are predictions and count, boolean, same shape.
        """
        images = (prediction, target, predicted)
        if self.structure and predicted.any():
            for found, truth, counted in zip(
                *(x.split(_FEW) for x in images), strict=True
            ):
                _, similarity = structural_similarity_index_measure(
                    found.float(), truth.float(), data_range=1.0, return_full_image=True
                )
                self.similarity.update(similarity[counted].sum())
            self.compared.update(predicted.sum())
        # (B, C, H, W) to a list of pixels, (B * H * W, C).
        self.update(*(x.movedim(1, -1).flatten(0, -2) for x in images))

    def update(
        self, prediction: Tensor, target: Tensor, predicted: Tensor | None = None
    ) -> None:
        """Add predicted pixels.

        Args:
            prediction: Reflectance ``(pixels, bands)``.
            target: True reflectance, same shape.
            predicted: Which values count, boolean, same shape; None if all do.
        """
        prediction, target = prediction.float(), target.float()
        if predicted is None:
            predicted = torch.ones_like(target, dtype=torch.bool)
        if not predicted.any():
            return
        self.psnr.update(prediction[predicted], target[predicted])
        for band, error in enumerate(self.error):
            known = predicted[:, band]
            if known.any():
                cast(Metric, error).update(prediction[known, band], target[known, band])
        # The angle of a zero spectrum is undefined.
        some = (prediction.norm(dim=1) > 0) & (target.norm(dim=1) > 0)
        some &= predicted.all(dim=1)
        if len(self.bands) > 1 and some.any():
            # A list of spectra is an image one pixel wide.
            found, truth = (x[some].T[None, :, :, None] for x in (prediction, target))
            angle = spectral_angle_mapper(found, truth, reduction='sum')
            self.angle.update(torch.rad2deg(angle))
            self.spectra.update(some.sum())

    def compute(self) -> dict[str, Tensor]:
        """Compute all metrics over what was added.

        Returns:
            Scalars by name; empty if no valid pixel was added.
        """
        with warnings.catch_warnings():
            # Every process computes every metric, also one whose share held no data:
            # the others wait for its sums.
            warnings.filterwarnings('ignore', message='The ``compute`` method')
            pixels, spectra = self.pixels.compute(), self.spectra.compute()
            compared, similarity = self.compared.compute(), self.similarity.compute()
            squared = torch.stack([cast(Metric, e).compute() for e in self.error])
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
        # A state born in inference mode could not be updated by a later fit.
        with torch.inference_mode(False):
            for metric in self.modules():
                if isinstance(metric, Metric):
                    metric.reset()
