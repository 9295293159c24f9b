# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The page of a scene: what it holds, and what it does in a browser."""

import re
import shutil
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from helpers.geotiffs import RGB, write
from helpers.pages import cosines, levels, picture, read_page, unpacked
from helpers.training import small_task
from torchgeo_sigmae.bands import SENTINEL2_TEN_BANDS as BANDS
from torchgeo_sigmae.cli import main
from torchgeo_sigmae.evaluation import FrozenEncoder
from torchgeo_sigmae.maps import (
    embedding_map,
    open_raster,
    reconstruction_map,
    saliency_map,
    similarity_map,
    view_scene,
)
from torchgeo_sigmae.plotting import view
from torchgeo_sigmae.plotting.reconstruction import reconstruction_panels
from torchgeo_sigmae.tasks import restore_task

#: Scene in pixels and in patches of 8 pixels.
SIZE, GRID = (76, 100), (10, 13)


@pytest.fixture(scope='module')
def files(
    scene: Callable[[int, int], np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A scene with a hole, and the weights of a small task with and without decoder."""
    folder = tmp_path_factory.mktemp('view')
    image = scene(1, 100)[[1, 2, 3, 4, 5, 6, 7, 8, 11, 12], : SIZE[0]]
    image[:, 14:34, 38:50] = 0
    write(folder / 'scene.tif', image, BANDS, east=5e5)
    task = small_task(mean=[1500.0] * 10, std=[900.0] * 10)
    task.export(folder / 'encoder.pth')
    task.export(folder / 'decoder.pth', decoder=True)
    return folder


@pytest.fixture(scope='module')
def page(files: Path) -> Path:
    """The page of this scene."""
    target = files / 'page.html'
    main(
        ['map', 'view', f'{files}/scene.tif', '-o', str(target), '--weights',
         f'{files}/decoder.pth', '--mask-ratios', '0.75', '0.5']
    )  # fmt: skip
    return target


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        layers: np.ndarray = file.read()
    return layers


def test_the_page_shows_the_maps(page: Path, files: Path, tmp_path: Path) -> None:
    data = read_page(page)
    assert data['title'] == 'scene.tif, decoder.pth'
    assert (data['size'], data['grid'], data['patch']) == ([*SIZE], [*GRID], 8)
    raster = open_raster(files / 'scene.tif', BANDS)
    target, step = tmp_path / 'map.tif', 0.5 / 254 + 1e-6

    saliency_map(raster, target)
    np.testing.assert_allclose(
        levels(data['saliency'], GRID), read(target)[-1], atol=step
    )

    task = restore_task(files / 'decoder.pth')
    image = raster.read() * 1e-4
    assert [one['ratio'] for one in data['ratios']] == [0.5, 0.75]
    errors = []
    for one in data['ratios']:
        reconstruction_map(raster, target, task, one['ratio'], 32)
        *_, mask, error = layers = read(target)
        errors.append(error)
        hidden = levels(one['mask'], GRID).repeat(8, 0).repeat(8, 1)
        hidden = hidden[: SIZE[0], : SIZE[1]]
        assert (hidden[mask == 1] == 1).all()
        assert (hidden[mask == 0] == 0).all()
        panels = reconstruction_panels(image, layers[:-2], mask > 0, [2, 1, 0])
        for text, panel in zip(
            (data['scene'], one['reconstruction']), panels[::2], strict=True
        ):
            np.testing.assert_allclose(picture(text), panel * 255, atol=0.51)
        wanted = np.where(mask == 0, 0, error).clip(max=data['largest_error'])
        shown = levels(one['error'], SIZE, data['largest_error'])
        np.testing.assert_allclose(shown, wanted, atol=step * data['largest_error'])
    assert data['largest_error'] == pytest.approx(np.nanpercentile(errors, 98))

    embedding_map(raster, target, FrozenEncoder.load(files / 'encoder.pth'), 32)
    similarity_map(target, tmp_path / 'similar.tif', 500_000 + 250, 5_400_000 - 650)
    stored = unpacked(data['embeddings'], np.int8, (*GRID, 192))
    np.testing.assert_allclose(
        cosines(stored, 8, 3), read(tmp_path / 'similar.tif')[0], atol=0.01
    )


def test_the_page_needs_nothing_else(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r'https?:|\bsrc=|\bhref=|@import|fetch\(', text)
    assert len(text) < 400_000


def test_a_title_ends_no_script(tmp_path: Path) -> None:
    title = '</script><script>alert(1)</script>'
    view(tmp_path / 'p.html', np.ones((3, 16, 16)), RGB, 8, title=title)
    assert title not in (tmp_path / 'p.html').read_text()
    data = read_page(tmp_path / 'p.html')
    assert data['title'] == title
    assert (data['saliency'], data['embeddings'], data['ratios']) == (None, None, [])
    assert data['notes'] == []


def test_it_opens_only_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, 'open', opened.append)
    image = np.ones((3, 16, 16))
    view(tmp_path / 'p.html', image, RGB, 8)
    assert not opened
    view(tmp_path / 'p.html', image, RGB, 8, open_browser=True)
    assert opened == [(tmp_path / 'p.html').as_uri()]


def test_without_a_decoder(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        ['map', 'view', f'{files}/scene.tif', '-o', str(tmp_path), '--weights',
         f'{files}/encoder.pth']
    )  # fmt: skip
    target = tmp_path / 'scene_view.html'
    assert f'Wrote {target}.\n' in capsys.readouterr().out
    data = read_page(target)
    assert data['ratios'] == []
    assert data['saliency']
    assert data['embeddings']
    assert data['notes'] == [
        'The weights hold no decoder, so there is no reconstruction.',
        'Magenta: no data.',
    ]


def test_large_scenes_are_cut(files: Path, tmp_path: Path) -> None:
    raster = open_raster(files / 'scene.tif', BANDS)
    task = restore_task(files / 'decoder.pth')
    encoder = FrozenEncoder.load(files / 'encoder.pth')
    target = tmp_path / 'p.html'
    view_scene(raster, target, encoder, task, [0.5], size=32, max_side=70)
    data = read_page(target)
    assert data['size'] == [64, 64]
    assert data['notes'] == [
        'Only the middle 64 x 64 of 76 x 100 pixels is shown.',
        'Magenta: no data.',
    ]
    whole, _, _ = reconstruction_panels(
        raster.read()[:, 6:70, 18:82] * 1e-4, np.ones((10, 64, 64)),
        np.zeros((64, 64), bool), [2, 1, 0],
    )  # fmt: skip
    np.testing.assert_allclose(picture(data['scene']), whole * 255, atol=0.51)


def test_bands_without_an_index(files: Path, tmp_path: Path) -> None:
    task = small_task(
        bands=['B05', 'B06', 'B07'], masking='random', mean=1500.0, std=900.0
    )
    task.export(tmp_path / 'w.pth', decoder=True)
    main(
        ['map', 'view', f'{files}/scene.tif', '-o', f'{tmp_path}/p.html', '--weights',
         f'{tmp_path}/w.pth', '--mask-ratios', '0.75']
    )  # fmt: skip
    data = read_page(tmp_path / 'p.html')
    assert data['saliency'] is None
    assert 'The bands allow no spectral index' in data['notes'][0]
    assert len(data['ratios']) == 1


def test_the_share_of_hidden_bands(tmp_path: Path, files: Path) -> None:
    task = small_task('s2mae', mean=[1500.0] * 10, std=[900.0] * 10)
    task.export(tmp_path / 'w.pth', decoder=True)
    main(
        ['map', 'view', f'{files}/scene.tif', '-o', f'{tmp_path}/p.html', '--weights',
         f'{tmp_path}/w.pth', '--mask-ratios', '0.5']
    )  # fmt: skip
    (one,) = read_page(tmp_path / 'p.html')['ratios']
    shares = levels(one['mask'], GRID)
    assert len(np.unique(shares[np.isfinite(shares)])) > 3


def test_bad_arguments(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.ones((3, 16, 16))
    target = tmp_path / 'p.html'
    for arguments, message in (
        ({'image': image[:, :4]}, 'image: 4 x 16 pixels are less than a patch'),
        ({'image': image[:2]}, r'image: expected \(3, 16, 16\)'),
        ({'saliency': image[0]}, r'saliency: expected \(2, 2\), got \(16, 16\)'),
        ({'embeddings': image}, r'embeddings: expected \(3, 2, 2\)'),
        ({'reconstructions': {0.5: image}}, r'reconstructions\[0.5\]: expected \(5,'),
    ):
        with pytest.raises(ValueError, match=message):
            view(target, **{'image': image, 'bands': RGB, 'patch_size': 8, **arguments})
    small = np.full((10, 5, 40), 1000, 'uint16')
    write(tmp_path / 's.tif', small, BANDS, east=5e5)
    weights = ['--weights', f'{files}/decoder.pth']
    for scene, options, message in (
        (tmp_path / 's.tif', [], 'has 5 x 40 pixels, less than a patch of 8 x 8'),
        (files / 'scene.tif', ['--max-side', '20'], 'max_side: 20 is less than the 32'),
        (files / 'scene.tif', ['--mask-ratios', '1.5'], 'mask_ratio: 1.5'),
        (files / 'scene.tif', ['--png'], 'png: a page holds its pictures'),
        (files / 'scene.tif', ['--window', '64'], 'window: a page is read at once'),
    ):
        with pytest.raises(SystemExit):
            main(['map', 'view', str(scene), '-o', str(target), *weights, *options])
        assert message in capsys.readouterr().err
    assert not target.exists()


def test_real_scene(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    (path,) = (real_data('landcover') / '433D_629L_3_1').glob('L2A.tif')
    options = ['--mask-ratios', '0.9', '--max-side', '128']
    main(['map', 'view', str(path), '-o', f'{tmp_path}/p.html', *options])
    data = read_page(tmp_path / 'p.html')
    assert data['size'] == [128, 128]
    # The packaged weights reconstruct: better than the spread of reflectance.
    assert 0 < data['largest_error'] < 0.2
    # Neighbors are more alike than patches in general.
    stored = unpacked(data['embeddings'], np.int8, (16, 16, 192))
    similar = cosines(stored, 8, 8)
    assert similar[7:10, 7:10].mean() > similar.mean() + 0.1
    assert (tmp_path / 'p.html').stat().st_size < 1_000_000


# ------------------------------------------------------------------------ in a browser


@pytest.fixture(scope='module')
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        'playwright.sync_api', reason='needs the extra browser'
    )
    names = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
    installed = next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(
                executable_path=installed, args=['--no-sandbox']
            )
        except playwright.Error as error:
            pytest.skip(f'no browser, see playwright install chromium: {error}')
        yield started
        started.close()


@pytest.fixture
def tab(browser: Any, page: Path) -> Iterator[Any]:
    """The page, ready; errors and requests fail the test."""
    context = browser.new_context(viewport={'width': 1000, 'height': 900}, offline=True)
    opened = context.new_page()
    problems: list[str] = []
    opened.on('pageerror', lambda error: problems.append(str(error)))
    opened.on(
        'request',
        lambda request: (
            None
            if request.url.startswith(('file:', 'data:'))
            else problems.append(request.url)
        ),
    )
    opened.goto(page.as_uri())
    opened.wait_for_selector('body[data-ready]')
    yield opened
    context.close()
    assert not problems


def settled(tab: Any) -> None:
    """Wait until everything is drawn."""
    tab.evaluate('new Promise(done => requestAnimationFrame(() => setTimeout(done)))')


def pixel(tab: Any, panel: int, x: float, y: float) -> list[int]:
    """The color that a panel shows at a pixel of the scene."""
    settled(tab)
    color: list[int] = tab.evaluate(
        """([panel, x, y]) => {
            const canvas = panels[panel].canvas, scale = scaleOf(canvas);
            return [...canvas.getContext('2d').getImageData(
                Math.floor(canvas.width / 2 + (x - camera.x) * scale),
                Math.floor(canvas.height / 2 + (y - camera.y) * scale), 1, 1).data];
        }""",
        [panel, x, y],
    )
    return color[:3]


def spot(tab: Any, panel: int, x: float, y: float) -> tuple[float, float]:
    """Where a pixel of the scene is in the window, with the whole scene visible."""
    box = tab.locator('canvas').nth(panel).bounding_box()
    scale = min(box['width'] / SIZE[1], box['height'] / SIZE[0])
    return (
        box['x'] + box['width'] / 2 + (x - SIZE[1] / 2) * scale,
        box['y'] + box['height'] / 2 + (y - SIZE[0] / 2) * scale,
    )


def test_panels(tab: Any, page: Path) -> None:
    assert tab.locator('figcaption').all_text_contents() == [
        'Image (B04, B03, B02)', 'Patch saliency', 'Visible', 'Reconstruction',
        'Error (RMSE, reflectance)', 'Similarity (click a patch)',
    ]  # fmt: skip
    assert tab.title() == 'scene.tif, decoder.pth'
    scene = picture(read_page(page)['scene'])
    for x, y in ((5, 5), (60, 40), (90, 70), (44, 24)):
        assert pixel(tab, 0, x + 0.5, y + 0.5) == scene[y, x].tolist()


def test_the_slider(tab: Any, page: Path) -> None:
    ratios = read_page(page)['ratios']
    assert tab.locator('#percent').text_content() == '75 %'
    for index, percent in enumerate(('50 %', '75 %')):
        tab.locator('#ratio').fill(str(index))
        assert tab.locator('#percent').text_content() == percent
        mask = levels(ratios[index]['mask'], GRID)
        rebuilt = picture(ratios[index]['reconstruction'])
        for row in range(4):
            x, y = 20, 8 * row + 4
            gray = pixel(tab, 2, x + 0.5, y + 0.5) == [89, 89, 89]
            assert gray == (mask[row, 2] == 1)
            assert pixel(tab, 3, x + 0.5, y + 0.5) == rebuilt[y, x].tolist()


def test_a_click_shows_similar_patches(tab: Any, page: Path) -> None:
    stored = unpacked(read_page(page)['embeddings'], np.int8, (*GRID, 192))
    wanted = cosines(stored, 8, 3)
    tab.mouse.click(*spot(tab, 1, 28, 68))
    settled(tab)
    actual = np.array(tab.evaluate('[...state.similarity]'), float).reshape(GRID)
    np.testing.assert_allclose(actual, wanted, atol=1e-5)
    order = np.argsort(-np.nan_to_num(wanted, nan=-2).ravel(), kind='stable')
    assert tab.evaluate('state.selected') == order[0] == 8 * 13 + 3
    assert set(tab.evaluate('state.nearest')) == set(order[1:21].tolist())
    tab.mouse.move(*spot(tab, 0, 30, 66))
    text = tab.locator('#readout').text_content()
    assert text.startswith('Patch in row 8, column 3, saliency ')
    assert text.endswith('similarity 1.00')
    # A patch without data has no embedding: the selection stays.
    tab.mouse.click(*spot(tab, 0, 44, 20))
    assert tab.evaluate('state.selected') == order[0]


def test_panels_zoom_and_pan_together(tab: Any, page: Path) -> None:
    scene = picture(read_page(page)['scene'])
    start = spot(tab, 3, 75, 50)
    tab.mouse.move(*start)
    tab.mouse.wheel(0, -600)
    settled(tab)
    camera = tab.evaluate('camera')
    assert camera['zoom'] == pytest.approx(np.exp(1.5))
    # The pixel under the mouse stays there.
    assert 75 - camera['x'] == pytest.approx((75 - 50) / camera['zoom'], abs=0.2)
    assert pixel(tab, 0, 75.5, 50.5) == scene[50, 75].tolist()
    tab.mouse.down()
    tab.mouse.move(start[0] - 60, start[1] + 30, steps=3)
    tab.mouse.up()
    moved = tab.evaluate('camera')
    assert moved['x'] > camera['x'] + 2
    assert moved['y'] < camera['y'] - 1
    # Dragging selects nothing.
    assert tab.evaluate('state.selected') == -1
    assert pixel(tab, 0, 75.5, 50.5) == scene[50, 75].tolist()
    tab.get_by_text('Whole scene').click()
    assert tab.evaluate('camera') == {'x': 50, 'y': 38, 'zoom': 1}
    tab.get_by_text('Zoom in').click()
    assert tab.evaluate('camera.zoom') == 1.5
    tab.get_by_text('Zoom out').click()
    assert tab.evaluate('camera.zoom') == 1
