# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""A pretraining step, beside what a TorchGeo user would take instead.

    python -m benchmarks.pretrain_step [--data PATH] [--output PATH] [--only NAME ...]

Whole steps, as Lightning runs them in ``Trainer.fit``: what happens to a batch that is
in memory and normalised, augmentation, mask, forward, loss, backward, AdamW, logging.
Every contender has a trainer of its own; they hand on the turn after every batch.

- ``equal``: the same timm ViT, decoder (MAE's, 512 x 1), mask (random), loss
  (``norm_pix_loss``), batch and augmentation as ``torchgeo.tasks.MAE``;
- ``model``: the same without Lightning and augmentation, against lightly's modules;
- ``defaults``: SIGMAETask's, in fp32 and bf16; the decoder of the papers, 512 x 8; and
  ``torchgeo.tasks.MAE`` at its own (512 x 1, 75 % masked).

Memory and FLOP: see ``benchmarks/measure.py``. Writes tables and
OUTPUT/pretrain_step.json. About fifteen minutes on 2 CPU cores.

On a GPU: ``--device cuda --precision bf16``, also ``--compile``; another encoder with
``--model sigmae_vit_base_patch16 --size 224``.
"""

import argparse
import json
import logging
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from kornia import augmentation as K
from lightly.models import utils
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from torchgeo_sigmae import SIGMAETask
from torchgeo_sigmae.masking import random_mask
from torchgeo_sigmae.models import gather_tokens, normalize_patches
from torchgeo_sigmae.tasks.optim import build_optimizer

from .measure import (
    DATA,
    count_flop,
    environment,
    interleave,
    matmul_rate,
    measure_memory,
    megabytes,
    now,
    product,
    quartiles,
    read_chips,
    where,
)

try:
    from torchgeo.tasks import MAE
except ImportError:
    # Before TorchGeo 0.10.
    MAE = None

#: Arguments of SIGMAETask that make it do what torchgeo.tasks.MAE does.
EQUAL: dict[str, Any] = {
    'masking': 'random',
    'decoder': 'self',
    'decoder_dim': 512,
    'decoder_depth': 1,
    'decoder_num_heads': 8,
    'norm_pix_loss': True,
}

#: Precisions, by name.
PRECISIONS = ('fp32', 'bf16')

#: The decoder of MAE, SatMAE and S2MAE.
LARGE: dict[str, Any] = {
    'decoder': 'self',
    'decoder_dim': 512,
    'decoder_depth': 8,
    'decoder_num_heads': 16,
}


class Contender(NamedTuple):
    """One row of a table.

    Attributes:
        name: What it is.
        table: The table it is in.
        make: Whose step it is: ``'ours'``, ``'fused'`` (ours with the attention PyTorch
            would choose), ``'torchgeo'``, or ``'modules'`` and ``'lightly'``, which are
            no tasks.
        options: Arguments of the task, beside model, size and bands.
        precision: ``'fp32'``, ``'bf16'``; None for that of the command line.
    """

    name: str
    table: str
    make: str
    options: Mapping[str, Any] | None = None
    precision: str | None = None


#: What is compared. The first of a table is what the others are measured against.
CONTENDERS = {
    'cpu': (
        Contender('SIGMAETask', 'equal', 'ours', EQUAL),
        Contender('torchgeo.tasks.MAE', 'equal', 'torchgeo', {'mask_ratio': 0.9}),
        Contender('our modules', 'model', 'modules', EQUAL),
        Contender("lightly's modules", 'model', 'lightly'),
        Contender('SIGMAETask', 'defaults', 'ours', None, 'fp32'),
        Contender('with decoder 512 x 8', 'defaults', 'ours', LARGE, 'fp32'),
        Contender('torchgeo.tasks.MAE', 'defaults', 'torchgeo', None, 'fp32'),
        Contender('SIGMAETask, bf16', 'defaults', 'ours', None, 'bf16'),
        Contender('with fused attention, bf16', 'defaults', 'fused', None, 'bf16'),
    ),
    'cuda': (
        Contender('SIGMAETask', 'equal', 'ours', EQUAL),
        Contender('torchgeo.tasks.MAE', 'equal', 'torchgeo', {'mask_ratio': 0.9}),
        Contender('SIGMAETask', 'defaults', 'ours'),
        Contender('with decoder 512 x 8', 'defaults', 'ours', LARGE),
        Contender('torchgeo.tasks.MAE', 'defaults', 'torchgeo'),
    ),
}


def crop(size: int) -> K.AugmentationSequential:
    """Make an augmentation for both, that of torchgeo.tasks.MAE.

    Args:
        size: Side of the images.

    Returns:
        Random resized crops and flips.
    """
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
    """Make the task of a contender.

    Args:
        contender: The contender.
        model: Name of the encoder.
        size: Side of the images in pixels.
        channels: Number of bands.

    Returns:
        The task.
    """
    torch.manual_seed(0)
    if contender.make == 'torchgeo':
        task: LightningModule = MAE(
            model=model, in_channels=channels, size=size, **(contender.options or {})
        )
        return task
    options = dict(contender.options or {})
    if contender.table == 'equal':
        options['transform'] = crop(size)
    ours = SIGMAETask(
        model, size=size, mean=2000.0, std=1000.0, normalize=False, lr=1e-4, **options
    )
    if contender.make == 'fused':
        ours.model.attention = nullcontext
    return ours


class Turns(Callback):
    """Takes the turn before every step of a trainer, and the time."""

    def __init__(self, device: str) -> None:
        """Initialize a new Turns instance.

        Args:
            device: ``'cpu'`` or ``'cuda'``.
        """
        self.device = device
        self.mine, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.seconds: list[float] = []
        self.start = 0.0
        self.last = False
        self.counter: FlopCounterMode | None = None
        self.stack = ExitStack()

    def begin(self) -> None:
        """Wait for the turn."""
        self.mine.acquire()
        self.start = now(self.device)
        if self.counter is not None:
            # Modes are a matter of the thread.
            self.stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            self.stack.enter_context(self.counter)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Give the turn back, and wait for the next.

        Args:
            trainer: The trainer.
            *args: Not used.
        """
        self.stack.close()
        self.seconds.append(now(self.device) - self.start)
        self.done.release()
        self.begin()
        trainer.should_stop = self.last


class Fit:
    """Steps of a trainer, one when called."""

    def __init__(
        self, arguments: argparse.Namespace, contender: Contender, images: Tensor
    ) -> None:
        """Initialize a new Fit instance.

        Args:
            arguments: See the module.
            contender: Whose steps.
            images: The batch, normalised ``(B, C, H, W)``.
        """
        size = images.shape[-1]
        task = make_task(contender, arguments.model, size, images.shape[1])
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
            callbacks=[self.turns],
            default_root_dir=self.folder.name,
        )
        # As it comes from a loader: the same batch, many times.
        batches: Any = [{'image': images}] * 100_000
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

    def __call__(self) -> float:
        """Take a step.

        Returns:
            Seconds it took.

        Raises:
            RuntimeError: If training fails.
        """
        self.turns.mine.release()
        self.turns.done.acquire()
        if self.error is not None:
            raise RuntimeError('training failed') from self.error
        return self.turns.seconds[-1]

    def count_flop(self) -> int:
        """Take a step and count what it does.

        Returns:
            Floating-point operations.
        """
        self.turns.counter = FlopCounterMode(display=False)
        self()
        total: int = self.turns.counter.get_total_flops()
        self.turns.counter = None
        return total

    def close(self) -> None:
        """Stop training."""
        self.turns.last = True
        self.turns.mine.release()
        self.thread.join()
        self.folder.cleanup()


