# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""PositiveClassMetrics against a plain count, with TorchGeo's own, unmodified tasks."""

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MetricCollection

from helpers.distributed import count_positives
from helpers.processes import join, start_group
from helpers.training import quiet_trainer
from torchgeo_sigmae import PositiveClassMetrics
from torchgeo_sigmae._compat import (
    ChangeDetection,
    Classification,
    SemanticSegmentation,
)

NAMES = ('iou', 'f1', 'precision', 'recall')


def count(actual: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The definitions, for positive pixels given as booleans."""
    both = float(np.sum(actual & truth))
    only_found, only_true = np.sum(actual & ~truth), np.sum(~actual & truth)
    precision = both / np.sum(actual) if actual.any() else 0.0
    recall = both / np.sum(truth) if truth.any() else math.nan
    either = both + only_found + only_true
    return {
        'iou': both / either if truth.any() else math.nan,
        'f1': both and 2 * precision * recall / (precision + recall),
        'precision': precision if truth.any() else math.nan,
        'recall': recall,
    } | ({} if truth.any() else {'f1': math.nan})


class Pixels(Dataset[dict[str, Tensor]]):
    """Noise with masks of three values, some of them 255."""

    def __init__(self, length: int, dates: int, classes: int, ignored: bool) -> None:
        self.length = length
        self.dates = dates
        self.classes = classes
        self.ignored = ignored

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        shape = (self.dates, 3, 32, 32) if self.dates else (3, 32, 32)
        mask_shape = (1, 32, 32) if self.dates else (32, 32)
        # The share of positives differs between samples: means of batches are wrong.
        draw = torch.rand(mask_shape, generator=generator) ** (index + 1)
        mask = (draw * self.classes).long()
        if self.ignored:
            mask[..., : 4 * index, :] = 255
        return {'image': torch.randn(shape, generator=generator), 'mask': mask}


def reference(task: LightningModule, data: Pixels, positive: int) -> dict[str, float]:
    """Predict again, and count."""
    task.eval()
    samples = [data[i] for i in range(len(data))]
    images = torch.stack([sample['image'] for sample in samples])
    if data.dates and task.hparams['model'] == 'unet':
        images = images.flatten(1, 2)
    with torch.no_grad():
        logits = task.model(images)
    if task.hparams['task'] == 'binary':
        actual = (torch.sigmoid(logits[:, 0]) >= 0.5).long().numpy()
    else:
        actual = logits.argmax(1).numpy()
    truth = torch.stack([sample['mask'] for sample in samples]).numpy()
    truth = truth.reshape(actual.shape)
    counts = truth != 255
    return count(actual[counts] == positive, truth[counts] == positive)


RESNET = {'backbone': 'resnet18', 'in_channels': 3}
OURS = {'backbone': 'sigmae_vit_tiny_patch16', 'in_channels': 3}
BINARY = {'task': 'binary', 'loss': 'bce'}
THREE = {'task': 'multiclass', 'num_classes': 3, 'loss': 'ce', 'ignore_index': 255}


@pytest.mark.parametrize(
    ('make', 'kwargs', 'positive'),
    [
        (SemanticSegmentation, {'model': 'unet', **RESNET, **BINARY}, 1),
        (SemanticSegmentation, {'model': 'unet', **OURS, **THREE}, 2),
        (ChangeDetection, {'model': 'unet', **RESNET, **THREE}, 1),
        (ChangeDetection, {'model': 'fcsiamdiff', **OURS, **BINARY}, 0),
        (ChangeDetection, {'model': 'changevit', **OURS, **BINARY}, 1),
    ],
)
def test_against_a_plain_count(
    make: Any, kwargs: dict[str, Any], positive: int
) -> None:
    task = make(**kwargs)
    multiclass = kwargs['task'] == 'multiclass'
    dates = 2 if make is ChangeDetection else 0
    val, test = (
        Pixels(length, dates, 3 if multiclass else 2, multiclass) for length in (5, 3)
    )
    run = quiet_trainer(
        callbacks=[PositiveClassMetrics(positive)],
        max_epochs=2,
        limit_train_batches=1,
        num_sanity_val_steps=2,
    )
    # The last batch is smaller than the others.
    run.fit(task, DataLoader(val, batch_size=4), DataLoader(val, batch_size=2))
    logged = {
        name: run.callback_metrics[f'val_{name}_positive'].item() for name in NAMES
    }
    assert logged == pytest.approx(reference(task, val, positive))
    run.test(task, DataLoader(test, batch_size=2), verbose=False)
    assert {
        name: run.callback_metrics[f'test_{name}_positive'].item() for name in NAMES
    } == pytest.approx(reference(task, test, positive))


class Predicts(LightningModule):
    """Has metrics like those of TorchGeo's tasks; its prediction is its input."""

    def __init__(self, **hparams: Any) -> None:
        super().__init__()
        self.save_hyperparameters(hparams)
        self.val_metrics = MetricCollection({}, prefix='val_')
        self.test_metrics = MetricCollection({}, prefix='test_')


def evaluate(
    task: Predicts, metrics: PositiveClassMetrics, batches: list[dict[str, Tensor]]
) -> dict[str, float]:
    """What Lightning calls, without its weight."""
    run: Any = SimpleNamespace(sanity_checking=False, testing=False)
    metrics.setup(run, task, 'validate')
    for batch in batches:
        task.val_metrics(batch['image'], batch['mask'])
    run.callback_metrics = task.val_metrics.compute()
    metrics.on_validation_end(run, task)
    return {
        name.removeprefix('val_').removesuffix('_positive'): value.item()
        for name, value in run.callback_metrics.items()
    }


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_data_in_any_batches(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 4))
    binary = classes == 2 and data.draw(st.booleans())
    positive = data.draw(st.integers(0, classes - 1))
    ignored = data.draw(st.sampled_from([None, 255, -100, (positive + 1) % classes]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    size = data.draw(st.integers(1, 6))
    # Few classes in the truth now and then, so that the positive one is missing.
    kinds = data.draw(st.integers(1, classes))
    truth = rng.integers(0, kinds, (size, 3, 4))
    if ignored in (255, -100):
        truth[rng.random(truth.shape) < 0.3] = ignored
    logits = rng.normal(size=(size, 1 if binary else classes, 3, 4)).astype('float32')
    actual = (logits[:, 0] >= 0).astype(int) if binary else logits.argmax(1)
    counts = truth != ignored
    expected = count(actual[counts] == positive, truth[counts] == positive)

    cuts = sorted(data.draw(st.sets(st.integers(1, size - 1)))) if size > 1 else []
    channel = data.draw(st.booleans())
    batches = [
        {
            'image': torch.from_numpy(image),
            'mask': torch.from_numpy(mask[:, None] if channel else mask),
        }
        for image, mask in zip(
            np.split(logits, cuts), np.split(truth, cuts), strict=True
        )
    ]
    task = Predicts(task='binary' if binary else 'multiclass', num_classes=classes)
    # As an argument, or the task's own.
    metrics = PositiveClassMetrics(positive)
    if data.draw(st.booleans()):
        metrics = PositiveClassMetrics(positive, ignored)
    else:
        task.hparams['ignore_index'] = ignored
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        logged = evaluate(task, metrics, batches)
    scores = torch.from_numpy(logits)
    if binary:
        scores = scores[:, 0] if positive else -scores[:, 0]
    else:
        scores = scores.softmax(1)[:, positive].logit()
    # Scores between two of its steps are equal to the metric.
    scores = (scores * 5).floor().numpy()[counts].clip(-51, 50)
    expected['average_precision'] = (
        average_precision_score(truth[counts] == positive, scores)
        if (truth[counts] == positive).any()
        else math.nan
    )
    assert logged == pytest.approx(expected, nan_ok=True, abs=1e-6)
    said = [w for w in caught if 'contain no sample of class' in str(w.message)]
    assert bool(said) == math.isnan(expected['recall'])


def batch(logits: list[float], mask: list[int]) -> dict[str, Tensor]:
    return {
        'image': torch.tensor(logits).reshape(1, 1, 1, -1),
        'mask': torch.tensor(mask).reshape(1, 1, -1),
    }


def test_defined_values() -> None:
    task, metrics = Predicts(task='binary'), PositiveClassMetrics()
    # A half logit of 0 is positive, as TorchGeo draws it.
    logged = evaluate(task, metrics, [batch([0.0, -1.0], [1, 1])])
    assert logged == {
        'iou': 0.5,
        'f1': pytest.approx(2 / 3),
        'precision': 1,
        'recall': 0.5,
        'average_precision': 1,
    }
    # Nothing found: 0. The ranking may be right all the same.
    logged = evaluate(task, metrics, [batch([-1.0, -2.0], [1, 0])])
    assert logged == {**dict.fromkeys(NAMES, 0), 'average_precision': 1}
    # Nothing to find: not a number.
    with pytest.warns(UserWarning, match='val data contain no sample of class 1'):
        logged = evaluate(task, metrics, [batch([1.0, -1.0], [0, 0])])
    assert set(logged) == {*NAMES, 'average_precision'}
    assert all(math.isnan(value) for value in logged.values())


def test_average_precision_ranks_rare_pixels() -> None:
    """Probabilities close to 0, as those of a rare class are at first."""
    generator = np.random.default_rng(0)
    truth = (generator.random(5000) < 0.02).astype(int)
    logits = generator.normal(-5, 1, 5000) + truth
    metrics, task = PositiveClassMetrics(), Predicts(task='binary')
    logged = evaluate(task, metrics, [batch(logits.tolist(), truth.tolist())])
    expected = average_precision_score(truth, logits)
    assert logged['average_precision'] == pytest.approx(expected, abs=0.02)
    assert logged['recall'] == 0


def test_classes_of_images() -> None:
    task = Classification(model='resnet18', in_channels=3, num_classes=3)
    samples = [{'image': torch.randn(3, 32, 32), 'label': torch.tensor(i % 3)}
               for i in range(6)]  # fmt: skip
    run = quiet_trainer(callbacks=[PositiveClassMetrics(2)])
    (logged,) = run.validate(task, DataLoader(samples, batch_size=4), verbose=False)
    task.eval()
    with torch.no_grad():
        predicted = task(torch.stack([s['image'] for s in samples])).argmax(1).numpy()
    expected = count(predicted == 2, np.arange(6) % 3 == 2)
    assert {n: logged[f'val_{n}_positive'] for n in NAMES} == pytest.approx(expected)


def test_refusals() -> None:
    with pytest.raises(ValueError, match='positive: -1 must be the index of a class'):
        PositiveClassMetrics(-1)
    with pytest.raises(ValueError, match='ignore_index: 1 is the positive class'):
        PositiveClassMetrics(1, 1)
    ignoring = Predicts(task='multiclass', num_classes=3, ignore_index=1)
    with pytest.raises(ValueError, match='ignore_index: 1 is the positive class'):
        evaluate(ignoring, PositiveClassMetrics(), [])
    without = Predicts(task='binary')
    del without.val_metrics
    for task in (
        Predicts(),
        without,
        SemanticSegmentation(
            model='unet', task='multilabel', num_labels=2, loss='bce', **RESNET
        ),
    ):
        with pytest.raises(ValueError, match=r'task: .* but PositiveClassMetrics'):
            evaluate(task, PositiveClassMetrics(), [])
    with pytest.raises(ValueError, match=r'positive: 2 is not one of the 2 .*0 to 1\.'):
        evaluate(Predicts(task='binary'), PositiveClassMetrics(2), [])
    three = Predicts(task='multiclass', num_classes=3)
    with pytest.raises(ValueError, match='positive: 3 is not one of the 3'):
        evaluate(three, PositiveClassMetrics(3), [])


@pytest.mark.slow
def test_two_processes_count_together(tmp_path: Path) -> None:
    assert join(start_group(2, count_positives, 2, tmp_path)) == [0, 0]
    records = [json.loads((tmp_path / f'{rank}.json').read_text()) for rank in (0, 1)]
    for record in records:
        _, false_positive, false_negative, positive = record['matrix']
        wrong = false_positive + false_negative
        actual = record['metrics']
        assert actual['val_iou_positive'] == pytest.approx(
            positive / (positive + wrong)
        )
        assert actual['val_recall_positive'] == pytest.approx(
            positive / (positive + false_negative)
        )
        # One sample per process.
        assert record['lr'] == pytest.approx([5e-4 * 2 / 256] * 2)
