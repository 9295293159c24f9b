# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""SIGMAETask on the embedded default, through Lightning's own Trainer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from helpers.training import SMALL, grouped, quiet_trainer
from torchgeo_sigmae import (
    BatchSpec,
    PatchSaliency,
    SIGMAETask,
    SyntheticSentinel2,
    SyntheticSentinel2DataModule,
)
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS
from torchgeo_sigmae.masking import random_mask, sample_noise
from torchgeo_sigmae.patches import patchify

#: For plain loaders of raw chips, which the task is to normalize.
RAW: dict[str, Any] = {'mean': 3000.0, 'std': 2000.0, 'normalize': True}


def make_task(**kwargs: Any) -> SIGMAETask:
    task = SIGMAETask(**grouped(**{**SMALL, **kwargs}))
    # Two blocks instead of twelve: the same code, a sixth of the time.
    task.model.encoder.blocks = task.model.encoder.blocks[:2]
    if hasattr(task.model.decoder, 'mix'):
        mix = task.model.decoder.mix
        task.model.decoder.mix = nn.Parameter(mix.detach()[:, -2:].clone())
    return task


def make_trainer(path: Path, **kwargs: Any) -> Trainer:
    return quiet_trainer(path, **{'max_epochs': 1, 'limit_train_batches': 2, **kwargs})


class Watch(Callback):
    """Record what the steps see."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self.losses: list[float] = []
        self.ratios: list[float] = []
        self.betas: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.batches.append(batch)
        self.losses.append(float(outputs['loss']))
        self.ratios.append(float(trainer.callback_metrics['mask_ratio']))
        if 'saliency_beta' in trainer.callback_metrics:
            self.betas.append(float(trainer.callback_metrics['saliency_beta']))


class Losses(Callback):
    """Records what is optimized."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        self.losses.append(loss.item())


def weights_of(task: LightningModule) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in task.model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'masking': 'random', 'decoder': 'self', 'norm_pix_loss': True},
        {'predict_ratio': 0.25, 'mask_ratio': (0.5, 0.9), 'schedule': 'cosine'},
        {'spectral_weight': 0.5, 'norm_pix_loss': True, 'decoder': 'self'},
        {'combination': 'rank', 'richness_weight': 0.0, 'indices': ('NDVI',)},
        {'bands': ('B03', 'nir', 'red', 'swir1')},
    ],
)
def test_fit_validate_test_predict(
    settings: dict[str, Any], synthetic: SyntheticSentinel2DataModule, tmp_path: Path
) -> None:
    task = make_task(**settings)
    before = weights_of(task)
    trainer = make_trainer(tmp_path)
    trainer.fit(task, synthetic)
    assert not equal(before, weights_of(task))
    metrics = trainer.callback_metrics
    oracle = 'oracle_' if settings.get('norm_pix_loss') else ''
    for name in ('loss', 'baseline_loss', f'{oracle}psnr', f'{oracle}spectral_angle'):
        assert metrics[f'val_{name}'].isfinite(), name
    assert f'val_{oracle}rmse_B08' in metrics
    assert metrics['train_loss_epoch'].isfinite()
    guided = settings.get('masking') != 'random'
    assert ('visibility_ratio' in metrics) == guided
    (tested,) = trainer.test(task, synthetic, verbose=False)
    assert tested['test_loss'] > 0
    loader = DataLoader(SyntheticSentinel2(synthetic.kwargs['root'], 'test'), 4)
    synthetic.predict_dataset = loader.dataset
    synthetic.predict_batch_size = 4
    predictions = trainer.predict(task, synthetic)
    assert len(predictions) == 8
    assert predictions[0]['reconstruction'].shape == (4, len(task.bands), 64, 64)


