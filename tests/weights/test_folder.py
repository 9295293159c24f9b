# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Exported folders: timm, the Hugging Face Hub and our readers load them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from timm.models._hub import save_for_hf
from torchgeo.datasets import EuroSAT

from helpers.faults import file_size_limit
from helpers.training import small_task
from torchgeo_sigmae import SIGMAE_Weights, SIGMAETask, adapt_bands
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS, Band, BandSet, Sensor
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.evaluation import FrozenEncoder
from torchgeo_sigmae.models import build_encoder
from torchgeo_sigmae.weights import load_weights, read_weights, write_weights

FAMILIES = ('sigmae', 's2mae', 'satmae')
MEAN, STD = [1000.0 + 100 * i for i in range(10)], [200.0 + i for i in range(10)]
FILES = {'README.md', 'config.json', 'model.safetensors'}


def made(family: str = 'sigmae', **kwargs: object) -> SIGMAETask:
    torch.manual_seed(0)
    task = small_task(family, **{'mean': MEAN, 'std': STD, **kwargs})
    # Nothing is where it starts, positions and norms included.
    for parameter in task.model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return task


def same_features(
    one: torch.nn.Module, other: torch.nn.Module, bands: int = 10
) -> bool:
    image = torch.randn(2, bands, 32, 32)
    one, other = one.eval(), other.eval()
    with torch.no_grad():
        tokens = torch.equal(one.forward_features(image), other.forward_features(image))
        return tokens and torch.equal(one(image), other(image))


@pytest.mark.parametrize(
    ('family', 'arguments'),
    [
        ('sigmae', {}),
        ('s2mae', {}),
        ('s2mae', {'cube_bands': 5, 'positions': 'vanilla'}),
        ('satmae', {}),
        ('satmae', {'groups': [['B02', 'B12'], ['B03', 'B04', 'B05', 'B06', 'B07'],
                               ['B08', 'B8A', 'B11']], 'positions': 'sincos'}),
    ],
)  # fmt: skip
def test_timm_builds_the_encoder(
    family: str, arguments: dict[str, object], tmp_path: Path
) -> None:
    task = made(family, **arguments)
    task.export(tmp_path / 'encoder')
    assert set(os.listdir(tmp_path / 'encoder')) == FILES
    assert os.listdir(tmp_path) == ['encoder']
    name = f'local-dir:{tmp_path / "encoder"}'
    assert same_features(timm.create_model(name, pretrained=True), task.model.encoder)
    classifier = timm.create_model(name, pretrained=True, num_classes=5)
    assert classifier.head.out_features == 5
    classifier.reset_classifier(0)
    assert same_features(classifier, task.model.encoder)
    features = timm.create_model(name, pretrained=True, features_only=True)
    image = torch.randn(1, 10, 32, 32)
    with torch.no_grad():
        maps = features.eval()(image)
        expected = task.model.encoder.eval().forward_intermediates(
            image, indices=3, intermediates_only=True
        )
    assert [tuple(one.shape) for one in maps] == [(1, 192, 4, 4)] * 3
    assert all(map(torch.equal, maps, expected))


def test_plain_timm_models(tmp_path: Path) -> None:
    task = made(model='vit_tiny_patch16_224', bands=['B04', 'B08', 'B03'], size=64,
                mean=0.0, std=1.0, masking='random', indices=[])  # fmt: skip
    task.export(tmp_path / 'encoder')
    model = timm.create_model(f'local-dir:{tmp_path / "encoder"}', pretrained=True)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = task.model.encoder.eval()(image)
        assert torch.equal(model.eval()(image), expected)


def test_the_configuration_is_timms(tmp_path: Path) -> None:
    made().export(tmp_path / 'encoder')
    config = json.loads((tmp_path / 'encoder' / 'config.json').read_text())
    assert config['architecture'] == 'sigmae_vit_tiny_patch8'
    assert (config['num_features'], config['num_classes']) == (192, 0)
    pretrained = config['pretrained_cfg']
    assert (pretrained['mean'], pretrained['std']) == (MEAN, STD)
    assert pretrained['input_size'] == [10, 32, 32]
    known = config['torchgeo_sigmae']
    assert known['bands'] == list(SENTINEL2_TEN_BANDS)
    assert (known['scale'], known['offset']) == (1e-4, 0.0)
    model = timm.create_model(f'local-dir:{tmp_path / "encoder"}', pretrained=True)
    data = timm.data.resolve_model_data_config(model)
    assert (data['mean'], data['std']) == (MEAN, STD)
    assert tuple(data['input_size']) == (10, 32, 32)


