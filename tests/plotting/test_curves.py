# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger

from torchgeo_sigmae.plotting import plot_training, read_log

NAMES = ('train_loss_step', 'val_loss', 'mask_ratio')


def _write(path: Path, *rows: dict[str, float | str]) -> Path:
    """Write rows as CSVLogger does: sorted columns, nothing where there is no value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _version(root: Path, number: int, *rows: dict[str, float | str]) -> Path:
    return _write(root / f'version_{number}' / 'metrics.csv', *rows)


def _lines(figure) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist())
        for axis in figure.axes
        for line in axis.get_lines()
    }


def _same(actual: tuple[np.ndarray, np.ndarray], steps: list, values: list) -> bool:
    return actual[0].tolist() == steps and actual[1].tolist() == values


def test_what_lightning_writes(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name='run')
    logger.log_metrics({'train_loss': 2.0, 'mask_ratio': 0.75}, step=4)
    logger.log_metrics({'val_loss': 1.5}, step=4)
    logger.log_metrics({'train_loss': 1.0, 'lr-AdamW': 1e-3}, step=9)
    logger.save()
    expected = {'train_loss', 'mask_ratio', 'val_loss', 'lr-AdamW'}
    for path in (
        tmp_path,
        tmp_path / 'run',
        str(tmp_path / 'run' / 'version_0'),
        Path(logger.log_dir) / 'metrics.csv',
    ):
        log = read_log(path)
        assert set(log) == expected
        assert _same(log['train_loss'], [4, 9], [2, 1])
        assert _same(log['val_loss'], [4], [1.5])
        assert log['train_loss'][0].dtype == np.int64
        assert log['train_loss'][1].dtype == np.float64


def test_restarts_are_merged_and_the_later_one_counts(tmp_path: Path) -> None:
    _version(tmp_path, 2, {'step': 10, 'val_loss': 5}, {'step': 5, 'mask_ratio': 0.5})
    _version(tmp_path, 10, {'step': 20, 'val_loss': 7}, {'step': 15, 'val_loss': 8})
    _version(tmp_path, 9, {'step': 20, 'val_loss': 6}, {'step': 10, 'mask_ratio': 0.6})
    log = read_log(tmp_path)
    # As numbers, not as text: version_10 comes after version_9.
    assert _same(log['val_loss'], [10, 15, 20], [5, 8, 7])
    assert _same(log['mask_ratio'], [5, 10], [0.5, 0.6])


_rows = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.floats(width=32), min_size=1).flatmap(
        lambda row: st.integers(0, 20).map(lambda step: {'step': step, **row})
    ),
    min_size=1,
    max_size=8,
)


@given(st.lists(_rows, min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_merging_is_replaying(
    tmp_path_factory: pytest.TempPathFactory, versions: list
) -> None:
    """Whatever was logged: the last value of a name at a step, sorted, without NaN."""
    root = tmp_path_factory.mktemp('log')
    expected: dict[str, dict[int, float]] = {}
    for number, rows in enumerate(versions):
        _version(root, number, *rows)
        for row in rows:
            for name in NAMES:
                if name in row:
                    expected.setdefault(name, {})[row['step']] = row[name]
    log = read_log(root)
    for name, points in expected.items():
        kept = sorted((s, v) for s, v in points.items() if not math.isnan(v))
        if kept:
            assert _same(log[name], *map(list, zip(*kept, strict=True)))
        else:
            assert name not in log
    assert set(log) <= set(expected)


def test_unfinished_rows(tmp_path: Path) -> None:
    path = tmp_path / 'metrics.csv'
    path.write_text('epoch,step,val_loss\n0,3,0.5\n\n0,4,\n1,5,0.')
    log = read_log(path)
    assert _same(log['val_loss'], [3], [0.5])
    assert _same(log['epoch'], [3, 4], [0, 0])
    path.write_text('')
    assert read_log(path) == {}


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('epoch,val_loss\n0,1\n', "line 2: KeyError.*'step'"),
        ('step,val_loss\n1,0.5\n2,oops\n', "line 3.*'oops'"),
        ('step,val_loss\none,0.5\n', "line 2.*'one'"),
        ('step,val_loss\n,0.5\n', 'line 2'),
        ('step,val_loss\n1.5,0.5\n', "line 2.*'1.5'"),
        ('step,val_loss\nnan,0.5\n', "line 2.*'nan'"),
        ('step,val_loss\n1,0.5,9\n', 'line 2.*TypeError'),
    ],
)
def test_files_that_are_no_logs(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / 'metrics.csv'
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_log(path)
    assert str(path) in str(error.value)


def test_binary_files(tmp_path: Path) -> None:
    path = tmp_path / 'metrics.csv'
    path.write_bytes(bytes(range(256)) * 9)
    with pytest.raises(ValueError, match=r'metrics\.csv, line'):
        read_log(path)
    with pytest.raises(FileNotFoundError, match=r'last\.ckpt'):
        read_log(tmp_path / 'last.ckpt')


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / 'version_a').mkdir()
    (tmp_path / 'version_a' / 'metrics.csv').touch()
    for path in (tmp_path, tmp_path / 'nowhere', tmp_path / 'metrics.csv'):
        with pytest.raises(FileNotFoundError, match='CSVLogger') as error:
            read_log(path)
        assert str(path) in str(error.value)


def test_several_runs_are_not_mixed(tmp_path: Path) -> None:
    _version(tmp_path / 'random', 0, {'step': 1, 'val_loss': 1})
    _version(tmp_path / 'saliency', 0, {'step': 1, 'val_loss': 2})
    with pytest.raises(
        ValueError, match=r'several runs: .*random, .*saliency\. Pass one'
    ):
        read_log(tmp_path)
    assert _same(read_log(tmp_path / 'saliency')['val_loss'], [1], [2])


def test_curves_are_the_log(tmp_path: Path) -> None:
    steps = range(0, 100, 2)
    _version(
        tmp_path,
        0,
        *(
            {
                'step': step,
                'train_loss_step': 1 / (step + 1),
                'mask_ratio': 0.6 + step / 400,
                'saliency_beta': step / 100,
                'lr-AdamW/pg1': 1e-3,
                'lr-AdamW/pg2': 1e-3,
                'lr-AdamW/pg3': 1e-4,
                'lr-AdamW/pg1-momentum': 0.9,
                'lr-AdamW/pg1-weight_decay': 0.05,
                'test_loss': 3,
            }
            for step in steps
        ),
        {
            'step': 99,
            'train_loss_epoch': 0.4,
            'val_loss': 0.3,
            'val_baseline_loss': 0.5,
            'visibility_ratio': 1.5,
        },
    )
    figure = plot_training(tmp_path)
    loss, curriculum, rate, right = figure.axes
    titles = [axis.get_title(loc='left') for axis in figure.axes]
    assert titles == ['Loss', 'Curriculum', 'Learning rate', '']
    assert rate.get_xlabel() == 'optimizer step'
    assert loss.get_shared_x_axes().joined(loss, rate)
    log, lines = read_log(tmp_path), _lines(figure)
    for label, name in {
        'training, per step': 'train_loss_step',
        'training, per epoch': 'train_loss_epoch',
        'validation': 'val_loss',
        'mean of visible tokens': 'val_baseline_loss',
        'mask ratio': 'mask_ratio',
        'saliency beta': 'saliency_beta',
        'visibility ratio (right axis)': 'visibility_ratio',
        'lr-AdamW/pg1 and 1 more': 'lr-AdamW/pg2',
        'lr-AdamW/pg3': 'lr-AdamW/pg3',
    }.items():
        steps_drawn, values_drawn = lines.pop(label)
        assert _same(log[name], steps_drawn, values_drawn), label
    assert not lines
    styles = {line.get_label(): line for line in loss.get_lines()}
    assert styles['mean of visible tokens'].get_linestyle() == '--'
    assert styles['training, per step'].get_alpha() < 0.5
    assert styles['training, per epoch'].get_alpha() == 1
    # One value shows only as a marker.
    assert styles['validation'].get_marker() == '.'
    assert styles['training, per step'].get_marker() == 'None'
    legend = [text.get_text() for text in curriculum.get_legend().get_texts()]
    assert legend == ['mask ratio', 'saliency beta', 'visibility ratio (right axis)']
    assert right.get_yscale() == 'linear'


def test_large_visibility_ratios_are_logarithmic(tmp_path: Path) -> None:
    rows = ({'step': i, 'visibility_ratio': 3.0**i} for i in range(5))
    _version(tmp_path, 0, {'step': 0, 'mask_ratio': 0.9}, *rows)
    left, right = plot_training(tmp_path).axes
    assert (left.get_yscale(), right.get_yscale()) == ('linear', 'log')


@pytest.mark.parametrize(
    ('name', 'title'),
    [
        ('train_loss', 'Loss'),
        ('val_loss', 'Loss'),
        ('mask_ratio', 'Curriculum'),
        ('lr-SGD', 'Learning rate'),
    ],
)
def test_panels_without_data_are_left_out(
    tmp_path: Path, name: str, title: str
) -> None:
    figure = plot_training(_version(tmp_path, 0, {'step': 3, name: 0.1}))
    assert [axis.get_title(loc='left') for axis in figure.axes] == [title]
    assert figure.axes[0].get_xlabel() == 'optimizer step'


def test_many_rates_have_no_legend(tmp_path: Path) -> None:
    rates = {f'lr-AdamW/pg{i}': 1e-3 * 0.8**i for i in range(12)}
    figure = plot_training(_version(tmp_path, 0, {'step': 3, **rates}))
    assert len(figure.axes[0].get_lines()) == 12
    assert figure.axes[0].get_legend() is None


@pytest.mark.parametrize('column', ['acc', 'train_loss'])
def test_nothing_to_draw(tmp_path: Path, column: str) -> None:
    value = 1 if column == 'acc' else 'nan'
    path = _version(tmp_path, 0, {'step': 3, column: value})
    with pytest.raises(ValueError, match=r'CSVLogger.*log_every_n_steps') as error:
        plot_training(path)
    assert str(path) in str(error.value)
