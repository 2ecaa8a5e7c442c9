"""Rewrites: made once, in order, on a copy; what each may change is bounded by its number format."""

from __future__ import annotations

import gc
import json
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.core.key import Noise, keys
from ebbtide.core.registry import make
from ebbtide.denoise.exact import GaussianMixture
from ebbtide.denoise.network import Border, Network
from ebbtide.network.int8_dynamic import WholeLinear
from ebbtide.network.patch import Patch
from ebbtide.network.rewrite import copied
from ebbtide.process.flow import Flow
from ebbtide.zoo.networks import DiT, UNet, draw

NAMES = ("bf16", "channels-last", "compile", "int8-dynamic")
EPS = 2.0**-8  # half a unit in the last place of bfloat16, which has 8 bits of precision


class Attention(nn.Module):
    """Attention of a row to itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, h: Tensor) -> Tensor:
        return (self.to_q(h) * self.to_k(h)).sum(-1, keepdim=True).softmax(-1) * self.to_v(h)


class Block(nn.Module):
    """Attention and feed-forward, from rows to rows."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.attn = Attention(width)
        self.ff = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attn(h)
        return h + self.ff(h)


class Rows(nn.Module):
    """A residual network over rows, told the time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.time, self.last = nn.Linear(4, 16), nn.Linear(1, 16), nn.Linear(16, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.fails = False

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        h = self.first(x) + self.time(clock[:, None])
        for block in self.blocks:
            h = block(h)
        if self.fails:
            raise RuntimeError("the network failed")
        return self.last(h)


class Pixels(nn.Module):
    """Two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor, clock: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)) + clock[:, None, None, None])


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def asked(name: str) -> tuple[nn.Module, Tensor]:
    """A network that this rewrite admits, and an input."""
    x = torch.randn(3, *((2, 6, 6) if name == "channels-last" else (4,)), generator=torch.Generator().manual_seed(1))
    return (Pixels() if name == "channels-last" else Rows()), x


def rewritten(module: nn.Module, *names: str) -> nn.Module:
    for each in names:
        module = make("network", {"name": each})(module)
    return module


def model_of(module: Any, shape: tuple[int, ...]) -> Any:
    return ebb.load(module, process="flow", like=torch.zeros(shape), predicts="x0", clock="time")


def far(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


# ---------------------------------------------------------------- what all of them promise


def everything(module: nn.Module) -> list[Any]:
    weights = [(k, id(p), p._version, p.tolist()) for k, p in [*module.named_parameters(), *module.named_buffers()]]
    inside = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in module.modules()]
    return [weights, inside, [{k: id(v) for k, v in m.__dict__.items()} for m in module.modules()]]


def test_the_original_stays_as_it_was(name: str) -> None:
    """Its state, and its answer to the bit: after a run, and after one that failed."""
    module, x = asked(name)
    model, plan = model_of(module, tuple(x.shape[1:])), ebb.Plan(network=name, grid={"name": "linear", "steps": 2})
    clock = torch.full((3,), 0.5)
    with torch.no_grad():
        answer, before = module(x, clock), everything(module)
        changed = ebb.sample(model, plan, n=3).x
        assert everything(module) == before
        assert torch.equal(module(x, clock), answer)
        plain = ebb.sample(model, plan.replace(network=[]), n=3).x
        assert far(changed, plain) < (0.05 if name in ("bf16", "int8-dynamic") else 1e-5)
        assert name not in ("bf16", "int8-dynamic") or not torch.equal(changed, plain)
        off = ebb.sample(model, plan.replace(network=[{"name": name, "enabled": False}]), n=3).x
        assert torch.equal(off, plain)
        if not hasattr(module, "fails"):
            return
        module.fails = True
        with pytest.raises((RuntimeError, EbbError), match=r"failed|compiled"):
            ebb.sample(model, plan, n=3)
        module.fails = False
        assert everything(module) == before
        assert torch.equal(module(x, clock), answer)
        assert torch.equal(ebb.sample(model, plan, n=3).x, changed)


