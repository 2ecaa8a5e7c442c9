"""Sites found in real architectures: they are called in the order told, hold what they are said to hold, and can be
replaced by what they gave."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ebbtide.core.errors import EbbError
from ebbtide.network.anatomy import Anatomy, Block, anatomy
from ebbtide.network.anatomy.layout import GROUPS
from ebbtide.network.patch import rewired

Call = Callable[..., Tensor]
"""net(x, t, cond) as each class takes them, each a seed."""


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 32, shape, generator=torch.Generator().manual_seed(seed))


def unet() -> tuple[nn.Module, Call]:
    from ebbtide.zoo.networks import UNet

    net = UNet(size=8, widths=(8, 16, 24), head=8).build()
    return net, lambda m, x, t, c: m(draw(x, 2, 1, 8, 8), t, torch.tensor([c, c])).sample


def sdxl() -> tuple[nn.Module, Call]:
    from diffusers import UNet2DConditionModel

    net = UNet2DConditionModel(
        block_out_channels=(8, 16),
        norm_num_groups=2,
        layers_per_block=2,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=32,
        cross_attention_dim=16,
    )

    def call(m: Any, x: int, t: int, c: int) -> Tensor:
        added = {"text_embeds": draw(c, 2, 8), "time_ids": draw(c, 2, 6).abs()}
        return m(draw(x, 2, 4, 8, 8), t, draw(5, 2, 3, 16), added_cond_kwargs=added).sample

    return net, call


def dit() -> tuple[nn.Module, Call]:
    from ebbtide.zoo.networks import DiT

    net = DiT(size=8, layers=3, heads=2, width=8).build()
    return net, lambda m, x, t, c: m(draw(x, 2, 1, 8, 8), torch.tensor([t, t]), torch.tensor([c, c])).sample


def pixart() -> tuple[nn.Module, Call]:
    from diffusers import PixArtTransformer2DModel

    shape = {"sample_size": 8, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 3, "num_layers": 2}
    norms = {"norm_type": "ada_norm_single", "norm_elementwise_affine": False, "norm_eps": 1e-6}
    net = PixArtTransformer2DModel(caption_channels=12, in_channels=4, cross_attention_dim=24, **shape, **norms)
    at = lambda t: torch.tensor([t, t])  # noqa: E731
    return net, lambda m, x, t, c: m(draw(x, 2, 4, 8, 8), draw(c, 2, 5, 12), at(t), {}).sample


def sd3() -> tuple[nn.Module, Call]:
    from diffusers import SD3Transformer2DModel

    heads = {"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16, "num_layers": 3}
    text = {"joint_attention_dim": 12, "pooled_projection_dim": 10, "dual_attention_layers": (0,)}
    net = SD3Transformer2DModel(sample_size=8, patch_size=2, in_channels=4, out_channels=4, **heads, **text)
    at = lambda t: torch.tensor([t, t])  # noqa: E731
    return net, lambda m, x, t, c: m(draw(x, 2, 4, 8, 8), draw(c, 2, 5, 12), draw(c, 2, 10), at(t)).sample


def flux() -> tuple[nn.Module, Call]:
    from diffusers import FluxTransformer2DModel

    heads = {"attention_head_dim": 16, "num_attention_heads": 2, "axes_dims_rope": (4, 4, 8)}
    layers = {"num_layers": 2, "num_single_layers": 3, "guidance_embeds": True}
    net = FluxTransformer2DModel(in_channels=4, joint_attention_dim=12, pooled_projection_dim=10, **heads, **layers)

    def call(m: Any, x: int, t: int, c: int) -> Tensor:
        said = {"img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(5, 3), "guidance": torch.full((2,), 1.0 + c)}
        return m(draw(x, 2, 6, 4), draw(c, 2, 5, 12), draw(c, 2, 10), torch.full((2,), t / 10), **said).sample

    return net, call


def wan() -> tuple[nn.Module, Call]:
    from diffusers import WanTransformer3DModel

    heads = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2, "text_dim": 12}
    net = WanTransformer3DModel(in_channels=4, out_channels=4, freq_dim=16, rope_max_seq_len=32, **heads)
    at = lambda t: torch.tensor([t, t])  # noqa: E731
    return net, lambda m, x, t, c: m(draw(x, 2, 4, 2, 4, 4), at(t), draw(c, 2, 5, 12)).sample


def ltx() -> tuple[nn.Module, Call]:
    from diffusers import LTXVideoTransformer3DModel

    heads = {"num_attention_heads": 4, "attention_head_dim": 8, "cross_attention_dim": 32, "num_layers": 3}
    net = LTXVideoTransformer3DModel(in_channels=8, out_channels=8, caption_channels=12, **heads)
    size = {"num_frames": 2, "height": 2, "width": 2}
    at = lambda t: torch.tensor([[t], [t]])  # noqa: E731
    return net, lambda m, x, t, c: m(draw(x, 2, 8, 8), draw(c, 2, 5, 12), at(t), torch.ones(2, 5), **size).sample


def bert() -> tuple[nn.Module, Call]:
    from transformers import BertConfig, BertForMaskedLM

    net = BertForMaskedLM(
        BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24)
    )
    return net, lambda m, x, t, c: m(ids(x, 2, 7)).logits


def modernbert() -> tuple[nn.Module, Call]:
    from ebbtide.zoo.language import MaskedLM

    net = MaskedLM(alphabet="a" * 31, layers=3, heads=2, width=16, hidden=24).build()
    return net, lambda m, x, t, c: m(ids(x, 2, 7)).logits


def llama() -> tuple[nn.Module, Call]:
    from ebbtide.zoo.language import CausalLM

    net = CausalLM(alphabet="a" * 31, layers=3, heads=2, width=16, hidden=24).build()
    return net, lambda m, x, t, c: m(ids(x, 2, 7)).logits


class Stack(nn.Module):
    """Written by hand, of torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.token = nn.Embedding(32, 16)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.answer = nn.Linear(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.encoder(self.token(x)))


