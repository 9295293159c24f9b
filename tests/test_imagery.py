# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Odd and broken chips and GeoTIFFs: the right result, or an error that names the file.

A few inputs in every run, many in the slow tests.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.windows import Window
from torch import Tensor
from torch.utils.data import DataLoader

from helpers import imagery
from helpers.imagery import BANDS
from helpers.oracles import saliency_oracle
from helpers.training import quiet_trainer, small_task
from torchgeo_sigmae import SceneDataModule, SIGMAETask
from torchgeo_sigmae.datasets import SceneChips, find_scenes
from torchgeo_sigmae.maps import open_raster, saliency_map, salient_regions
from torchgeo_sigmae.patches import valid_values
from torchgeo_sigmae.transforms import DEFAULT_INDICES, PatchSaliency
from torchgeo_sigmae.transforms.saliency import masked_indices

pytestmark = [
    pytest.mark.usefixtures('narrow_models'), pytest.mark.timeout(900),
]  # fmt: skip

#: The kinds of our errors.
CLEAR = (ValueError, OSError, RuntimeError)

some_damage = st.one_of(st.none(), imagery.damages)


def few_or_many(few: int, many: int) -> pytest.MarkDecorator:
    """Take the number of inputs as a parameter, the larger one in slow tests."""
    slow = pytest.param(many, marks=pytest.mark.slow)
    return pytest.mark.parametrize('examples', [few, slow] if few else [slow])


def fuzz(
    examples: int, recipes: st.SearchStrategy[Any], check: Callable[[Any], None]
) -> None:
    """Check so many recipes, always the same ones."""
    settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )(given(recipes)(check))()  # fmt: skip


class Watched(SIGMAETask):
    """Looks at every mask and loss of the training."""

    def _draw(self, batch: dict[str, Any]) -> Any:
        tokens, inputs, keep, predicted, counts = super()._draw(batch)
        count = tokens.valid.shape[1]
        hidden = min(max(round(0.9 * count), 1), count - 1)
        assert keep.shape[1] == count - hidden
        every = torch.cat([keep, predicted], 1).sort().values
        assert (every == torch.arange(count)).all(), 'a token is lost'
        assert not counts[~tokens.valid.gather(1, predicted)].any(), 'no data counts'
        return tokens, inputs, keep, predicted, counts

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        assert loss.isfinite()
        return loss


def watched_task(**kwargs: Any) -> SIGMAETask:
    return small_task(
        kind=Watched, bands=BANDS, decoder_dim=16, decoder_num_heads=1, **kwargs
    )


def require_finite(task: SIGMAETask) -> None:
    assert all(parameter.isfinite().all() for parameter in task.parameters())


