# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Pretraining steps: of a task as Lightning runs it, and of bare modules."""

import argparse
import ctypes
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from kornia import augmentation as K
from lightly.models import utils
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from torchgeo_sigmae import BatchSpec, FiniteGuard, SIGMAETask
from torchgeo_sigmae.masking import random_mask, sample_noise
from torchgeo_sigmae.models import normalize_patches
from torchgeo_sigmae.models.tokens import gather_tokens
from torchgeo_sigmae.optim import build_optimizer

from .measure import inside, now

try:
    from torchgeo.tasks import MAE
except ImportError:
    # Before TorchGeo 0.10.
    MAE = None

__all__ = ('KINDS', 'MAE', 'Contender', 'Fit', 'share_memory')

#: An option of mallopt, from malloc.h.
_M_ARENA_MAX = -8


class Contender(NamedTuple):
    """One row of a table.

    Attributes:
        name: What it is.
        table: The table it is in.
        make: Whose step it is: ``'ours'``, ``'fused'`` (ours with the attention PyTorch
            would choose), ``'unguarded'`` (ours without the check for NaN),
            ``'torchgeo'``, or ``'modules'`` and ``'lightly'``, which are no tasks.
        options: Arguments of the task, beside model, size and bands.
        precision: ``'fp32'``, ``'bf16'``; None for that of the command line.
        family: Family of the encoder.
        size: Side of the images; None for that of the command line.
    """

    name: str
    table: str
    make: str
    options: Mapping[str, Any] | None = None
    precision: str | None = None
    family: str = 'sigmae'
    size: int | None = None


def crop(size: int) -> K.AugmentationSequential:
    """Make an augmentation for both, that of torchgeo.tasks.MAE."""
    return K.AugmentationSequential(
        K.RandomResizedCrop(
            (size, size), scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3), resample='bicubic'
        ),
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        data_keys=['input'],
    )


def make_task(
    contender: Contender, model: str, size: int, channels: int
) -> LightningModule:
    """Make the task of a contender."""
    torch.manual_seed(0)
    model = model.replace('sigmae', contender.family, 1)
    if contender.make == 'torchgeo':
        # It adds positions to the tokens, and passes no arguments to the encoder.
        create = partial(timm.create_model, positions='learnable')
        with mock.patch.object(timm, 'create_model', create):
            task: LightningModule = MAE(
                model=model,
                in_channels=channels,
                size=size,
                **(contender.options or {}),
            )
        return task
    options = dict(contender.options or {})
    if contender.table == 'equal':
        options['transform'] = crop(size)
    ours = SIGMAETask(
        model,
        size=size,
        batch=BatchSpec(mean=2000.0, std=1000.0, normalize=False),
        lr=1e-4,
        **options,
    )
    if contender.make == 'fused':
        ours.model.attention = lambda image, tokens: nullcontext()
    return ours


