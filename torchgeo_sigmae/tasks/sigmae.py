# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""SIGMAE task: masked-autoencoder pretraining guided by spectral indices."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchvision.models._api import WeightsEnum

from .._compat import BaseTask
from .._compiled import keep_plain_keys
from .._random import seed_from
from ..bands import BandSet, Sensor
from ..callbacks.finite import add_guard
from ..datamodules.inspect import attached_datamodule, normalizes
from ..masking import MaskSchedule
from ..metrics import ReconstructionMetrics, VisibilityRatio
from ..models import MaskedAutoencoder, masked_mse
from ..models.tokens import gather_tokens
from ..optim import (
    build_optimizer,
    require_one_loader,
    scaled_lr,
    total_steps,
    warmup_cosine,
    warmup_steps,
)
from ..plotting import log_figure, plot_reconstruction, takes_figures
from ..transforms import PatchSaliency, bitemporal
from ..weights import Weights, write_weights
from ..weights.files import (
    ENCODER_KEY,
    check_task,
    from_checkpoint_keys,
    plain,
    to_checkpoint_keys,
)
from .augmentation import augment, build_transform
from .batch import fold_dates, mark_missing, sample_indices, take_batch
from .building import build, default_bands, describe_encoder, other_bands
from .checks import check_normalizer, check_precision
from .progress import (
    describe_run,
    metric_states,
    report_losses,
    restore_metrics,
    warn_of_restarted_epoch,
)
from .reconstruction import measure, reconstruct
from .settings import BatchSpec, Guidance, groups_of_first_edition
from .statistics import BatchStatistics, resolve_statistics
from .targets import TargetSpace, spectral_loss, spectral_target
from .token_batch import (
    Draw,
    MaskedBatch,
    TokenBatch,
    final_mask,
    fixed_mask,
    make_tokens,
    mask_tokens,
)

__all__ = ('SIGMAETask',)

#: Keys of a batch that locate its images, and stay in predictions.
_LOCATION_KEYS = ('bounds', 'transform', 'crs', 'path', 'filename', 'window')

#: Defaults of the grouped arguments.
_GUIDANCE, _BATCH = Guidance(), BatchSpec()