@pytest.mark.parametrize('family', FAMILIES)
def test_other_bands_are_refused(family: str, tmp_path: Path) -> None:
    """timm would repeat the kernels of the first bands."""
    made(family).export(tmp_path / 'encoder')
    with pytest.raises(ValueError, match=r'adapt_bands|each of the 4 channels'):
        timm.create_model(
            f'local-dir:{tmp_path / "encoder"}', pretrained=True, in_chans=4
        )


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('half', [False, True])
def test_a_folder_is_weights_like_a_file(
    family: str, half: bool, tmp_path: Path
) -> None:
    task = made(family)
    task.export(tmp_path / 'folder', decoder=True, half=half)
    task.export(tmp_path / 'file.pth', decoder=True, half=half)
    folder, file = (read_weights(tmp_path / name) for name in ('folder', 'file.pth'))
    assert folder.info == file.info
    for one, other in ((folder.encoder, file.encoder), (folder.decoder, file.decoder)):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items())
        assert all(value.dtype == other[key].dtype for key, value in one.items())
    if not half:
        goes_on = small_task(family, weights=str(tmp_path / 'folder'))
        state = task.model.state_dict()
        for key, value in goes_on.model.state_dict().items():
            assert torch.equal(value, state[key]), key


def test_every_reader_takes_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = made()
    task.export(tmp_path / 'encoder')
    encoder = build_encoder('sigmae_vit_tiny_patch8', 10, 32)
    load_weights(encoder, tmp_path / 'encoder')
    assert same_features(encoder, task.model.encoder)
    raw = 1000 + 300 * torch.randn(2, 10, 32, 32)
    frozen = FrozenEncoder.load(str(tmp_path / 'encoder'))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        expected = task.model.encoder.eval()((raw - mean) / std)
        torch.testing.assert_close(frozen(raw), expected)
    main(['adapt-bands', str(tmp_path / 'encoder'), '--bands', 'B04', 'B03', 'B02',
          '--output', str(tmp_path / 'rgb')])  # fmt: skip
    assert f'Wrote {tmp_path / "rgb"}' in capsys.readouterr().out
    rgb = timm.create_model(f'local-dir:{tmp_path / "rgb"}', pretrained=True)
    adapted = read_weights(tmp_path / 'rgb')
    assert list(adapted.bands or ()) == ['B04', 'B03', 'B02']
    assert torch.equal(
        rgb.patch_embed.proj.weight, adapted.encoder['patch_embed.proj.weight']
    )


def test_bands_without_statistics_have_none_in_timms_configuration(
    tmp_path: Path,
) -> None:
    adapt_bands(SIGMAE_Weights.SENTINEL2, ['SR_B4', 'SR_B5'], tmp_path / 'landsat',
                sensor='landsat8')  # fmt: skip
    config = json.loads((tmp_path / 'landsat' / 'config.json').read_text())
    assert not {'mean', 'std'} & set(config['pretrained_cfg'])
    model = timm.create_model(f'local-dir:{tmp_path / "landsat"}', pretrained=True)
    assert model.patch_embed.proj.in_channels == 2


def test_packaged_weights_become_a_folder(tmp_path: Path) -> None:
    weights = read_weights(SIGMAE_Weights.SENTINEL2)
    write_weights(weights, tmp_path / 'sentinel2')
    again = read_weights(tmp_path / 'sentinel2')
    assert again.decoder.keys() == weights.decoder.keys()
    assert again.bands == weights.bands
    model = timm.create_model(f'local-dir:{tmp_path / "sentinel2"}', pretrained=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights.encoder[key]), key


def test_real_chips_have_equal_features(eurosat_root: Path, tmp_path: Path) -> None:
    weights = SIGMAE_Weights.SENTINEL2
    write_weights(read_weights(weights), tmp_path / 'sentinel2')
    exported = timm.create_model(f'local-dir:{tmp_path / "sentinel2"}', pretrained=True)
    packaged = build_encoder(weights.meta['model'], 10, 64)
    load_weights(packaged, weights)
    dataset = EuroSAT(eurosat_root, 'test', SENTINEL2_TEN_BANDS)
    image = weights.transforms(torch.stack([dataset[i]['image'] for i in range(8)]))
    packaged, exported = packaged.eval(), exported.eval()
    with torch.no_grad():
        features = exported.forward_features(image)
        assert torch.equal(features, packaged.forward_features(image))
    # Chips of real ground differ from each other.
    assert features.mean(dim=1).std(dim=0).mean() > 0.01