def share_memory() -> None:
    """Let all threads get their memory from where the main thread gets it.

    Contenders train in threads of their own. glibc gives a thread an arena that hands
    memory back after every step and fetches it anew, which a trainer in the main thread
    does not suffer from. Elsewhere than under glibc, nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


class Turns(Callback):
    """Takes the turn before every step of a trainer, and the time."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.mine, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.seconds: list[float] = []
        self.start = 0.0
        self.last = False
        self.modes: Sequence[AbstractContextManager[Any]] = ()
        self.stack = ExitStack()

    def begin(self) -> None:
        """Wait for the turn."""
        self.mine.acquire()
        # Modes are a matter of the thread.
        for mode in self.modes:
            self.stack.enter_context(mode)
        self.start = now(self.device)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Give the turn back, and wait for the next."""
        self.seconds.append(now(self.device) - self.start)
        self.stack.close()
        self.done.release()
        self.begin()
        trainer.should_stop = self.last


class NoGuard(FiniteGuard):
    """Takes the place of the guard, and checks nothing."""

    on_train_batch_start = Callback.on_train_batch_start
    on_before_backward = Callback.on_before_backward
    on_before_optimizer_step = Callback.on_before_optimizer_step
    on_train_batch_end = Callback.on_train_batch_end


class Fit:
    """Steps of a trainer, one when called."""

    def __init__(
        self, arguments: argparse.Namespace, contender: Contender, images: Tensor
    ) -> None:
        size = images.shape[-1]
        task = make_task(contender, arguments.model, size, images.shape[1])
        self.tokens: int | None = None
        if isinstance(task, SIGMAETask):
            side = size // task.model.patch_size
            self.tokens = task.model.layout.num_groups * side**2
        self.task = torch.compile(task) if arguments.compile else task
        precision = contender.precision or arguments.precision
        self.turns = Turns(arguments.device)
        self.folder = tempfile.TemporaryDirectory()
        self.trainer = Trainer(
            accelerator='gpu' if arguments.device == 'cuda' else 'cpu',
            devices=1,
            precision='bf16-mixed' if precision == 'bf16' else '32-true',
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[
                self.turns,
                *([NoGuard()] if contender.make == 'unguarded' else []),
            ],
            default_root_dir=self.folder.name,
        )
        # As it comes from a loader: the same batch, many times.
        batches: Any = [{'image': images.to(arguments.device)}] * 100_000
        self.loader: DataLoader[Any] = DataLoader(batches, batch_size=None)
        self.error: BaseException | None = None
        self.threads = arguments.threads
        self.thread = threading.Thread(target=self._fit, daemon=True)
        self.thread.start()

    def _fit(self) -> None:
        """Train, in a thread of its own."""
        torch.set_num_threads(self.threads)
        self.turns.begin()
        try:
            self.trainer.fit(self.task, self.loader)
        except BaseException as error:
            self.error = error
            self.turns.done.release()

    def __call__(self, *modes: AbstractContextManager[Any]) -> float:
        """Take a step."""
        self.turns.modes = modes
        self.turns.mine.release()
        self.turns.done.acquire()
        if self.error is not None:
            raise RuntimeError('training failed') from self.error
        return self.turns.seconds[-1]

    def close(self) -> None:
        """Stop training."""
        self.turns.last, self.turns.modes = True, ()
        self.turns.mine.release()
        self.thread.join()
        self.folder.cleanup()


class Modules:
    """A step with our modules, without Lightning."""

    tokens = None

    def __init__(
        self, arguments: argparse.Namespace, contender: Contender, images: Tensor
    ) -> None:
        task = make_task(contender, arguments.model, images.shape[-1], images.shape[1])
        self.model: Any = task.model.to(arguments.device)
        self.images = images.to(arguments.device)
        self.optimizer = build_optimizer(
            [self.model.encoder, self.model.decoder], 1e-4, 0.05
        )

    def __call__(self, *modes: AbstractContextManager[Any]) -> float:
        """Take a step."""
        return inside(self.step, *modes)

    def step(self) -> float:
        """Take a step."""
        start = now(self.images.device.type)
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return now(self.images.device.type) - start

    def loss(self) -> Tensor:
        """Compute the loss."""
        patches = self.model.layout.patchify(self.images)
        index = torch.arange(len(patches), device=patches.device)
        mask = random_mask(sample_noise(0, index, patches.shape[1]), 0.9)
        prediction = self.model(self.images, mask.keep, mask.masked, patches)
        target, _, _ = normalize_patches(gather_tokens(patches, mask.masked))
        return F.mse_loss(prediction, target)

    def close(self) -> None:
        """Do nothing."""


class Lightly(Modules):
    """A step with lightly's modules, put together as its documentation says."""

    def __init__(
        self, arguments: argparse.Namespace, contender: Contender, images: Tensor
    ) -> None:
        torch.manual_seed(0)
        size, channels = images.shape[-1], images.shape[1]
        vit: Any = timm.create_model(
            arguments.model, in_chans=channels, num_classes=0, img_size=size,
            positions='learnable',
        )  # fmt: skip
        self.patch = vit.patch_embed.patch_size[0]
        self.backbone = MaskedVisionTransformerTIMM(vit=vit).to(arguments.device)
        self.decoder = MAEDecoderTIMM(
            num_patches=vit.patch_embed.num_patches, patch_size=self.patch,
            in_chans=channels, embed_dim=vit.embed_dim, decoder_embed_dim=512,
            decoder_depth=1, decoder_num_heads=8, mlp_ratio=4.0, proj_drop_rate=0.0,
            attn_drop_rate=0.0,
        ).to(arguments.device)  # fmt: skip
        self.images = images.to(arguments.device)
        modules: Sequence[nn.Module] = (self.backbone, self.decoder)
        self.optimizer = build_optimizer(modules, 1e-4, 0.05)

    def loss(self) -> Tensor:
        """Compute the loss."""
        shape = len(self.images), self.backbone.sequence_length
        keep, masked = utils.random_token_mask(shape, 0.9, device=self.images.device)
        seen = self.decoder.embed(self.backbone.encode(self.images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, shape)
        tokens = utils.set_at_index(tokens, keep, seen.type_as(tokens))
        decoded = utils.get_at_index(self.decoder.decode(tokens), masked)
        patches = utils.patchify(self.images, self.patch)
        target = utils.get_at_index(patches, masked - 1)
        target = utils.normalize_mean_var(target, dim=-1)
        return F.mse_loss(self.decoder.predict(decoded), target)


#: How the steps of a contender are run.
KINDS: dict[str, type[Any]] = {'modules': Modules, 'lightly': Lightly}
