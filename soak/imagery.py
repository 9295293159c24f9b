# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Over 10,000 odd and broken chips and GeoTIFFs: right, or an error with a name.

    python -m soak.imagery [--output FOLDER] [--seed N] [--only PART ...]

Every part runs in a process of its own, which says what it is about to try: a crash or
a hang has a name, too. Failures are printed as recipes that make the input again.

- chips: spectral indices and saliency against a loop in float64, masks, and training;
- scenes: GeoTIFFs are found, read and cut as they were written, or refused by name;
- folders: the same in ``SceneDataModule``, with both ``on_error``, and trained on;
- bytes: files whose bytes are cut off, flipped or zeroed;
- maps: saliency maps and regions of all of these.
"""

import faulthandler
import json
import multiprocessing
import resource
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import torch
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from rasterio.windows import Window
from torch import Tensor
from torch.utils.data import DataLoader
from training import task, trainer

from benchmarks.measure import quiet
from torchgeo_sigmae import SceneDataModule, SIGMAETask
from torchgeo_sigmae.datasets import SceneChips, find_scenes
from torchgeo_sigmae.maps import open_raster, saliency_map, salient_regions
from torchgeo_sigmae.transforms import PatchSaliency, spectral_indices, valid_pixels

from . import images
from .images import BANDS
from .trial import conclude, trial_parser

#: How many of each, and of what: chips come 32 a batch, folders hold 6 scenes.
COUNTS = {'chips': 280, 'scenes': 700, 'folders': 10, 'bytes': 1000, 'maps': 60}

#: Seconds after which one input is called a hang.
_PATIENCE = 90

#: What our errors are.
_CLEAR = (ValueError, OSError, RuntimeError)


class Watched(SIGMAETask):
    """Looks at every mask and loss of the training."""

    def _draw(self, batch: dict[str, Any]) -> Any:
        tokens, keep, predicted, counts = super()._draw(batch)
        count = tokens.valid.shape[1]
        hidden = min(max(round(0.9 * count), 1), count - 1)
        assert keep.shape[1] == count - hidden, 'a mask of another size'
        every = torch.cat([keep, predicted], 1).sort().values
        assert (every == torch.arange(count)).all(), 'a token is lost'
        assert not counts[~tokens.valid.gather(1, predicted)].any(), 'no data counts'
        return tokens, keep, predicted, counts

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As ever."""
        loss = super().training_step(*args, **kwargs)
        assert loss.isfinite(), 'a loss that is not finite'
        return loss


def require(holds: bool, why: str) -> None:
    """Say what does not hold."""
    if not holds:
        raise AssertionError(why)


def watched(**arguments: Any) -> Watched:
    """A small task that does."""
    made = task(bands=BANDS, decoder_dim=16, decoder_num_heads=1, **arguments)
    made.__class__ = Watched
    return made