class Modules:
    """A step with our modules, without Lightning."""

    def __init__(
        self, arguments: argparse.Namespace, contender: Contender, images: Tensor
    ) -> None:
        """Initialize a new Modules instance.

        Args:
            arguments: See the module.
            contender: Whose steps.
            images: The batch, normalised ``(B, C, H, W)``.
        """
        task = make_task(contender, arguments.model, images.shape[-1], images.shape[1])
        self.model: Any = task.model.to(arguments.device)
        self.images = images.to(arguments.device)
        self.optimizer = build_optimizer(
            [self.model.encoder, self.model.decoder], 1e-4, 0.05
        )

    def __call__(self) -> float:
        """Take a step.

        Returns:
            Seconds it took.
        """
        start = now(self.images.device.type)
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return now(self.images.device.type) - start

    def loss(self) -> Tensor:
        """Compute the loss.

        Returns:
            The scalar loss.
        """
        patches = self.model.layout.patchify(self.images)
        mask = random_mask(patches[..., 0], 0.9)
        prediction = self.model(self.images, mask.keep, mask.masked, patches)
        target, _, _ = normalize_patches(gather_tokens(patches, mask.masked))
        return F.mse_loss(prediction, target)

    def count_flop(self) -> int:
        """Take a step and count what it does.

        Returns:
            Floating-point operations.
        """
        return count_flop(self)

    def close(self) -> None:
        """Do nothing."""


class Lightly(Modules):
    """A step with lightly's modules, put together as its documentation says."""

    def __init__(
        self, arguments: argparse.Namespace, contender: Contender, images: Tensor
    ) -> None:
        """Initialize a new Lightly instance.

        Args:
            arguments: See the module.
            contender: Whose steps.
            images: The batch, normalised ``(B, C, H, W)``.
        """
        torch.manual_seed(0)
        size, channels = images.shape[-1], images.shape[1]
        vit: Any = timm.create_model(
            arguments.model, in_chans=channels, num_classes=0, img_size=size
        )
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
        """Compute the loss.

        Returns:
            The scalar loss.
        """
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