def test_a_sensor_of_ones_own(tmp_path: Path) -> None:
    sensor = Sensor('drone', (Band('green', 'green', 550.0), Band('nir', 'nir', 840.0)))
    task = made(bands=['green', 'nir'], sensor=sensor, indices=[], masking='random',
                mean=100.0, std=10.0)  # fmt: skip
    task.export(tmp_path / 'drone')
    bands = read_weights(tmp_path / 'drone').bands
    assert bands == BandSet(['green', 'nir'], sensor)
    assert bands is not None
    assert bands.sensor == sensor


def test_the_card_tells_bands_and_training(tmp_path: Path) -> None:
    made('satmae').export(tmp_path / 'my encoder')
    text = (tmp_path / 'my encoder' / 'README.md').read_text()
    _, front, card = text.split('---\n', 2)
    facts = yaml.safe_load(front)
    assert facts['library_name'] == 'timm'
    assert facts['pipeline_tag'] == 'image-feature-extraction'
    assert card.strip().startswith('# my encoder')
    assert '| B8A | 1700 | 207 |' in card
    assert 'Reflectance is `raw * 0.0001 + 0`.' in card
    assert '| method | SatMAE |' in card


def test_exporting_again(tmp_path: Path) -> None:
    """The card stays, everything else is replaced, and an old decoder goes."""
    folder = tmp_path / 'encoder'
    made().export(folder, decoder=True)
    assert set(os.listdir(folder)) == {*FILES, 'decoder'}
    made('satmae').export(folder, decoder=True)
    assert (
        read_weights(folder).decoder.keys()
        == made('satmae').model.decoder.state_dict().keys()
    )
    (folder / 'README.md').write_text('mine')
    (folder / 'picture.png').write_bytes(b'x')
    other = made('s2mae')
    other.export(folder)
    assert set(os.listdir(folder)) - {'decoder'} == {*FILES, 'picture.png'}
    assert not list(folder.glob('decoder/*'))
    assert not read_weights(folder).decoder
    assert (folder / 'README.md').read_text() == 'mine'
    assert same_features(
        timm.create_model(f'local-dir:{folder}', pretrained=True), other.model.encoder
    )


def test_a_folder_whose_name_has_a_dot_exists_first(tmp_path: Path) -> None:
    made().export(tmp_path / 'encoder.v1')
    assert (tmp_path / 'encoder.v1').is_file()
    (tmp_path / 'encoder.v2').mkdir()
    made().export(tmp_path / 'encoder.v2')
    assert set(os.listdir(tmp_path / 'encoder.v2')) == FILES


@pytest.mark.parametrize('exists', [False, True])
def test_a_full_disk_leaves_the_old_folder(exists: bool, tmp_path: Path) -> None:
    folder = tmp_path / 'encoder'
    if exists:
        made().export(folder)
    before = {path.name: path.read_bytes() for path in folder.glob('*')}
    with (
        file_size_limit(20),
        pytest.raises(OSError, match=r'path: .*encoder cannot be written'),
    ):
        made('s2mae').export(folder)
    assert {path.name: path.read_bytes() for path in folder.glob('*')} == before
    assert os.listdir(tmp_path) == ['encoder'] * exists


def test_where_nobody_may_write(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    for target in (tmp_path / 'file' / 'encoder', Path('/proc/encoder')):
        with pytest.raises(OSError, match=f'path: {target} cannot be written'):
            made().export(target)


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('config.json', b'{'),
        ('config.json', b'[1]'),
        ('config.json', b'{"num_features": 1}'),
        ('config.json', b'\xff\xfe'),
        ('config.json', b'[' * 100_000),
        ('config.json', b'{"architecture": "x", "torchgeo_sigmae": [1]}'),
        ('model.safetensors', b''),
        ('model.safetensors', b'not tensors at all'),
        ('model.safetensors', None),
        ('decoder/model.safetensors', b'\x00' * 100),
    ],
)
def test_damaged_folders_are_refused(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    made().export(tmp_path / 'encoder', decoder=True)
    file = tmp_path / 'encoder' / name
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=r'is not an exported folder: .*Pass a folder'):
        read_weights(tmp_path / 'encoder')


