"""The rainbow's transformations, pixel by pixel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ftml_bench.benchmarks.transforms import BACKGROUNDS, TRANSFORMATIONS, Transformation, rainbow, resize


@pytest.fixture
def grey():
    """Two images without any symmetry, dark at the border as digits are."""
    images = torch.zeros(2, 8, 8, dtype=torch.uint8)
    images[:, 1:7, 1:7] = torch.randint(1, 256, (2, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return images


def test_there_are_56_and_no_two_look_alike(grey):
    assert len(TRANSFORMATIONS) == len(set(TRANSFORMATIONS)) == len({str(t) for t in TRANSFORMATIONS}) == 56
    images = [transform(grey)[0].numpy().tobytes() for transform in TRANSFORMATIONS]
    assert len(set(images)) == 56
    assert {t.background for t in TRANSFORMATIONS} == set(BACKGROUNDS)


def test_backgrounds_are_told_apart_and_white_is_read_on_them():
    assert len(BACKGROUNDS) == 7
    for a, b in itertools.combinations(BACKGROUNDS.values(), 2):
        assert np.linalg.norm(np.subtract(a, b)) > 70
    for colour in BACKGROUNDS.values():
        c = np.array(colour) / 255
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        luminance = linear @ [0.2126, 0.7152, 0.0722]
        assert 1.05 / (luminance + 0.05) > 2.4  # WCAG contrast of white on it


@pytest.mark.parametrize("rotation", range(4))
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_whole_images_are_turned_and_coloured(grey, background, rotation):
    colour = BACKGROUNDS[background]
    images = rainbow(grey, colour, "whole", rotation)
    assert images.dtype == torch.uint8
    assert images.shape == (2, 3, 8, 8)
    assert tuple(images[1, :, 0, 0].tolist()) == colour
    for n in range(2):
        turned = np.rot90(grey[n].numpy(), rotation).astype(float)
        for channel, base in enumerate(colour):
            expected = np.floor(base + (255 - base) * turned / 255 + 0.5)
            assert np.array_equal(images[n, channel].numpy(), expected)


def test_strokes_are_white():
    images = rainbow(torch.full((1, 4, 4), 255, dtype=torch.uint8), BACKGROUNDS["red"], "whole", 0)
    assert images.eq(255).all()


@pytest.mark.parametrize(("side", "margin"), [(8, 2), (28, 7), (14, 3)])
def test_half_size_is_the_mean_of_four_in_the_middle(side, margin):
    grey = torch.randint(0, 256, (1, side, side), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    images = rainbow(grey, (0, 0, 0), "half", 1)[0, 0].numpy()
    turned = np.rot90(grey[0].numpy(), 1).astype(float)
    half = side // 2
    mean = turned.reshape(half, 2, half, 2).mean(axis=(1, 3))
    inside = slice(margin, margin + half)
    assert np.abs(images[inside, inside] - mean).max() <= 0.5
    images[inside, inside] = 0
    assert not images.any()


def test_a_transformation_names_itself():
    assert str(Transformation("indigo", "half", 3)) == "indigo, half, 270°"


def test_resize():
    grey = torch.tensor([[[0, 100], [200, 60]]], dtype=torch.uint8)
    assert resize(grey, 2) is grey
    assert resize(grey, 1).tolist() == [[[90]]]
    larger = resize(grey, 4)
    assert larger.dtype == torch.uint8
    assert larger.shape == (1, 4, 4)
    assert larger[0, 0].tolist() == [0, 25, 75, 100]  # bilinear between pixel centres