class SIGMAETask(BaseTask):
    """SIGMAE: masked autoencoding guided by spectral indices.

    Drop-in sibling of TorchGeo's ``MAE`` task: shared arguments keep their names, and
    ``bands`` says what the channels are. Spectral indices (NDVI, NDWI, NDBI) give every
    patch a saliency, and a curriculum steers the mask toward salient patches.

    If you use this task for your research, please cite the original paper:

    * https://arxiv.org/abs/2603.07463

    .. versionadded:: 0.1
    """

    ignore = ('transform', 'weights')
    monitor = 'val_loss'

    model: MaskedAutoencoder
    bands: BandSet
    mask_schedule: MaskSchedule

    #: Metrics over an epoch, by the name they are logged under.
    epoch_metrics: dict[str, Metric]

    #: What earlier stages of progressive pretraining were trained on.
    history: list[dict[str, Any]]

    #: The saliency of the model's bands; None without any index.
    patch_saliency: PatchSaliency | None

    _statistics: BatchStatistics | None = None
    _datamodule_normalizes = False
    _scale_checked = False
    _steps: int | None = None
    _stage: dict[str, Any] | None = None
    _evaluated = 0

    def __init__(
        self,
        model: str = 'sigmae_vit_small_patch8',
        weights: WeightsEnum | str | None = None,
        in_channels: int | None = None,
        bands: Sequence[str] | None = None,
        sensor: str | Sensor | None = None,
        transform: nn.Module | list[nn.Module] | None = None,
        size: int | None = None,
        encoder_kwargs: dict[str, Any] | None = None,
        masking: str | None = None,
        mask_ratio: float | tuple[float, float] = 0.9,
        guidance: Guidance = _GUIDANCE,
        indices: Sequence[str] | None = None,
        predict_ratio: float = 1.0,
        band_dropout: float = 0.0,
        decoder: str = 'cross',
        decoder_dim: int = 256,
        decoder_depth: int = 4,
        decoder_num_heads: int = 8,
        norm_pix_loss: bool = False,
        spectral_weight: float = 0.0,
        target: str = 'standardized',
        batch: BatchSpec = _BATCH,
        lr: float | None = None,
        base_lr: float = 1.5e-4,
        weight_decay: float = 0.05,
        warmup_epochs: float | None = None,
        seed: int = 0,
    ) -> None:
        """Initialize a new SIGMAETask instance.

        Args:
            model: Name of the encoder:
                ``sigmae_vit_{tiny,small,base,large}_patch{8,16}`` or any timm
                ``VisionTransformer``; ``s2mae_vit_..._patch{8,16}`` for S2MAE,
                ``satmae_vit_..._patch8`` for SatMAE.
            weights: Initial weights: a weight enum, its string, the path of an exported
                encoder or of a training checkpoint, the ``default_root_dir`` of a run,
                ``hf-hub:OWNER/NAME`` for an export on the Hugging Face Hub, or None.
                The decoder goes on as well if the file holds one of the same shape. Any
                image size will do; other bands are matched as in ``adapt_bands``.
            in_channels: Number of bands the model sees; by default that of *bands*.
            bands: Names of the bands the model sees, in order and any spelling. None
                for the ten of Sentinel-2 at 10 and 20 m; if the datamodule lacks one of
                them, for all that the datamodule has.
            sensor: The sensor the band names belong to: a name, or a
                :class:`~torchgeo_sigmae.bands.Sensor`; ``'any'`` for bands of any
                names. None for Sentinel-2, or that of a ``BandSet``.
            transform: Augmentation of training batches: a list of kornia's
                augmentations or their ``AugmentationSequential``; ``nn.Identity()`` for
                none. Default: random resized crops and flips.
            size: Side of training images in pixels; None for the model's default.
            encoder_kwargs: Further arguments of the encoder. For ``sigmae_vit_*``:
                ``positions``, ``'rotary'`` (default) or ``'learnable'``. For
                ``s2mae_vit_*``: ``cube_bands``, bands of a cube, a divisor of their
                number (default: 3 or else 2). For ``satmae_vit_*``: ``groups``, names
                of the bands of each group (default: SatMAE's: 10 m; red edge;
                short-wave infrared; the rest). For both: ``positions``,
                ``'learnable'``, ``'sincos'`` or ``'vanilla'`` (sines and cosines of a
                token's running number).
            masking: ``'saliency'`` (SIGMAE's SSDTM) or ``'random'`` (MAE, S2MAE), which
                needs no index; None for ``'random'`` where the bands allow no index,
                else ``'saliency'``. With several tokens per patch position also
                ``'spatial'`` (the same positions in every group of bands),
                ``'saliency_spatial'`` (the same, salient positions more often),
                ``'group'`` (other positions in every group) or ``'channel'`` (whole
                groups).
            mask_ratio: Share of masked tokens, in (0, 1); a pair changes it from start
                to end of training.
            guidance: How saliency steers the mask: strength and schedule, and how the
                saliency is computed.
            indices: Names of the spectral indices, of the saliency and of the spectral
                target; None for those of NDVI, NDWI and NDBI that the bands allow.
            predict_ratio: Share of the valid masked tokens to decode in training, in
                (0, 1].
            band_dropout: Largest share of the bands to hide from the encoder, in half
                of the training samples. They are predicted all the same, so the encoder
                learns to work with fewer bands. Ours, not the paper's. 0 for none.
            decoder: ``'cross'`` (CrossMAE's) or ``'self'`` (MAE's).
            decoder_dim: Width of the decoder.
            decoder_depth: Number of decoder blocks.
            decoder_num_heads: Number of attention heads in the decoder.
            norm_pix_loss: Normalize every target patch by its own mean and variance.
                Unlike TorchGeo's, off by default: predictions then stay in reflectance.
            spectral_weight: Weight of the spectral target, which is ours and not the
                paper's: every predicted token also predicts its mean in every band, and
                mean and standard deviation of its indices, all of which
                *norm_pix_loss* leaves out. 0 for pixels alone.
            target: Space of the target: ``'standardized'`` (what the encoder sees),
                ``'unit'`` ([0, 1] per band: two standard deviations to both sides of
                the mean, clipped) or ``'reflectance'``.
            batch: What batches hold and who normalizes them, where no datamodule of
                TorchGeo says so.
            lr: Learning rate; None for *base_lr* scaled by the effective batch size.
            base_lr: Learning rate for an effective batch of 256 samples.
            weight_decay: Weight decay, not applied to biases, norms and positions.
            warmup_epochs: Linear warm-up in epochs, before a cosine to 0; None for 5 %
                of the run.
            seed: Seed of masks and augmentation.

        Raises:
            ValueError: If an argument is out of range, or a name is unknown.
            TypeError: If *transform* cannot move the valid-pixel mask along.
            FileNotFoundError: If *weights* is neither a file, a folder of a run, nor a
                known enum.
        """
        self.weights = weights
        # Checkpoints hold plain dictionaries.
        self.guidance = (
            guidance if isinstance(guidance, Guidance) else Guidance(**guidance)
        )
        self.batch = batch if isinstance(batch, BatchSpec) else BatchSpec(**batch)
        super().__init__()
        keep_plain_keys(self)
        self.transform = build_transform(transform, self.size)
        if self.batch.mean is not None and self.batch.std is not None:
            self._statistics = self._resolve_statistics()

    # ---------------------------------------------------------------- configuration

    def configure_models(self) -> None:
        """Initialize the model."""
        for name, value in self.hparams.items():
            if isinstance(value, np.ndarray | np.generic):
                self.hparams[name] = value.tolist()
        given = ('bands', 'sensor', 'masking', 'indices', 'encoder_kwargs')
        self._given = {name: self.hparams[name] for name in given}
        self._build(default_bands(self.hparams['bands'], self.hparams['sensor']))

    def _build(self, bands: BandSet) -> None:
        """Initialize the model for these bands."""
        hparams = self.hparams
        parts = build(hparams, bands, self.guidance, self.weights)
        self.bands, self.model, self.mask_schedule = bands, parts.model, parts.schedule
        self.patch_saliency, self.history = parts.saliency, parts.history
        hparams.update(guidance=self.guidance, batch=self.batch)
        hparams.update(bands=bands, sensor=bands.sensor)
        hparams.update(plain(dict(hparams)))

    def configure_metrics(self) -> None:
        """Initialize the performance metrics."""
        oracle = self.hparams['norm_pix_loss']
        self.val_metrics = ReconstructionMetrics(self.bands, 'val_', oracle)
        self.test_metrics = ReconstructionMetrics(self.bands, 'test_', oracle)
        # A diverged run shows: torchmetrics would leave NaN out.
        self.train_loss = MeanMetric(nan_strategy='disable')
        self.epoch_metrics = {'train_loss_epoch': self.train_loss}
        if self.mask_schedule.guided:
            self.visibility_ratio = VisibilityRatio()
            self.epoch_metrics['visibility_ratio'] = self.visibility_ratio

    @property
    def size(self) -> int:
        """Side of training images in pixels."""
        return int(self.model.encoder.patch_embed.img_size[0])

    @property
    def target(self) -> TargetSpace:
        """The space hidden pixels are predicted in."""
        hparams = self.hparams
        return TargetSpace(hparams['target'], hparams['norm_pix_loss'], self.statistics)

    # ------------------------------------------------------------------------- data

    @property
    def statistics(self) -> BatchStatistics:
        """Contents of batches, from the arguments, the datamodule or the checkpoint.

        Raises:
            ValueError: If that is not known yet.
        """
        if self._statistics is None:
            self._statistics = self._resolve_statistics()
        return self._statistics

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1], from the optimizer's steps."""
        return min(float(self.global_step) / self._steps, 1.0) if self._steps else 0.0

    def setup(self, stage: str) -> None:
        """Find out what the datamodule's batches hold, and repair its augmentations.

        TorchGeo's change-detection datamodules do not work with kornia 0.9, see
        :func:`~torchgeo_sigmae.bitemporal`.

        Raises:
            ValueError: If neither the arguments nor the datamodule give mean and std,
                or whether batches come raw.
        """
        add_guard(self.trainer)
        check_precision(self.trainer)
        datamodule = attached_datamodule(self.trainer)
        if isinstance(datamodule, LightningDataModule):
            bitemporal(datamodule)
        self._follow(datamodule)
        self._statistics = self._resolve_statistics(datamodule)
        check_normalizer(self.batch.normalize, datamodule)
        self._datamodule_normalizes = normalizes(datamodule)
        self._scale_checked = False
        # Lightning warns that this task, not the datamodule, sees the raw batch first.
        # That is the intention.
        warnings.filterwarnings(
            'ignore', 'You have overridden .on_before_batch_transfer'
        )

    def _follow(self, datamodule: object) -> None:
        """Build the model anew for the bands of the datamodule, if none were named."""
        if self._given['bands'] or self.batch.bands is not None:
            return
        bands = other_bands(self.bands, self._given['sensor'], datamodule)
        if bands is None:
            return
        self.hparams.update(self._given)
        self._build(bands)
        self.configure_metrics()
        self._given['bands'] = list(self.bands)
        rank_zero_info(
            f'bands: the {len(self.bands)} of {type(datamodule).__name__}, '
            f'{", ".join(self.bands[:13])} of {self.bands.sensor.name}; '
            f'masking={self.hparams["masking"]!r}, indices={self.hparams["indices"]}.'
        )

    def on_before_batch_transfer(
        self, batch: dict[str, Any], dataloader_idx: int
    ) -> dict[str, Any]:
        """Mark missing values before anything is augmented; normalize if asked to."""
        later = self._datamodule_normalizes
        if later and isinstance(batch, dict) and 'image' not in batch:
            # Composed by the datamodule later, as TreeSatAI's is.
            return batch
        predicting = self._trainer is not None and self._trainer.predicting
        batch = take_batch(batch, self.batch, self.statistics, later, predicting)
        if not self._scale_checked:
            self._scale_checked = True
            # Radar, beyond a millimeter, and elevation have no reflectance.
            if any(nm and nm < 1e6 for nm in self.bands.wavelengths):
                self.statistics.check_scale(batch['image'], not later)
        return batch

    def _resolve_statistics(self, datamodule: object = None) -> BatchStatistics:
        """Find out what batches hold."""
        return resolve_statistics(self.batch, self.bands, datamodule, self._statistics)

    # ------------------------------------------------------------------------ steps

    def forward(self, image: Tensor) -> Tensor:
        """Encode whole images, nothing masked.

        Args:
            image: Normalized images ``(B, C, H, W)`` of the model's bands.

        Returns:
            One feature per image, ``(B, D)``, as TorchGeo's ``Classification`` sees it.
        """
        return self.model.encoder(image)

    def training_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Compute the training loss over the predicted tokens."""
        tokens, inputs, keep, predicted, counts = self._draw(batch)
        size = len(predicted)
        output = self.model(tokens.image, keep, predicted, inputs)
        prediction, statistics = output.tensor_split([tokens.patches.shape[-1]], dim=-1)
        prediction = self.target.from_output(prediction, tokens, predicted)
        target = self.target.encode(tokens, predicted)
        pixels = None
        if not tokens.whole or self.hparams['predict_ratio'] < 1:
            pixels = gather_tokens(tokens.pixels, predicted) & counts.unsqueeze(-1)
        loss = masked_mse(prediction, target, pixels)
        self.log('train_loss', loss, batch_size=size)
        self.train_loss.update(loss.detach())
        if weight := self.hparams['spectral_weight']:
            target, counted = spectral_target(tokens, predicted)
            counted &= counts.unsqueeze(-1)
            spectral = spectral_loss(statistics, target, counted)
            self.log('train_spectral_loss', spectral, batch_size=size)
            loss = loss + weight * spectral
        return loss

    def validation_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Compute validation loss and reflectance metrics under a fixed mask.

        The mask is that of the strategy at the end of training, without guidance, and
        depends on the sample index in the validation data alone. Runs with other
        guidance, seeds or batch sizes can be compared under it.
        """
        self._evaluate(batch, self.val_metrics)
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self._log_figure(batch)

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Compute test loss and reflectance metrics under a fixed mask."""
        self._evaluate(batch, self.test_metrics)

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Any]:
        """Mask as at the end of training and reconstruct.

        Returns:
            ``'image'`` and ``'reconstruction'`` in reflectance ``(B, C, H, W)``, NaN
            where there is no data; ``'mask'`` ``(B, H, W)``, True where hidden, or
            ``(B, C, H, W)`` with several tokens per patch position; ``'saliency'``
            ``(B, H / p, W / p)`` in [0, 1]. With ``norm_pix_loss`` the reconstruction
            borrows the hidden patch's own mean and standard deviation. Keys of the
            batch that locate its images stay.
        """
        location = {key: batch[key] for key in _LOCATION_KEYS if key in batch}
        return {**location, **self._reconstruct(batch, batch_idx)}

    # -------------------------------------------------------------------- optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Initialize the optimizer and learning rate scheduler."""
        self._steps = total_steps(self.trainer)
        require_one_loader(self.trainer)
        lr = scaled_lr(self.trainer, self.hparams['lr'], self.hparams['base_lr'])
        warmup = warmup_steps(self.trainer, self._steps, self.hparams['warmup_epochs'])
        modules = [self.model.encoder, self.model.decoder]
        decay = self.hparams['weight_decay']
        optimizer = build_optimizer(modules, lr, decay, self.trainer)
        scheduler = warmup_cosine(optimizer, self._steps, warmup)
        return {
            'optimizer': optimizer,
            'lr_scheduler': {'scheduler': scheduler, 'interval': 'step'},
        }

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and free the gradients.

        Lightning keeps them through the next forward pass, where memory is short.
        """
        super().optimizer_step(*args, **kwargs)
        self.zero_grad()

    # ------------------------------------------------------------------------ hooks

    def on_train_start(self) -> None:
        """Note what this run is trained on."""
        self._stage = {
            **describe_run(self.trainer),
            'bands': list(self.bands),
            'size': self.size,
            'steps': self.global_step,
        }

    def on_train_epoch_end(self) -> None:
        """Log what was collected over the epoch.

        By hand, because what Lightning collects is lost when a run is interrupted.
        """
        for name, metric in self.epoch_metrics.items():
            self.log(name, metric.compute(), sync_dist=True)
            metric.reset()

    def on_validation_epoch_start(self) -> None:
        """Count evaluated samples from the first."""
        self._evaluated = 0

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Log what the validation steps measured."""
        self._log_metrics(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log what the test steps measured."""
        self._log_metrics(self.test_metrics)

    def on_fit_end(self) -> None:
        """Say in plain words how good the reconstruction became."""
        report_losses(self.trainer.callback_metrics)

    # ----------------------------------------------------------------------- public

    @torch.no_grad()
    def reconstruct(
        self,
        image: Tensor,
        mask_ratio: float | None = None,
        sample_index: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Mask and reconstruct raw images, without a trainer.

        Args:
            image: Raw values ``(B, len(data_bands), H, W)``, floating point; or of
                several dates, as a batch in training or ``(B, T, len(data_bands), H,
                W)``.
            mask_ratio: Share of masked tokens; None for that at the end of training.
            sample_index: Index of every image, ``(B,)``: its mask depends on the index
                alone and is not guided. None for masks as in training.

        Returns:
            As :meth:`predict_step`, every date an image.

        Raises:
            ValueError: If *mask_ratio* is not in (0, 1).
        """
        if image.ndim == 4 and image.shape[1] == len(self.statistics.data_bands):
            # One date will do, whatever the training data had.
            image = image.unsqueeze(1)
        batch = {'image': image.to(self.device)}
        batch = mark_missing(batch, self.statistics, self.batch.nodata)
        batch['image'] = self.statistics.normalize(batch['image'])
        schedule = self.mask_schedule
        if mask_ratio is not None:
            schedule = replace(schedule, ratio=mask_ratio)
        return self._reconstruct(batch, 0, schedule, sample_index)

    def plot(self, prediction: dict[str, Tensor]) -> Figure:
        """Draw reconstructions.

        Args:
            prediction: What :meth:`predict_step` returns.

        Returns:
            A figure with colors, saliency, mask and reconstruction, a row per image.
        """
        return plot_reconstruction(
            prediction['image'].cpu(),
            prediction['reconstruction'].cpu(),
            prediction['mask'].cpu(),
            prediction['saliency'].cpu(),
            self.bands,
            self.hparams['norm_pix_loss'],
        )

    # ------------------------------------------------------------------ checkpoints

    @property
    def encoder_record(self) -> dict[str, Any]:
        """Everything needed to use the encoder, in plain Python values.

        Raises:
            ValueError: If mean and std of the training data are not known, because the
                task was neither trained nor given them.
        """
        return describe_encoder(
            self.hparams,
            self.model,
            self.bands,
            self.statistics,
            self.mask_schedule,
            [*self.history, self.stage],
        )

    @property
    def stage(self) -> dict[str, Any]:
        """The data and steps of this run, in plain Python values."""
        stage = self._stage or {'datamodule': None, 'samples': None, 'steps': 0}
        # A trainer that only evaluates has made no steps.
        done = self.global_step if self._trainer else 0
        return {**stage, 'steps': max(stage['steps'], done)}

    def export(
        self, path: str | Path, decoder: bool = False, half: bool = False
    ) -> None:
        """Write the encoder to a file that ``weights=`` of TorchGeo's tasks takes.

        The file holds tensors and plain values only: the encoder under plain timm keys,
        and its name, bands, normalization and target.

        A folder is for timm and the Hugging Face Hub instead:
        ``timm.create_model('local-dir:<folder>', pretrained=True)``. It holds
        ``config.json``, ``model.safetensors`` and a model card, ``README.md``.
        ``SIGMAETask``, ``adapt_bands`` and the command line take both as weights.

        Args:
            path: The file; an existing folder or a path without a suffix for a folder.
                Missing folders are made. Written atomically.
            decoder: Whether to add the decoder, so that pretraining goes on from the
                file by ``weights=``. Tasks of TorchGeo ignore it.
            half: Whether to store in half precision, which halves the file.

        Raises:
            ValueError: If mean and std of the training data are not known, because the
                task was neither trained nor given them.
        """
        tensors = self.model.decoder.state_dict() if decoder else {}
        weights = Weights(self.model.encoder.state_dict(), tensors, self.encoder_record)
        write_weights(weights, path, half)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is needed to use the weights, under names TorchGeo can read.

        The encoder goes under ``model.<timm key>``, so that a training checkpoint can
        be passed to ``weights=`` of TorchGeo's tasks like an exported encoder.
        """
        checkpoint['state_dict'] = to_checkpoint_keys(checkpoint['state_dict'])
        checkpoint['hyper_parameters'] = plain(checkpoint['hyper_parameters'])
        if self._statistics is not None:
            checkpoint['statistics'] = self._statistics.as_dict()
            checkpoint[ENCODER_KEY] = self.encoder_record
        checkpoint['epoch_metrics'] = metric_states(self.epoch_metrics)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Load a task from a training checkpoint of either edition.

        Unlike Lightning's, this executes nothing that the file holds, unless
        *weights_only* is False. *weights* and *transform* are those in *kwargs*, or
        none.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not one of ours.
        """
        local = isinstance(checkpoint_path, str | Path)
        if weights_only and local and os.path.isfile(checkpoint_path):
            groups = groups_of_first_edition(check_task(checkpoint_path))
            kwargs = {**groups, **kwargs}
        given = dict.fromkeys(('weights', 'transform', '_instantiator'))
        kwargs = {**given, **kwargs, 'weights_only': weights_only}
        return super().load_from_checkpoint(
            checkpoint_path, map_location, hparams_file, strict, **kwargs
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Undo :meth:`on_save_checkpoint`; warn where a run cannot resume exactly."""
        checkpoint['state_dict'] = from_checkpoint_keys(checkpoint['state_dict'])
        if 'statistics' in checkpoint and self._statistics is None:
            self._statistics = BatchStatistics.from_dict(checkpoint['statistics'])
        trained_on = checkpoint.get(ENCODER_KEY, {}).get('trained_on')
        if trained_on and all(type(stage.get('steps')) is int for stage in trained_on):
            *self.history, self._stage = trained_on
        if self._trainer is None:
            return
        restore_metrics(
            self.epoch_metrics,
            checkpoint.get('epoch_metrics', {}),
            self.global_rank,
            self.trainer.world_size,
        )
        warn_of_restarted_epoch(checkpoint, attached_datamodule(self.trainer))

    # ---------------------------------------------------------------------- private

    # Random numbers, logging and kornia cannot be compiled; the model and the loss are.
    @torch.compiler.disable
    def _draw(self, batch: dict[str, Any]) -> MaskedBatch:
        """Augment and mask a training batch.

        Everything random depends on the seed and the number of batches before this one;
        the augmentation on the process as well, the mask on the index of a sample, so
        that two processes mask as one with twice the batch does.
        """
        hparams, schedule, progress = self.hparams, self.mask_schedule, self.progress
        key = (hparams['seed'], self.trainer.fit_loop.total_batch_idx)
        seed = seed_from(Draw.AUGMENTATION, *key, self.global_rank)
        spectral = hparams['spectral_weight'] > 0
        tokens = self._prepare(batch, seed, schedule.guided, spectral)
        masked = mask_tokens(
            tokens,
            self._sample_indices(batch, tokens),
            schedule,
            progress,
            key,
            hparams['predict_ratio'],
            hparams['band_dropout'],
        )
        size = len(tokens.image)
        self.log('mask_ratio', schedule.ratio_at(progress), batch_size=size)
        if schedule.guided:
            beta = schedule.strength_at(progress)
            self.log('saliency_beta', beta, batch_size=size)
            self.visibility_ratio.update(tokens.saliency, masked.keep, tokens.valid)
        return masked

    def _prepare(
        self,
        batch: dict[str, Any],
        seed: int | None = None,
        salient: bool = True,
        spectral: bool = False,
    ) -> TokenBatch:
        """Fold dates into the batch, augment (given a seed), make tokens."""
        image, valid = fold_dates(batch, self.statistics)
        if seed is not None:
            image, valid = augment(self.transform, image, valid, seed)
        return make_tokens(
            image,
            valid > 0.5,
            self.statistics,
            self.patch_saliency,
            self.model.layout,
            salient,
            spectral,
        )

    def _sample_indices(
        self, batch: dict[str, Any], tokens: TokenBatch, before: int = 0
    ) -> Tensor:
        """Number the samples of a batch, after those before, in all processes."""
        dates = len(tokens.image) // len(batch['image'])
        rank, processes = int(self.global_rank), int(self.trainer.world_size)
        return sample_indices(tokens.image, dates, before, rank, processes)

    @torch.compiler.disable
    def _evaluate(self, batch: dict[str, Any], metrics: ReconstructionMetrics) -> None:
        """Add a batch to the metrics of a stage."""
        tokens = self._prepare(batch, salient=False)
        index = self._sample_indices(batch, tokens, self._evaluated)
        self._evaluated += len(index)
        mask = fixed_mask(tokens, index, self.mask_schedule)
        measure(self.model, tokens, mask, self.target, metrics)

    @torch.compiler.disable
    def _reconstruct(
        self,
        batch: dict[str, Any],
        batch_idx: int,
        schedule: MaskSchedule | None = None,
        sample_index: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Mask as at the end of training and reconstruct, see :meth:`reconstruct`."""
        schedule, tokens = schedule or self.mask_schedule, self._prepare(batch)
        if sample_index is None:
            key = (self.hparams['seed'], batch_idx, self.global_rank)
            mask = final_mask(tokens, schedule, key)
        else:
            mask = fixed_mask(tokens, sample_index.to(self.device), schedule)
        return reconstruct(self.model, tokens, mask, self.target)

    @torch.compiler.disable
    def _log_metrics(self, metrics: ReconstructionMetrics) -> None:
        """Log and forget the metrics of an epoch."""
        values = metrics.compute()
        metrics.reset()
        shown = {f'{metrics.prefix}loss', f'{metrics.prefix}baseline_loss'}
        for name, value in values.items():
            self.log(name, value, prog_bar=name in shown, sync_dist=True)

    def _log_figure(self, batch: dict[str, Any]) -> None:
        """Send a figure of the first images to the loggers that take figures."""
        loggers = [logger for logger in self.loggers if takes_figures(logger)]
        if not loggers or not self.trainer.is_global_zero:
            return
        few = {k: v[:4] if isinstance(v, Tensor) else v for k, v in batch.items()}
        figure = self.plot(self._reconstruct(few, 0))
        for logger in loggers:
            log_figure(logger, 'reconstruction', figure, self.global_step)
