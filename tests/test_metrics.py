# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import math

import numpy as np
import pytest
import torch

from torchgeo_sigmae.metrics import ReconstructionMetrics, VisibilityRatio

BANDS = ('B03', 'B04', 'B08')


@pytest.mark.parametrize('share', [None, 1.0, 0.6])
def test_against_numpy(share: float | None) -> None:
    truth = torch.rand(500, 3) * 0.5 + 0.01
    prediction = truth + 0.05 * torch.randn(500, 3)
    predicted = torch.ones(500, 3, dtype=torch.bool)
    if share == 0.6:
        predicted = torch.rand(500, 3) < torch.tensor([0.2, 0.6, 0.9])
    # What was not predicted may hold anything.
    damaged = torch.where(predicted, prediction, torch.nan)
    metrics = ReconstructionMetrics(BANDS, 'val_')
    for part in (slice(0, 100), slice(100, 500)):
        mask = () if share is None else (predicted[part],)
        metrics.update(damaged[part], truth[part], *mask)
    metrics.update_losses(torch.tensor(1.0), torch.tensor(3.0), 10)
    metrics.update_losses(torch.tensor(2.0), torch.tensor(4.0), 30)
    values = {key: float(value) for key, value in metrics.compute().items()}

    t, p, mask = truth.double().numpy(), prediction.double().numpy(), predicted.numpy()
    squares = (t - p) ** 2
    mse = np.array([squares[mask[:, band], band].mean() for band in range(3)])
    whole = mask.all(axis=1)
    assert whole.sum() > 10
    cosine = (t * p).sum(1) / np.linalg.norm(t, axis=1) / np.linalg.norm(p, axis=1)
    expected = {
        'val_loss': 1.75,
        'val_baseline_loss': 3.75,
        'val_psnr': -10 * math.log10(squares[mask].mean()),
        'val_spectral_angle': np.degrees(np.arccos(cosine))[whole].mean(),
        'val_rmse': math.sqrt(mse.mean()),
        **{f'val_rmse_{b}': math.sqrt(v) for b, v in zip(BANDS, mse, strict=True)},
    }
    assert values == pytest.approx(expected, rel=1e-3)


def test_structural_similarity_against_a_loop() -> None:
    """Wang et al. 2004: Gaussian windows of 11 x 11 with a deviation of 1.5."""
    generator = np.random.default_rng(0)
    truth = generator.uniform(0, 0.5, (2, 3, 20, 24))
    actual = truth + generator.normal(scale=0.05, size=truth.shape)
    predicted = np.zeros(truth.shape, bool)
    predicted[0, 1, 7, 9] = predicted[1, 2, 12, 5] = True
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / np.outer(taps, taps).sum()
    expected = []
    for b, c, row, column in np.argwhere(predicted):
        x, y = (
            values[b, c, row - 5 : row + 6, column - 5 : column + 6]
            for values in (actual, truth)
        )
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        covariance = (window * (x - mx) * (y - my)).sum()
        c1, c2 = 0.01**2, 0.03**2
        expected.append(
            (2 * mx * my + c1) * (2 * covariance + c2)
            / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        )  # fmt: skip
    metrics = ReconstructionMetrics(BANDS, '', structure=True)
    metrics.update_images(*map(torch.from_numpy, (actual, truth, predicted)))
    metrics.update_losses(torch.tensor(1.0), torch.tensor(1.0), 1)
    values = metrics.compute()
    assert float(values['ssim']) == pytest.approx(np.mean(expected), rel=1e-3)
    # Many images are taken a few at a time.
    many = ReconstructionMetrics(BANDS, '', structure=True)
    parts = (torch.from_numpy(part) for part in (actual, truth, predicted))
    many.update_images(*(part.repeat(9, 1, 1, 1) for part in parts))
    many.update_losses(torch.tensor(1.0), torch.tensor(1.0), 1)
    assert float(many.compute()['ssim']) == pytest.approx(np.mean(expected), rel=1e-3)
    # The same pixels as in a list.
    error = ((actual - truth) ** 2)[predicted].mean()
    assert float(values['psnr']) == pytest.approx(-10 * math.log10(error), rel=1e-3)


def test_oracle_statistics_are_named() -> None:
    metrics = ReconstructionMetrics(BANDS, 'val_', oracle=True)
    metrics.update(torch.rand(4, 3), torch.rand(4, 3))
    metrics.update_losses(torch.tensor(1.0), torch.tensor(3.0), 10)
    names = set(metrics.compute())
    assert 'val_oracle_psnr' in names
    assert 'val_psnr' not in names
    assert 'val_loss' in names


def test_nothing_added_is_nothing_said() -> None:
    metrics = ReconstructionMetrics(BANDS)
    metrics.update(torch.zeros(0, 3), torch.zeros(0, 3))
    metrics.update_losses(torch.tensor(0.0), torch.tensor(0.0), 0)
    assert metrics.compute() == {}


