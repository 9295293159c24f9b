# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Real chips in one file, for a machine that has nothing but the repository.

    python -m benchmarks.pack chips.npy [--data PATH] [--size N] [--count N]
    python -m benchmarks.pretrain_step --device cuda --precision bf16 --data chips.npy

Chips of 96 px take 180 kB each.
"""

import argparse
from pathlib import Path

import numpy as np

from .measure import DATA, read_chips

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', type=Path)
    parser.add_argument('--data', type=Path, default=DATA)
    parser.add_argument('--size', type=int, default=96)
    parser.add_argument('--count', type=int, default=64, dest='batch_size')
    arguments = parser.parse_args()
    arguments.output = arguments.file.parent
    chips, title = read_chips(arguments, arguments.size)
    # Missing pixels are 0, as in the products.
    packed = chips.nan_to_num(0).round().numpy().astype(np.uint16)
    np.save(arguments.file, packed, allow_pickle=False)
    print(f'Wrote {len(packed)} {title} to {arguments.file}.')
