# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What every pretraining run needs, whatever it masks: data, optimiser, checkpoints."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import Metric

from .._compat import TORCHGEO_VERSION, BaseTask
from ..bands import Sensor
from ..callbacks.finite import add_guard
from ..datasets.resumable import is_resumable
from ..models import MaskedAutoencoder
from ..optim import (
    build_optimizer,
    scaled_lr,
    total_steps,
    warmup_cosine,
    warmup_steps,
)
from ..transforms import bitemporal
from ..weights import Weights, write_weights
from ..weights.files import (
    ENCODER_KEY,
    check_task,
    from_checkpoint_keys,
    plain,
    to_checkpoint_keys,
)
from .batch import mark_valid_pixels
from .datamodules import attached_datamodule, normalizes
from .statistics import BatchStatistics, resolve_statistics

__all__ = ('PretrainingTask',)


class PretrainingTask(BaseTask):
    """Base class of pretraining tasks.

    Knows what a batch holds and marks its missing pixels; owns optimiser and schedule;
    keeps in checkpoints what must be known to use the weights.
    """

    monitor = 'val_loss'

    model: MaskedAutoencoder
    bands: tuple[str, ...]
    sensor: Sensor

    #: What is collected over an epoch, by the name it is logged under.
    epoch_metrics: dict[str, Metric]

    _statistics: BatchStatistics | None = None
    _datamodule_normalizes = False
    _scale_checked = False
    _steps: int | None = None
    _stage: dict[str, Any] | None = None

    #: What earlier stages of progressive pretraining were trained on.
    history: Sequence[dict[str, Any]] = ()

    # ------------------------------------------------------------------------- data

    @property
    def statistics(self) -> BatchStatistics:
        """What batches hold, from the arguments, the datamodule or the checkpoint.

        Raises:
            ValueError: If that is not known yet.
        """
        if self._statistics is None:
            self._statistics = self._resolve_statistics()
        return self._statistics

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1], from the optimiser's steps."""
        return min(float(self.global_step) / self._steps, 1.0) if self._steps else 0.0

    def setup(self, stage: str) -> None:
        """Find out what the datamodule's batches hold, and repair its augmentations.

        TorchGeo's change-detection datamodules do not work with kornia 0.9, see
        :func:`~torchgeo_sigmae.bitemporal`.

        Args:
            stage: Either 'fit', 'validate', 'test', or 'predict'.

        Raises:
            ValueError: If neither the arguments nor the datamodule tell mean and std,
                or whether batches come raw.
        """
        add_guard(self.trainer)
        datamodule = attached_datamodule(self.trainer)
        if isinstance(datamodule, LightningDataModule):
            bitemporal(datamodule)
        self._statistics = self._resolve_statistics(datamodule)
        self._datamodule_normalizes = normalizes(datamodule)
        self._scale_checked = False
        normalize = self.hparams['normalize']
        if self._datamodule_normalizes and normalize:
            raise ValueError(
                f'normalize: True, but {type(datamodule).__name__} normalises its '
                'batches already. Leave normalize out.'
            )
        if not self._datamodule_normalizes and normalize is None:
            raise ValueError(
                'normalize: not known whether batches come raw or normalised, since no '
                'TorchGeo datamodule that normalises them is attached. Pass '
                'normalize=True if they come raw, normalize=False if (raw - mean) / '
                'std was applied already, or attach the datamodule.'
            )
        # Lightning warns that this task, not the datamodule, sees the raw batch first.
        # That is the intention.
        warnings.filterwarnings(
            'ignore', 'You have overridden .on_before_batch_transfer'
        )

    def on_before_batch_transfer(
        self, batch: dict[str, Any], dataloader_idx: int
    ) -> dict[str, Any]:
        """Mark the missing pixels before anything is augmented; normalise if asked to.

        Args:
            batch: The output of your DataLoader.
            dataloader_idx: Index of the current dataloader.

        Returns:
            The batch, its missing pixels NaN.
        """
        normalize = self.hparams['normalize']
        raw = self._datamodule_normalizes or normalize is True
        batch = mark_valid_pixels(
            batch, self.statistics, self.hparams['nodata'], normalized=not raw
        )
        if not self._scale_checked:
            self._scale_checked = True
            self.statistics.check_scale(batch['image'], normalized=not raw)
        if normalize:
            batch['image'] = self.statistics.normalize(batch['image'])
        return batch

    def _resolve_statistics(self, datamodule: object = None) -> BatchStatistics:
        """Find out what batches hold."""
        hparams = self.hparams
        return resolve_statistics(
            self.bands,
            hparams['data_bands'],
            hparams['mean'],
            hparams['std'],
            hparams['scale'],
            hparams['offset'],
            self.sensor,
            datamodule,
            self._statistics,
        )

    # -------------------------------------------------------------------- optimiser

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Initialize the optimizer and learning rate scheduler.

        Returns:
            Optimizer and learning rate scheduler.
        """
        self._steps = total_steps(self.trainer)
        lr = scaled_lr(self.trainer, self.hparams['lr'], self.hparams['base_lr'])
        warmup = warmup_steps(self.trainer, self._steps, self.hparams['warmup_epochs'])
        optimizer = build_optimizer(
            [self.model.encoder, self.model.decoder],
            lr,
            self.hparams['weight_decay'],
            self.trainer,
        )
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

    # ---------------------------------------------------------------------- logging

    def on_train_start(self) -> None:
        """Note what this run is trained on."""
        datamodule = attached_datamodule(self.trainer)
        dataset: Any = getattr(self.trainer.train_dataloader, 'dataset', None)
        root = getattr(datamodule, 'root', None)
        root = getattr(datamodule, 'kwargs', {}).get('root', root)
        self._stage = {
            'datamodule': type(datamodule).__name__ if datamodule else None,
            'root': None if root is None else str(root),
            'samples': len(dataset) if hasattr(dataset, '__len__') else None,
            'bands': list(self.bands),
            'size': self.model.encoder.patch_embed.img_size[0],
            'steps': self.global_step,
        }

    def on_train_epoch_end(self) -> None:
        """Log what was collected over the epoch.

        By hand, because what Lightning collects is lost when a run is interrupted.
        """
        for name, metric in self.epoch_metrics.items():
            self.log(name, metric.compute(), sync_dist=True)
            metric.reset()

    # ------------------------------------------------------------------ checkpoints

    @property
    def encoder_record(self) -> dict[str, Any]:
        """What must be known to use the encoder, in plain Python values.

        Raises:
            ValueError: If mean and std of the training data are not known, because the
                task was neither trained nor given them.
        """
        return {
            'model': self.hparams['model'],
            'in_channels': len(self.bands),
            'bands': list(self.bands),
            'sensor': self.sensor.name,
            'mean': list(self.statistics.model_mean),
            'std': list(self.statistics.model_std),
            'scale': self.statistics.scale,
            'offset': self.statistics.offset,
            'size': self.model.encoder.patch_embed.img_size[0],
            'patch_size': self.model.patch_size,
            'torchgeo_version': TORCHGEO_VERSION,
            'trained_on': [*self.history, self.stage],
        }

    @property
    def stage(self) -> dict[str, Any]:
        """What this run is trained on, in plain Python values."""
        stage = self._stage or {'datamodule': None, 'samples': None, 'steps': 0}
        # A trainer that only evaluates has made no steps.
        done = self.global_step if self._trainer else 0
        return {**stage, 'steps': max(stage['steps'], done)}

    def export(
        self, path: str | Path, decoder: bool = False, half: bool = False
    ) -> None:
        """Write the encoder to a file that ``weights=`` of TorchGeo's tasks takes.

        The file holds tensors and plain values only: the encoder under plain timm keys,
        and its name, bands, normalisation and target.

        Args:
            path: The file; missing folders are made. Written atomically.
            decoder: Whether to add the decoder, so that pretraining goes on from the
                file by ``weights=``. Tasks of TorchGeo ignore it.
            half: Whether to store in half precision, which halves the file.

        Raises:
            ValueError: If mean and std of the training data are not known, because the
                task was neither trained nor given them.
        """
        kept = self.model.decoder.state_dict() if decoder else {}
        weights = Weights(self.model.encoder.state_dict(), kept, self.encoder_record)
        write_weights(weights, path, half)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is needed to use the weights, under names TorchGeo can read.

        The encoder goes under ``model.<timm key>``, so that a training checkpoint can
        be passed to ``weights=`` of TorchGeo's tasks like an exported encoder.

        Args:
            checkpoint: The checkpoint about to be saved.
        """
        checkpoint['state_dict'] = to_checkpoint_keys(checkpoint['state_dict'])
        checkpoint['hyper_parameters'] = plain(checkpoint['hyper_parameters'])
        if self._statistics is not None:
            checkpoint['statistics'] = self._statistics.as_dict()
            checkpoint[ENCODER_KEY] = self.encoder_record
        checkpoint['epoch_metrics'] = {}
        for name, metric in self.epoch_metrics.items():
            with metric.sync_context():
                state = {
                    key: sums.clone()
                    for key, sums in metric.metric_state.items()
                    if isinstance(sums, Tensor)
                }
            checkpoint['epoch_metrics'][name] = state

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
        """Make a task of a training checkpoint, perhaps a stranger's.

        Nothing in the file is executed, and nothing it claims is believed before it is
        checked. *weights* and *transform* are those given here, or none.

        Args:
            checkpoint_path: The file, or a URL.
            map_location: Where to put the tensors, as in :func:`torch.load`.
            hparams_file: As in Lightning.
            strict: Whether all tensors have to be there, and no other.
            weights_only: Whether tensors and plain values are all that is read; False
                executes what the file asks for.
            **kwargs: Arguments of the task that are to differ.

        Returns:
            The task.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not one of ours.
        """
        local = isinstance(checkpoint_path, str | Path)
        if weights_only and local and os.path.isfile(checkpoint_path):
            check_task(checkpoint_path)
        given = dict.fromkeys(('weights', 'transform', '_instantiator'))
        task: Self = super().load_from_checkpoint(
            checkpoint_path,
            map_location,
            hparams_file,
            strict,
            weights_only=weights_only,
            **{**given, **kwargs},
        )
        return task

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Undo :meth:`on_save_checkpoint`; warn where a run cannot resume exactly.

        Args:
            checkpoint: The checkpoint that was loaded.
        """
        checkpoint['state_dict'] = from_checkpoint_keys(checkpoint['state_dict'])
        if 'statistics' in checkpoint and self._statistics is None:
            self._statistics = BatchStatistics.from_dict(checkpoint['statistics'])
        trained_on = checkpoint.get(ENCODER_KEY, {}).get('trained_on')
        if trained_on and all(type(stage.get('steps')) is int for stage in trained_on):
            *self.history, self._stage = trained_on
        if self._trainer is None:
            return
        for name, state in checkpoint.get('epoch_metrics', {}).items():
            # The sums of all processes go on in the first.
            if name in self.epoch_metrics and not self.global_rank:
                metric = self.epoch_metrics[name]
                for key in metric.metric_state.keys() & state.keys():
                    setattr(metric, key, state[key].to(metric.device))
        loop = checkpoint.get('loops', {}).get('fit_loop', {})
        batches = loop.get('epoch_loop.batch_progress', {})
        inside = (
            batches.get('current', {}).get('ready') and not batches['is_last_batch']
        )
        datamodule = attached_datamodule(self.trainer)
        if inside and not is_resumable(datamodule):
            rank_zero_warn(
                'This checkpoint was written in the middle of an epoch. Lightning '
                'restarts the data of the epoch, so a resumed run does not see the '
                'batches that were left. Pass torchgeo_sigmae.resumable(datamodule) to '
                'fit(), now and in the first run, to continue as if uninterrupted, or '
                'resume from a checkpoint written at the end of an epoch.'
            )
