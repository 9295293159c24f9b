# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""SIGMAE task: masked-autoencoder pretraining guided by spectral indices."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from kornia import augmentation as K
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchvision.models._api import WeightsEnum

from .._random import seed_from
from ..bands import SENTINEL2_TEN_BANDS, get_sensor, normalize_bands
from ..masking import MaskSchedule, TokenMask, sample_noise, select_targets
from ..masking.masks import check_predict_ratio
from ..metrics import ReconstructionMetrics, VisibilityRatio
from ..models import (
    gather_tokens,
    masked_mse,
)
from ..plotting import plot_reconstruction
from ..transforms import PatchSaliency
from ..transforms.indices import DEFAULT_INDICES
from .base import PretrainingTask
from .batch import (
    VALID_KEY,
    augment,
    default_transform,
    mark_valid_pixels,
)
from .building import build_model, encoder_settings, family
from .reconstruction import (
    TargetSpace,
    TokenBatch,
    baseline_prediction,
    fill_in,
    make_tokens,
    reconstruct,
)
from .spectral_target import spectral_loss, spectral_target

__all__ = ('SIGMAETask',)

#: First element of every seed key, so that no two draws share randomness.
_STAGES = {'train': 0, 'augment': 1, 'predict': 2, 'targets': 3}

#: Key of the masks of evaluation, the same for every seed.
_FIXED_KEY = 0


