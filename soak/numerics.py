# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Numerics: indices, saliency and losses against loops in double precision.

Of every precision, the largest error beside oracles written from the definitions, in
plain Python and numpy, on the very values that the package was given; under autocast,
too. Gradients against finite differences in double precision. Training that is asked to
be deterministic, twice. And what it takes to refuse a hostile formula.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from tempfile import TemporaryDirectory

import numpy as np
import torch
import training
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import DataLoader

from torchgeo_sigmae.evaluation import ReconstructionMetrics
from torchgeo_sigmae.models import MaskedAutoencoder, masked_mse, normalize_patches
from torchgeo_sigmae.models.encoder import SIGMAEViT
from torchgeo_sigmae.models.spectral import S2MAEViT, SatMAEViT
from torchgeo_sigmae.transforms import (
    INDICES,
    SpectralIndex,
    patch_saliency,
    spectral_indices,
)

from .trial import conclude, trial_parser

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: Common names of the bands that the indices take.
BANDS = ('blue', 'green', 'red', 'rededge1', 'nir', 'swir1', 'swir2')

#: How far from the oracles is too far. Everything is computed in single precision, of
#: values as they came, whatever precision that was.
BOUNDS = {
    'indices': 1e-5, 'saliency': 1e-4, 'masked_mse': 1e-5, 'norm_pix_loss': 1e-4,
    'spectral angle, degrees': 0.05,
}  # fmt: skip

#: The families of models, with what each of them can be asked for beside.
FAMILIES = {
    'sigmae': {},
    'sigmae, decoder self': {'decoder': 'self', 'norm_pix_loss': True},
    's2mae': {'masking': 'spatial'},
    'satmae': {'masking': 'saliency_spatial', 'spectral_weight': 0.1},
    'satmae, vanilla': {'masking': 'group', 'positions': 'vanilla'},
}


def ratio(a: float, b: float) -> float:
    """A quotient as an index has it: 0 where it is not defined."""
    return a / b if abs(b) >= 1e-6 else 0.0


#: The indices from their papers; nothing here knows how ours are parsed.
ORACLES: dict[str, Callable[[dict[str, float]], float]] = {
    'NDVI': lambda b: ratio(b['nir'] - b['red'], b['nir'] + b['red']),
    'NDWI': lambda b: ratio(b['green'] - b['nir'], b['green'] + b['nir']),
    'MNDWI': lambda b: ratio(b['green'] - b['swir1'], b['green'] + b['swir1']),
    'NDBI': lambda b: ratio(b['swir1'] - b['nir'], b['swir1'] + b['nir']),
    'NDMI': lambda b: ratio(b['nir'] - b['swir1'], b['nir'] + b['swir1']),
    'NBR': lambda b: ratio(b['nir'] - b['swir2'], b['nir'] + b['swir2']),
    'NDSI': lambda b: ratio(b['green'] - b['swir1'], b['green'] + b['swir1']),
    'NDRE': lambda b: ratio(b['nir'] - b['rededge1'], b['nir'] + b['rededge1']),
    'EVI': lambda b: 2.5 * ratio(
        b['nir'] - b['red'], b['nir'] + 6 * b['red'] - 7.5 * b['blue'] + 1
    ),
    'SAVI': lambda b: 1.5 * ratio(b['nir'] - b['red'], b['nir'] + b['red'] + 0.5),
    'BSI': lambda b: ratio(
        b['swir1'] + b['red'] - b['nir'] - b['blue'],
        b['swir1'] + b['red'] + b['nir'] + b['blue'],
    ),
}  # fmt: skip


def index_oracle(name: str, image: np.ndarray) -> np.ndarray:
    """An index, pixel by pixel.

    Args:
        name: Its name.
        image: Reflectance of :data:`BANDS`, ``(C, H, W)``, double precision.

    Returns:
        ``(H, W)``.
    """
    found = np.empty(image.shape[1:])
    for place in np.ndindex(*found.shape):
        pixel = dict(zip(BANDS, (float(x) for x in image[:, *place]), strict=True))
        found[place] = min(max(ORACLES[name](pixel), -1.0), 1.0)
    return found