def stack() -> tuple[nn.Module, Call]:
    return Stack(), lambda m, x, t, c: m(ids(x, 2, 7))


class Layer(nn.Module):
    """As in the authors' own code of DiT: https://arxiv.org/abs/2212.09748."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(16, 16))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        y = self.norm1(x) + self.adaLN_modulation(c)[:, None]
        x = x + self.attn(y, y, y)[0]
        return x + self.mlp(self.norm2(x))


class Final(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(16, 16))
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.linear(x + self.adaLN_modulation(c)[:, None])


class Hand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.final_layer = Final()
        self.pos_embed = nn.Parameter(torch.zeros(1, 6, 16))
        self.x_embedder, self.y_embedder = nn.Linear(4, 16), nn.Embedding(4, 16)
        self.t_embedder = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 16))
        self.layers = nn.Sequential(*(Layer() for _ in range(3)))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        c, x = self.t_embedder(t) + self.y_embedder(y), self.x_embedder(x) + self.pos_embed
        for layer in self.layers:
            x = layer(x, c)
        return self.final_layer(x, c)


def hand() -> tuple[nn.Module, Call]:
    return Hand(), lambda m, x, t, c: m(draw(x, 2, 6, 4), torch.full((2, 1), t / 10), torch.tensor([c, c]))


UNETS, DIFFUSION = (unet, sdxl), (unet, sdxl, dit, pixart, sd3, flux, wan, ltx, hand)
LANGUAGE = (bert, modernbert, llama, stack)
ALL = (*DIFFUSION, *LANGUAGE)
over = lambda makers: pytest.mark.parametrize("make", makers, ids=lambda m: m.__name__)  # noqa: E731


def ready(make: Callable[[], tuple[nn.Module, Call]]) -> tuple[nn.Module, Call, Anatomy]:
    """The network with no weight at zero, what calls it, and its anatomy."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, call = make()
        with torch.no_grad():
            for weight in net.parameters():
                weight.copy_(torch.randn_like(weight) * 0.2)
    return net.eval(), call, anatomy(net)


@pytest.fixture
def hooks() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def fired(net: nn.Module, paths: list[str], run: Callable[[], Any]) -> list[str]:
    """The order in which modules answered."""
    seen: list[str] = []
    made = [net.get_submodule(p).register_forward_hook(lambda *a, p=p: seen.append(p)) for p in paths]
    run()
    for hook in made:
        hook.remove()
    return seen


@over(ALL)
def test_blocks_and_their_sites_answer_once_each_in_the_order_told(make: Any) -> None:
    net, call, told = ready(make)
    order = [p for b in told.blocks for p in (*(s.path for s in b.sites), b.path)]
    around = [s.path for g in ("first", "last") for s in getattr(told, g)]
    seen = fired(net, [*order, *around], lambda: call(net, 0, 1, 0))
    firsts, lasts = [s.path for s in told.first], [s.path for s in told.last]
    assert seen[: len(firsts)] == firsts
    assert seen[len(firsts) : len(firsts) + len(order)] == order
    assert sorted(seen[len(firsts) + len(order) :]) == sorted(lasts)  # DiT says shift and scale before it normalises


