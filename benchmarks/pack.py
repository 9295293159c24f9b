# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Pack training imagery into one small file, for a machine without the data.

    python -m benchmarks.pack DATA FILE.npz [--mebibytes 40]

Takes the training scenes of ``examples/pretrain_sentinel2.yaml`` in large tiles. Where
not all fit, every scene loses about the same share. Values are rounded to steps that
grow with their square root, as the noise of a sensor does: steps of 8 digital numbers
at 256, 16 at 1024, 32 at 4096.
"""

import argparse
import json
import lzma
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tqdm import tqdm

from torchgeo_sigmae.datasets import find_scenes

__all__ = ('RECIPE', 'read_packed')

#: The configuration that names scenes and bands.
RECIPE = Path(__file__).parents[1] / 'examples' / 'pretrain_sentinel2.yaml'

#: Codes per unit of the square root of a value.
FINENESS = 4

#: Scenes are cut into tiles of about this side; smaller ones are one tile.
SIDE = 256


def encode(tile: np.ndarray) -> bytes:
    """Compress raw values ``(C, H, W)``, NaN where missing."""
    code = np.rint(FINENESS * np.sqrt(np.nan_to_num(tile))).astype(np.int32)
    # What the left, upper and upper left neighbors do not predict.
    rest = np.diff(np.diff(code, axis=1, prepend=0), axis=2, prepend=0)
    # Small numbers of either sign become small numbers; then all low bytes, all high.
    folded = ((rest << 1) ^ (rest >> 31)).astype('<u2').reshape(-1, 1).view(np.uint8)
    return lzma.compress(folded.T.tobytes())


def decode(content: bytes, shape: Sequence[int]) -> np.ndarray:
    """Raw values in int16, ``(C, H, W)``; missing pixels are 0 in all bands."""
    pairs = np.frombuffer(lzma.decompress(content), np.uint8).reshape(2, -1).T
    folded = np.ascontiguousarray(pairs).view('<u2').astype(np.int32)
    rest = ((folded >> 1) ^ -(folded & 1)).reshape(shape)
    code = rest.cumsum(1).cumsum(2)
    return np.rint((code / FINENESS) ** 2).clip(max=2**15 - 1).astype(np.int16)


def read_packed(
    path: Path, count: int | None = None
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Read a packed file.

    Args:
        path: The file.
        count: Number of tiles at most; the first come from many scenes.

    Returns:
        Tiles as :func:`decode` returns them; ``bands``, ``mean``, ``std``, ``scale``
        and more.
    """
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(file['about'].tobytes())
        shapes = about['shapes'][:count]
        parts = [file[str(number)].tobytes() for number in range(len(shapes))]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(decode, parts, shapes)), about


def main(arguments: argparse.Namespace) -> None:
    """Pack the imagery, and print what is kept and how exactly."""
    data = yaml.safe_load(RECIPE.read_text())['data']['init_args']
    exclude = [*data['exclude'], *data['val_paths']]
    scenes = find_scenes(arguments.data, data['paths'], data['bands'], exclude=exclude)
    tiles, names, ranks = [], [], np.empty(0)
    generator = np.random.default_rng(0)
    for scene in scenes:
        image = scene.read()
        rows, columns = (max(round(n / SIDE), 1) for n in image.shape[1:])
        for strip in np.array_split(image, rows, axis=1):
            tiles += np.array_split(strip, columns, axis=2)
        count = rows * columns
        names += count * [str(Path(scene.path).relative_to(arguments.data))]
        shuffled = generator.permutation(count) + generator.random(count)
        ranks = np.append(ranks, shuffled / count)
    parts = [encode(tile) for tile in tqdm(tiles, 'Tiles', disable=None)]
    order = np.argsort(ranks)
    # 1 % is for the index.
    room = 0.99 * arguments.mebibytes * 2**20
    chosen = order[np.cumsum([len(parts[i]) for i in order]) <= room]
    count, total, squares, error, worst = 0, 0.0, 0.0, 0.0, 0.0
    for i in chosen:
        valid = np.isfinite(tiles[i]).all(0)
        truth = tiles[i][:, valid].astype(np.float64)
        decoded = decode(parts[i], tiles[i].shape)[:, valid]
        count += truth.shape[1]
        total, squares = total + truth.sum(1), squares + (truth**2).sum(1)
        error += ((decoded - truth) ** 2).sum() / len(truth)
        worst = max(worst, np.abs(decoded - truth).max(initial=0))
    mean, scale = total / count, 1e-4
    about = {
        'bands': data['bands'], 'scale': scale, 'mean': mean.tolist(),
        'std': np.sqrt(squares / count - mean**2).tolist(),
        'shapes': [tiles[i].shape for i in chosen], 'names': [names[i] for i in chosen],
    }  # fmt: skip
    content = {str(k): np.frombuffer(parts[i], np.uint8) for k, i in enumerate(chosen)}
    content['about'] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(arguments.file, **content)
    share = sum(tiles[i].size for i in chosen) / sum(tile.size for tile in tiles)
    print(
        f'{len(chosen)} of {len(tiles)} tiles, {share:.1%} of the area of '
        f'{len(scenes)} scenes, {count / 1e6:.1f} million valid pixels; '
        f'{arguments.file.stat().st_size / 2**20:.1f} MiB. Rounding changes '
        f'reflectance by {scale * (error / count) ** 0.5:.5f} (root mean square), by '
        f'{scale * worst:.4f} at most.'
    )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', type=Path)
    parser.add_argument('file', type=Path)
    parser.add_argument('--mebibytes', type=float, default=40)
    main(parser.parse_args())
