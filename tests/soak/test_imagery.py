# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""A few of each of what ``python -m soak.imagery`` tries by the thousand."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from soak import imagery, images
from torchgeo_sigmae.datasets import Scene
from torchgeo_sigmae.transforms import PatchSaliency

pytestmark = pytest.mark.usefixtures('narrow_models')


@pytest.mark.parametrize(
    ('part', 'count'), [('chips', 2), ('scenes', 15), ('bytes', 15), ('maps', 4)]
)
def test_nothing_fails(part: str, count: int, tmp_path: Path) -> None:
    found, failures = imagery.try_part(part, count, 7, tmp_path)
    assert not failures
    assert found.total() == count


def test_what_fails_is_found_with_its_recipe(tmp_path: Path) -> None:
    def wrong(recipe: images.Scene, folder: Path) -> str:
        raise KeyError('a bug')

    with mock.patch.dict(imagery.PARTS, {'scenes': (images.scenes, wrong)}):
        found, failures = imagery.try_part('scenes', 3, 7, tmp_path)
    assert not found
    assert failures[0].startswith("scenes: KeyError: 'a bug' on Scene(height=")


def test_the_checks_can_fail(tmp_path: Path) -> None:
    """A reader that changes a value, a saliency that is off."""
    read, saliency = Scene.read, PatchSaliency.saliency

    def wrong(self: Scene, *window: int) -> np.ndarray:
        array = read(self, *window)
        array[0, 0, 0] += 1
        return array

    scene = images.Scene(20, 20, 'uint16', 'sound', 0.0, 'utm', 0, 'ordered', 1)
    assert imagery.check_scene(scene, tmp_path) == 'right'
    with (
        mock.patch.object(Scene, 'read', wrong),
        pytest.raises(AssertionError, match='Mismatched elements: 1 '),
    ):
        imagery.check_scene(scene, tmp_path)
    chips = images.Chips(16, ('sound',), 1)
    with (
        mock.patch.object(
            PatchSaliency, 'saliency', lambda *args: saliency(*args) * 0.99
        ),
        pytest.raises(AssertionError, match='saliency differs by'),
    ):
        imagery.check_chips(chips, [])


def test_a_truncated_file_is_no_whole_one(tmp_path: Path) -> None:
    scene = images.Scene(20, 20, 'uint16', 'sound', 0.0, 'utm', 0, 'ordered', 1)
    for seed in range(8):
        recipe = scene, images.Damage('truncated', seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        assert imagery.check_bytes(recipe, folder) == 'truncated: refused by name'