@over(ALL)
def test_every_site_is_the_module_of_its_path(make: Any) -> None:
    net, _, told = ready(make)
    for site in (*told.blocks, *told.attention, *told.feed_forward, *(s for g in GROUPS for s in getattr(told, g))):
        assert all(net.get_submodule(p) is m for p, m in site.parts)


@over(ALL)
def test_every_parameter_is_of_one_group_and_every_path_told_holds_some_or_normalises(make: Any) -> None:
    net, _, told = ready(make)
    groups = {n: told.group(n) for n, _ in net.named_parameters()}
    assert "other" not in groups.values()
    assert {"blocks", "first"} <= set(groups.values())
    for n, _ in net.named_parameters():
        assert groups[n] in (*GROUPS, "blocks")


@over(ALL)
@pytest.mark.parametrize("group", GROUPS)
def test_a_group_alone_carries_what_it_is_named_for(make: Any, group: str) -> None:
    net, call, told = ready(make)
    if not getattr(told, group):
        assert make in LANGUAGE
        assert group in ("time", "condition")
        return
    asked = {"first": [(0, 1, 0), (1, 1, 0)], "time": [(0, 1, 0), (0, 7, 0)], "condition": [(0, 1, 0), (0, 1, 1)]}
    other, one = asked.get(group, asked["first"])
    with torch.no_grad():
        assert not torch.allclose(call(net, *other), call(net, *one))
        for name, weight in net.named_parameters():
            if told.group(name) == group:
                weight.zero_()
        torch.testing.assert_close(call(net, *other), call(net, *one), rtol=0, atol=0)


@over([m for m in ALL if m not in UNETS])
def test_where_every_block_passes_its_streams_the_weights_of_blocks_do_not_matter(make: Any, hooks: ExitStack) -> None:
    net, call, told = ready(make)
    plain = call(net, 0, 1, 0)
    for block in told.blocks:
        hooks.enter_context(rewired(block.module, block.passed))
    passed = call(net, 0, 1, 0)
    assert not torch.allclose(plain, passed)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if told.group(name) == "blocks":
                weight.fill_(torch.nan)
    torch.testing.assert_close(call(net, 0, 1, 0), passed, rtol=0, atol=0)
    if make in LANGUAGE:
        x = ids(0, 2, 7)
        for site in (*told.first, *told.last):
            x = site.module(x)
        torch.testing.assert_close(x, passed, rtol=0, atol=0)


@over([m for m in ALL if m not in UNETS])
def test_what_the_last_block_gave_is_all_that_the_answer_needs_of_the_input(make: Any, hooks: ExitStack) -> None:
    net, call, told = ready(make)
    block, kept = told.blocks[-1], []
    own = block.module.forward
    with rewired(block.module, lambda *a, **k: kept.append(out := own(*a, **k)) or out):
        answer = call(net, 0, 1, 0)
    x = block.hidden.given(kept[0])

    def reuse(*args: Any, **kwargs: Any) -> Any:
        return block.hidden.answered(own(*args, **kwargs), x)

    with rewired(block.module, reuse):
        torch.testing.assert_close(call(net, 1, 1, 0), answer, rtol=0, atol=0)
    assert x.shape == block.hidden.given(kept[0]).shape


@over(ALL)
def test_a_site_answered_from_memory_needs_none_of_its_weights(make: Any, hooks: ExitStack) -> None:
    net, call, told = ready(make)
    sites = [s for b in told.blocks for s in b.sites]
    kept: dict[str, Any] = {}
    taps = [s.module.register_forward_hook(lambda m, a, out, p=s.path: kept.update({p: out})) for s in sites]
    answer = call(net, 0, 1, 0)
    for tap in taps:
        tap.remove()
    spoiled = copy.deepcopy(net)
    if make not in UNETS:  # nothing is linear in their blocks but sites and what modulates
        layers = {n for n, m in net.named_modules() if told.group(n) == "blocks" and isinstance(m, nn.Linear)}
        assert {n for n in layers if "norm" not in n and "adaLN" not in n} == {n for n, _ in told.linears()}
    with torch.no_grad():
        for path, linear in told.linears():
            spoiled.get_submodule(path).weight.fill_(torch.nan)
            assert told.group(path) == "blocks"
            assert linear is net.get_submodule(path)
    assert call(spoiled, 0, 1, 0).isnan().any()
    for site in anatomy(spoiled).blocks:
        for inner in site.sites:
            for _, part in inner.before:
                hooks.enter_context(rewired(part, lambda x: x))
            hooks.enter_context(rewired(inner.module, lambda *a, p=inner.path, **k: kept[p]))
    torch.testing.assert_close(call(spoiled, 0, 1, 0), answer, rtol=0, atol=0)