class SIGMAETask(PretrainingTask):
    """SIGMAE: masked autoencoding guided by spectral indices.

    Drop-in sibling of TorchGeo's ``MAE`` task: shared arguments keep their names, and
    ``bands`` says what the channels are. Spectral indices (NDVI, NDWI, NDBI) give every
    patch a saliency, and a curriculum steers the mask toward salient patches.

    If you use this task for your research, please cite the original paper:

    * https://arxiv.org/abs/2603.07463

    .. versionadded:: 0.1
    """

    ignore = ('transform', 'weights')

    def __init__(
        self,
        model: str = 'sigmae_vit_small_patch8',
        weights: WeightsEnum | str | None = None,
        in_channels: int | None = None,
        bands: Sequence[str] = SENTINEL2_TEN_BANDS,
        data_bands: Sequence[str] | None = None,
        sensor: str = 'sentinel2',
        transform: nn.Module | None = None,
        size: int | None = None,
        cube_bands: int | None = None,
        groups: Sequence[Sequence[str]] | None = None,
        positions: str = 'learnable',
        masking: str = 'saliency',
        mask_ratio: float | tuple[float, float] = 0.9,
        predict_ratio: float = 1.0,
        indices: Sequence[str] = DEFAULT_INDICES,
        alpha: float = 0.5,
        combine: str = 'minmax',
        saliency_start: float = 0.0,
        saliency_end: float = 1.0,
        curriculum: str = 'linear',
        decoder: str = 'cross',
        decoder_dim: int = 256,
        decoder_depth: int = 4,
        decoder_num_heads: int = 8,
        norm_pix_loss: bool = False,
        spectral_weight: float = 0.0,
        target: str = 'standardized',
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        normalize: bool | None = None,
        scale: float = 1e-4,
        offset: float = 0.0,
        nodata: float | None = 0.0,
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
                or None to start from scratch. The decoder goes on as well if the file
                holds one of the same shape. Any image size will do; other bands are
                matched as in ``adapt_bands``.
            in_channels: Number of bands the model sees; by default that of *bands*.
            bands: Names of the bands the model sees, in order and any spelling.
            data_bands: Names of the channels of a batch, in order, those of one date.
                Default: what the TorchGeo datamodule tells, else *bands*.
            sensor: The sensor the band names belong to.
            transform: Augmentation of training batches, a kornia
                ``AugmentationSequential``; ``nn.Identity()`` for none. Default: random
                resized crops and flips.
            size: Side of training images in pixels; None for the model's default.
            cube_bands: Of ``s2mae_vit_*``: bands of a cube, a divisor of their number;
                None for 3 or else 2.
            groups: Of ``satmae_vit_*``: names of the bands of each group; None for
                SatMAE's (10 m; red edge; short-wave infrared; what is left).
            positions: Of both: ``'learnable'``, ``'sincos'`` or ``'vanilla'``
                (sines and cosines of a token's running number).
            masking: ``'saliency'`` (SIGMAE's SSDTM) or ``'random'`` (MAE, S2MAE). With
                several tokens at every place also ``'spatial'`` (the same places in
                every group of bands), ``'saliency_spatial'`` (likewise, salient places
                more often), ``'group'`` (other places in every group) or ``'channel'``
                (whole groups).
            mask_ratio: Share of masked tokens, in (0, 1); a pair changes it from start
                to end along the curriculum.
            predict_ratio: Share of the valid masked tokens to decode in training, in
                (0, 1].
            indices: Names of the spectral indices, of the saliency and of the spectral
                target.
            alpha: Weight of semantic richness against internal heterogeneity.
            combine: How both are joined: ``'minmax'``, ``'rank'`` or ``'product'``.
            saliency_start: Strength of the guidance at the start; 0 is random masking.
            saliency_end: Strength of the guidance at the end.
            curriculum: ``'linear'``, ``'cosine'`` or ``'constant'`` (the end values
                throughout).
            decoder: ``'cross'`` (CrossMAE's) or ``'self'`` (MAE's).
            decoder_dim: Width of the decoder.
            decoder_depth: Number of decoder blocks.
            decoder_num_heads: Number of attention heads in the decoder.
            norm_pix_loss: Normalise every target patch by its own mean and variance.
                Unlike TorchGeo's, off by default: predictions then stay in reflectance.
            spectral_weight: Weight of the spectral target, which is ours and not the
                paper's: every predicted token also predicts its mean in every band, and
                mean and standard deviation of its indices, all of which
                *norm_pix_loss* leaves out. 0 for pixels alone.
            target: Space of the target: ``'standardized'`` (what the encoder sees),
                ``'unit'`` ([0, 1] per band: two standard deviations to both sides of
                the mean, clipped) or ``'reflectance'``.
            mean: What is subtracted from the raw batch, one value or one per channel;
                None to ask the datamodule. Never guessed.
            std: What the raw batch is divided by, likewise.
            normalize: Who does that where no TorchGeo datamodule does: True if batches
                come raw and the task is to normalise them, False if they come
                normalised. Never guessed.
            scale: Reflectance per raw unit.
            offset: Reflectance at raw 0.
            nodata: Raw pixels whose bands all equal this value are missing and take no
                part in saliency and loss; None if no value marks missing pixels. NaN
                and infinite pixels are always missing.
            lr: Learning rate; None for *base_lr* scaled by the effective batch size.
            base_lr: Learning rate for an effective batch of 256 samples.
            weight_decay: Weight decay, not applied to biases, norms and positions.
            warmup_epochs: Linear warm-up in epochs, before a cosine to 0; None for 5 %
                of the run.
            seed: Seed of masks and augmentation.

        Raises:
            ValueError: If an argument is out of range, or a name is unknown; the
                message names the argument, the value and what to pass instead.
            TypeError: If *transform* cannot move the valid-pixel mask along.
            FileNotFoundError: If *weights* is neither a file, a folder of a run, nor a
                known enum.
        """
        self.weights = weights
        super().__init__()
        side = self.hparams['size'] or self.model.encoder.patch_embed.img_size[0]
        self.transform = default_transform(side) if transform is None else transform
        if not isinstance(self.transform, K.AugmentationSequential | nn.Identity):
            raise TypeError(
                f'transform: {type(transform).__name__} cannot move the mask of valid '
                'pixels along with the image. Wrap it in '
                'kornia.augmentation.AugmentationSequential, or pass nn.Identity().'
            )
        self._evaluated = 0
        if mean is not None and std is not None:
            self._statistics = self._resolve_statistics()

    # ---------------------------------------------------------------- configuration

    def configure_models(self) -> None:
        """Initialize the model."""
        hparams = self.hparams
        self.sensor = get_sensor(hparams['sensor'])
        self.bands = normalize_bands(hparams['bands'], self.sensor)
        if hparams['in_channels'] not in {None, len(self.bands)}:
            raise ValueError(
                f'in_channels: {hparams["in_channels"]} for {len(self.bands)} bands '
                f'{list(self.bands)}. Leave in_channels out, or name as many bands.'
            )
        check_predict_ratio(hparams['predict_ratio'])
        if not 0 <= hparams['spectral_weight'] < math.inf:
            raise ValueError(
                f'spectral_weight: {hparams["spectral_weight"]} must be 0 or more, and '
                'finite; 0 predicts pixels alone.'
            )
        TargetSpace(hparams['target'], hparams['norm_pix_loss'])
        self.model, info = build_model(hparams, self.bands, self.sensor, self.weights)
        # What came with weights, so that a checkpoint restores without them.
        hparams.update(encoder_settings(self.model.encoder, self.bands))
        self.history = info.get('trained_on', [])
        self.mask_schedule = MaskSchedule(
            hparams['masking'],
            hparams['mask_ratio'],
            (hparams['saliency_start'], hparams['saliency_end']),
            hparams['curriculum'],
            self.model.layout.num_groups,
        )
        self.patch_saliency = PatchSaliency(
            self.bands,
            self.model.patch_size,
            hparams['indices'],
            hparams['alpha'],
            hparams['combine'],
            nodata=None,
            sensor=self.sensor,
        )

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
    def target(self) -> TargetSpace:
        """The space hidden pixels are predicted in."""
        known = self.statistics
        mean, std = torch.tensor(known.model_mean), torch.tensor(known.model_std)
        return TargetSpace(
            self.hparams['target'],
            self.hparams['norm_pix_loss'],
            tuple((mean * known.scale + known.offset).tolist()),
            tuple((std * known.scale).tolist()),
        )

    # ------------------------------------------------------------------------ steps

    def forward(self, image: Tensor) -> Tensor:
        """Encode whole images, nothing masked.

        Args:
            image: Normalised images ``(B, C, H, W)`` of the model's bands.

        Returns:
            One feature per image, ``(B, D)``, as TorchGeo's ``Classification`` sees it.
        """
        features: Tensor = self.model.encoder(image)
        return features

    def training_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Compute the training loss over the predicted tokens.

        Args:
            batch: The output of your DataLoader.
            batch_idx: Integer displaying index of this batch.
            dataloader_idx: Index of the current dataloader.

        Returns:
            The loss tensor.
        """
        tokens, keep, predicted, counts = self._draw(batch)
        size = len(predicted)
        output = self.model(tokens.image, keep, predicted, tokens.patches)
        prediction, statistics = output.tensor_split([tokens.patches.shape[-1]], dim=-1)
        prediction = self.target.place(prediction, tokens, predicted)
        target = self.target.encode(tokens, predicted)
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

        Args:
            batch: The output of your DataLoader.
            batch_idx: Integer displaying index of this batch.
            dataloader_idx: Index of the current dataloader.
        """
        self._evaluate(batch, self.val_metrics)
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self._log_figure(batch)

    def test_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Compute test loss and reflectance metrics under a fixed mask.

        Args:
            batch: The output of your DataLoader.
            batch_idx: Integer displaying index of this batch.
            dataloader_idx: Index of the current dataloader.
        """
        self._evaluate(batch, self.test_metrics)

    def predict_step(
        self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Mask as at the end of training and reconstruct.

        Args:
            batch: The output of your DataLoader.
            batch_idx: Integer displaying index of this batch.
            dataloader_idx: Index of the current dataloader.

        Returns:
            ``'image'`` and ``'reconstruction'`` in reflectance ``(B, C, H, W)``, NaN
            where there is no data; ``'mask'`` ``(B, H, W)``, True where hidden, or with
            several tokens at every place ``(B, C, H, W)``;
            ``'saliency'`` ``(B, H / p, W / p)`` in [0, 1]. With ``norm_pix_loss`` the
            reconstruction borrows the hidden patch's own mean and standard deviation.
        """
        prediction: dict[str, Tensor] = self._reconstruct(batch, batch_idx)
        return prediction

    # ------------------------------------------------------------------------ hooks

    def on_validation_epoch_start(self) -> None:
        """Count evaluated samples from the first."""
        self._evaluated = 0

    def on_test_epoch_start(self) -> None:
        """Count evaluated samples from the first."""
        self._evaluated = 0

    def on_validation_epoch_end(self) -> None:
        """Log what the validation steps measured."""
        self._log_metrics(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log what the test steps measured."""
        self._log_metrics(self.test_metrics)

    def on_fit_end(self) -> None:
        """Say in plain words how good the reconstruction became."""
        metrics = self.trainer.callback_metrics
        if 'val_loss' in metrics and 'val_baseline_loss' in metrics:
            loss = float(metrics['val_loss'])
            baseline = float(metrics['val_baseline_loss'])
            change = loss / baseline - 1 if baseline else 0.0
            rank_zero_info(
                f'Validation loss {loss:.4f}; predicting the mean of the visible '
                f'tokens gives {baseline:.4f} under the same masks. That is '
                f'{abs(change):.0%} {"lower" if change <= 0 else "HIGHER"}.'
            )

    # ----------------------------------------------------------------------- public

    @property
    def encoder_record(self) -> dict[str, Any]:
        """What must be known to use the encoder, in plain Python values.

        Raises:
            ValueError: If mean and std of the training data are not known, because the
                task was neither trained nor given them.
        """
        return {
            **super().encoder_record,
            'norm_pix_loss': self.hparams['norm_pix_loss'],
            'ssl_method': family(self.hparams['model']),
            'positions': self.hparams['positions'],
            'target': self.hparams['target'],
            'masking': self.hparams['masking'],
            'mask_ratio': self.mask_schedule.ratio_at(1.0),
            'groups': self.model.layout.names(self.bands),
        }

    @torch.no_grad()
    def reconstruct(
        self,
        image: Tensor,
        mask_ratio: float | None = None,
        place: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Mask and reconstruct raw images, without a trainer.

        Args:
            image: Raw values ``(B, len(data_bands), H, W)``, floating point; or of
                several dates, as a batch in training or ``(B, T, len(data_bands), H,
                W)``.
            mask_ratio: Share of masked tokens; None for that at the end of training.
            place: Sample index of every image, ``(B,)``: its mask depends on the index
                alone and is not guided. None for masks as in training.

        Returns:
            As :meth:`predict_step`, every date an image.

        Raises:
            ValueError: If *mask_ratio* is not in (0, 1).
        """
        if image.ndim == 4 and image.shape[1] == len(self.statistics.data_bands):
            # One date will do, whatever the training data had.
            image = image.unsqueeze(1)
        batch = mark_valid_pixels(
            {'image': image.to(self.device)}, self.statistics, self.hparams['nodata']
        )
        batch['image'] = self.statistics.normalize(batch['image'])
        schedule = self.mask_schedule
        if mask_ratio is not None:
            schedule = replace(schedule, ratio=mask_ratio)
        prediction: dict[str, Tensor] = self._reconstruct(batch, 0, schedule, place)
        return prediction

    def plot(self, prediction: dict[str, Tensor]) -> Figure:
        """Draw reconstructions.

        Args:
            prediction: What :meth:`predict_step` returns.

        Returns:
            A figure with colours, saliency, mask and reconstruction, a row an image.
        """
        return plot_reconstruction(
            prediction['image'].cpu(),
            prediction['reconstruction'].cpu(),
            prediction['mask'].cpu(),
            prediction['saliency'].cpu(),
            self.bands,
            self.sensor,
            self.hparams['norm_pix_loss'],
        )

    # ---------------------------------------------------------------------- private

    # Random numbers, logging and kornia are no business of torch.compile, which is left
    # with the model and the loss.
    @torch.compiler.disable
    def _draw(self, batch: dict[str, Any]) -> tuple[TokenBatch, Tensor, Tensor, Tensor]:
        """Augment a training batch, mask it, and choose what is predicted.

        Everything random depends on the seed, the number of batches before this one and
        the process alone; masks on a sample's place in the batches of all processes, so
        that two processes mask as one with twice the batch does.
        """
        key = (self.hparams['seed'], self.trainer.fit_loop.total_batch_idx)
        seed = seed_from(_STAGES['augment'], *key, self.global_rank)
        share = self.hparams['predict_ratio']
        spectral = self.hparams['spectral_weight'] > 0
        schedule, progress = self.mask_schedule, self.progress
        tokens = self._prepare(batch, seed, schedule.guided, spectral)
        place = self._places(batch, tokens, 0)
        size, count = tokens.valid.shape
        noise = sample_noise(seed_from(_STAGES['train'], *key), place, count)
        mask = schedule.mask(tokens.saliency, noise, progress, tokens.valid)
        count = mask.masked.shape[1]
        noise = sample_noise(seed_from(_STAGES['targets'], *key), place, count)
        predicted, counts = select_targets(mask.masked, noise, share, tokens.valid)
        self.log('mask_ratio', schedule.ratio_at(progress), batch_size=size)
        if schedule.guided:
            beta = schedule.strength_at(progress)
            self.log('saliency_beta', beta, batch_size=size)
            self.visibility_ratio.update(tokens.saliency, mask.keep, tokens.valid)
        return tokens, mask.keep, predicted, counts

    def _places(self, batch: dict[str, Any], tokens: TokenBatch, before: int) -> Tensor:
        """Where samples stand among those of all processes.

        Lightning deals samples to the processes in turn, all dates of one to one.

        Args:
            batch: The batch as it came.
            tokens: Its tokens, where dates are samples of their own.
            before: Samples, with dates, that this process had before the batch.

        Returns:
            Places ``(B * dates,)``.
        """
        samples = len(tokens.image)
        dates = samples // len(batch['image'])
        place = before + torch.arange(samples, device=tokens.image.device)
        turn = place // dates * int(self.trainer.world_size) + int(self.global_rank)
        return turn * dates + place % dates

    def _prepare(
        self,
        batch: dict[str, Any],
        seed: int | None = None,
        salient: bool = True,
        spectral: bool = False,
    ) -> TokenBatch:
        """Fold dates into the batch, augment (given a seed), make tokens."""
        self.statistics.check(batch['image'])
        image = self.statistics.by_date(batch['image']).flatten(0, -4)
        if VALID_KEY in batch:
            valid = batch[VALID_KEY].flatten(0, 1).unsqueeze(1)
        else:
            valid = torch.ones_like(image[:, :1])
        if seed is not None:
            image, valid = augment(self.transform, image, valid, seed)
        # Missing pixels are NaN in the image; the mask adds padding.
        pixels = valid[:, 0] > 0.5
        return make_tokens(
            image,
            pixels,
            self.statistics,
            self.patch_saliency,
            self.model.layout,
            salient,
            spectral,
        )

    @torch.compiler.disable
    def _evaluate(self, batch: dict[str, Any], metrics: ReconstructionMetrics) -> None:
        """Add a batch to the metrics of a stage."""
        tokens, space = self._prepare(batch, salient=False), self.target
        place = self._places(batch, tokens, self._evaluated)
        self._evaluated += len(place)
        mask = self._fixed_mask(tokens, place, self.mask_schedule)
        prediction = self.model(tokens.image, mask.keep, mask.masked, tokens.patches)
        prediction = prediction[..., : tokens.patches.shape[-1]]
        prediction = space.place(prediction, tokens, mask.masked)
        baseline = baseline_prediction(tokens, mask, space)
        target = space.encode(tokens, mask.masked)
        pixels = gather_tokens(tokens.pixels, mask.masked)
        metrics.update_losses(
            masked_mse(prediction, target, pixels),
            masked_mse(baseline, target, pixels),
            int(pixels.sum()),
        )
        prediction = space.decode(prediction, tokens, mask.masked)
        found, hidden = fill_in(tokens, mask.masked, prediction)
        known = self.model.layout.unpatchify(
            tokens.pixels, self.model.grid(tokens.image)
        )
        found, truth = map(self.statistics.reflectance, (found, tokens.image))
        metrics.update_images(found, truth, hidden & known)

    @torch.compiler.disable
    def _reconstruct(
        self,
        batch: dict[str, Any],
        batch_idx: int,
        schedule: MaskSchedule | None = None,
        place: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Mask as at the end of training and reconstruct, see :meth:`reconstruct`."""
        schedule, tokens = schedule or self.mask_schedule, self._prepare(batch)
        if place is None:
            key = (_STAGES['predict'], self.hparams['seed'], batch_idx)
            size, count = tokens.valid.shape
            index = torch.arange(size, device=self.device)
            noise = sample_noise(seed_from(*key, self.global_rank), index, count)
            mask = schedule.mask(tokens.saliency, noise, 1.0, tokens.valid)
        else:
            mask = self._fixed_mask(tokens, place.to(self.device), schedule)
        return reconstruct(self.model, tokens, mask, self.statistics, self.target)

    def _fixed_mask(
        self, tokens: TokenBatch, place: Tensor, schedule: MaskSchedule
    ) -> TokenMask:
        """Mask as at the end of training, by the sample index and without guidance."""
        noise = sample_noise(_FIXED_KEY, place, tokens.valid.shape[1])
        unguided = torch.zeros_like(tokens.saliency)
        return schedule.mask(unguided, noise, 1.0, tokens.valid)

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
        experiments = [
            logger.experiment
            for logger in self.loggers
            if hasattr(logger.experiment, 'add_figure')
        ]
        if not experiments or not self.trainer.is_global_zero:
            return
        few = {
            key: value[:4] if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        figure = self.plot(self._reconstruct(few, 0))
        for experiment in experiments:
            experiment.add_figure('reconstruction', figure, self.global_step)