def test_a_diverged_model_does_not_look_fine() -> None:
    metrics = ReconstructionMetrics(BANDS)
    metrics.update(torch.full((4, 3), torch.nan), torch.rand(4, 3))
    metrics.update_losses(torch.tensor(torch.nan), torch.tensor(1.0), 12)
    values = metrics.compute()
    assert values['val_loss'].isnan()
    assert values['val_psnr'].isnan()


def test_zero_spectra_and_one_band() -> None:
    metrics = ReconstructionMetrics(BANDS)
    truth = torch.rand(4, 3)
    truth[0] = 0
    metrics.update(truth, truth)
    metrics.update_losses(torch.tensor(1.0), torch.tensor(1.0), 12)
    assert metrics.compute()['val_spectral_angle'] < 0.1
    single = ReconstructionMetrics(('B08',))
    single.update(torch.rand(4, 1), torch.rand(4, 1))
    single.update_losses(torch.tensor(1.0), torch.tensor(1.0), 4)
    assert single.compute()['val_rmse_B08'] > 0


def test_reset_in_inference_mode_serves_training_later() -> None:
    metrics = ReconstructionMetrics(BANDS)
    with torch.inference_mode():
        metrics.update(torch.rand(4, 3), torch.rand(4, 3))
        metrics.update_losses(torch.tensor(1.0), torch.tensor(1.0), 12)
        metrics.compute()
        metrics.reset()
    metrics.update(torch.rand(4, 3), torch.rand(4, 3))
    metrics.update_losses(torch.tensor(2.0), torch.tensor(1.0), 12)
    assert metrics.compute()['val_loss'] == 2


def test_no_angle_without_a_whole_spectrum() -> None:
    truth, actual = torch.rand(2, 50, 3)
    predicted = torch.zeros(50, 3, dtype=torch.bool)
    metrics = ReconstructionMetrics(BANDS)
    metrics.update(actual, truth, predicted)
    metrics.update_losses(torch.tensor(1.0), torch.tensor(1.0), 10)
    predicted[:, 1:] = True
    metrics.update(actual, truth, predicted)
    values = metrics.compute()
    assert values['val_spectral_angle'].isnan()
    assert values['val_rmse_B08'] > 0
    predicted[7] = True
    metrics.update(actual, truth, predicted)
    cosine = torch.cosine_similarity(actual[7], truth[7], dim=0)
    expected = torch.rad2deg(torch.arccos(cosine))
    torch.testing.assert_close(metrics.compute()['val_spectral_angle'], expected)


# ------------------------------------------------------------------------- visibility


def visibility(*kept: int) -> VisibilityRatio:
    """Eleven tokens, whose ranks are exact tenths."""
    metric = VisibilityRatio()
    metric.update(torch.arange(11.0)[None], torch.tensor([kept]))
    return metric


def test_a_tenth_is_a_tenth() -> None:
    metric = visibility(0, 1, 9, 10)
    assert (metric.least, metric.most) == (1, 1)
    metric.update(torch.arange(11.0)[None], torch.tensor([[0, 5]]))
    assert metric.compute() == 2
    # Half a token in place of none.
    assert visibility(0, 5).compute() == 2
    assert visibility(5, 10).compute() == 0.5
    assert visibility(5, 6).compute() == 1


def test_images_without_contrast_do_not_count() -> None:
    metric = VisibilityRatio()
    metric.update(torch.zeros(4, 20), torch.arange(20).expand(4, -1))
    assert (metric.least, metric.most) == (0, 0)


def test_counting_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    metric = VisibilityRatio()
    keep = torch.zeros(4, 6, dtype=torch.long)
    metric.update(torch.zeros(4, 64), keep, torch.ones(4, 64) > 0)
    assert torch.equal(torch.get_rng_state(), state)


def test_visibility_ignores_invalid_tokens() -> None:
    valid = torch.ones(1, 20, dtype=torch.bool)
    valid[0, 10:] = False
    metric = VisibilityRatio()
    metric.update(torch.arange(20.0)[None], torch.tensor([[0, 15, 16, 9]]), valid)
    assert metric.least == 1
    assert metric.most == 1
    metric = VisibilityRatio()
    valid = torch.tensor([[False, True, True, True]])
    metric.update(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([[0, 1]]), valid)
    assert (metric.least, metric.most) == (1, 0)


def test_counts_of_processes_are_added_up() -> None:
    score = torch.rand(8, 64)
    keep = torch.rand(8, 64).argsort(dim=1)[:, :32]
    whole, *parts = (VisibilityRatio() for _ in range(3))
    whole.update(score, keep)
    for metric, half in zip(parts, (slice(5), slice(5, 8)), strict=True):
        metric.update(score[half], keep[half])
    parts[0].merge_state(parts[1])
    assert parts[0].least == whole.least
    assert parts[0].most == whole.most