@over(ALL)
def test_the_hidden_state_is_handed_and_given_where_the_port_says(make: Any, hooks: ExitStack) -> None:
    """Twice the hidden state handed to a block is the same as a hook that doubles it where the block before gave it."""
    net, call, told = ready(make)
    before, block = told.blocks[0], told.blocks[1]
    own = block.module.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = block.hidden.handed(args, kwargs, 2 * block.hidden.taken(args, kwargs))
        return own(*args, **kwargs)

    with rewired(block.module, doubled):
        here = call(net, 0, 1, 0)
    first = before.module.forward

    def gave(*args: Any, **kwargs: Any) -> Any:
        out = first(*args, **kwargs)
        return before.hidden.answered(out, 2 * before.hidden.given(out))

    with rewired(before.module, gave):
        torch.testing.assert_close(call(net, 0, 1, 0), here, rtol=0, atol=0)
    assert not torch.equal(here, call(net, 0, 1, 0))


@over((pixart, wan, ltx, sd3, flux))
def test_the_text_reaches_cross_and_joint_attention_and_a_feed_forward_of_its_own(make: Any) -> None:
    net, call, told = ready(make)
    block = told.blocks[0]
    heard: dict[str, list[Tensor]] = {s.path: [] for s in block.sites}
    for site in block.sites:
        keep = lambda m, a, k, out, s=site: heard[s.path].append(s.hidden.given(out))  # noqa: E731
        site.module.register_forward_hook(keep, with_kwargs=True)
    # Text also comes in with the time in some: its tokens alone are changed.
    plain = net.get_submodule("context_embedder" if make in (sd3, flux) else told.condition[0].path)
    call(net, 0, 1, 0)
    with rewired(plain, lambda *a, **k: 2 * type(plain).forward(plain, *a, **k)):
        call(net, 0, 1, 0)
    reached = {s.kind for s in block.attention if not torch.equal(*heard[s.path])}
    assert reached == {s.kind for s in block.attention} - {"self"} != set()
    lengths = {s.kind: heard[s.path][0].shape[1] for s in block.feed_forward}
    assert lengths.get("context-feed-forward", 5) == 5 != lengths["feed-forward"]
    assert ("context-feed-forward" in lengths) == (block.kind == "joint") == (block.context is not None)


@over(UNETS)
def test_a_skip_is_what_its_source_made_and_the_last_channels_of_what_its_target_takes(make: Any) -> None:
    net, call, told = ready(make)
    made: dict[str, Tensor] = {}
    took: dict[str, Tensor] = {}
    for skip in told.skips:
        port = told.blocks[skip.down].hidden if skip.down is not None else told.first[-1].hidden
        skip.origin.register_forward_hook(lambda m, a, out, s=skip, p=port: made.update({s.source: p.given(out)}))
        skip.module.register_forward_pre_hook(lambda m, a, s=skip: took.update({s.target: a[0]}))
    call(net, 0, 1, 0)
    assert len(took) == len(made) == len(told.skips)
    for skip in told.skips:
        torch.testing.assert_close(took[skip.target][:, -made[skip.source].shape[1] :], made[skip.source])
    layers = [f"{b.path}.resnets.{k}" for b in told.blocks if b.kind == "up" for k in range(b.residuals)]
    assert [s.target for s in told.skips] == layers


@over(UNETS)
def test_a_skip_without_its_tensor_changes_the_answer_and_with_its_recorded_tensor_does_not(make: Any) -> None:
    net, call, told = ready(make)
    given: dict[int | None, Any] = {}
    told.first[-1].module.register_forward_hook(lambda m, a, out: given.update({None: (out,)}))
    for number, block in enumerate(told.blocks):
        if block.kind == "down":
            take = lambda m, a, out, n=number, b=block: given.update({n: b.residual.given(out)})  # noqa: E731
            block.module.register_forward_hook(take)
    answer = call(net, 0, 1, 0)
    for skip in told.skips:
        up, recorded = told.blocks[skip.up], given[skip.down][skip.place]
        for tensor, same in ((recorded, True), (torch.zeros_like(recorded), False)):

            def swapped(*a: Any, up: Block = up, slot: int = skip.slot, x: Tensor = tensor, **k: Any) -> Any:
                assert up.residual is not None
                held = list(up.residual.taken(a, k))
                assert len(held) == up.residuals
                held[slot] = x
                a, k = up.residual.handed(a, k, tuple(held))
                return type(up.module).forward(up.module, *a, **k)

            with rewired(up.module, swapped):
                assert torch.equal(call(net, 0, 1, 0), answer) == same


