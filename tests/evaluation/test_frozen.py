# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Features of frozen encoders, against timm and NumPy."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torchgeo.datasets import EuroSAT
from torchgeo.models import ResNet18_Weights
from torchvision.transforms.v2.functional import resize

from helpers.training import narrow_encoder, narrow_encoders, small_task
from torchgeo_sigmae import BatchSpec, SIGMAE_Weights, SIGMAETask
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS, BandSet
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.evaluation import BandStatistics, FrozenEncoder, extract_features
from torchgeo_sigmae.weights import read_weights, write_weights


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def export(family: str, path: Path) -> SIGMAETask:
    torch.manual_seed(0)
    made = small_task(
        family,
        batch=BatchSpec(
            mean=[1000.0 + 100 * i for i in range(10)],
            std=[200.0 + i for i in range(10)],
        ),
    )
    made.export(path)
    return made


@pytest.mark.parametrize(
    ('family', 'depth'),
    [
        *(('sigmae', depth) for depth in (None, 1, 12)),
        *((family, depth) for family in ('s2mae', 'satmae') for depth in (None, 7)),
    ],
)
def test_features_are_those_of_the_encoder(
    family: str, depth: int | None, tmp_path: Path
) -> None:
    made = export(family, tmp_path / 'encoder.pth')
    frozen = FrozenEncoder.load(tmp_path / 'encoder.pth', depth=depth)
    assert frozen.name == 'encoder.pth'
    assert frozen.bands == SENTINEL2_TEN_BANDS
    assert not any(p.requires_grad for p in frozen.parameters())
    # Another size than that of pretraining, and not square.
    raw = 1000 + 300 * torch.randn(2, 10, 48, 64, generator=generator())
    mean = torch.tensor([1000.0 + 100 * i for i in range(10)])[:, None, None]
    std = torch.tensor([200.0 + i for i in range(10)])[:, None, None]
    encoder = made.model.encoder.eval()
    with torch.no_grad():
        if depth is None:
            expected = encoder.forward_features((raw - mean) / std)[:, 1:]
        else:
            expected = encoder.forward_intermediates(
                (raw - mean) / std,
                [depth - 1],
                output_fmt='NLC',
                intermediates_only=True,
            )[0]
    assert frozen.patch_features(raw).shape == (2, 192, 6, 8)
    features = frozen.patch_features(raw).flatten(2).transpose(1, 2)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(frozen(raw), expected.mean(1), rtol=1e-4, atol=1e-4)
    frozen.pooling = 'mean+std'
    spread = expected.std(1, correction=0)
    torch.testing.assert_close(frozen(raw)[:, 192:], spread, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('magnification', [2.0, 0.5])
def test_scaled_images_are_resized_as_torchvision_does(
    magnification: float, tmp_path: Path
) -> None:
    export('sigmae', tmp_path / 'encoder.pth')
    path = tmp_path / 'encoder.pth'
    plain = FrozenEncoder.load(path)
    scaled = FrozenEncoder.load(path, magnification=magnification)
    raw = 1000 + 300 * torch.randn(2, 10, 48, 64, generator=generator())
    side = [int(48 * magnification), int(64 * magnification)]
    expected = plain.patch_features(resize(raw, side, antialias=True))
    torch.testing.assert_close(
        scaled.patch_features(raw), expected, rtol=1e-3, atol=1e-3
    )
    assert scaled.untrained().magnification == magnification


@pytest.mark.parametrize(
    'name', ['sigmae_vit_tiny_patch16', 'vit_tiny_patch16_224', 'resnet18']
)
def test_models_by_name_have_random_weights_and_the_datas_statistics(name: str) -> None:
    frozen = FrozenEncoder.load(name, ['B04', 'B03', 'B02', 'B08'])
    raw = 500 + 50 * torch.randn(3, 4, 64, 64, generator=generator())
    frozen.fit_normalization(raw)
    assert frozen.transform is not None
    normal = frozen.transform(raw)
    torch.testing.assert_close(
        normal.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(normal.std((0, 2, 3)), torch.ones(4), rtol=0, atol=1e-3)
    assert frozen(raw).isfinite().all()


def test_weights_of_torchgeo(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = ResNet18_Weights.SENTINEL2_ALL_MOCO
    torch.manual_seed(1)
    model = timm.create_model('resnet18', in_chans=13)
    kind = type(weights)
    monkeypatch.setattr(kind, 'get_state_dict', lambda *_, **__: model.state_dict())
    frozen = FrozenEncoder.load(str(weights))
    assert frozen.bands == BandSet.from_data(weights.meta['bands'])
    raw = 3000 * torch.rand(2, 13, 64, 64, generator=generator())
    model.eval()
    with torch.no_grad():
        expected = model.forward_features(weights.transforms(raw)).mean((2, 3))
    torch.testing.assert_close(frozen(raw), expected, rtol=1e-4, atol=1e-4)


def test_band_statistics_against_numpy() -> None:
    raw = torch.rand(3, 4, 16, 24, generator=generator())
    values = raw.double().numpy()
    statistics = BandStatistics(['B02', 'B03', 'B04', 'B08'])
    expected = np.concatenate([values.mean((2, 3)), values.std((2, 3))], axis=1)
    np.testing.assert_allclose(statistics(raw), expected, rtol=1e-5)
    maps = statistics.patch_features(raw)
    assert maps.shape == (3, 8, 2, 3)
    patch = values[1, :, 8:16, 16:24]
    expected = np.concatenate([patch.mean((1, 2)), patch.std((1, 2))])
    np.testing.assert_allclose(maps[1, :, 1, 2], expected, rtol=1e-5)


def test_refusals(tmp_path: Path, eurosat_root: Path, oscd_root: Path) -> None:
    export('sigmae', tmp_path / 'encoder.pth')
    with pytest.raises(ValueError, match=r'depth: 13 is not in 1 to 12 of encoder.pth'):
        FrozenEncoder.load(tmp_path / 'encoder.pth', depth=13)
    with pytest.raises(ValueError, match="pooling: 'max' is unknown"):
        FrozenEncoder.load(tmp_path / 'encoder.pth', pooling='max')
    for magnification in (0.0, -1.0, float('nan')):
        with pytest.raises(ValueError, match=f'magnification: {magnification} is'):
            FrozenEncoder.load(tmp_path / 'encoder.pth', magnification=magnification)
    with pytest.raises(FileNotFoundError, match=r"'nothing.pth' is neither a file nor"):
        FrozenEncoder.load('nothing.pth')
    without = read_weights(tmp_path / 'encoder.pth')
    del without.info['bands']
    write_weights(without, tmp_path / 'bandless.pth')
    with pytest.raises(ValueError, match=r'bandless.pth.* does not name its bands'):
        FrozenEncoder.load(tmp_path / 'bandless.pth')
    for bands, message in (
        (['B04'], 'bands: 1 names .* takes 10 channels'),
        (['B99'] * 10, 'B99'),
    ):
        with pytest.raises(ValueError, match=message):
            FrozenEncoder.load(tmp_path / 'bandless.pth', bands)
    with pytest.raises(ValueError, match=r'is for .* of sentinel2\. Leave bands out'):
        FrozenEncoder.load(tmp_path / 'encoder.pth', SENTINEL2_TEN_BANDS[::-1])
    with pytest.raises(ValueError, match="dataset: 'Eurosat' is not in torchgeo"):
        extract_features(BandStatistics(), 'Eurosat', eurosat_root)
    with pytest.raises(ValueError, match="no single 'label' of whole numbers"):
        extract_features(BandStatistics(), 'OSCD', oscd_root)
    with pytest.raises(ValueError, match='B99'):
        extract_features(BandStatistics(['B99']), 'EuroSAT', eurosat_root)


def test_features_of_a_dataset(eurosat_root: Path) -> None:
    # Bands in another order and spelling than the dataset's.
    bands = ('b8a', 'B4', 'B02')
    features = extract_features(
        BandStatistics(bands), 'EuroSAT', eurosat_root, ('val', 'test'), batch_size=7
    )
    assert np.array_equal(features.split, [0] * 20 + [1] * 40)
    val = EuroSAT(eurosat_root, 'val', bands=('B8A', 'B04', 'B02'))
    test = EuroSAT(eurosat_root, 'test', bands=('B8A', 'B04', 'B02'))
    samples = [val[3], test[39]]
    for row, sample in zip((3, 59), samples, strict=True):
        assert features.labels[row] == sample['label']
        means = sample['image'].mean((1, 2))
        np.testing.assert_allclose(features.values[row, :3], means, rtol=1e-5)


def test_all_splits_are_normalized_by_the_first(eurosat_root: Path) -> None:
    torch.manual_seed(0)
    encoder = FrozenEncoder.load('sigmae_vit_tiny_patch16')
    extract_features(encoder, 'EuroSAT', eurosat_root, ('val', 'test'))
    val = EuroSAT(eurosat_root, 'val', bands=SENTINEL2_TEN_BANDS)
    images = torch.stack([val[i]['image'] for i in range(20)])
    normal = encoder.transform(images)
    torch.testing.assert_close(
        normal.mean((0, 2, 3)), torch.zeros(10), rtol=0, atol=1e-3
    )
    before = encoder.transform
    extract_features(encoder, 'EuroSAT', eurosat_root, ('test',))
    assert encoder.transform is before


def test_tokens_of_a_dataset(tmp_path: Path, eurosat_root: Path) -> None:
    export('sigmae', tmp_path / 'encoder.pth')
    encoder = FrozenEncoder.load(tmp_path / 'encoder.pth')
    for one, dim in ((encoder, 192), (BandStatistics(), 20)):
        plain = extract_features(one, 'EuroSAT', eurosat_root, ('val',), batch_size=7)
        features = extract_features(
            one, 'EuroSAT', eurosat_root, ('val',), batch_size=7, tokens=True
        )
        np.testing.assert_allclose(features.values, plain.values, rtol=1e-5, atol=1e-5)
        assert plain.tokens is None
        assert features.tokens is not None
        assert features.tokens.shape == (20, 64, dim)
    maps = features.tokens.reshape(20, 8, 8, 20)
    image = EuroSAT(eurosat_root, 'val', bands=SENTINEL2_TEN_BANDS)[3]['image']
    patch = image[:, 8:16, 48:56].mean((1, 2))
    np.testing.assert_allclose(maps[3, 1, 6, :10], patch, rtol=1e-4)


def run(*arguments: Any) -> None:
    with narrow_encoders():
        main(['evaluate', 'features', *map(str, arguments)])


class TestPositionBias:
    """The part of the features that depends on the patch position alone."""

    def test_against_a_sum_over_every_shift(self) -> None:
        with narrow_encoders():
            frozen = FrozenEncoder.load('satmae_vit_tiny_patch8')
        frozen.fit_normalization(torch.randn(8, 10, 16, 16, generator=generator()))
        image = torch.randn(1, 10, 16, 16, generator=generator(1))
        shifts = [(row, column) for row in range(16) for column in range(16)]
        rolled = torch.cat([image.roll(shift, (-2, -1)) for shift in shifts])
        wanted = frozen.patch_features(rolled).double().mean(dim=0)
        wanted -= wanted.mean(dim=(-2, -1), keepdim=True)
        frozen.remove_position_bias(
            image.expand(4, -1, -1, -1), count=4096, batch_size=256
        )
        error = (frozen.position_bias - wanted).norm() / wanted.norm()
        assert error < 0.05

    def test_it_is_removed_and_nothing_else(
        self, eurosat_root: Path, tmp_path: Path
    ) -> None:
        frozen = narrow_encoder(tmp_path / 'encoder.pth', 'learnable')
        data = EuroSAT(eurosat_root, 'train', bands=frozen.bands)
        images = torch.stack([data[i]['image'] for i in range(0, 140, 2)])
        learned, others = images[::2], images[1::2]
        before = frozen.patch_features(others)
        frozen.remove_position_bias(learned, count=140)
        after = frozen.patch_features(others)
        means = [x.mean(dim=(-2, -1)) for x in (before, after)]
        torch.testing.assert_close(*means, rtol=0, atol=1e-4)
        shares = [
            float(x.mean(0).var(dim=(1, 2)).sum() / x.var(dim=(0, 2, 3)).sum())
            for x in (before, after)
        ]
        assert shares[0] > 0.8
        # The mean of 35 images is not that of all.
        assert shares[1] < 0.1

    def test_of_another_size(self) -> None:
        frozen = FrozenEncoder.load('sigmae_vit_tiny_patch8')
        frozen.fit_normalization(torch.randn(8, 10, 32, 32, generator=generator()))
        frozen.remove_position_bias(
            torch.randn(2, 10, 32, 32, generator=generator()), count=2
        )
        with pytest.raises(
            ValueError, match=r'estimated for \(4, 4\) patches, not for'
        ):
            frozen.patch_features(torch.zeros(1, 10, 32, 40))

    def test_of_a_dataset(self, eurosat_root: Path, tmp_path: Path) -> None:
        frozen = narrow_encoder(
            tmp_path / 'encoder.pth', 'learnable', pooling='mean+std'
        )
        plain, removed = (
            extract_features(
                frozen, 'EuroSAT', eurosat_root, ('val',), progress=False,
                remove_position_bias=remove,
            )
            for remove in (False, True)
        )  # fmt: skip
        assert frozen.position_bias is not None
        mean, std = np.split(plain.values, 2, axis=1)
        same, less = np.split(removed.values, 2, axis=1)
        np.testing.assert_allclose(same, mean, atol=1e-4)
        assert (less**2).sum() < 0.5 * (std**2).sum()


class Blocks(torch.nn.Module):
    """An encoder of three blocks: no position, half of the variance, nothing else."""

    blocks = range(3)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.table = torch.randn(64, 8, 8, generator=generator(7))

    def forward_intermediates(
        self, image: torch.Tensor, **kwargs: Any
    ) -> list[torch.Tensor]:
        content = torch.randn(len(image), 64, 8, 8)
        table = self.table.expand_as(content)
        return [content, content + table, table]


def test_position_shares_of_features_made_for_it() -> None:
    torch.manual_seed(0)
    frozen = FrozenEncoder(Blocks(), SENTINEL2_TEN_BANDS)
    # Few images: by chance alone, their means would make a sixth of the variance.
    shares = frozen.position_shares(torch.zeros(3, 10, 64, 64), count=6, batch_size=2)
    assert shares == pytest.approx([0, 0.5, 1], abs=0.03)


def test_position_shares_of_encoders(eurosat_root: Path, tmp_path: Path) -> None:
    """Rotary positions leave little in tokens, learnable ones may fill them."""
    rotary = FrozenEncoder.load(SIGMAE_Weights.SENTINEL2)
    data = EuroSAT(eurosat_root, 'train', bands=rotary.bands)
    images = torch.stack([data[i]['image'] for i in range(0, 140, 2)])
    shares = rotary.position_shares(images, count=140)
    assert len(shares) == 12
    assert max(shares) < 0.1
    learnable = narrow_encoder(tmp_path / 'encoder.pth', 'learnable')
    assert learnable.position_shares(images, count=140)[-1] > 0.8


def test_missing_pixels_are_shown_as_the_mean(tmp_path: Path) -> None:
    export('sigmae', tmp_path / 'encoder.pth')
    frozen = FrozenEncoder.load(tmp_path / 'encoder.pth')
    image = 1000 + 300 * torch.randn(1, 10, 32, 32, generator=generator())
    filled = image.clone()
    filled[..., 3:20, 5:9] = torch.tensor([1000.0 + 100 * i for i in range(10)])[
        :, None, None
    ]
    for value in (torch.nan, torch.inf):
        image[..., 3:20, 5:9] = value
        torch.testing.assert_close(
            frozen.patch_features(image), frozen.patch_features(filled)
        )


def test_the_command(
    tmp_path: Path, eurosat_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with narrow_encoders():
        export('sigmae', tmp_path / 'encoder.pth')
    run(
        tmp_path / 'encoder.pth', '--root', eurosat_root, '--samples-per-class', 5,
        '--probes', 'knn', 'attentive', '-o', tmp_path / 'out' / 'probe.json',
    )  # fmt: skip
    table = capsys.readouterr().out
    titles = [f'{p}{n}' for n in ('', ', 5 a class')
              for p in ('knn', 'attentive')]  # fmt: skip
    assert f'| EuroSAT | {" | ".join(titles)} |' in table
    content = json.loads((tmp_path / 'out' / 'probe.json').read_text())
    shares = content['position_shares']
    assert {name: len(values) for name, values in shares.items()} == {
        'sigmae_vit_tiny_patch8, untrained': 12,
        'encoder.pth': 12,
    }
    cells = ' | '.join(f'{100 * share:.0f}' for share in shares['encoder.pth'])
    assert f'| encoder.pth | {cells} |' in table
    accuracy = content['accuracy']
    names = ['band mean and std', 'sigmae_vit_tiny_patch8, untrained', 'encoder.pth']
    assert list(accuracy) == names
    for row in accuracy.values():
        assert [len(values) for values in row.values()] == [1, 1, 5, 5]
    # Ten classes: what says nothing reaches 0.1.
    assert accuracy['band mean and std']['knn'][0] > 0.4
    assert accuracy['band mean and std']['attentive'][0] > 0.4
    # The export does not have the weights of the untrained encoder.
    assert accuracy[names[1]] != accuracy[names[2]]


def test_the_command_with_folds(tmp_path: Path, eurosat_root: Path) -> None:
    with narrow_encoders():
        export('sigmae', tmp_path / 'encoder.pth')
    output = tmp_path / 'probe.json'
    arguments = (
        tmp_path / 'encoder.pth', '--root', eurosat_root, '--splits', 'val',
        '--folds', 2, '--repeats', 4, '--probes', 'knn', '-o', output,
    )  # fmt: skip
    run(*arguments)
    first = json.loads(output.read_text())['accuracy']
    assert all(len(values) == 8 for row in first.values() for values in row.values())
    run(*arguments)
    assert json.loads(output.read_text())['accuracy'] == first


def test_random_weights_depend_on_the_seed(tmp_path: Path, eurosat_root: Path) -> None:
    runs = []
    for seed in (0, 0, 1):
        torch.rand(seed + 3)
        run(
            'sigmae_vit_tiny_patch16', '--root', eurosat_root, '--splits', 'val',
            '--folds', 2, '--probes', 'knn', '--seed', seed, '-o', tmp_path / 'p.json',
        )  # fmt: skip
        runs.append(json.loads((tmp_path / 'p.json').read_text())['accuracy'])
    assert list(runs[0]) == ['band mean and std', 'sigmae_vit_tiny_patch16']
    assert runs[0] == runs[1] != runs[2]


def test_the_command_says_what_is_wrong(
    eurosat_root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    empty = tmp_path / 'empty'
    empty.mkdir()
    for more, message in (
        (['sigmae_vit_tiny_patch8', '--root', empty], 'Dataset not found in'),
        (['nothing.pth'], "'nothing.pth' is neither a file nor the name"),
        (['sigmae_vit_tiny_patch8', '--splits', 'test'], 'must be two'),
        (
            ['sigmae_vit_tiny_patch8', '--samples-per-class', 15],
            'has 14 training samples, not 15',
        ),
    ):
        with pytest.raises(SystemExit):
            run('--root', eurosat_root, *more, '-o', tmp_path / 'probe.json')
        assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / 'probe.json').exists()
