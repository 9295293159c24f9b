# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``torchgeo-sigmae evaluate``: what encoders learned, and what models reconstruct."""

import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .._files import require_writable, write_figure, write_text
from .device import default_device

if TYPE_CHECKING:
    import numpy as np

    from ..evaluation.baseline import BandStatistics
    from ..evaluation.encoders import FrozenEncoder
    from ..evaluation.features import Features
    from ..evaluation.probes import Splits

    #: Scores of an encoder over the splits, by the title of a column.
    Scores = dict[str, np.ndarray]

__all__ = ('evaluate_features', 'evaluate_reconstruction')

#: Columns of the table of reconstructions: title, metric, digits.
_COLUMNS = (
    ('loss', 'loss', 4),
    ('mean of visible', 'baseline_loss', 4),
    ('PSNR, dB', 'psnr', 2),
    ('spectral angle, degrees', 'spectral_angle', 2),
    ('SSIM', 'ssim', 4),
    ('RMSE', 'rmse', 4),
)


def evaluate_features(
    encoders: Sequence[str],
    *,
    root: Path,
    dataset: str = 'EuroSAT',
    splits: Sequence[str] = ('train', 'test'),
    folds: int | None = None,
    repeats: int = 5,
    samples_per_class: Sequence[int] = (),
    probes: Sequence[Literal['knn', 'linear', 'ridge', 'attentive']] = (
        'knn',
        'linear',
    ),
    bands: Sequence[str] | None = None,
    depth: int | None = None,
    pooling: Literal['mean', 'mean+std'] = 'mean',
    magnification: float = 1.0,
    remove_position_bias: bool = False,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    seed: int = 0,
    output: Path = Path('outputs/features.json'),
) -> list[Path]:
    """Classify labeled images by the features of frozen encoders.

    The table also holds what encoders have to beat: the mean and standard deviation of
    every band, and the first encoder with random weights. A second table holds the
    share of position in the variance of single tokens, block by block.

    Args:
        encoders: Encoder files, training checkpoints, names of weight enums, or timm
            names of models, which then have random weights.
        root: Folder of the dataset.
        dataset: Class in torchgeo.datasets.
        splits: Splits of the dataset: probes learn from the first and are tested on
            the last; with --folds, all of them are put together.
        folds: Number of stratified folds, in place of the dataset's own splits.
        repeats: How often the folds are drawn.
        samples_per_class: Also learn from so few samples of each class, for example
            1 5 10.
        probes: Classifiers.
        bands: Bands of encoders in order, where a file does not name them; of random
            encoders too.
        depth: Number of the block whose output is used, from 1; the last by default.
        pooling: Pooling over all patch positions, for all probes but attentive.
        magnification: Factor by which images are enlarged before they are encoded.
        remove_position_bias: Subtract the part of features that depends on the position
            in the image alone.
        batch_size: Number of images that are encoded at a time.
        num_workers: Number of processes that read images.
        device: For example cpu or cuda; CUDA by default if there is any.
        seed: Seed of folds and random weights.
        output: The JSON file of all figures.
    """
    arguments = dict(locals())
    import torch

    from ..evaluation.encoders import FrozenEncoder
    from ..evaluation.features import extract_features, first_images, open_split
    from ..evaluation.probes import TOKEN_PROBES

    require_writable(output)
    if not folds and len(splits) != 2:
        raise ValueError(
            f'splits: {list(splits)} must be two, one to learn from and one to be '
            'tested on. Or pass --folds, which puts all together.'
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded = [
            FrozenEncoder.load(
                source, bands, depth=depth, pooling=pooling, magnification=magnification
            )
            for source in encoders
        ]
        baselines = _baselines(loaded[0], encoders[0])
    scores: dict[str, Scores] = {}
    shares: dict[str, list[float]] = {}
    for encoder in [*baselines, *loaded]:
        name = encoder.name
        if name in scores:
            name += f' ({len(scores)})'
        features = extract_features(
            encoder,
            dataset,
            root,
            splits,
            batch_size,
            num_workers,
            default_device(device),
            tokens=not TOKEN_PROBES.isdisjoint(probes),
            remove_position_bias=remove_position_bias,
        )
        divided = _divide(features, folds, repeats, seed)
        scores[name] = _probe(features, divided, samples_per_class, probes)
        if isinstance(encoder, FrozenEncoder):
            images = first_images(open_split(dataset, root, splits[0], encoder.bands))
            shares[name] = encoder.position_shares(images)
    content = {
        'arguments': arguments,
        'versions': {
            name: version(name)
            for name in ('torchgeo-sigmae', 'torchgeo', 'torch', 'timm', 'scikit-learn')
        },
        'accuracy': {
            name: {title: values.tolist() for title, values in row.items()}
            for name, row in scores.items()
        },
        'position_shares': shares,
    }
    write_text(output, json.dumps(content, indent=2, default=str) + '\n')
    _print_features(dataset, scores, shares)
    return [output]


def _baselines(
    encoder: 'FrozenEncoder', source: str
) -> 'list[FrozenEncoder | BandStatistics]':
    """What encoders have to beat: statistics of bands, and random weights."""
    import timm

    from ..evaluation.baseline import BandStatistics

    random = None if timm.is_model(source) else encoder.untrained()
    return [BandStatistics(encoder.bands), *([random] if random else [])]


def _divide(
    features: 'Features', folds: int | None, repeats: int, seed: int
) -> 'Splits':
    """Divide samples into training and test: by folds, or as the dataset does."""
    from sklearn.model_selection import PredefinedSplit, RepeatedStratifiedKFold

    if folds:
        splitter = RepeatedStratifiedKFold(
            n_splits=folds, n_repeats=repeats, random_state=seed
        )
    else:
        splitter = PredefinedSplit(features.split - 1)
    return list(splitter.split(features.values, features.labels))


def _probe(
    features: 'Features',
    divided: 'Splits',
    samples_per_class: Sequence[int],
    probes: Sequence[str],
) -> 'Scores':
    """Accuracy of probes that learn from all samples, and from few."""
    from ..evaluation.probes import TOKEN_PROBES, few_labels, probe_scores

    plan = {'': divided}
    for count in samples_per_class:
        few = few_labels(features.labels, divided, count)
        plan[f', {count} a class'] = few
    scores = {}
    for suffix, some in plan.items():
        for probe in probes:
            tokens = features.tokens if probe in TOKEN_PROBES else None
            values = features.values if tokens is None else tokens
            result = probe_scores(values, features.labels, some, probe)
            scores[probe + suffix] = result
    return scores


def _print_features(
    dataset: str, scores: 'Mapping[str, Scores]', shares: Mapping[str, Sequence[float]]
) -> None:
    """Print accuracies, and the share of position block by block."""
    from ..evaluation.probes import percent

    accuracy = [[name, *map(percent, row.values())] for name, row in scores.items()]
    print('\nAccuracy in percent, mean and standard deviation over splits.\n')
    print(_table([dataset, *next(iter(scores.values()))], accuracy))
    blocks = max(map(len, shares.values()))
    by_block = []
    for name, row in shares.items():
        cells = [f'{100 * share:.0f}' for share in row]
        by_block.append([name, *cells, *[''] * (blocks - len(cells))])
    print('\nShare of position in the variance of tokens in percent, by block.\n')
    print(_table(['encoder', *map(str, range(1, blocks + 1))], by_block), end='\n\n')


def evaluate_reconstruction(
    weights: str,
    *,
    data: Path,
    paths: Sequence[str] = ('**/*.tif', '**/*.tiff'),
    mask_ratios: Sequence[float] = (0.5, 0.75, 0.9, 0.95),
    size: int | None = None,
    chips: int = 256,
    batch_size: int = 32,
    output: Path = Path('outputs/reconstruction'),
) -> list[Path]:
    """Measure and draw reconstructions at several mask ratios.

    Args:
        weights: Weights that hold a decoder: a training checkpoint, an exported encoder
            with its decoder, or the name of a weight enum.
        data: Folder of GeoTIFF scenes in raw values that the model was not trained on.
        paths: Patterns of their names.
        mask_ratios: Shares of masked tokens, in (0, 1).
        size: Side of the chips in pixels; as in training by default.
        chips: Largest number of chips.
        batch_size: Number of chips that are reconstructed at a time.
        output: Folder of report.md, report.json and report.png.
    """
    import torch
    from torch.utils.data import DataLoader

    from ..datasets import SceneChips, find_scenes
    from ..evaluation.reconstruction import masked, reconstruction_report
    from ..masking.masks import check_mask_ratio
    from ..plotting import plot_mask_ratios
    from ..tasks import restore_task

    task = restore_task(weights)
    size = size or task.size
    scenes = find_scenes(data, paths, task.bands)
    cut = SceneChips(scenes, task.bands, size, random=False, length=chips)
    for ratio in mask_ratios:
        check_mask_ratio(ratio)
    files = [output / f'report.{suffix}' for suffix in ('md', 'json', 'png')]
    require_writable(files[0])
    with _quiet():
        metrics = reconstruction_report(task, DataLoader(cut, batch_size), mask_ratios)
    oracle = task.hparams['norm_pix_loss']
    table = _metrics_table(metrics)
    table += f'\n\n{len(cut)} chips of {size} px from {len(scenes)} scenes.'
    if oracle:
        table += (
            '\nnorm_pix_loss: hidden patches kept their own mean and standard '
            'deviation, so all but the losses are better than they would be.'
        )
    write_text(files[0], f'{table}\n')
    write_text(files[1], json.dumps(metrics, indent=2) + '\n')
    drawn = torch.linspace(0, len(cut) - 1, min(len(cut), 5)).long()[1:-1]
    images = torch.stack([cut[int(i)]['image'] for i in drawn])
    predictions = {}
    for ratio in mask_ratios:
        with masked(task, ratio):
            predictions[ratio] = task.reconstruct(images)
    figure = plot_mask_ratios(predictions, task.bands, oracle)
    write_figure(files[2], figure)
    print(f'\n{table}\n')
    return files


def _metrics_table(metrics: Mapping[float, Mapping[str, float]]) -> str:
    """A table with a row for each mask ratio."""
    rows = []
    for ratio, values in metrics.items():
        cells = [f'{ratio:.0%}']
        for _, name, digits in _COLUMNS:
            value = values.get(name, values.get(f'oracle_{name}'))
            cells.append('' if value is None else f'{value:.{digits}f}')
        rows.append(cells)
    return _table(['masked', *(title for title, *_ in _COLUMNS)], rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from saying what is no news here."""
    logger = logging.getLogger('lightning.pytorch')
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.*does not have many workers')
            yield
    finally:
        logger.setLevel(level)