def test_validation_is_what_it_says(
    synthetic: SyntheticSentinel2DataModule, tmp_path: Path
) -> None:
    task = make_task(mask_ratio=0.75)
    values = make_trainer(tmp_path).validate(task, synthetic, verbose=False)[0]
    synthetic.setup('validate')
    raw = torch.stack([s['image'] for s in synthetic.val_dataset])
    mean, std = synthetic.mean.view(-1, 1, 1), synthetic.std.view(-1, 1, 1)
    patches = patchify((raw - mean) / std, 8).double()
    mask = random_mask(sample_noise(0, torch.arange(32), 64), 0.75)
    error = baseline = 0.0
    squares = torch.zeros(10, dtype=torch.float64)
    with torch.no_grad():
        out = task.model(((raw - mean) / std), mask.keep, mask.masked).double()
    for i in range(32):
        target = patches[i, mask.masked[i]].view(-1, 10, 64)
        seen = patches[i, mask.keep[i]].view(-1, 10, 64).mean((0, 2))
        difference = out[i].view(-1, 10, 64) - target
        error += difference.square().mean().item() / 32
        baseline += (seen[:, None] - target).square().mean().item() / 32
        squares += difference.square().mean((0, 2)) / 32
    assert values['val_loss'] == pytest.approx(error, rel=1e-4)
    assert values['val_baseline_loss'] == pytest.approx(baseline, rel=1e-4)
    rmse = (squares.sqrt() * synthetic.std.double() * 1e-4).tolist()
    for band, expected in zip(task.bands, rmse, strict=True):
        assert values[f'val_rmse_{band}'] == pytest.approx(expected, rel=1e-3)


def test_training_learns(
    synthetic: SyntheticSentinel2DataModule, tmp_path: Path
) -> None:
    task = make_task(mask_ratio=0.75, size=64)
    trainer = make_trainer(tmp_path, limit_train_batches=1.0, max_epochs=3)
    before = trainer.validate(task, synthetic, verbose=False)[0]['val_loss']
    trainer.fit(task, synthetic)
    assert float(trainer.callback_metrics['val_loss']) < 0.9 * before


def test_reconstruction_keeps_what_is_visible(
    synthetic: SyntheticSentinel2DataModule, tmp_path: Path
) -> None:
    task = make_task(mask_ratio=0.75)
    make_trainer(tmp_path).validate(task, synthetic, verbose=False)
    raw = torch.stack([synthetic.val_dataset[i]['image'] for i in range(3)])
    raw[0, :, :, :20] = 0  # two columns of patches without data, one half without
    out = task.reconstruct(raw)
    assert out['mask'].float().mean((1, 2)).tolist() == [0.75] * 3
    visible = ~out['mask'].unsqueeze(1).expand_as(raw) & out['image'].isfinite()
    actual, truth = out['reconstruction'][visible], (raw * 1e-4)[visible]
    torch.testing.assert_close(actual, truth, rtol=1e-4, atol=1e-6)
    assert out['image'][0, :, :, :20].isnan().all()
    assert out['mask'][0, :, :16].all(), 'patches without data are masked first'
    assert out['reconstruction'][0, :, :, :16].isnan().all()
    assert out['reconstruction'][0, :, :, 20:].isfinite().all()
    expected = PatchSaliency(task.bands).saliency(raw)
    torch.testing.assert_close(out['saliency'], expected, rtol=1e-3, atol=1e-4)
    assert task.plot(out).axes
    assert torch.equal(task.reconstruct(raw)['mask'], out['mask'])


def test_curriculum_follows_the_trainers_steps(
    synthetic: SyntheticSentinel2DataModule, tmp_path: Path
) -> None:
    watch = Watch()
    task = make_task(mask_ratio=(0.5, 0.9), strength=(1.0, 3.0))
    trainer = make_trainer(
        tmp_path,
        max_epochs=2,
        limit_train_batches=4,
        accumulate_grad_batches=2,
        callbacks=[watch],
    )
    trainer.fit(task, synthetic)
    # Four optimizer steps, two batches each.
    expected = [0.5, 0.5, 0.6, 0.6, 0.7, 0.7, 0.8, 0.8]
    assert watch.ratios == pytest.approx(expected)
    assert watch.betas == pytest.approx([1, 1, 1.5, 1.5, 2, 2, 2.5, 2.5])
    assert task.progress == 1