@contextmanager
def empty_folder(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


@few_or_many(2, 200)
def test_chips_of_any_kind_have_a_saliency_and_train(
    examples: int, tmp_path: Path
) -> None:
    samples = []

    def check(recipe: imagery.Chips) -> None:
        images = recipe.make()
        batch = torch.from_numpy(images)
        valid = valid_values(batch, 0.0)
        layers, counted = masked_indices(batch, BANDS, DEFAULT_INDICES, valid)
        assert (layers[counted].abs() <= 1).all()
        for combine in ('minmax', 'rank', 'product'):
            actual = PatchSaliency(BANDS, 8, combine=combine).saliency(batch)
            assert actual.shape == (len(batch), recipe.side // 8, recipe.side // 8)
            assert ((actual >= 0) & (actual <= 1)).all()
            if combine == 'minmax':
                for image, pixels, one in zip(images, valid, actual, strict=True):
                    expected = saliency_oracle(image[1:], pixels[1:].numpy(), 8)
                    decided = np.isfinite(expected)
                    np.testing.assert_allclose(
                        one.numpy()[decided], expected[decided], rtol=0, atol=1e-3
                    )
        if valid.any():  # a batch of gaps stops the run
            samples.append({'image': batch})

    fuzz(examples, imagery.chips, check)
    task = watched_task()
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(task, DataLoader(samples, batch_size=None))
    assert trainer.global_step == len(samples)
    require_finite(task)


@few_or_many(15, 500)
def test_a_scene_is_read_as_it_was_written_or_refused_by_name(
    examples: int, tmp_path: Path
) -> None:
    def check(recipe: imagery.Scene) -> None:
        with empty_folder(tmp_path) as folder:
            check_scene(recipe, folder / 'scene.tif')

    fuzz(examples, imagery.scenes, check)


def check_scene(recipe: imagery.Scene, path: Path) -> None:
    wanted = recipe.write(path)
    if wanted is None:
        with pytest.raises(ValueError, match=r'scene\.tif'):
            find_scenes(path.parent, bands=BANDS)
        return
    (scene,) = find_scenes(path.parent, bands=BANDS)
    for one in (scene, scene.cached()):
        actual = one.read()
        np.testing.assert_array_equal(actual, wanted)
    side = min(16, recipe.height, recipe.width)
    for random in (True, False):
        dataset = SceneChips([scene], BANDS, side, random)
        sample = dataset[len(dataset) - 1]
        row, column = sample['window'].tolist()
        part = wanted[:, row : row + side, column : column + side]
        np.testing.assert_array_equal(sample['image'], part)
    if recipe.place not in ('nan', 'inf'):
        raster = open_raster(path, BANDS)
        actual = raster.read(Window(0, 0, recipe.width, recipe.height))
        assert actual.shape == wanted.shape
        valid = np.isfinite(actual).all(0)
        np.testing.assert_array_equal(actual[:, valid], wanted[:, valid])


@few_or_many(15, 600)
def test_a_damaged_file_is_refused_by_name_or_read_without_a_crash(
    examples: int, tmp_path: Path
) -> None:
    def check(recipe: tuple[imagery.Scene, imagery.Damage]) -> None:
        with empty_folder(tmp_path) as folder:
            check_bytes(*recipe, folder / 'scene.tif')

    fuzz(examples, st.tuples(imagery.plain, imagery.damages), check)


@pytest.mark.parametrize('seed', range(8))
def test_a_truncated_file_is_refused(seed: int, tmp_path: Path) -> None:
    scene = imagery.Scene(20, 20, 'uint16', 'sound', 0.0, 'utm', 0, 'ordered', 1)
    damage = imagery.Damage('truncated', seed)
    assert not check_bytes(scene, damage, tmp_path / 'scene.tif')


def check_bytes(recipe: imagery.Scene, damage: imagery.Damage, path: Path) -> bool:
    """Whether the damaged file could be read."""
    wanted = recipe.write(path)
    assert wanted is not None
    path.write_bytes(damage.apply(path.read_bytes()))
    try:
        (scene,) = find_scenes(path.parent, bands=BANDS)
        if scene.num_pixels > 2**24:
            # A header that claims more than the file can hold.
            actual = scene.read(Window(0, 0, 64, 64))
        else:
            actual = scene.read()
            again = scene.cached().read()
            np.testing.assert_array_equal(actual, again)
        open_raster(path, BANDS).read(Window(0, 0, 16, 16))
    except CLEAR as error:
        message = str(error)
    else:
        message = ''
    if message:
        assert str(path) in message
        return False
    same = actual.shape == wanted.shape and np.array_equal(
        actual, wanted, equal_nan=True
    )
    assert same or damage.how != 'truncated'
    return True


@few_or_many(4, 60)
def test_any_scene_has_a_map_or_an_error_with_a_name(
    examples: int, tmp_path: Path
) -> None:
    def check(recipe: tuple[imagery.Scene, imagery.Damage | None]) -> None:
        with empty_folder(tmp_path) as folder:
            check_map(*recipe, folder / 'scene.tif', folder / 'a map.tif')

    scenes = st.one_of(imagery.plain, imagery.scenes)
    fuzz(examples, st.tuples(scenes, some_damage), check)


def check_map(
    recipe: imagery.Scene, damage: imagery.Damage | None, path: Path, target: Path
) -> None:
    wanted = recipe.write(path)
    try:
        saliency_map(open_raster(path, BANDS), target, window=16)
        if damage is not None:
            target.write_bytes(damage.apply(target.read_bytes()))
        regions = salient_regions(target)
    except CLEAR as error:
        message = str(error)
    else:
        message = ''
    if message:
        assert str(path) in message or str(target) in message
        return
    assert damage is not None or wanted is not None, 'not refused'
    if damage is None:
        assert regions['max'].between(0, 1).all()


@few_or_many(0, 10)
def test_a_folder_of_odd_scenes_trains_or_ends_with_an_error_with_a_name(
    examples: int, tmp_path: Path
) -> None:
    def check(recipe: list[tuple[imagery.Scene, imagery.Damage | None]]) -> None:
        with empty_folder(tmp_path) as folder:
            for number, (scene, damage) in enumerate(recipe):
                path = folder / f'{number}.tif'
                scene.write(path)
                if damage is not None:
                    path.write_bytes(damage.apply(path.read_bytes()))
            for on_error, cache in (
                ('raise', False),
                ('skip', True),
                ('skip', False),
            ):
                check_folder(folder, on_error, cache)

    scenes = st.one_of(imagery.plain, imagery.plain, imagery.scenes)
    pairs = st.tuples(scenes, some_damage)
    fuzz(examples, st.lists(pairs, min_size=6, max_size=6), check)


def check_folder(folder: Path, on_error: str, cache: bool) -> None:
    data = SceneDataModule(
        folder, BANDS, 16, 4, val_fraction=0, length=8, on_error=on_error,
        cache=cache,
    )  # fmt: skip
    task = watched_task(mean=None, std=None, normalize=None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            quiet_trainer(folder / on_error, max_epochs=1).fit(task, data)
    except CLEAR as error:
        message = str(error)
    else:
        message = ''
    # These speak of all files together.
    general = ('root: none', 'None of the', 'std:', 'size:', 'bands: no training')
    if message and not message.startswith(general):
        assert str(folder) in message
        assert on_error == 'raise' or 'not finite' in message
    require_finite(task)
