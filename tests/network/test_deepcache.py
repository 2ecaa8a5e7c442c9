"""DeepCache: a short step is the network with what comes from below the skip frozen, and nothing below it is asked."""

from __future__ import annotations

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

import ebbtide as ebb
from ebbtide.core.state import Query, State
from ebbtide.network.anatomy import anatomy
from ebbtide.network.deepcache import SHORT, WHOLE, DeepCache, powered
from ebbtide.network.patch import Rows, settled

LABELS = [0, 3, 6, 9]


@functools.cache
def plain():
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(sample_size=16, block_out_channels=(8, 16, 24), norm_num_groups=4, **blocks).eval()


@functools.cache
def worded():
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    widths = {"block_out_channels": (8, 16, 16), "attention_head_dim": 4, "cross_attention_dim": 6}
    net = UNet2DConditionModel(sample_size=16, in_channels=3, out_channels=3, norm_num_groups=4, **widths, **blocks)
    return net.eval()


def asked(net, x, t):
    words = torch.linspace(-1, 1, 2 * 5 * 6).reshape(2, 5, 6)
    more = {"encoder_hidden_states": words} if isinstance(net, UNet2DConditionModel) else {}
    with torch.no_grad():
        return net(x, t, **more).sample


def point(k, size=16):
    z = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(k))
    return z, torch.tensor([900 - 100 * k, 850 - 100 * k])


@contextmanager
def hooked(module, hook):
    handle = module.register_forward_pre_hook(hook)
    yield
    handle.remove()


class Calls:
    """A network under one patch, asked again and again with memory between."""

    def __init__(self, net, **knobs):
        self.net, ((self.patch, self.seen),) = settled(net, [DeepCache(**knobs)])
        self.memory = {}

    def __call__(self, mode, x, t):
        rows = Rows([Query(x, t)], State.blank(x, {}, [1, 2]), self.memory).of("0", mode)
        with self.patch.enter(self.seen, rows):
            out = asked(self.net, x, t)
        self.memory = rows.memory
        return out


NETS = {"plain": plain, "worded": worded}
WHERE = [(n, b, s) for n, s in (("plain", 16), ("worded", 16), ("worded", 22)) for b in range(9)]  # 22: halves are odd


