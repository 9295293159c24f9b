# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoders in use: inference and fine-tuning, beside what TorchGeo users take.

    python -m benchmarks.encoders [--data PATH] [--output PATH] [--models NAME ...]

Inference is an image in, ten logits out, without gradients; a step of fine-tuning adds
cross-entropy, backward and AdamW on all weights. timm's own vision transformer of the
same size tells what our additions cost, ResNet-50 is what TorchGeo has most weights of.
Memory is that of a step of fine-tuning, see ``benchmarks/measure.py``.

Writes a table and OUTPUT/encoders.json. About five minutes on 2 CPU cores.
"""

import argparse
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import torchgeo_sigmae  # noqa: F401 (registers our names with timm)

from .measure import (
    DATA,
    interleave,
    measure_memory,
    megabytes,
    now,
    quartiles,
    read_batch,
    where,
    write_record,
)

#: What is compared. The first is what the others are measured against.
MODELS = (
    'sigmae_vit_small_patch8',
    'vit_small_patch8_224',
    'sigmae_vit_small_patch16',
    's2mae_vit_small_patch8',
    'satmae_vit_small_patch8',
    'resnet50',
)


class Use:
    """An encoder with a head, in use."""

    def __init__(
        self, arguments: argparse.Namespace, name: str, images: Tensor
    ) -> None:
        options = {'img_size': images.shape[-1]} if 'vit' in name else {}
        torch.manual_seed(0)
        self.model = timm.create_model(
            name, in_chans=images.shape[1], num_classes=10, **options
        ).to(arguments.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.images = images.to(arguments.device)
        self.labels = torch.arange(len(images), device=arguments.device) % 10
        self.device = arguments.device
        self.half = torch.autocast(
            self.device, torch.bfloat16, enabled=arguments.precision == 'bf16'
        )

    def infer(self) -> float:
        """Encode the batch."""
        self.model.eval()
        start = now(self.device)
        with torch.inference_mode(), self.half:
            self.model(self.images)
        return now(self.device) - start

    def tune(self) -> float:
        """Take a step."""
        self.model.train()
        start = now(self.device)
        with self.half:
            loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return now(self.device) - start


def build(arguments: argparse.Namespace, name: str, small: bool) -> Use:
    """Make the step of a model, for :func:`.measure_memory`."""
    images, _ = read_batch(arguments)
    return Use(arguments, name, images[:2] if small else images).tune


def main(arguments: argparse.Namespace) -> None:
    """Measure, and write the table."""
    torch.set_num_threads(arguments.threads)
    images, title = read_batch(arguments)
    print(
        f'{arguments.batch_size} {title} of {arguments.size} px, '
        f'{arguments.precision}; {where()}\n',
        flush=True,
    )
    memory = measure_memory(arguments, build, [(name,) for name in arguments.models])
    uses = [Use(arguments, name, images) for name in arguments.models]
    calls = [call for use in uses for call in (use.infer, use.tune)]
    times = interleave(arguments, calls, 'Encoders')
    print('| encoder | inference, ms (quartiles) | images/s | fine-tuning, ms '
          '(quartiles) | images/s | memory |\n|---|---|---|---|---|---|')  # fmt: skip
    records = []
    for name, bytes_, inference, tuning in zip(
        arguments.models, memory, times[::2], times[1::2], strict=True
    ):
        cells = [name]
        for seconds in (inference, tuning):
            low, middle, high = quartiles(seconds)
            cells.append(f'{1e3 * middle:.0f} ({1e3 * low:.0f} to {1e3 * high:.0f})')
            cells.append(f'{arguments.batch_size / middle:.1f}')
        print(f'| {" | ".join([*cells, megabytes(bytes_)])} |')
        records.append(
            {'model': name, 'inference': inference, 'tuning': tuning, 'bytes': bytes_}
        )
    write_record(arguments, 'encoders', data=title, encoders=records)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--output', type=Path, default=Path('outputs/benchmarks'))
    parser.add_argument('--models', nargs='+', default=MODELS)
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--batch-size', type=int, default=16)
    parser.add_argument('--repetitions', type=int, default=9)
    parser.add_argument('--warm-up', type=int, default=2)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32')
    main(parser.parse_args())
