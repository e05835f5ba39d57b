"""The live landscape computes what PyTorch computes, in a real browser that reaches no host."""

import gzip
import html
import json
import math
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from torch import nn
from torch.nn.utils import prune

from ebmlib import widget
from ebmlib.energies import GaussianEnergy, GaussianMixtureEnergy, energy_and_grad
from ebmlib.networks import Confined, MLPEnergy
from ebmlib.toys import eight_gaussians
from ebmlib.widget import landscape

LOW, HIGH = (-4, -4), (4, 4)
ROUND = GaussianEnergy(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
SLANTED = GaussianEnergy(
    torch.tensor([0.5, -1.0], dtype=torch.float64),
    torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64),
    offset=3.0,
)
CENTRES = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.5]], dtype=torch.float64)
WELLS = GaussianMixtureEnergy(CENTRES, 0.7, torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64))


def network(hidden=(64, 64), activation=nn.SiLU, **options):
    torch.manual_seed(0)
    return MLPEnergy(2, hidden, activation=activation, **options)


ENERGIES = {
    "silu": network(),
    "confined": Confined(network(), std=2.0),
    "odd widths and dropout": Confined(network((5, 7, 3), dropout=0.5).eval(), std=1.5),
    **{name.__name__: network((16, 16), name) for name in (nn.ReLU, nn.ELU, nn.Softplus, nn.Tanh)},
    "gaussian": SLANTED,
    "mixture": WELLS,
    "confined mixture": Confined(WELLS, std=3.0),
}


def payload(picture):
    return json.loads(html.unescape(re.search(r"data-landscape='([^']*)'", picture.html).group(1)))


def test_the_weights_arrive_in_full_single_precision():
    energy = network()
    layers = payload(landscape(Confined(energy, 2.0), LOW, HIGH))["energy"]["energy"]["layers"]
    linear = [module for module in energy.net if isinstance(module, nn.Linear)]
    for sent, layer in zip(layers, linear, strict=True):
        assert torch.equal(torch.tensor(sent["weight"]), layer.weight)
        assert torch.equal(torch.tensor(sent["bias"]), layer.bias)


def test_it_displays_as_html_and_prints_as_one_line():
    picture = landscape(WELLS, LOW, HIGH, label='Wells\' <b>"three"</b> & more')
    assert picture._repr_html_() == picture.html and len(repr(picture)) < 80
    assert html.unescape(payload(picture)["label"]) == 'Wells\' <b>"three"</b> & more'
    assert picture.html.count("<script") == 1 and "//" not in re.sub(r"^\s*//.*| // .*", "", picture.html, flags=re.M)


class Other(nn.Module):
    def forward(self, x):
        return x.square().sum(1)


@pytest.mark.parametrize(
    "energy",
    [
        lambda x: x.square().sum(1),
        Other(),
        Confined(Other(), 2.0),
        network((8,), nn.GELU),
        network((8,), lambda: nn.ELU(0.5)),
        network((8,), lambda: nn.Softplus(2.0)),
        network((8,), n_out=3),
        network(()),
    ],
    ids=["function", "module", "confined-module", "gelu", "elu", "softplus", "classes", "linear"],
)
def test_other_energies_are_a_type_error(energy):
    with pytest.raises(TypeError, match="landscape draws"):
        landscape(energy, LOW, HIGH)


def hooked(kind):
    energy = network((8,))
    if kind == "hook":
        energy.register_forward_hook(lambda module, inputs, e: 10 * e)
    elif kind == "pre-hook":
        energy.net[0].register_forward_pre_hook(lambda module, inputs: (10 * inputs[0],))
    elif kind == "pruned":
        prune.l1_unstructured(energy.net[0], "weight", 0.5)
    else:
        energy.forward = lambda x: x.square().sum(1)
    return energy


