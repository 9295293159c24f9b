# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Fine-tune a classifier on your own folder of GeoTIFFs, one sub-folder per class.

Starts from SIGMAE_Weights.SENTINEL2, in TorchGeo's own classification task. Writes the
classifier and the settings needed to use it, and prints the accuracy per class on
unseen chips.
Needs: my_data/<class>/<anything>.tif, at least three chips per class, Sentinel-2
digital numbers (else --scale, --offset), band descriptions (else --bands).
Takes: 3 minutes on one CPU core for 200 chips of 64 px.

    python examples/classify_own_geotiffs.py my_data --output outputs/my_classifier
"""

import argparse
import json
import math
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from rasterio.windows import Window
from torch import Tensor
from torch.utils.data import Subset
from torchgeo.datasets import NonGeoClassificationDataset

from torchgeo_sigmae import FineTuning, SIGMAE_Weights, adapt_bands
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.datasets import RasterScene
from torchgeo_sigmae.weights import read_weights

try:
    from torchgeo.tasks import Classification  # TorchGeo 0.10
except ImportError:
    from torchgeo.trainers import ClassificationTask as Classification


def is_geotiff(path: str) -> bool:
    """Tell chips from whatever else lies in the folders.

    Args:
        path: A file.

    Returns:
        Whether its name ends like a GeoTIFF's.
    """
    return path.lower().endswith(('.tif', '.tiff'))


def read_chip(
    path: str, bands: Sequence[str], bands_in_file: Sequence[str] | None, size: int
) -> np.ndarray:
    """Read the wanted bands of a chip, by their names.

    Args:
        path: The file.
        bands: Wanted bands, in order.
        bands_in_file: Names of the bands in the file; None for its band descriptions.
        size: Side of the image in pixels: the middle of a larger chip, and a smaller
            one padded.

    Returns:
        Raw values ``(size, size, C)``, NaN where there is no data.
    """
    scene = RasterScene.open(path, bands, bands_in_file)
    row, column = (max(side - size, 0) // 2 for side in (scene.height, scene.width))
    return scene.read(Window(column, row, size, size)).transpose(1, 2, 0)


def prepare(
    sample: dict[str, Any], mean: Tensor, std: Tensor, random: bool
) -> dict[str, Any]:
    """Normalize as in pretraining; flip and turn training chips.

    Args:
        sample: ``{'image': (C, H, W), 'label': ()}`` in raw values.
        mean: Of every band, in raw values, ``(C, 1, 1)``.
        std: Likewise.
        random: Whether to flip and turn.

    Returns:
        The sample; missing pixels are at the mean.
    """
    image = ((sample['image'] - mean) / std).nan_to_num(0)
    if random:
        turns, mirrored = torch.randint(4, ()), torch.rand(()) < 0.5
        image = image.rot90(int(turns), (1, 2))
        image = image.flip(2) if mirrored else image
    return {**sample, 'image': image}


def split(labels: Sequence[int], seed: int) -> dict[str, list[int]]:
    """Split chips 60 : 20 : 20, every class by itself.

    Args:
        labels: Class of every chip; at least three chips of each.
        seed: Of the split.

    Returns:
        Positions of the chips for training, validation and test.
    """
    generator = np.random.default_rng(seed)
    parts: dict[str, list[int]] = {'train': [], 'val': [], 'test': []}
    for label in np.unique(labels):
        chips = generator.permutation(np.flatnonzero(np.equal(labels, label)))
        held = max(round(len(chips) / 5), 1)
        cuts = np.split(chips, [len(chips) - 2 * held, len(chips) - held])
        for part, chosen in zip(parts.values(), cuts, strict=True):
            part += chosen.tolist()
    return parts


def look_at(root: Path, bands_in_file: Sequence[str] | None) -> dict[str, Any]:
    """Find out what is in the folder.

    Args:
        root: Folder of the classes.
        bands_in_file: Names of the bands in the files; None for their descriptions.

    Returns:
        Names of the ``classes``; the ``labels`` of all chips; the ``bands`` the
        encoder gets, those of its ten that are in the first file; the ``size`` of the
        largest chip, in whole patches.

    Raises:
        SystemExit: If a class has too few chips, bands have no names, or a file is
            far too large.
        ValueError: If a file lacks a band that the first has.
    """
    chips = NonGeoClassificationDataset(str(root), is_valid_file=is_geotiff)
    few = [c for i, c in enumerate(chips.classes) if chips.targets.count(i) < 3]
    if few:
        raise SystemExit(f'{", ".join(few)}: fewer than 3 chips. Add some, or merge.')
    paths = [path for path, _ in chips.samples]
    with rasterio.open(paths[0]) as file:
        names = bands_in_file or [name or '' for name in file.descriptions]
    bands = [band for band in SENTINEL2_TEN_BANDS if band in BandSet.from_data(names)]
    if not bands:
        raise SystemExit(
            f'{paths[0]}: its {len(names)} bands {list(names)} have no names of '
            'Sentinel-2. Name all of them in order, for example: --bands B02 B03 B04 B8'
        )
    scenes = [RasterScene.open(path, bands, bands_in_file) for path in paths]
    side = max(max(scene.height, scene.width) for scene in scenes)
    if side > 512:
        raise SystemExit(f'{side} px is no chip. Cut the files up first.')
    return {
        'classes': chips.classes,
        'labels': chips.targets,
        'bands': bands,
        'size': math.ceil(side / 8) * 8,
    }


def report(
    task: torch.nn.Module, chips: Subset[dict[str, Any]], classes: Sequence[str]
) -> float:
    """Print how many chips of every class are recognised.

    Args:
        task: The classifier.
        chips: Chips it has not seen.
        classes: Names of the classes.

    Returns:
        Share of the chips that are recognised.
    """
    counts = np.zeros((len(classes), len(classes)), int)
    task.eval()
    with torch.inference_mode():
        for i in range(len(chips)):
            scores = task(chips[i]['image'][None])
            counts[int(chips[i]['label']), int(scores.argmax())] += 1
    width = max(map(len, classes))
    print(f'{"class":{width}}  chips  found  most often taken for')
    for name, row in zip(classes, counts, strict=True):
        found = row[classes.index(name)] / row.sum()
        wrong = np.where(np.equal(classes, name), 0, row)
        other = classes[wrong.argmax()] if wrong.any() else '-'
        print(f'{name:{width}}  {row.sum():5}  {found:5.0%}  {other}')
    share = float(counts.trace() / counts.sum())
    guess = counts.sum(axis=1).max() / counts.sum()
    print(f'{share:.0%} of {counts.sum()} unseen chips; always the same: {guess:.0%}.')
    return share


def main(
    root: Path,
    output: Path,
    bands: Sequence[str] | None = None,
    scale: float = 1.0,
    offset: float = 0.0,
    epochs: int = 30,
    batch_size: int = 32,
    seed: int = 0,
) -> float:
    """Fine-tune and test.

    Args:
        root: Folder of the classes.
        output: Folder for ``classifier.ckpt``, ``classifier.json``, which says how to
            use it, and ``encoder.pth``, the weights for the bands there are.
        bands: Names of the bands in the files; None for their descriptions.
        scale: Digital numbers per unit of the files: 10000 for reflectance.
        offset: Digital number at 0.
        epochs: Passes over the training chips.
        batch_size: Chips per step.
        seed: Of the split and the training.

    Returns:
        Share of the test chips that are recognised.

    Raises:
        SystemExit: If the folder cannot be used as it is.
    """
    # Chips need no georeference, and pinned memory no GPU that is not there.
    warnings.filterwarnings('ignore', "Dataset has no geotransform|'pin_memory'")
    found = look_at(root, bands)
    adapt_bands(SIGMAE_Weights.SENTINEL2, found['bands'], output / 'encoder.pth')
    known = read_weights(output / 'encoder.pth').info
    mean, std = (torch.tensor(known[name]).view(-1, 1, 1) for name in ('mean', 'std'))
    # In the units of the files.
    mean, std = (mean - offset) / scale, std / scale

    def chips(random: bool) -> NonGeoClassificationDataset:
        return NonGeoClassificationDataset(
            str(root),
            transforms=partial(prepare, mean=mean, std=std, random=random),
            loader=partial(
                read_chip, bands=found['bands'], bands_in_file=bands, size=found['size']
            ),
            is_valid_file=is_geotiff,
        )

    parts = {
        name: Subset(chips(random=name == 'train'), chosen)
        for name, chosen in split(found['labels'], seed).items()
    }
    some = chips(random=False)
    raw = np.stack([some.loader(path) for path, _ in some.samples[:: len(some) // 3]])
    spread = np.nanmedian(np.nanstd(raw, axis=(0, 1, 2)) / std.flatten().numpy())
    if not 3e-3 < spread < 300:
        raise SystemExit(
            f'Values vary {spread:.1g} times as much as Sentinel-2 digital numbers. '
            'Pass --scale 10000 if the files hold reflectance in [0, 1].'
        )
    print(
        f'{len(found["labels"])} chips of {len(found["classes"])} classes, '
        f'{found["size"]} px, bands {" ".join(found["bands"])}: '
        + ', '.join(f'{len(part)} {name}' for name, part in parts.items())
    )
    seed_everything(seed, verbose=False)
    task = Classification(
        model=known['model'],
        weights=str(output / 'encoder.pth'),
        in_channels=len(found['bands']),
        num_classes=len(found['classes']),
    )
    best = ModelCheckpoint(
        output, 'classifier', monitor='val_loss', enable_version_counter=False
    )
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[FineTuning(lr=1e-3), best],
        logger=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=output,
    )
    datamodule = LightningDataModule.from_datasets(
        parts['train'], parts['val'], batch_size=batch_size
    )
    trainer.fit(task, datamodule)
    task = Classification.load_from_checkpoint(
        best.best_model_path, map_location='cpu', weights_only=True
    )
    accuracy = report(task, parts['test'], found['classes'])
    told = {
        'classes': found['classes'],
        'bands': found['bands'],
        'size': found['size'],
        'mean': mean.flatten().tolist(),
        'std': std.flatten().tolist(),
        'test_accuracy': accuracy,
    }
    (output / 'classifier.json').write_text(json.dumps(told, indent=2) + '\n')
    print(f'Wrote {output / "classifier.ckpt"} and {output / "classifier.json"}.')
    return accuracy


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('root', type=Path, help='folder of the classes')
    parser.add_argument('--output', type=Path, default=Path('outputs/classifier'))
    parser.add_argument('--bands', nargs='+', help='names of the bands in the files')
    parser.add_argument('--scale', type=float, default=1.0, help='10000: reflectance')
    parser.add_argument('--offset', type=float, default=0.0, help='-1000: see the docs')
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--seed', type=int, default=0)
    main(**vars(parser.parse_args()))