def read_batch(arguments: argparse.Namespace) -> tuple[Tensor, str]:
    """Read the batch.

    Args:
        arguments: See the module.

    Returns:
        Normalised images ``(B, 10, H, W)``, and what they are.
    """
    images, title = read_chips(arguments, arguments.size)
    return (images.nan_to_num() - 2000) / 1000, title


def build(
    arguments: argparse.Namespace, contender: Contender, small: bool
) -> Callable[[], float]:
    """Make the step of a contender.

    Args:
        arguments: See the module.
        contender: The contender.
        small: Whether two images do.

    Returns:
        The step.
    """
    _quiet()
    images, _ = read_batch(arguments)
    kind = KINDS.get(contender.make, Fit)
    step: Callable[[], float] = kind(
        arguments, contender, images[:2] if small else images
    )
    return step


def measure(
    arguments: argparse.Namespace, contenders: Sequence[Contender]
) -> list[dict[str, Any]]:
    """Measure contenders.

    Args:
        arguments: See the module.
        contenders: The contenders.

    Returns:
        What was measured, a record each.
    """
    memory = measure_memory(arguments, build, [(c,) for c in contenders])
    steps: list[Any] = [build(arguments, c, small=False) for c in contenders]
    rates = [product(arguments, precision) for precision in PRECISIONS]
    *times, fp32, bf16 = interleave(arguments, [*steps, *rates], 'Steps')
    products = dict(zip(PRECISIONS, (fp32, bf16), strict=True))
    records = []
    for contender, step, bytes_, seconds in zip(
        contenders, steps, memory, times, strict=True
    ):
        flop = step.count_flop()
        step.close()
        low, middle, high = quartiles(seconds)
        records.append(
            {
                'name': contender.name,
                'table': contender.table,
                'seconds': seconds,
                'median': middle,
                'quartiles': [low, high],
                'images_per_second': arguments.batch_size / middle,
                'bytes': bytes_,
                'flop': flop,
                'flop_per_second': flop / middle,
                'matmul_flop_per_second': matmul_rate(
                    products[contender.precision or arguments.precision]
                ),
            }
        )
    return records


def print_table(title: str, records: Sequence[dict[str, Any]]) -> None:
    """Print a table.

    Args:
        title: What is compared.
        records: What was measured.
    """
    print(
        f'\n| {title} | step, ms (quartiles) | images/s | to the first | memory | '
        f'GFLOP | of matmul |\n{"|---" * 7}|'
    )
    for row in records:
        low, high = (f'{1e3 * value:.0f}' for value in row['quartiles'])
        cells = (
            row['name'],
            f'{1e3 * row["median"]:.0f} ({low} to {high})',
            f'{row["images_per_second"]:.1f}',
            f'{records[0]["median"] / row["median"]:.2f}',
            megabytes(row['bytes']),
            f'{row["flop"] / 1e9:.0f}',
            f'{row["flop_per_second"] / row["matmul_flop_per_second"]:.0%}',
        )
        print(f'| {" | ".join(cells)} |')


def main(arguments: argparse.Namespace) -> None:
    """Measure, and write the tables.

    Args:
        arguments: See the module.
    """
    _quiet()
    torch.set_num_threads(arguments.threads)
    title = read_batch(arguments)[1]
    print(
        f'{arguments.batch_size} {title} of {arguments.size} px, {arguments.model}; '
        f'{where()}',
        flush=True,
    )
    records = []
    for table in arguments.only:
        contenders = [
            contender
            for contender in CONTENDERS[arguments.device]
            if contender.table == table
            and (contender.make != 'torchgeo' or MAE is not None)
        ]
        if contenders:
            records += (found := measure(arguments, contenders))
            print_table(table, found)
    rates = {row['matmul_flop_per_second'] / 1e9 for row in records}
    print(f'\nMatrix products: {", ".join(f"{r:.0f}" for r in sorted(rates))} GFLOP/s.')
    arguments.output.mkdir(parents=True, exist_ok=True)
    content = {
        **environment(),
        'arguments': {key: str(value) for key, value in vars(arguments).items()},
        'data': title,
        'steps': records,
    }
    path = arguments.output / 'pretrain_step.json'
    path.write_text(json.dumps(content, indent=2) + '\n')
    print(f'Wrote {path}.')


def _quiet() -> None:
    """Keep Lightning from talking, once per contender."""
    logging.getLogger('lightning.pytorch').setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', module='lightning')
    warnings.filterwarnings('ignore', message='.*LeafSpec.*')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    tables = ('equal', 'model', 'defaults')
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--output', type=Path, default=Path('outputs/benchmarks'))
    parser.add_argument('--only', nargs='+', choices=tables, default=tables)
    parser.add_argument('--model', default='sigmae_vit_small_patch8')
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--repetitions', type=int, default=9)
    parser.add_argument('--warm-up', type=int, default=2)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32')
    parser.add_argument('--compile', action='store_true')
    main(parser.parse_args())