@pytest.mark.parametrize("kind", ["hook", "pre-hook", "pruned", "replaced"])
def test_a_network_that_does_more_than_its_weights_say_is_a_type_error(kind):
    for energy in (hooked(kind), Confined(hooked(kind), 2.0)):
        with pytest.raises(TypeError, match="has a hook or a forward of its own"):
            landscape(energy, LOW, HIGH)


@pytest.mark.parametrize("name", ["offset", "std"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_named(name, bad):
    wells = GaussianMixtureEnergy(CENTRES, 0.7)
    setattr(wells, name, bad)
    with pytest.raises(ValueError, match=f"the energy has a parameter that is {bad}"):
        landscape(wells, LOW, HIGH)


def test_numbers_of_other_types_and_devices_arrive(monkeypatch):
    options = {
        "step_size": torch.tensor(0.5),
        "temperature": np.float64(2),
        "span": np.float32(5),
        "n_particles": np.int64(7),
    }
    expected = landscape(WELLS, LOW, HIGH, step_size=0.5, temperature=2, span=5, n_particles=7)
    with torch.device("meta"):
        assert payload(landscape(WELLS, np.array(LOW), CENTRES.new_full((2,), 4), **options)) == payload(expected)
    half = network((8,)).bfloat16()
    (first, _) = payload(landscape(half, LOW, HIGH))["energy"]["layers"]
    assert torch.equal(torch.tensor(first["weight"], device="cpu").bfloat16(), half.net[0].weight)


def test_a_missing_script_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(widget, "SCRIPT", tmp_path / "widget.js")
    with pytest.raises(FileNotFoundError, match="widget.js is missing: copy ebmlib/widget.js there"):
        landscape(WELLS, LOW, HIGH)


@pytest.mark.parametrize(
    "energy",
    [
        MLPEnergy(3, (8,)),
        Confined(MLPEnergy(3, (8,)), 1.0),
        GaussianEnergy(torch.zeros(3), torch.eye(3)),
        GaussianMixtureEnergy(torch.zeros(2, 3), 1.0),
    ],
    ids=lambda energy: type(energy).__name__,
)
def test_three_dimensions_are_a_value_error(energy):
    with pytest.raises(ValueError, match="two coordinates; this one has 3"):
        landscape(energy, LOW, HIGH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": (-1, -1, -1)}, "corners"),
        ({"low": (4, -4)}, "corners"),
        ({"high": (math.nan, 4)}, "corners"),
        ({"high": (math.inf, 4)}, "corners"),
        ({"low": (-math.inf, -4)}, "corners"),
        ({"span": math.inf}, "span positive"),
        ({"step_size": math.nan}, "step_size"),
        ({"step_size": 0.0}, "step_size"),
        ({"temperature": 5.0}, "temperature"),
        ({"sampler": "HMC"}, "sampler"),
        ({"n_particles": 0}, "n_particles"),
        ({"span": 0.0}, "span"),
    ],
)
def test_bad_settings_are_a_value_error(options, message):
    with pytest.raises(ValueError, match=message):
        landscape(**{"energy": WELLS, "low": LOW, "high": HIGH} | options)


def test_a_lost_weight_is_a_value_error():
    energy = network()
    with torch.no_grad():
        energy.net[0].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        landscape(energy, LOW, HIGH)


def test_it_is_small():
    size = len(gzip.compress(landscape(Confined(network(), 2.0), LOW, HIGH).html.encode(), 6)) / 1024
    assert size <= 60, f"{size:.1f} KiB"


# ---- In the browser. ----


@pytest.fixture(scope="module")
def browser(chromium):
    flags = "--no-sandbox --disable-gpu --disable-background-networking".split()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


# The landscapes and the lattices (test_lattice_widget.py) of a page.
ALL_LIVE = """() => [...document.querySelectorAll('.ebm-landscape, .ebm-lattice')].every(
    host => host.landscape ?? host.lattice)"""


@contextmanager
def opened(browser, *pictures, head="", **options):
    """Yield a page that has nothing but the pictures; a request, an error or a word in the console fails the test."""
    context = browser.new_context(**{"reduced_motion": "reduce", "viewport": {"width": 1000, "height": 800}} | options)
    context.set_default_timeout(60_000)
    page, problems = context.new_page(), []
    page.on("request", lambda request: problems.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    start = f'<!doctype html><html lang="en"><head><title>x</title>{head}</head><body><main><h1>x</h1>'
    page.set_content(start + "".join(picture.html for picture in pictures) + "</main></body></html>")
    if options.get("java_script_enabled", True):
        page.wait_for_function(ALL_LIVE)
    yield page
    context.close()
    assert not problems, problems


def call(page, body, argument=None, index=0):
    """Return what JavaScript says of the picture with that index, as `s`."""
    get = f"document.querySelectorAll('.ebm-landscape')[{index}].landscape"
    return page.evaluate(f"(argument) => {{ const s = {get}; {body} }}", argument)


EVALUATE = "const out = [0, 0, 0]; return argument.map(([x, y]) => { s.energy(x, y, out); return [...out]; });"


@pytest.mark.parametrize("name", ENERGIES)
def test_energy_and_gradient_are_those_of_pytorch(browser, name):
    energy = ENERGIES[name]
    if isinstance(energy, nn.Module):
        energy = energy.double()
    points = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    e, grad = energy_and_grad(energy, points)
    with opened(browser, landscape(energy, LOW, HIGH)) as page:
        found = torch.tensor(call(page, EVALUATE, points.tolist()), dtype=torch.float64)
    assert torch.allclose(found[:, 0], e, rtol=1e-5, atol=1e-6)
    error = ((found[:, 1:] - grad).norm(dim=1) / grad.norm(dim=1)).max().item()
    assert error < 1e-5, f"relative error {error}"


@pytest.mark.parametrize("temperature", [1.0, 0.4, 2.5])
def test_mala_accepts_as_the_formula_says(browser, temperature):
    energy, eta = ENERGIES["confined"].double(), 0.3
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(200, 2, dtype=torch.float64, generator=generator)
    y = x + torch.randn(200, 2, dtype=torch.float64, generator=generator)
    (e_x, grad_x), (e_y, grad_y) = energy_and_grad(energy, x), energy_and_grad(energy, y)

    def log_q(to, start, grad):
        width = math.sqrt(2 * eta * temperature)
        return torch.distributions.Normal(start - eta * grad, width).log_prob(to).sum(1)

    expected = (e_x - e_y) / temperature + log_q(x, y, grad_y) - log_q(y, x, grad_x)
    rows = [torch.cat([a, e[:, None], grad], 1).tolist() for a, e, grad in ((x, e_x, grad_x), (y, e_y, grad_y))]
    body = "const [a, b, eta, t] = argument; return a.map((row, k) => s.logAcceptance(row, 0, b[k], 0, eta, t));"
    with opened(browser, landscape(ROUND, LOW, HIGH)) as page:
        found = torch.tensor(call(page, body, [*rows, eta, temperature]), dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 2.0])
def test_exact_energies_follow_the_closed_form(browser, temperature):
    """On a Gaussian in the plane the energy above the lowest is exponential with mean T."""
    with opened(browser, landscape(SLANTED, LOW, HIGH, temperature=temperature)) as page:
        exact = call(page, "const {mean, range, bars} = s.exact(); return {mean, range, bars};")
    assert exact["mean"] == pytest.approx(temperature, rel=0.01)
    edges = torch.linspace(0, exact["range"], len(exact["bars"]) + 1, dtype=torch.float64)
    beyond = (-edges / temperature).exp()
    closed = beyond[:-1] - beyond[1:]
    closed[-1] = beyond[-2]
    assert (torch.tensor(exact["bars"], dtype=torch.float64) - closed).abs().max() < 0.005


def test_exact_energies_of_narrow_wells(browser):
    energy = eight_gaussians()
    axis = (torch.arange(1600, dtype=torch.float64) + 0.5) / 200 - 4
    e = GaussianMixtureEnergy(energy.means.double(), energy.std)(torch.cartesian_prod(axis, axis))
    truth = ((-e).softmax(0) * (e - e.min())).sum().item()
    with opened(browser, landscape(energy, LOW, HIGH)) as page:
        assert call(page, "return s.exact().mean") == pytest.approx(truth, rel=0.01)


@pytest.mark.parametrize("sampler", ["ULA", "MALA"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_ula_has_its_bias_and_mala_has_none(browser, sampler, temperature):
    """ULA's variance on N(0, I) is T / (1 - η/2); z-scores, false alarm 6e-5 each, and the seed is fixed."""
    n, eta = 4000, 0.8
    picture = landscape(ROUND, LOW, HIGH, step_size=eta, temperature=temperature, sampler=sampler, n_particles=n)
    body = "for (let k = 0; k < 60; k++) s.step(); return Array.from(s.x).filter((_, k) => k % 5 < 2);"
    with opened(browser, picture) as page:
        x = torch.tensor(call(page, body), dtype=torch.float64)
    truth = temperature / (1 - eta / 2 if sampler == "ULA" else 1)
    z = (x.square().mean().item() / truth - 1) * math.sqrt(n)
    assert abs(z) < 4, f"variance {x.square().mean():.4f}, truth {truth:.4f}, z = {z:.1f}"


def test_a_step_and_its_picture_take_less_than_a_frame(browser, capsys):
    """CPU time of the page's thread, for others work on this machine, too."""
    with opened(browser, landscape(Confined(network(), 2.0), LOW, HIGH)) as page:
        tools = page.context.new_cdp_session(page)
        tools.send("Performance.enable")

        def seconds():
            metrics = tools.send("Performance.getMetrics")["metrics"]
            return next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime")

        times = []
        for _ in range(6):
            begin = seconds()
            call(page, "for (let k = 0; k < 20; k++) s.advance();")
            times.append(1000 * (seconds() - begin) / 20)
    with capsys.disabled():
        print(f"\nwidget: {min(times):.1f} ms of CPU a step and its picture, 500 particles, 64 x 64 SiLU (at most 16)")
    assert min(times) <= 16, times


def test_the_keyboard_reaches_and_moves_everything(browser):
    with opened(browser, landscape(WELLS, LOW, HIGH)) as page:
        focused = "() => document.querySelector('.ebm-landscape').shadowRoot.activeElement?.className"
        reached = []
        for _ in range(7):
            page.keyboard.press("Tab")
            reached.append(page.evaluate(focused))
            if reached[-1] in ("step_size", "temperature"):
                before = call(page, f"return s.{reached[-1]}")
                page.keyboard.press("ArrowRight")
                assert call(page, f"return s.{reached[-1]}") > before
            if reached[-1] == "sampler":
                page.keyboard.press("ArrowRight")
                assert call(page, "return s.sampler") == "MALA"
        assert reached == ["step_size", "temperature", "sampler", "run", "once", "scatter", "gather"]
        page.keyboard.press("Enter")
        assert call(page, "return Array.from(s.x.slice(0, 2))") == [0, 0]
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Space")
        assert call(page, "return s.x[0]") != 0


def test_a_click_starts_all_particles_there(browser):
    with opened(browser, landscape(WELLS, (-4, -2), (4, 6))) as page:
        box = page.locator("canvas").bounding_box()
        page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
        x, y = call(page, "return Array.from(s.x.slice(-5, -3))")
    assert x == pytest.approx(-2, abs=0.05) and y == pytest.approx(4, abs=0.05)


def moves(page):
    before = call(page, "return s.x[0]")
    page.wait_for_timeout(500)
    return call(page, "return s.x[0]") != before


@pytest.mark.parametrize(("motion", "begins"), [("reduce", False), ("no-preference", True)])
def test_it_moves_only_where_motion_is_welcome(browser, motion, begins):
    with opened(browser, landscape(WELLS, LOW, HIGH), reduced_motion=motion) as page:
        assert moves(page) == begins
        page.locator("button.run").click()
        assert moves(page) != begins


def test_lost_particles_are_counted(browser):
    energy = GaussianEnergy(torch.zeros(2), 0.01 * torch.eye(2))
    with opened(browser, landscape(energy, LOW, HIGH, step_size=1.0)) as page:
        call(page, "for (let k = 0; k < 400; k++) s.advance();")
        assert "Lost, since the step is too large: 500 of 500" in page.locator(".readout").text_content()
        page.locator("button.scatter").click()
        page.get_by_label("MALA").check()
        call(page, "for (let k = 0; k < 400; k++) s.advance();")
        assert "Lost" not in page.locator(".readout").text_content()


def test_two_on_a_page_do_not_clash(browser):
    with opened(browser, landscape(WELLS, LOW, HIGH), landscape(SLANTED, LOW, HIGH, sampler="MALA")) as page:
        assert [call(page, "return s.sampler", index=k) for k in (0, 1)] == ["ULA", "MALA"]
        page.get_by_label("MALA").first.check()
        page.get_by_label("ULA", exact=True).nth(1).check()
        assert [call(page, "return s.sampler", index=k) for k in (0, 1)] == ["MALA", "ULA"]
        point = [[0.5, -1.0]]
        e = [call(page, EVALUATE, point, index=k)[0][0] for k in (0, 1)]
    assert e[0] == pytest.approx(WELLS(torch.tensor(point, dtype=torch.float64)).item()) and e[1] == pytest.approx(3)


def test_without_scripts_it_says_what_it_needs(browser):
    with opened(browser, landscape(WELLS, LOW, HIGH), java_script_enabled=False) as page:
        assert page.get_by_text("It needs JavaScript").is_visible()


THEMES = {
    "light": "<style>:root {color-scheme: light} body {color: #222; background: #fff}</style>",
    "dark": "<style>:root {color-scheme: dark} body {color: #ced6dd; background: #121212}</style>",
}


@pytest.mark.parametrize("width", [1000, 390])
@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing(browser, theme, width):
    with opened(
        browser, landscape(WELLS, LOW, HIGH), head=THEMES[theme], viewport={"width": width, "height": 800}
    ) as page:
        found = Axe().run(page).response["violations"]
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert not found, [(rule["id"], rule["nodes"][0]["html"]) for rule in found]
    assert over <= 0


LIVE = re.compile("data-(landscape|lattice)=")


@pytest.mark.parametrize(("system", "chosen"), [("light", "dark"), ("dark", "light")])
def test_in_the_book_it_follows_the_switch_of_the_theme(browser, built, system, chosen):
    pages = [path for path in (built / "html").rglob("*.html") if LIVE.search(path.read_text("utf-8"))]
    assert pages, "no page has a live picture"
    colors = """([mode]) => {
        Object.assign(document.documentElement.dataset, {theme: mode, mode});
        return [...document.querySelectorAll('.ebm-landscape, .ebm-lattice')].map(host => [
            getComputedStyle(host.shadowRoot.querySelector('.readout')).color, getComputedStyle(document.body).color,
            getComputedStyle(host.parentElement).backgroundColor, Boolean(host.landscape ?? host.lattice)]);
    }"""
    for path in pages:
        context = browser.new_context(color_scheme=system, reduced_motion="reduce", offline=True)
        page = context.new_page()
        page.goto(path.as_uri())
        page.wait_for_function(ALL_LIVE)
        for text, body, ground, live in page.evaluate(colors, [chosen]):
            assert live and text == body and ground == "rgba(0, 0, 0, 0)", path.name
        context.close()