def saliency_oracle(image: np.ndarray, valid: np.ndarray, patch: int) -> np.ndarray:
    """Saliency by NDVI, NDWI and NDBI, patch by patch.

    Args:
        image: As above.
        valid: Which pixels hold data, ``(H, W)``.
        patch: Side of a patch in pixels.

    Returns:
        ``(H / patch, W / patch)``.
    """
    layers = [index_oracle(name, image) for name in ('NDVI', 'NDWI', 'NDBI')]
    grid = image.shape[1] // patch, image.shape[2] // patch
    rich, mixed, held = np.zeros(grid), np.zeros(grid), np.zeros(grid, bool)
    for row, column in np.ndindex(*grid):
        own = (
            slice(row * patch, (row + 1) * patch),
            slice(column * patch, (column + 1) * patch),
        )
        if not valid[own].any():
            continue
        held[row, column] = True
        values = [layer[own][valid[own]].tolist() for layer in layers]
        means = [math.fsum(x) / len(x) for x in values]
        rich[row, column] = sum(math.fsum(map(abs, x)) / len(x) for x in values) / len(
            values
        )
        mixed[row, column] = sum(
            math.sqrt(math.fsum((y - mean) ** 2 for y in x) / len(x))
            for x, mean in zip(values, means, strict=True)
        ) / len(values)
    scaled = []
    for x in (rich, mixed):
        low, high = (x[held].min(), x[held].max()) if held.any() else (0.0, 0.0)
        flat = high - low < 1e-3
        scaled.append(np.where(held & (not flat), (x - low) / max(high - low, 1e-3), 0))
    return (scaled[0] + scaled[1]) / 2