@over(UNETS)
def test_all_but_the_shallow_blocks_can_be_left_out_for_what_the_last_of_them_gave(make: Any, hooks: ExitStack) -> None:
    net, call, told = ready(make)
    deep, last = told.blocks[1:-1], told.blocks[-2]
    kept: list[Tensor] = []
    tap = last.module.register_forward_hook(lambda m, a, out: kept.append(last.hidden.given(out)))
    answer = call(net, 0, 1, 0)
    tap.remove()

    def left_out(block: Block) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            x = block.hidden.taken(args, kwargs)
            return (x, (x,) * block.residuals) if block.kind == "down" else kept[0] if block is last else x

        return forward

    for block in deep:
        hooks.enter_context(rewired(block.module, left_out(block)))
    with torch.no_grad():
        for block in deep:
            for weight in block.module.parameters():
                weight.fill_(torch.nan)
    torch.testing.assert_close(call(net, 0, 1, 0), answer, rtol=0, atol=0)


def renamed(net: nn.Module) -> nn.Module:
    """The same modules under class names that nobody knows."""
    kinds: dict[type, type] = {}
    for module in net.modules():
        kind = type(module)
        if kind in kinds:
            module.__class__ = kinds[kind]
        elif kind.__module__.startswith(("diffusers", "transformers")):
            held = {n: v for n, v in vars(kind).items() if n not in ("__dict__", "__weakref__")}
            bases = tuple(b for b in kind.__mro__[1:] if b.__module__.startswith("torch"))[:1]
            module.__class__ = kinds[kind] = type(f"Class{len(kinds)}", bases, held)
    return net


def shown(told: Anatomy) -> Any:
    blocks = [(b.path, b.kind, b.hidden, b.context, b.residuals, [(s.parts[0][0], s.path, s.kind) for s in b.sites])
              for b in told.blocks]  # fmt: skip
    groups = {g: sorted(s.path for s in getattr(told, g)) for g in GROUPS}
    return blocks, groups, [(s.source, s.target) for s in told.skips]


@over([m for m in ALL if m not in (stack, hand)])
def test_structure_finds_in_unknown_classes_what_is_written_down_of_known_ones(make: Any) -> None:
    net, _, told = ready(make)
    assert shown(anatomy(renamed(net))) == shown(told)


@over((flux, unet, llama, stack))
def test_a_wrapper_and_a_subclass_have_the_sites_of_what_they_wrap(make: Any) -> None:
    net, _, told = ready(make)

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

    for k, block in enumerate(anatomy(Wrapper()).blocks):
        assert block.path == f"inner.{told.blocks[k].path}"
        assert block.module is told.blocks[k].module
    net.__class__ = type("Mine", (type(net),), {})
    assert shown(anatomy(net)) == shown(told)


def test_a_network_is_not_kept_by_its_anatomy() -> None:
    net, _, told = ready(flux)
    ref = weakref.ref(net)
    del net
    gc.collect()
    assert ref() is None
    assert told.blocks


def test_diffusers_and_transformers_are_not_loaded_to_know_their_classes() -> None:
    import subprocess

    code = (
        "import sys, torch; from ebbtide.network.anatomy import anatomy; anatomy(torch.nn.TransformerEncoder(torch.nn."
    )
    code += (
        "TransformerEncoderLayer(8, 2, 8), 2)); sys.exit(any(m in sys.modules for m in ('diffusers', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 2)),
        nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(3))}),
        nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleList([nn.MultiheadAttention(4, 2)]) for _ in range(3))}),
        nn.Linear(2, 2),
    ],
)
def test_a_network_without_blocks_is_refused_in_one_sentence(net: nn.Module) -> None:
    with pytest.raises(EbbError, match=rf"no blocks were found in {type(net).__name__}: .*attention.*, but ") as told:
        anatomy(net)
    assert str(told.value).count(". ") == 0
    for name, child in list(net.named_children())[:8]:
        assert f"{name} ({type(child).__name__})" in str(told.value)


def test_what_a_patch_needs_and_a_network_has_not_is_told() -> None:
    told = ready(flux)[2]
    assert told.need("attention", "time") is told
    with pytest.raises(EbbError, match=r"FluxTransformer2DModel has no skips: .*2 joint, 3 single.*leave out"):
        told.need("attention", "skips")
    with pytest.raises(EbbError, match="changes the shape"):
        ready(unet)[2].blocks[0].passed(1)