def check_chips(recipe: images.Chips, kept: list[Tensor]) -> str:
    """Indices and saliency of a batch; kept for training."""
    raw = recipe.make()
    batch = torch.from_numpy(raw)
    valid = valid_pixels(batch)
    layers = spectral_indices(batch, BANDS).movedim(1, 0)
    assert (layers[:, valid].abs() <= 1).all(), 'an index out of its range'
    for combine in ('minmax', 'rank', 'product'):
        found = PatchSaliency(BANDS, 8, combine=combine).saliency(batch)
        assert found.shape == (len(raw), recipe.side // 8, recipe.side // 8)
        assert ((found >= 0) & (found <= 1)).all(), f'{combine}: out of [0, 1]'
        if combine == 'minmax':
            for image, one in zip(raw, found.numpy(), strict=True):
                loop = images.saliency_by_loop(image, 8)
                right = np.isnan(loop) | (abs(one - loop) < 1e-3)
                assert right.all(), f'saliency differs by {abs(one - loop).max():.2g}'
    kept.append(batch)
    return 'right'


def check_scene(recipe: images.Scene, folder: Path) -> str:
    """A file is read as it was written, or refused by name."""
    path = folder / 'scene.tif'
    wanted = recipe.write(path)
    try:
        (scene,) = find_scenes(folder, bands=BANDS)
    except ValueError as error:
        require(wanted is None, f'refused: {error}')
        require(str(path) in str(error), f'no name in: {error}')
        return 'refused by name'
    assert wanted is not None, 'not refused'
    for one in (scene, scene.hold()):
        found = one.read(0, 0, recipe.height, recipe.width)
        np.testing.assert_array_equal(found, wanted)
    side = min(16, recipe.height, recipe.width)
    for random in (True, False):
        dataset = SceneChips([scene], BANDS, side, random)
        sample = dataset[len(dataset) - 1]
        row, column = sample['window'].tolist()
        part = wanted[:, row : row + side, column : column + side]
        np.testing.assert_array_equal(sample['image'], part)
    if recipe.place not in ('nan', 'inf'):
        raster = open_raster(path, BANDS)
        found = raster.read(Window(0, 0, recipe.width, recipe.height))
        assert found.shape == wanted.shape
        known = np.isfinite(found).all(0)
        np.testing.assert_array_equal(found[:, known], wanted[:, known])
    return 'right'


def check_folder(
    recipe: tuple[tuple[images.Scene, images.Damage | None], ...], folder: Path
) -> str:
    """What 'skip' leaves is trained on; 'raise' stops with a name, or needs not."""
    for i, (scene, damage) in enumerate(recipe):
        path = folder / f'{i}.tif'
        scene.write(path)
        if damage is not None:
            path.write_bytes(damage.apply(path.read_bytes()))
    results = []
    for on_error, held in (('raise', False), ('skip', True), ('skip', False)):
        data = SceneDataModule(
            folder, BANDS, 16, 4, val_fraction=0, length=8, on_error=on_error,
            in_memory=held,
        )  # fmt: skip
        made = watched(mean=None, std=None, normalize=None)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                trainer(folder / on_error, max_epochs=1).fit(made, data)
        except _CLEAR as error:
            text = str(error)
            of_all = text.startswith(('root: none', 'None of the', 'std:', 'size:'))
            require(of_all or str(folder) in text, f'no name in: {error!r}')
            require(of_all or on_error == 'raise' or 'not finite' in text, text)
            results.append('an error with a name')
        else:
            results.append(f'trained{", files skipped" * bool(data.skipped)}')
        assert all(p.isfinite().all() for p in made.parameters()), 'NaN in the weights'
    return f'raise: {results[0]}; skip: {results[1]}'


def check_bytes(recipe: tuple[images.Scene, images.Damage], folder: Path) -> str:
    """A damaged file is refused by name, or read as it now is."""
    scene, damage = recipe
    path = folder / 'scene.tif'
    wanted = scene.write(path)
    assert wanted is not None
    path.write_bytes(damage.apply(path.read_bytes()))
    try:
        (one,) = find_scenes(folder, bands=BANDS)
        if one.area > 2**24:
            # A header that promises what the file cannot hold.
            found = one.read(0, 0, 64, 64)
        else:
            found = one.read(0, 0, one.height, one.width)
            held = one.hold().read(0, 0, one.height, one.width)
            np.testing.assert_array_equal(found, held)
        open_raster(path, BANDS).read(Window(0, 0, 16, 16))
    except _CLEAR as error:
        require(str(path) in str(error), f'no name in: {error!r}')
        return f'{damage.how}: refused by name'
    if found.shape == wanted.shape and np.array_equal(found, wanted, equal_nan=True):
        return f'{damage.how}: right'
    assert damage.how != 'truncated', 'a truncated file was read as if it were whole'
    return f'{damage.how}: other values, without a sign of it in the file'


def check_map(recipe: tuple[images.Scene, images.Damage | None], folder: Path) -> str:
    """A map and its regions, or an error with a name."""
    scene, damage = recipe
    path, target = folder / 'scene.tif', folder / 'a map.tif'
    wanted = scene.write(path)
    try:
        saliency_map(open_raster(path, BANDS), target, window=16)
        if damage is not None:
            target.write_bytes(damage.apply(target.read_bytes()))
        regions = salient_regions(target)
    except _CLEAR as error:
        named = str(path) in str(error) or str(target) in str(error)
        require(named, f'no name in: {error!r}')
        return 'an error with a name'
    assert damage is not None or wanted is not None, 'not refused'
    if damage is None:
        assert regions['max'].between(0, 1).all(), 'saliency out of [0, 1]'
    return 'a map'


_some_damage = st.one_of(st.none(), images.damages)
#: What is tried, by part: recipes and their check.
PARTS: dict[str, tuple[Any, Callable[[Any, Any], str]]] = {
    'chips': (images.chips, check_chips),
    'scenes': (images.scenes, check_scene),
    'folders': (
        st.lists(
            st.tuples(
                st.one_of(images.plain, images.plain, images.scenes), _some_damage
            ),
            min_size=6, max_size=6,
        ).map(tuple),
        check_folder,
    ),
    'bytes': (st.tuples(images.plain, images.damages), check_bytes),
    'maps': (
        st.tuples(st.one_of(images.plain, images.scenes), _some_damage), check_map,
    ),
}  # fmt: skip


def try_part(
    name: str, count: int, seed: int, folder: Path
) -> tuple[Counter[str], list[str]]:
    """Try one part.

    Args:
        name: A key of :data:`PARTS`.
        count: Number of inputs.
        seed: Seed of the recipes.
        folder: An empty folder; ``current`` in it tells what is being tried.

    Returns:
        What came of it, and how often; and what should not have.
    """
    recipes, check = PARTS[name]
    found: Counter[str] = Counter()
    failures: list[str] = []
    kept: list[Tensor] = []
    faulthandler.enable()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @hypothesis.given(recipes)
    def run(recipe: Any) -> None:
        (folder / 'current').write_text(repr(recipe))
        faulthandler.dump_traceback_later(_PATIENCE, exit=True)
        torch.manual_seed(seed)
        try:
            if name == 'chips':
                found[check(recipe, kept)] += 1
                return
            with tempfile.TemporaryDirectory(dir=folder) as place:
                found[check(recipe, Path(place))] += 1
        except Exception as error:
            text = ' '.join(str(error).split())[:300]
            failures.append(f'{name}: {type(error).__name__}: {text} on {recipe!r}')
        finally:
            faulthandler.cancel_dump_traceback_later()

    run()
    if kept:
        failures += train(kept)
    return found, failures


def train(batches: list[Tensor]) -> list[str]:
    """Train on all chips; the guard and the asserts of the task stop it."""
    made = watched()
    run: Trainer = trainer(Path(tempfile.gettempdir()), max_epochs=1)
    samples: Any = [{'image': batch} for batch in batches]
    try:
        run.fit(made, DataLoader(samples, batch_size=None))
    except Exception as error:
        return [f'chips: training, batch {run.global_step}: {error!r}']
    if run.global_step != len(batches):
        return [f'chips: {run.global_step} steps of {len(batches)} batches']
    if not all(p.isfinite().all() for p in made.parameters()):
        return ['chips: NaN in the weights']
    return []


def _part(name: str, count: int, seed: int, folder: str) -> None:
    """One part, in a process."""
    quiet()
    torch.set_num_threads(1)
    found, failures = try_part(name, count, seed, Path(folder))
    result = json.dumps({'found': found, 'failures': failures})
    (Path(folder) / 'result').write_text(result)


def main() -> None:
    """Try all of them."""
    parser = trial_parser(__doc__)
    parser.add_argument('--only', nargs='+', choices=list(COUNTS), default=list(COUNTS))
    arguments = parser.parse_args()
    figures: dict[str, str] = {}
    failures: list[str] = []
    total = 0
    for name in arguments.only:
        count = COUNTS[name]
        with tempfile.TemporaryDirectory() as folder:
            process = multiprocessing.get_context('spawn').Process(
                target=_part, args=(name, count, arguments.seed, folder)
            )
            process.start()
            process.join()
            result = Path(folder) / 'result'
            if not result.exists():
                current = (Path(folder) / 'current').read_text()
                failures.append(f'{name}: died ({process.exitcode}) on {current}')
                continue
            content = json.loads(result.read_text())
        failures += content['failures']
        tried = sum(content['found'].values()) + len(content['failures'])
        total += tried * {'chips': 32, 'folders': 6}.get(name, 1)
        parts = sorted(content['found'].items())
        figures[f'{name}, {tried} tried'] = '; '.join(f'{k} ({n})' for k, n in parts)
        print(f'{name}: {figures[f"{name}, {tried} tried"]}', flush=True)
    figures['chips and GeoTIFFs in total'] = str(total)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures['processor time'] = f'{(used.ru_utime + used.ru_stime) / 60:.1f} minutes'
    conclude(arguments.output, 'imagery', figures, failures)


if __name__ == '__main__':
    main()