def test_a_rewrite_is_made_once_and_forgotten_with_its_network(name: str) -> None:
    module, x = asked(name)
    module.requires_grad_(False)
    model, plan = model_of(module, tuple(x.shape[1:])), ebb.Plan(network=name)
    made = [model.loop(plan).layers[-1].denoiser.module for _ in range(2)]
    assert made[0] is made[1]
    assert made[0] is not module
    next(module.parameters()).mul_(1.0)  # written to
    again = model.loop(plan).layers[-1].denoiser.module
    assert again is not made[0]
    module.train(not module.training)
    assert model.loop(plan).layers[-1].denoiser.module is not again
    gone = [weakref.ref(module), weakref.ref(model.loop(plan).layers[-1].denoiser.module)]
    del module, model, made, again
    torch._dynamo.reset()
    gc.collect()
    assert [r() for r in gone] == [None, None]


def test_weights_that_stay_are_not_held_twice(name: str) -> None:
    module, _ = asked(name)
    mine, its = ({p.data_ptr() for p in m.parameters()} for m in (module, rewritten(module, name)))
    assert its & mine
    assert (its == mine) == (name == "compile")


def test_a_model_without_a_module_is_refused_before_anything_runs(name: str) -> None:
    plan = ebb.Plan(network=name)
    exact = ebb.load(GaussianMixture(Flow(), torch.ones(1), torch.zeros(1, 2), 1.0), like=torch.zeros(2))
    bare = model_of(lambda x, clock: x, (2,))
    for model in (exact, bare):
        assert "module" not in model.gives({})
        with pytest.raises(EbbError, match=f"'{name}' rewrites a torch module") as told:
            model.loop(plan)
        assert "\n" not in str(told.value)
        model.loop(plan.replace(network=[{"name": name, "enabled": False}]).replace(network=[]))


def test_a_plan_with_rewrites_round_trips() -> None:
    plan = ebb.Plan(network=["bf16", {"name": "int8-dynamic", "enabled": False}, "compile"])
    assert ebb.Plan.from_dict(json.loads(plan.to_json())) == plan
    assert [p.entry.name for p in plan.parts("network")] == ["bf16", "int8-dynamic", "compile"]


# ---------------------------------------------------------------- together


def test_rewrites_are_made_in_order_and_patches_see_the_last() -> None:
    seen = []

    class Spy(Patch):
        @contextmanager
        def enter(self, network: nn.Module, rows: Any) -> Any:
            seen.append(network)
            yield

    module = Rows()
    half, whole = make("network", {"name": "bf16"}), make("network", {"name": "int8-dynamic"})
    network = Network(module, Flow(), predicts="x0", clock="time")
    border = Border.of(network, Flow(), (Spy(), half, whole))
    assert border.rewrites == ("bf16", "int8-dynamic")
    last: Any = border.denoiser.module  # type: ignore[attr-defined]
    assert isinstance(last.blocks[0].ff[0], WholeLinear)
    # its whole numbers stand for weights that were rounded to bfloat16 before
    rounded = module.blocks[0].ff[0].weight.to(torch.bfloat16).float()  # type: ignore[union-attr,index]
    assert torch.equal(last.blocks[0].ff[0].weight, WholeLinear(_linear(rounded)).weight)
    loop = ebb.Plan().bind(border, Flow())
    loop.step(loop.begin(torch.zeros(2, 4), {}, [0, 1]))
    assert seen == [last]
    assert Border.of(network, Flow(), (half,)).denoiser.module is Border.of(network, Flow(), (half,)).denoiser.module  # type: ignore[attr-defined]


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


def test_nothing_reaches_into_a_compiled_network() -> None:
    network = Network(Rows(), Flow(), predicts="x0", clock="time")
    parts = {k: make("network", {"name": k}) for k in ("bf16", "compile")}
    for wrong in ((parts["compile"], parts["bf16"]), (parts["compile"], Patch()), (Patch(), parts["compile"])):
        with pytest.raises(EbbError, match=r"'compile'.*last"):
            Border.of(network, Flow(), wrong)
    off = make("network", {"name": "bf16", "enabled": False})
    assert Border.of(network, Flow(), (parts["bf16"], parts["compile"], off)).rewrites == ("bf16", "compile")


def test_off_loaded_weights_are_refused() -> None:
    with pytest.raises(EbbError, match="off-loaded"):
        copied(nn.Linear(2, 2, device="meta"))