def test_masks_and_augmentation_depend_on_the_seed_alone(
    synthetic: SyntheticSentinel2DataModule, tmp_path: Path
) -> None:
    runs = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 7)):
        torch.manual_seed(0)
        task, watch = make_task(seed=seed, **RAW), Watch()
        torch.manual_seed(global_seed)
        # The order of the data is the loader's; the validation split is not shuffled.
        loader = DataLoader(SyntheticSentinel2(synthetic.kwargs['root'], 'val'), 16)
        make_trainer(tmp_path, callbacks=[watch]).fit(task, loader)
        runs.append(watch.losses)
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_precision_accumulation_and_clipping(
    synthetic: SyntheticSentinel2DataModule, tmp_path: Path
) -> None:
    watch = Watch()
    trainer = make_trainer(
        tmp_path,
        precision='bf16-mixed',
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        limit_train_batches=4,
        callbacks=[watch],
    )
    task = make_task()
    trainer.fit(task, synthetic)
    assert trainer.global_step == 2
    assert all(0 < loss < 10 for loss in watch.losses)
    assert {p.dtype for p in task.parameters()} == {torch.float32}


def test_torch_compile(synthetic: SyntheticSentinel2DataModule, tmp_path: Path) -> None:
    plain, compiled = Watch(), Watch()
    torch.manual_seed(0)
    make_trainer(tmp_path, callbacks=[plain]).fit(make_task(), synthetic)
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    task = torch.compile(make_task(), backend='aot_eager')
    make_trainer(tmp_path, callbacks=[compiled]).fit(task, synthetic)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] > 0
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-3)


def test_resume_at_the_end_of_an_epoch(synthetic_root: Path, tmp_path: Path) -> None:
    def fit(epochs: int, resume: Path | None = None, **kwargs: Any):
        torch.manual_seed(0)
        task, watch = make_task(mask_ratio=(0.5, 0.9), **RAW), Watch()
        # Twice the same samples in the same order: TorchGeo's loaders shuffle from the
        # global generator, which a resumed run does not restore.
        dataset = SyntheticSentinel2(synthetic_root, 'val')
        trainer = make_trainer(
            tmp_path,
            max_epochs=epochs,
            callbacks=[watch, *kwargs.pop('callbacks', ())],
            **kwargs,
        )
        trainer.fit(task, DataLoader(dataset, 16), ckpt_path=resume)
        return task, watch

    keep = ModelCheckpoint(tmp_path, filename='{epoch}', save_top_k=-1)
    whole, watched = fit(4, callbacks=[keep], enable_checkpointing=True)
    resumed, rest = fit(4, resume=tmp_path / 'epoch=1.ckpt')
    assert len(rest.losses) == 4
    assert rest.losses == watched.losses[4:]
    assert rest.ratios == watched.ratios[4:]
    assert equal(weights_of(whole), weights_of(resumed))


def test_a_lightning_checkpoint_restores_the_task(
    synthetic: SyntheticSentinel2DataModule, tmp_path: Path
) -> None:
    task = SIGMAETask(**SMALL)
    trainer = make_trainer(tmp_path, limit_train_batches=1)
    trainer.fit(task, synthetic)
    trainer.save_checkpoint(tmp_path / 'x.ckpt')
    loaded = SIGMAETask.load_from_checkpoint(tmp_path / 'x.ckpt', weights_only=True)
    assert equal(weights_of(task), weights_of(loaded))
    assert loaded.statistics == task.statistics
    assert loaded.hparams == task.hparams
    loaded.export(tmp_path / 'from checkpoint.pth')


def test_nothing_but_nodata_stops_the_run(
    synthetic: SyntheticSentinel2DataModule, tmp_path: Path
) -> None:
    def blank(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, 'image': torch.zeros_like(sample['image'])}

    synthetic.kwargs['transforms'] = blank
    with pytest.raises(ValueError, match='image: a batch has no valid value'):
        make_trainer(tmp_path).fit(make_task(), synthetic)


def test_invalid_pixels_change_nothing() -> None:
    """Not saliency, not input, not target: whatever stands in a gap."""
    task = make_task(**RAW, transform=nn.Identity())
    raw = torch.rand(4, 10, 32, 32) * 3000 + 100
    gap = torch.rand(4, 1, 32, 32) < 0.2
    outs = [
        task._prepare(
            task.on_before_batch_transfer({'image': torch.where(gap, filler, raw)}, 0)
        )
        for filler in (0.0, torch.nan, torch.inf)
    ]
    for other in outs[1:]:
        for a, b in zip(outs[0][:5], other[:5], strict=True):
            assert torch.equal(a, b)
    assert torch.equal(outs[0].image == 0, gap.expand(-1, 10, -1, -1))