@pytest.mark.parametrize(
    ('key', 'value'),
    [('size', 10**9), ('bands', ['B02']), ('std', [0.0] * 10), ('mean', float('inf'))],
)
def test_claims_are_checked(key: str, value: object, tmp_path: Path) -> None:
    made().export(tmp_path / 'encoder')
    file = tmp_path / 'encoder' / 'config.json'
    config = json.loads(file.read_text())
    config['torchgeo_sigmae'][key] = value
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match='cannot be what it claims to be'):
        read_weights(tmp_path / 'encoder')


def test_folders_that_timm_wrote(tmp_path: Path) -> None:
    """Of a classifier: its head is dropped, and the bands are not known."""
    model = timm.create_model(
        'sigmae_vit_tiny_patch8', in_chans=4, num_classes=3, img_size=32
    )
    save_for_hf(model, str(tmp_path / 'timm'), safe_serialization=True)
    weights = read_weights(tmp_path / 'timm')
    assert 'head.weight' in load_file(tmp_path / 'timm' / 'model.safetensors')
    assert 'head.weight' not in weights.encoder
    assert weights.bands is None
    assert read_weights(tmp_path / 'timm', ['B02', 'B03', 'B04', 'B08']).bands
    model.reset_classifier(0)
    encoder = build_encoder('sigmae_vit_tiny_patch8', 4, 32)
    load_weights(encoder, weights)
    assert same_features(encoder, model, 4)


SCRIPT = """
import os, sys
from pathlib import Path

from helpers.hub import local_hub

with local_hub() as hub:
    # Read when huggingface_hub is imported.
    os.environ['HF_ENDPOINT'] = hub.url
    import timm, torch
    from helpers.training import small_task
    from torchgeo_sigmae.cli import main
    from torchgeo_sigmae.weights import read_weights

    for family in ('sigmae', 's2mae', 'satmae'):
        torch.manual_seed(0)
        task = small_task(family)
        task.export(family, decoder=True)
        Path(family, 'secret.ckpt').write_text('not to be uploaded')
        main(['publish', family, f'me/{family}', *['--private'] * (family == 's2mae')])
        model = timm.create_model(f'hf-hub:me/{family}', pretrained=True).eval()
        image = torch.randn(2, 10, 32, 32)
        with torch.no_grad():
            assert torch.equal(model(image), task.model.encoder.eval()(image))
        weights = read_weights(f'hf-hub:me/{family}@main')
        assert weights.bands == task.bands
        again = small_task(family, weights=f'hf-hub:me/{family}').model.state_dict()
        for key, value in task.model.state_dict().items():
            assert torch.equal(again[key], value), key
    try:
        read_weights('hf-hub:me/nothing')
    except FileNotFoundError as error:
        assert "weights: 'hf-hub:me/nothing' cannot be downloaded" in str(error)
        assert 'Check the name' in str(error)
    else:
        raise AssertionError
    assert hub.repositories.keys() == {'me/sigmae', 'me/s2mae', 'me/satmae'}
    assert hub.private == {'me/s2mae'}
    for files in hub.repositories.values():
        assert files.keys() == {'README.md', 'config.json', 'model.safetensors',
                                'decoder/model.safetensors'}

# The Hub is gone: what was downloaded is in the cache.
assert read_weights('hf-hub:me/s2mae').info['model'] == 's2mae_vit_tiny_patch8'
print('no Hub', file=sys.stderr)
main(['publish', 's2mae', 'me/x'])
"""


def test_published_folders_are_loaded_from_the_hub(tmp_path: Path) -> None:
    path = os.pathsep.join(str(Path(__file__).parents[i]) for i in (1, 2))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', SCRIPT], cwd=tmp_path, check=False,
        env={**os.environ, 'PYTHONPATH': path, 'HF_HOME': str(tmp_path / 'cache'),
             'HF_TOKEN': 'hf_x', 'HF_HUB_DISABLE_PROGRESS_BARS': '1'},
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Load it with timm.create_model('hf-hub:me/sigmae'" in done.stdout
    assert 'model.safetensors' in done.stdout
    last = done.stderr.split('no Hub\n')[1]
    assert last.count('\n') == 1
    assert "repo: 'me/x' cannot be written" in last
