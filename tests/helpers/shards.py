# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Shards in the layout of Copernicus-Pretrain, with small images."""

import io
import json
import tarfile
from pathlib import Path

import torch

#: Shapes of a grid's images: (patches, dates, C, H, W), (dates, C, H, W) or (1, H, W).
_SHAPES = {
    's1_grd': (2, 2, 2, 48, 48),
    's2_toa': (2, 2, 13, 48, 48),
    's3_olci': (2, 21, 32, 32),
    's5p_co': (2, 1, 24, 24),
    's5p_no2': (2, 1, 24, 24),
    's5p_o3': (2, 1, 24, 24),
    's5p_so2': (2, 1, 24, 24),
    'dem': (1, 32, 32),
}


def write_shards(folder: Path, shards: int = 2, grids: int = 6) -> str:
    """Write shards with *grids* samples each, and return the pattern of their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f'example-{shard:06}.tar', 'w') as tar:
            for grid in range(shard * grids, (shard + 1) * grids):
                for name, content in _grid(grid).items():
                    info = tarfile.TarInfo(f'{grid:07}.{name}')
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return str(folder / f'example-{{000000..{shards - 1:06}}}.tar')


def _grid(grid: int) -> dict[str, bytes]:
    """The files of a sample. Sentinel-2 is int16, Sentinel-3 has a NaN."""
    generator = torch.Generator().manual_seed(grid)
    files = {}
    for name, shape in _SHAPES.items():
        image = torch.rand(shape, generator=generator)
        if name == 's2_toa':
            image = (image * 4000).to(torch.int16)
            image[..., :8, :8] = 0
        if name == 's3_olci':
            image[..., 0, 0] = torch.nan
        buffer = io.BytesIO()
        torch.save(image, buffer)
        files[f'{name}.pth'] = buffer.getvalue()
    # One name per patch and date, as a reader takes them apart.
    names = {
        name: [[str(grid)] * shape[1]] * shape[0] if len(shape) == 5 else
        [str(grid)] * shape[0]
        for name, shape in _SHAPES.items()
    }  # fmt: skip
    files['json'] = json.dumps(names).encode()
    return files