# ---------------------------------------------------------------- bf16


def test_a_product_in_bfloat16_keeps_its_bound() -> None:
    """Three roundings: of x, of W and of the answer; sums are of float32."""
    module, (x,) = Rows().blocks[0].ff[:1], [torch.randn(64, 16)]  # type: ignore[union-attr,index]
    with torch.no_grad():
        out = rewritten(module, "bf16")(x)
    layer = module[0]
    assert out.dtype == torch.float32
    size = x.abs().double() @ layer.weight.abs().double().T + layer.bias.abs().double()
    gap = (out.double() - (x.double() @ layer.weight.double().T + layer.bias.double())).abs()
    assert bool((gap <= ((1 + EPS) ** 3 - 1 + 1e-6) * size).all())
    assert bool((gap > 1e-5 * size).any())


def test_the_ends_of_a_network_are_not_rounded() -> None:
    """Where the blocks add nothing, the answer is the original's to the bit, times beyond 256 included."""
    module = Rows()
    for block in module.blocks:
        for last in (block.ff[2], block.attn.to_v):  # type: ignore[union-attr,index]
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    x, clock = torch.randn(5, 4), torch.tensor([999.0, 997.0, 513.0, 257.0, 0.3])
    with torch.no_grad():
        assert torch.equal(rewritten(module, "bf16")(x, clock), module(x, clock))


def test_what_bf16_cannot_change_is_refused() -> None:
    for module in (nn.LayerNorm(3), nn.Linear(2, 2).bfloat16()):
        with pytest.raises(EbbError, match="'bf16' finds no"):
            rewritten(module, "bf16")


# ---------------------------------------------------------------- int8


def test_whole_numbers_round_trip() -> None:
    """Weights that are whole numbers times a power of 2, and such rows: the product is exact."""
    g = torch.Generator().manual_seed(3)
    weight = torch.randint(-126, 127, (7, 33), generator=g) * 1.0
    x = torch.randint(-126, 127, (5, 33), generator=g) * 1.0
    weight[:, 4], x[:, 9] = 127.0, -127.0
    layer = _linear(weight / 64, torch.arange(7.0))
    made = WholeLinear(layer)
    assert torch.equal(made.weight, layer.weight)
    assert torch.equal(made(x / 8).double(), (x / 8).double() @ layer.weight.double().T + layer.bias.double())


def test_every_row_has_a_scale_of_its_own() -> None:
    """Alone it is what it is among others a thousand times its size; weights are off by half a step of theirs at most."""
    layer = _linear(torch.randn(8, 24) * torch.logspace(-3, 3, 8)[:, None])
    made, x = WholeLinear(layer), torch.randn(6, 24) * torch.logspace(-3, 3, 6)[:, None]
    together = made(x)
    assert torch.equal(together, torch.cat([made(row[None]) for row in x]))
    step = layer.weight.abs().amax(1, keepdim=True) / 127
    assert bool(((made.weight - layer.weight).abs() <= step * (0.5 + 1e-6)).all())
    # a sum of K products, each factor off by half a step at most
    top = 24 * x.abs().amax(1, keepdim=True) * layer.weight.abs().amax(1)
    assert bool(((together - layer(x)).abs() <= top * (1 / 127 + 1 / 254**2)).all())


def test_what_is_not_finite_stays_so_and_nothing_stays_nothing() -> None:
    made = WholeLinear(_linear(torch.randn(3, 4)))
    x = torch.tensor([[0.0, 0, 0, 0], [1, torch.nan, 0, 0], [1, torch.inf, 0, 0], [1, 2, 3, 4]])
    assert made(x).isfinite().all(1).tolist() == [True, False, False, True]
    assert torch.equal(made(x)[0], torch.zeros(3))


def test_only_blocks_are_made_whole() -> None:
    made = rewritten(DiT(size=8, layers=2, heads=2, width=8).build(), "int8-dynamic")
    whole = [k for k, m in made.named_modules() if isinstance(m, WholeLinear)]
    assert len(whole) == 2 * 6
    assert all(".attn1." in k or ".ff." in k for k in whole)
    with pytest.raises(EbbError, match="no blocks were found in Pixels"):
        rewritten(Pixels(), "int8-dynamic")


# ---------------------------------------------------------------- channels-last


