"""The front page's figure: an energy that has learned its data, and panels that follow the theme."""

import xml.etree.ElementTree as ET

import ebmsite
import front
import pytest
import torch

from ebmlib.plotting import INK, PAPER


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        return front.fit()


def test_the_energy_is_close_to_the_truth(model):
    assert 0 <= model.divergence < 0.06
    assert abs(model.log_z_error) < 0.06


def test_draws_have_the_moments_of_the_density(model):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = front.draw(model.energy, 40_000)
    centre, e = front.grid(model.energy, 200)
    p = torch.softmax(-e.flatten(), 0)
    x = torch.stack([centre.repeat(200), centre.repeat_interleave(200)], 1)
    mean = (p[:, None] * x).sum(0)
    std = ((p[:, None] * (x - mean) ** 2).sum(0)).sqrt()
    z = (drawn.mean(0) - mean) / std * 40_000**0.5
    assert z.abs().max() < 5  # by chance once in 900,000 runs
    torch.testing.assert_close(drawn.std(0), std, rtol=0.03, atol=0)
    assert ((drawn - mean).prod(1).mean() - (p * (x - mean).prod(1)).sum()).abs() < 0.03


def test_the_panels_hold_no_text_and_follow_the_theme(model, tmp_path):
    with torch.random.fork_rng():
        front.panels(tmp_path, model)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == [f"front-{name}.svg" for name in ("data", "density", "draws", "energy")]
    for path in tmp_path.iterdir():
        svg = path.read_text("utf-8")
        themed = ebmsite.follow_theme(svg)
        ET.fromstring(themed)
        assert INK in svg and PAPER in svg
        assert "var(--ink)" in themed and "var(--paper)" in themed
        assert 'id="text_' not in svg