def normal_oracle(patches: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Tokens by their own mean and standard deviation, one after the other."""
    found = np.empty(patches.shape)
    for place in np.ndindex(*patches.shape[:2]):
        known = patches[place][valid[place]].tolist()
        mean = math.fsum(known) / max(len(known), 1)
        squares = math.fsum((x - mean) ** 2 for x in known)
        std = math.sqrt(squares / max(len(known) - 1, 1) + 1e-6)
        found[place] = (patches[place] - mean) / std
    return found


def mse_oracle(found: np.ndarray, wanted: np.ndarray, valid: np.ndarray) -> float:
    """Mean squared error where something counts, one value after the other."""
    pairs = zip(found[valid].tolist(), wanted[valid].tolist(), strict=True)
    return math.fsum((a - b) ** 2 for a, b in pairs) / max(int(valid.sum()), 1)


def angle_oracle(found: np.ndarray, wanted: np.ndarray) -> float:
    """Mean angle between spectra ``(B, C, H, W)`` in degrees, pixel by pixel."""
    angles = []
    for b, row, column in product(*map(range, (len(found), *found.shape[2:]))):
        x, y = found[b, :, row, column].tolist(), wanted[b, :, row, column].tolist()
        # From the sine as well: the cosine of small angles tells little.
        length = math.hypot(*x) * math.hypot(*y)
        cosine = math.fsum(p * q for p, q in zip(x, y, strict=True)) / length
        angles.append(math.degrees(math.acos(min(max(cosine, -1.0), 1.0))))
    return math.fsum(angles) / len(angles)


def reflectances(seed: int, dtype: torch.dtype, side: int) -> Tensor:
    """Reflectance ``(7, side, side)`` of dark and bright, smooth and rough places."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(7, side // 8, side // 8, generator=generator) * 0.8 + 0.01
    level = level.repeat_interleave(8, -1).repeat_interleave(8, -2)
    noise = torch.randn(7, side, side, generator=generator)
    image = (level * (1 + 0.1 * noise)).clamp(0.001, 1.2)
    # Where the denominator of EVI is next to nothing, so is what it says.
    blue, red, nir = image[0], image[2], image[4]
    image[0] = torch.where((nir + 6 * red - 7.5 * blue + 1).abs() < 0.2, 0.01, blue)
    return image.to(dtype)


def double(x: Tensor) -> np.ndarray:
    """The same values in double precision."""
    values: np.ndarray = x.double().numpy()
    return values


def errors(seed: int, dtype: torch.dtype, side: int = 48) -> dict[str, float]:
    """Compare with the oracles what comes in some precision.

    Args:
        seed: Of the values.
        dtype: The precision.
        side: Side of the image in pixels.

    Returns:
        The largest error of each thing.
    """
    generator = torch.Generator().manual_seed(seed)
    image = reflectances(seed, dtype, side)
    valid = torch.rand(side, side, generator=generator) > 0.2
    valid[:8, :8] = False
    names = list(INDICES)
    wanted = np.stack([index_oracle(name, double(image)) for name in names])
    layers = spectral_indices(image, BANDS, names)
    found = {'indices': np.abs(double(layers) - wanted).max()}
    saliency = patch_saliency(image, BANDS, 8, valid=valid)
    oracle = saliency_oracle(double(image), valid.numpy(), 8)
    found['saliency'] = np.abs(double(saliency) - oracle).max()

    shape = (2, 9, 4 * 64)
    prediction, target = (
        (torch.randn(shape, generator=generator) * 3).to(dtype) for _ in range(2)
    )
    counts = torch.rand(shape, generator=generator) > 0.3
    counts[0, 0] = False
    loss = float(masked_mse(prediction, target, counts))
    wanted_loss = mse_oracle(double(prediction), double(target), counts.numpy())
    found['masked_mse'] = abs(loss - wanted_loss)
    # Raw values: their squares are more than half precision holds.
    raw = (torch.rand(shape, generator=generator) * 10_000).to(dtype)
    normal = normalize_patches(raw, counts)[0]
    held = counts.any(-1)
    difference = np.abs(double(normal) - normal_oracle(double(raw), counts.numpy()))
    found['norm_pix_loss'] = difference[held.numpy()].max()

    truth, guess = image[None].float(), (image * 1.1 + 0.01)[None].float()
    metrics = ReconstructionMetrics(('B02', 'B03', 'B04', 'B05', 'B08', 'B11', 'B12'))
    metrics.update_losses(torch.tensor(0.0), torch.tensor(0.0), 1)
    metrics.update_images(guess, truth, torch.ones_like(truth, dtype=torch.bool))
    angle = float(metrics.compute()['val_spectral_angle'])
    found['spectral angle, degrees'] = abs(
        angle - angle_oracle(*map(double, (guess, truth)))
    )
    return {name: float(value) for name, value in found.items()}


def tiny(family: str, decoder: str) -> MaskedAutoencoder:
    """The smallest model of a family, in double precision."""
    kind = {'sigmae': SIGMAEViT, 's2mae': S2MAEViT, 'satmae': SatMAEViT}[family]
    arguments = {'cube_bands': 2} if family == 's2mae' else {}
    if family == 'satmae':
        arguments = {'groups': ((0, 1, 2), (3,))}
    encoder = kind(
        img_size=8, patch_size=4, in_chans=4, num_classes=0, embed_dim=16, depth=2,
        num_heads=2, global_pool='avg', fc_norm=False, dynamic_img_size=True,
        **arguments,
    )  # fmt: skip
    return MaskedAutoencoder(encoder, decoder, 8, 2, 2).double()


def gradients(seed: int, parameters: bool = True) -> Iterator[tuple[str, bool]]:
    """Compare gradients with finite differences, in double precision.

    Args:
        seed: Of the values.
        parameters: Whether to vary the parameters of models as well, which takes long.

    Yields:
        What was compared, and whether it agrees.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        values = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (values * 0.8 + 0.1).requires_grad_()

    check = torch.autograd.gradcheck
    for name, index in INDICES.items():
        bands = [random(3, 3) for _ in index.bands]

        def compute(*bands: Tensor, index: SpectralIndex = index) -> Tensor:
            return index(dict(zip(index.bands, bands, strict=True)), clamp=False)

        yield name, check(compute, bands)
    valid = torch.rand(2, 3, 8, generator=generator) > 0.4
    pair = random(2, 3, 8), random(2, 3, 8)
    yield (
        'masked_mse',
        check(lambda a: masked_mse(a, pair[1].detach(), valid), pair[:1]),
    )
    yield 'norm_pix_loss', check(lambda a: normalize_patches(a, valid), pair[:1])
    for family, decoder in product(('sigmae', 's2mae', 'satmae'), ('cross', 'self')):
        torch.manual_seed(seed)
        model = tiny(family, decoder)
        image, count = random(2, 4, 8, 8), 4 * model.layout.num_groups
        order = torch.rand(2, count, generator=generator).argsort(dim=1)
        keep, predicted = order[:, : count // 2], order[:, count // 2 :]
        state = dict(model.named_parameters())
        step = partial(predict, model, list(state), keep, predicted)
        weights = [weight.detach() for weight in state.values()]
        fine = check(partial(swapped, step, weights), image, fast_mode=True)
        yield f'{family}, {decoder}: image', fine
        if not parameters:
            continue
        learned = [weight.requires_grad_() for weight in weights]
        fine = check(partial(step, image.detach()), learned, fast_mode=True)
        yield f'{family}, {decoder}: parameters', fine


def swapped(
    step: Callable[..., Tensor], weights: list[Tensor], image: Tensor
) -> Tensor:
    """The image last, as what is varied."""
    return step(image, *weights)


def predict(
    model: MaskedAutoencoder, names: list[str], keep: Tensor, predicted: Tensor,
    image: Tensor, *weights: Tensor,
) -> Tensor:  # fmt: skip
    """What a model predicts with other parameters."""
    state = dict(zip(names, weights, strict=True))
    found: Tensor = functional_call(model, state, (image, keep, predicted))
    return found


def train(family: str, steps: int = 3) -> dict[str, Tensor]:
    """Train a task of a family deterministically.

    Args:
        family: One of :data:`FAMILIES`.
        steps: Optimiser steps.

    Returns:
        What it has learned.
    """
    torch.manual_seed(0)
    task = training.task(family.partition(',')[0], **FAMILIES[family])
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4 * steps, 10, 32, 32, generator=generator) * 9000 + 1
    images[0, :, :9] = 0
    loader = DataLoader([{'image': image} for image in images], 4)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        with TemporaryDirectory() as folder:
            training.trainer(
                folder, max_steps=steps, deterministic=True, limit_val_batches=1,
            ).fit(task, loader, loader)  # fmt: skip
    finally:
        torch.use_deterministic_algorithms(before)
    return {name: value.clone() for name, value in task.state_dict().items()}


def main() -> None:
    """Run the trial."""
    arguments = trial_parser(__doc__).parse_args()
    figures, failures = dict[str, str](), list[str]()
    for dtype in DTYPES:
        worst = dict.fromkeys(BOUNDS, 0.0)
        for seed in range(arguments.seed, arguments.seed + 5):
            plain = errors(seed, dtype)
            with torch.autocast('cpu', torch.bfloat16):
                cast = errors(seed, dtype)
            for name in BOUNDS:
                worst[name] = max(worst[name], plain[name], cast[name])
        for name, error in worst.items():
            figures[f'{name}, {str(dtype)[6:]}: largest error'] = f'{error:.2g}'
            if not error < BOUNDS[name]:
                failures.append(f'{name} of {dtype} is off by {error:.3g}')
    agree = dict(gradients(arguments.seed))
    figures['gradients that agree with finite differences'] = (
        f'{sum(agree.values())} of {len(agree)}'
    )
    failures += [f'gradient of {name}' for name, fine in agree.items() if not fine]
    for family in FAMILIES:
        first, second = train(family), train(family)
        if not all(torch.equal(first[name], second[name]) for name in first):
            failures.append(f'{family}: two deterministic runs differ')
    figures['families bit-equal in two deterministic runs'] = (
        f'{len(FAMILIES) - sum("deterministic" in x for x in failures)} of '
        f'{len(FAMILIES)}'
    )
    conclude(arguments.output, 'numerics', figures, failures)


if __name__ == '__main__':
    main()