def test_time_is_folded_into_the_batch_and_keeps_its_gaps() -> None:
    task = make_task(**RAW)
    series = torch.rand(2, 3, 10, 32, 32) * 3000 + 100
    series[1, 1, :, :16] = 0
    tokens = task._prepare(task.on_before_batch_transfer({'image': series}, 0))
    assert tokens.image.shape == (6, 10, 32, 32)
    expected = (series[1, 2] - 3000) / 2000
    torch.testing.assert_close(tokens.image[5], expected)
    assert tokens.valid.sum(dim=1).tolist() == [16, 16, 16, 16, 8, 16]


@pytest.mark.parametrize('normalize', [True, False])
def test_plain_loaders_of_raw_and_of_normalized_chips(
    normalize: bool, synthetic_root: Path, tmp_path: Path
) -> None:
    def transform(sample: dict[str, Any]) -> dict[str, Any]:
        image = sample['image'].clone()
        image[:, :9] = 0  # nodata, which is not 0 any more once normalized
        return {'image': image if normalize else (image - 3000) / 2000}

    dataset = SyntheticSentinel2(synthetic_root, 'val', transforms=transform)
    task = make_task(mean=3000.0, std=2000.0, normalize=normalize)
    trainer = make_trainer(tmp_path)
    trainer.fit(task, DataLoader(dataset, 16), DataLoader(dataset, 16))
    assert trainer.callback_metrics['val_rmse'] < 1
    out = trainer.predict(task, DataLoader(dataset, 16))[0]
    assert out['image'][:, :, :9].isnan().all()
    raw = SyntheticSentinel2(synthetic_root, 'val')[3]['image'][:, 9:]
    torch.testing.assert_close(out['image'][3, :, 9:], raw * 1e-4)


def test_raw_chips_after_training_with_a_datamodule_are_not_mistaken(
    synthetic: SyntheticSentinel2DataModule, tmp_path: Path
) -> None:
    task, trainer = make_task(), make_trainer(tmp_path)
    trainer.fit(task, synthetic)
    loader = DataLoader(SyntheticSentinel2(synthetic.kwargs['root'], 'test'), 16)
    with pytest.raises(ValueError, match='normalize: not known whether batches come'):
        trainer.predict(task, loader)
    task.batch = replace(task.batch, normalize=True)
    (first, _) = trainer.predict(task, loader)
    assert 0 < first['image'].mean() < 1
    with pytest.raises(ValueError, match='normalize: True, but SyntheticSentinel2Data'):
        trainer.validate(task, synthetic, verbose=False)


