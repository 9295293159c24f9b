# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``fit``, ``validate``, ``test``, ``predict``: LightningCLI with runs to resume."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torchgeo.datamodules import BaseDataModule, NonGeoDataModule

# So are ours.
from .. import _public  # noqa: F401
from .._compat import BaseTask
from ..callbacks import ResumableCheckpoint, newest_checkpoint
from ..datasets import is_resumable, resumable
from ..transforms import bitemporal
from .parser import OneLineErrors

__all__ = ('SIGMAECLI',)


class _Parser(OneLineErrors, LightningArgumentParser):
    """LightningCLI's parser with our error messages."""


class SIGMAECLI(LightningCLI):
    """TorchGeo's command line plus ``--resume``, without its variables of GDAL.

    TorchGeo's sets variables for remote files, one of which hides files beside a raster
    (``.aux.xml``, ``.msk``). Here the environment stays as it is.

    The training data of every ``NonGeoDataModule`` are made resumable, and image pairs
    are augmented by :func:`~torchgeo_sigmae.bitemporal`. With ``--resume
    true`` the state of a fit is kept in ``resume/`` of ``trainer.default_root_dir``,
    and the same command continues it after an interruption.
    """

    def __init__(self, args: Sequence[str] | None = None, run: bool = True) -> None:
        """Initialize a new SIGMAECLI instance, which runs its command.

        Args:
            args: Arguments; None for those of the process.
            run: Whether the first argument is a command to run; otherwise task,
                datamodule and trainer are made from the arguments, and left to the
                caller as ``model``, ``datamodule`` and ``trainer``.
        """
        super().__init__(
            model_class=BaseTask,
            datamodule_class=BaseDataModule,
            seed_everything_default=0,
            parser_kwargs={'prog': 'torchgeo-sigmae'},
            parser_class=_Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={'overwrite': True},
            # None, not a list: LightningCLI warns about arguments given twice.
            args=None if args is None else list(args),
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our arguments."""
        parser.add_argument(
            '--resume',
            type=bool,
            default=False,
            help='Keep the state of a fit in resume/ of trainer.default_root_dir, and '
            'continue from the newest there.',
        )

    def instantiate_classes(self) -> None:
        """Instantiate task, datamodule and trainer; augment image pairs our way."""
        super().instantiate_classes()
        if self.datamodule is not None:
            bitemporal(self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Instantiate the trainer, with checkpoints to resume from where asked for."""
        trainer = super().instantiate_trainer(**kwargs)
        resume = self.subcommand == 'fit' and self._get(self.config, 'resume')
        if resume and self._checkpoint(trainer) is None:
            trainer.callbacks.append(ResumableCheckpoint())  # type: ignore[attr-defined]
        return trainer

    def before_fit(self) -> None:
        """Make the data resumable; find the checkpoint to continue from."""
        data = self.datamodule
        if isinstance(data, NonGeoDataModule) and not is_resumable(data):
            seed = self._get(self.config, 'seed_everything')
            resumable(data, seed if type(seed) is int else 0)
        if not self._get(self.config, 'resume'):
            return
        if not is_resumable(data):
            rank_zero_warn(
                f'resume: {type(data).__name__} samples in space and cannot '
                'be made resumable: a resumed run restarts the data of its epoch.'
            )
        folder = self._checkpoint(self.trainer).folder(self.trainer)
        newest = newest_checkpoint(folder)
        if newest is None:
            return
        path, content = newest
        rank_zero_info(
            f'Continuing from {path} (step {content["global_step"]}). Remove {folder}, '
            'or choose another trainer.default_root_dir, to start anew.'
        )
        self._compare(content.get('hyper_parameters', {}))
        arguments = self.config_init['fit']
        arguments['ckpt_path'] = str(path)
        if 'weights_only' in self._subcommand_method_arguments['fit']:
            arguments['weights_only'] = True

    def _checkpoint(self, trainer: Trainer) -> Any:
        """The callback that keeps the state of the run, if there is one."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        return next((c for c in callbacks if isinstance(c, ResumableCheckpoint)), None)

    def _compare(self, before: dict[str, Any]) -> None:
        """Warn where the arguments of the task are not those of the interrupted run."""
        now = dict(self.model.hparams)
        changed = [
            f'{name} was {before[name]!r}, is {now[name]!r}'
            for name in sorted(set(before) & set(now))
            if not name.startswith('_') and before[name] != now[name]
        ]
        if changed:
            rank_zero_warn(
                f'The interrupted run had other arguments: {"; ".join(changed)}. It is '
                'continued with the new ones.'
            )