def test_channels_last_is_the_same_sum_in_another_order() -> None:
    module = UNet(size=8, widths=(8, 16), head=8).build()
    draw(module, Noise(keys([5]), torch.zeros(1, dtype=torch.int64)), 0.2)
    made = rewritten(module, "channels-last")
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
    with torch.no_grad():
        here, there = (m(x, torch.tensor([3.0, 400.0]), class_labels=labels).sample for m in (made, module))
    assert far(here, there) < 1e-5
    pixels, x = asked("channels-last")
    answers = [m(x, torch.rand(3)) for m in (pixels, rewritten(pixels, "channels-last"))]
    assert answers[0].stride() == answers[1].stride()
    convs = [m.weight for m in made.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[1] > 1]
    assert convs
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convs)


def test_channels_last_wants_convolutions() -> None:
    for module in (Rows(), DiT(size=8, layers=1, heads=1, width=8).build(), nn.Conv1d(2, 2, 3)):
        with pytest.raises(EbbError, match="2-D convolutions"):
            rewritten(module, "channels-last")


# ---------------------------------------------------------------- compile


def test_a_program_serves_all_batches() -> None:
    """Two programs, or three with one of a single row, however many sizes come; each answers as the network does."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    module = Rows()
    made, before = rewritten(module, "compile"), counters["stats"]["unique_graphs"]
    with torch.no_grad():
        for n in (16, 8, 5, 3, 1, 16, 7, 1, 2, 32):
            x, clock = torch.randn(n, 4), torch.rand(n)
            assert far(made(x, clock), module(x, clock)) < 1e-5
    assert 0 < counters["stats"]["unique_graphs"] - before <= 3


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler()

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(EbbError, match=r"C\+\+ compiler") as told:
        rewritten(Rows(), "compile")
    assert "\n" not in str(told.value)


def test_what_cannot_be_compiled_as_a_whole_says_so() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x * float(x.sum()))

    class Worse(Broken):
        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return self.layer(x)

    with pytest.raises(EbbError, match="cannot be compiled as a whole") as told:
        rewritten(Worse(), "compile")(torch.ones(1, 2))
    assert "\n" not in str(told.value)


# ---------------------------------------------------------------- real networks


@pytest.mark.parametrize(("name", "bound"), [("bf16", 5 * EPS), ("int8-dynamic", 5 / 127)])
def test_the_digits_drift_by_no_more_than_their_blocks_may(name: str, bound: float) -> None:
    """One step of the format for each of the five blocks, at every level; a guided run ends near the plain one."""
    model = ebb.load("digits")
    module: Any = model.denoiser.module  # type: ignore[attr-defined]
    made = rewritten(module, name)
    x, labels = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    with torch.no_grad():
        for t in (30.0, 500.0, 990.0):
            here, there = (m(x, torch.full((4,), t), class_labels=labels).sample for m in (made, module))
            assert 0 < far(here, there) < bound
    plan = ebb.Plan(guide="cfg", grid={"name": "linear", "steps": 4}, network=name)
    run, plain = (ebb.sample(model, p, cond=[1, 2], n=2).x for p in (plan, plan.replace(network=[])))
    assert 0 < far(run, plain) < 4 * bound


def test_an_attached_pipeline_takes_rewrites(shared: Path) -> None:
    """The pipeline's own network stays as it was, and is rewritten once for all calls."""
    pipe = tiny.build(shared, "sd")
    pipe.unet.requires_grad_(False)
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    plan = ebb.Plan(solve="euler", network=["bf16", "channels-last"])
    asked = {"prompt": "low", "height": 32, "width": 32, "num_inference_steps": 3, "output_type": "latent"}
    latents = torch.randn(1, 4, *(pipe.unet.config.sample_size,) * 2, generator=torch.Generator().manual_seed(0))
    latents = latents[..., : 32 // pipe.vae_scale_factor, : 32 // pipe.vae_scale_factor]
    attached, plain = ebb.attach(plan, pipe), ebb.attach(plan.replace(network=[]), pipe)
    here, again, there = (p(**asked, latents=latents.clone()).images for p in (attached, attached, plain))
    assert torch.equal(here, again)
    assert 0 < far(here, there) < 0.1
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())