@pytest.mark.parametrize('batch_size', [5, 32])
def test_validation_masks_do_not_depend_on_batch_or_seed(
    batch_size: int, synthetic_root: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    task = make_task(seed=batch_size)
    datamodule = SyntheticSentinel2DataModule(
        root=synthetic_root, batch_size=batch_size
    )
    values = make_trainer(tmp_path).validate(task, datamodule, verbose=False)[0]
    torch.manual_seed(0)
    reference = make_trainer(tmp_path).validate(
        make_task(seed=1),
        SyntheticSentinel2DataModule(root=synthetic_root, batch_size=16),
        verbose=False,
    )[0]
    for name in ('val_loss', 'val_baseline_loss', 'val_psnr'):
        assert values[name] == pytest.approx(reference[name], rel=1e-4)


def test_a_checkpoint_from_the_middle_of_an_epoch_warns(
    synthetic_root: Path, tmp_path: Path
) -> None:
    keep = ModelCheckpoint(tmp_path, filename='{step}', every_n_train_steps=1)
    dataset = SyntheticSentinel2(synthetic_root, 'val')
    trainer = make_trainer(tmp_path, callbacks=[keep], enable_checkpointing=True)
    trainer.fit_loop.epoch_loop.max_steps = 1
    trainer.fit(make_task(**RAW), DataLoader(dataset, 16))
    with pytest.warns(UserWarning, match='written in the middle of an epoch'):
        make_trainer(tmp_path).fit(
            make_task(**RAW),
            DataLoader(dataset, 16),
            ckpt_path=tmp_path / 'step=1.ckpt',
        )


@pytest.mark.parametrize(
    ('loss', 'baseline', 'said'),
    [(0.5, 1.0, '50% lower'), (1.5, 1.0, '50% HIGHER'), (0.5, 0.0, '0% lower')],
)
def test_the_comparison_with_the_baseline_is_logged(
    loss: float, baseline: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    task = make_task()
    metrics = {'val_loss': loss, 'val_baseline_loss': baseline}
    task._trainer = type('T', (), {'callback_metrics': metrics})()
    with caplog.at_level('INFO'):
        task.on_fit_end()
    assert 'predicting the mean of the visible tokens gives' in caplog.text
    assert said in caplog.text


def test_figures_reach_the_logger(
    synthetic: SyntheticSentinel2DataModule, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name='', version='run')
    csv = CSVLogger(tmp_path, name='', version='csv')
    trainer = make_trainer(tmp_path, logger=[logger, csv], log_every_n_steps=1)
    trainer.fit(make_task(), synthetic)
    logger.finalize('success')
    events = EventAccumulator(str(tmp_path / 'run'), size_guidance={'images': 0})
    events.Reload()
    assert events.Tags()['images'] == ['reconstruction']
    assert {'mask_ratio', 'saliency_beta', 'train_loss', 'val_psnr'} <= set(
        events.Tags()['scalars']
    )
    assert (tmp_path / 'csv' / 'metrics.csv').exists()


@pytest.mark.parametrize('model', ['sigmae', 's2mae', 'satmae'])
def test_the_spectral_target_is_added_with_its_weight(
    model: str, synthetic_root: Path, tmp_path: Path
) -> None:
    """The logged loss of pixels stays comparable."""
    losses: dict[float, dict[str, float]] = {}
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        task = make_task(
            model=f'{model}_vit_tiny_patch8', masking='random', spectral_weight=weight
        )
        datamodule = SyntheticSentinel2DataModule(root=synthetic_root, batch_size=16)
        watch = Losses()
        run = make_trainer(
            tmp_path, max_steps=1, limit_val_batches=0, callbacks=[watch]
        )
        run.fit(task, datamodule)
        losses[weight] = {'sum': watch.losses[0]} | {
            name: value.item() for name, value in run.callback_metrics.items()
        }
    plain, both = losses[0.0], losses[0.5]
    assert 'train_spectral_loss' not in plain
    assert plain['sum'] == plain['train_loss']
    expected = both['train_loss'] + 0.5 * both['train_spectral_loss']
    assert both['sum'] == pytest.approx(expected, rel=1e-6)
    assert both['train_spectral_loss'] > 0


@pytest.mark.parametrize('masking', ['random', 'saliency'])
def test_saliency_is_computed_where_it_steers_and_nowhere_else(
    masking: str, synthetic_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    saliency = PatchSaliency.saliency

    def counted(self: PatchSaliency, *args: Any) -> torch.Tensor:
        calls.append(task.training)
        return saliency(self, *args)

    monkeypatch.setattr(PatchSaliency, 'saliency', counted)
    task = make_task(masking=masking)
    datamodule = SyntheticSentinel2DataModule(root=synthetic_root, batch_size=16)
    run = make_trainer(
        tmp_path, max_epochs=1, limit_train_batches=3, limit_val_batches=2
    )
    run.fit(task, datamodule)
    assert calls == ([True] * 3 if masking == 'saliency' else [])


def test_forward_gives_the_feature_classification_sees() -> None:
    task = make_task().eval()
    image = torch.randn(2, 10, 32, 32)
    expected = task.model.encoder.forward_features(image)[:, 1:].mean(1)
    torch.testing.assert_close(task(image), expected)


# -------------------------------------------------------------------------- export


def test_an_export_describes_bands_and_normalization(tmp_path: Path) -> None:
    task = SIGMAETask(**SMALL, batch=BatchSpec(mean=2000.0, std=1500.0))
    task.export(tmp_path / 'encoder.pth')
    content = torch.load(tmp_path / 'encoder.pth', weights_only=True)
    assert set(content) == {'hyper_parameters', 'state_dict'}
    info = content['hyper_parameters']
    assert info['model'] == SMALL['model']
    assert info['bands'] == list(SENTINEL2_TEN_BANDS)
    assert info['mean'] == [2000.0] * 10
    assert info['std'] == [1500.0] * 10
    assert info['norm_pix_loss'] is False
    assert info['size'] == 32
    assert all(key.startswith('model.') for key in content['state_dict'])
    assert not any('decoder' in key for key in content['state_dict'])


def test_an_export_without_mean_and_std_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='mean: not known'):
        SIGMAETask(**SMALL).export(tmp_path / 'x.pth')
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            {'bands': ('B03', 'B04', 'B08'), 'indices': ('NDBI',)},
            r'bands: NDBI needs B08 .nir., B11',
        ),
        ({'bands': ('B03', 'B04', 'B08', 'B13')}, "bands: 'B13' is not a band"),
        ({'in_channels': 13}, 'in_channels: 13 for 10 bands'),
        ({'size': 60}, r'size: 60 is not a multiple .*size=56'),
        ({'mask_ratio': 0.0}, r'mask_ratio: 0.0 is not in \(0, 1\)'),
        ({'mask_ratio': 1.0}, r'mask_ratio: 1.0 is not in \(0, 1\)'),
        ({'mask_ratio': (0.5, 1.5)}, r'mask_ratio: 1.5 is not in \(0, 1\)'),
        ({'mask_ratio': (1.2, 0.5)}, r'mask_ratio: 1.2 is not in \(0, 1\)'),
        ({'predict_ratio': 0.0}, r'predict_ratio: 0.0 is not in \(0, 1\]'),
        ({'masking': 'blocks'}, "masking: 'blocks' is unknown"),
        ({'schedule': 'steps'}, "guidance.schedule: 'steps' is unknown"),
        ({'decoder': 'none'}, "decoder: 'none' is unknown"),
        ({'indices': ('NDXI',)}, "indices: 'NDXI' is unknown"),
        ({'weights': True}, "weights: True would mean timm's own weights"),
        ({'mask_ratio': (0.1, 0.2, 0.3)}, 'neither a number nor a pair'),
        ({'indices': (), 'masking': 'saliency'}, 'indices: none given'),
        ({'strength': (0, float('nan'))}, 'must be finite'),
        ({'strength': (float('inf'), 0)}, 'must be finite'),
        ({'spectral_weight': -1.0}, r'spectral_weight: -1.0 must be 0 or more'),
        ({'spectral_weight': float('inf')}, r'spectral_weight: inf must be'),
        ({'size': 8}, 'size: 8 is a single patch'),
        ({'sensor': 'modis'}, "sensor: 'modis' is unknown"),
        ({'model': 'resnet18'}, "model: 'resnet18' is not a plain timm"),
        ({'strength': 1.0}, r'guidance.strength: 1.0 is no pair'),
        ({'mean': [1.0, 2.0], 'std': 1.0}, 'mean: 2 values for the 10 channels'),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SIGMAETask(**grouped(**{**SMALL, **settings}))


def test_a_transform_that_cannot_move_the_mask() -> None:
    with pytest.raises(TypeError, match='transform: Sequential cannot move the mask'):
        make_task(transform=nn.Sequential(K.RandomHorizontalFlip()))


def test_a_dataset_smaller_than_the_batch(synthetic_root: Path, tmp_path: Path) -> None:
    datamodule = SyntheticSentinel2DataModule(root=synthetic_root, batch_size=1000)
    with pytest.raises(ValueError, match=r'batch_size: 1000 is larger .*256 samples'):
        make_trainer(tmp_path, limit_train_batches=1.0).fit(make_task(), datamodule)


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (lambda x: x.int(), TypeError, r'torch\.int32. Pass image.float\(\)'),
        (lambda x: x[:, :60, :60], ValueError, '60 x 60 pixels cannot be cut'),
        (lambda x: x[:4], ValueError, r'batch\.bands: the batch has 4 channels'),
    ],
)
def test_chips_that_do_not_fit_the_task(
    change: Callable[[torch.Tensor], torch.Tensor],
    error: type[Exception],
    message: str,
    synthetic: SyntheticSentinel2DataModule,
    tmp_path: Path,
) -> None:
    synthetic.kwargs['transforms'] = lambda sample: {'image': change(sample['image'])}
    with pytest.raises(error, match=message):
        make_trainer(tmp_path).validate(make_task(), synthetic, verbose=False)


def test_a_run_without_end(
    synthetic: SyntheticSentinel2DataModule, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match='max_epochs: -1'):
        make_trainer(tmp_path, max_epochs=-1).fit(make_task(), synthetic)
