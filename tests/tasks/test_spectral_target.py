# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The spectral target against loops in float64."""

import numpy as np
import pytest
import torch

from torchgeo_sigmae.models import build_encoder
from torchgeo_sigmae.models.mae import layout_of
from torchgeo_sigmae.tasks.statistics import BatchStatistics
from torchgeo_sigmae.tasks.targets import spectral_loss, spectral_target
from torchgeo_sigmae.tasks.token_batch import TokenBatch, make_tokens
from torchgeo_sigmae.transforms import PatchSaliency

BANDS = ('B02', 'B03', 'B04', 'B08', 'B11', 'B12')
STATISTICS = BatchStatistics(
    BANDS, tuple(range(6)), (900.0,) * 6, (500.0,) * 6, 1e-4, 0.0
)
GROUPS = ((0, 1, 2, 3), (4, 5))


def make(model: str, valid: torch.Tensor | None = None) -> TokenBatch:
    """Two images of 16 px, 2 x 2 patches."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 6, 16, 16, generator=generator)
    valid = torch.ones(2, 16, 16, dtype=torch.bool) if valid is None else valid
    kwargs = {'groups': GROUPS} if 'satmae' in model else {}
    layout = layout_of(build_encoder(f'{model}_vit_tiny_patch8', 6, 16, **kwargs))
    saliency = PatchSaliency(BANDS, 8, nodata=None)
    return make_tokens(
        image, valid[:, None], STATISTICS, saliency, layout, False, spectral=True
    )


def expected(tokens: TokenBatch, valid: np.ndarray, sample: int, token: int) -> list:
    """Mean of each band, then mean and std of each index, of one token."""
    group, place = divmod(token, 4)
    rows = slice(8 * (place // 2), 8 * (place // 2) + 8)
    columns = slice(8 * (place % 2), 8 * (place % 2) + 8)
    seen = valid[sample, rows, columns]
    image = tokens.image[sample].double().numpy()[:, rows, columns][:, seen]
    means = [image[c].mean() for c in tokens.layout.groups[group]]
    b03, b04, b08, b11 = (image[c] * 500 + 900 for c in (1, 2, 3, 4))
    indices = [(a - b) / (a + b) for a, b in ((b08, b04), (b03, b08), (b11, b08))]
    indices = [np.clip(index, -1, 1) for index in indices]
    return means + [x.mean() for x in indices] + [x.std() for x in indices]


@pytest.mark.parametrize('model', ['sigmae', 's2mae', 'satmae'])
def test_target_is_that_of_loops(model: str) -> None:
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    valid[0, :5, 3:] = False
    tokens = make(model, valid)
    count = tokens.patches.shape[1]
    index = torch.arange(count).flip(0).expand(2, -1)
    target, counted = spectral_target(tokens, index)
    size = tokens.layout.group_size
    for sample in range(2):
        for slot, token in enumerate(index[sample].tolist()):
            truth = expected(tokens, valid.numpy(), sample, token)
            bands = len(tokens.layout.groups[token // 4])
            assert counted[sample, slot].tolist() == (
                [True] * bands + [False] * (size - bands) + [True] * 6
            )
            actual = target[sample, slot][counted[sample, slot]]
            torch.testing.assert_close(
                actual.double(), torch.tensor(truth), rtol=1e-4, atol=1e-5
            )


def test_patches_without_data_do_not_count() -> None:
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    valid[1, :8, :8] = False
    target, counted = spectral_target(make('sigmae', valid), torch.tensor([[0], [0]]))
    assert counted[0].all()
    assert not counted[1].any()
    assert target.isfinite().all()
    prediction = torch.full_like(target, torch.nan, requires_grad=True)
    loss = spectral_loss(prediction[1:], target[1:], counted[1:])
    assert loss == 0


def test_loss_is_torchs_where_all_counts() -> None:
    prediction, target = torch.randn(2, 3, 4), 2 * torch.randn(2, 3, 4)
    every = torch.ones(2, 3, 4, dtype=torch.bool)
    expected = torch.nn.functional.smooth_l1_loss(prediction, target)
    torch.testing.assert_close(spectral_loss(prediction, target, every), expected)