@pytest.mark.parametrize(("name", "branch", "size"), WHERE)
def test_a_short_step_is_the_network_with_what_comes_from_below_frozen(name, branch, size):
    """The other way: everything is computed anew, and the deep channels that enter the skip's layer are put back."""
    net = NETS[name]()
    calls = Calls(net, branch=branch)
    assert torch.equal(calls(WHOLE, *point(0, size)), asked(net, *point(0, size)))
    mine = calls(SHORT, *point(1, size))

    layer, deep = anatomy(net).skips[-1 - branch].module, calls.memory["0"]["main|point"]["deep"]
    width, kept = deep.shape[1], []
    with hooked(layer, lambda m, a: kept.append(a[0])):
        asked(net, *point(0, size))
    assert torch.equal(deep, kept[0][:, :width])
    with hooked(layer, lambda m, a: (torch.cat([deep, a[0][:, width:]], 1), *a[1:])):
        other = asked(net, *point(1, size))
    assert torch.allclose(mine, other, rtol=0, atol=1e-6)
    assert not torch.allclose(mine, asked(net, *point(1, size)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("branch", range(9))
def test_nothing_below_the_skip_is_asked(name, branch):
    """Branches count the layers of the way down from the outside: three in each block, the last making a smaller picture."""
    calls, heard = Calls(NETS[name](), branch=branch), []
    leaves = {m: n for n, m in calls.net.named_modules() if not list(m.children())}
    taps = [m.register_forward_hook(lambda m, a, o: heard.append(leaves[m])) for m in leaves]
    calls(WHOLE, *point(0))
    everything, heard[:] = set(heard), []
    calls(SHORT, *point(1))
    for tap in taps:
        tap.remove()
    block, layer = divmod(branch, 3)

    def below(path):
        """Whether a leaf lies deeper than the skip, told from its name."""
        kind, *rest = path.split(".")
        if kind == "mid_block":
            return True
        if kind == "down_blocks":
            return (int(rest[0]), 2 if rest[1] == "downsamplers" else int(rest[2])) >= (block, layer)
        if kind == "up_blocks":
            place = 0 if rest[1] == "upsamplers" else 2 - int(rest[2])
            return (2 - int(rest[0]), place) > (block, layer)
        return False

    assert set(heard) == {path for path in everything if not below(path)}


def test_whole_steps_come_every_interval_after_the_first():
    model = ebb.load("digits-unet")
    plan = ebb.Plan(grid={"name": "linear", "steps": 8}, network=[{"name": "deepcache", "interval": 3}])
    found = [s.info["deepcache"] if s.info else 0 for s in ebb.run(model, plan, cond=LABELS, n=4)]
    assert found == [0, 4, 4, 0, 4, 4, 0, 4]


def test_stages_of_a_whole_step_are_whole():
    """Heun asks twice a step: each of the two keeps features of its own, and both are whole together."""
    model = ebb.load("digits-unet")
    plan = ebb.Plan(solve="heun", grid={"name": "linear", "steps": 5}, network=[{"name": "deepcache", "interval": 2}])
    found = [s.info["deepcache"] if s.info else 0 for s in ebb.run(model, plan, cond=LABELS, n=4)]
    assert found[:4] == [0, 8, 0, 8]


def test_steps_around_a_centre():
    """As many as asked, the first among them; the gaps grow with the distance from the centre."""
    for steps, count, center in ((50, 10, 15), (50, 17, 0), (30, 6, 30)):
        chosen = powered(steps, count, center, 1.6)
        assert chosen[0] == 0
        assert len(chosen) in (count, count + 1)
        assert chosen == sorted(set(chosen))
        gaps = [(abs((a + b) / 2 - center), b - a) for a, b in itertools.pairwise(chosen)]
        near, far = min(gaps), max(gaps)
        assert far[1] > near[1]
    model = ebb.load("digits-unet")
    spec = {"name": "deepcache", "interval": 3, "center": 2}
    plan = ebb.Plan(grid={"name": "linear", "steps": 9}, network=[spec])
    found = [s.info.get("deepcache", 0) == 0 for s in ebb.run(model, plan, cond=LABELS, n=4)]
    assert [k for k, whole in enumerate(found) if whole] == powered(9, 3, 2, 1.4)


@pytest.mark.parametrize(
    ("model", "spec", "said"),
    [
        ("digits", {}, "DiTTransformer2DModel has no skips"),
        ("digits-unet", {"branch": 6}, "UNet2DModel has 6 skips, so branch goes from 0 to 5"),
        ("digits-unet", {"interval": 0}, "interval: input should be greater than or equal to 1"),
    ],
)
def test_what_cannot_be(model, spec, said):
    with pytest.raises(ebb.EbbError, match=said):
        ebb.sample(ebb.load(model), ebb.Plan(network=[{"name": "deepcache", **spec}]), cond=[1], n=1)


def test_one_step_has_nothing_to_reuse():
    plan = ebb.Plan(grid={"name": "linear", "steps": 1}, network=["deepcache"])
    with pytest.raises(ebb.EbbError, match="'deepcache' is switched on but did nothing in this run"):
        ebb.sample(ebb.load("digits-unet"), plan, cond=[1], n=1)


def test_runs_in_other_threads_do_not_hear_of_it():
    """Six threads over one model, four with a cache in it and two without: each as it would be alone."""
    model = ebb.load("digits-unet")
    plain = ebb.Plan(grid={"name": "linear", "steps": 8})
    plans = [
        plain,
        plain.replace(network=["deepcache"]),
        plain.replace(network=[{"name": "deepcache", "branch": 3}]),
    ] * 2

    def run(plan):
        return ebb.sample(model, plan, cond=LABELS, n=4).x

    alone = [run(plan) for plan in plans[:3]] * 2
    with ThreadPoolExecutor(len(plans)) as pool:
        for x, y in zip(pool.map(run, plans), alone, strict=True):
            assert torch.allclose(x, y, rtol=0, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_a_rewritten_network_is_reached_into_as_the_network_is():
    """bf16 puts a forward of its own around the network; what lies inside its copy must still be heard."""
    model = ebb.load("digits-unet")
    plan = ebb.Plan(grid={"name": "linear", "steps": 4}, network=["bf16", {"name": "deepcache", "interval": 2}])
    out, plain = (ebb.sample(model, p, cond=3, n=2).x for p in (plan, plan.replace(network=["bf16"])))
    short = ebb.sample(model, plan.replace(network=plan.network[1:]), cond=3, n=2).x
    assert not torch.equal(out, plain)
    assert float((out - short).abs().max()) < 0.1
