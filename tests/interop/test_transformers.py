"""Language models of transformers as denoisers: what they answer, how prompts are read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ebbtide as ebb
from ebbtide.core.errors import EbbError
from ebbtide.denoise.model import Model

transformers = pytest.importorskip("transformers")

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["the", "a", "cat", "dog", "sat", "lay", "on", "mat", "log", "today"],
]
PAD, CLS, SEP, MASK = 0, 2, 3, 4
V = 16  # one more than there are words
PLANS = {
    "ancestral": ebb.Plan(solve="ancestral", grid={"name": "linear", "steps": 6}),
    "confidence": ebb.Plan(solve={"name": "confidence", "temperature": 1.0}, grid={"name": "linear", "steps": 6}),
}


def tokenizer(**special: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    known = Tokenizer(models.WordLevel({w: k for k, w in enumerate(WORDS)}, unk_token="[UNK]"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    known.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    said = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", **special}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=known, **said)


FULL = {"mask_token": "[MASK]"}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def drawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with weights large enough that its neighbours matter to a token."""
    noise = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        gain = float(p.ndim == 1 and name.endswith("weight"))  # of a norm
        p.data = torch.randn(p.shape, generator=noise) * (0.4 if p.ndim > 1 else 0.1) + gain
    return module.eval().requires_grad_(False)


def bert(**changed: Any) -> Any:
    config = transformers.BertConfig(vocab_size=V, max_position_embeddings=24, **SMALL, **changed)
    return drawn(transformers.BertForMaskedLM(config))


def modernbert() -> Any:
    ids = {f"{k}_token_id": v for k, v in {"pad": PAD, "cls": CLS, "sep": SEP, "bos": CLS, "eos": SEP}.items()}
    config = transformers.ModernBertConfig(vocab_size=V, max_position_embeddings=24, local_attention=4, **SMALL, **ids)
    return drawn(transformers.ModernBertForMaskedLM(config))


class LLaDA(nn.Module):
    """Written by hand: tokens to the logits of all of them, by attention that sees both ways."""

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(V, 16), nn.MultiheadAttention(16, 2), nn.Linear(16, V)
        self.plain = plain

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        place = torch.arange(input_ids.shape[1])[:, None] / (1 + torch.arange(16))
        h = (self.embed(input_ids) + place.sin()).transpose(0, 1)
        h = h + self.mix(h, h, h, key_padding_mask=None if attention_mask is None else attention_mask == 0)[0]
        logits = self.head(h).transpose(0, 1)
        return logits if self.plain else SimpleNamespace(logits=logits)


class Blind(LLaDA):
    """The same, and it knows no attention mask."""

    def forward(self, input_ids: Tensor) -> Any:  # type: ignore[override]
        return super().forward(input_ids)


MADE = {"bert": bert, "modernbert": modernbert, "llada": lambda: drawn(LLaDA()), "blind": lambda: drawn(Blind())}
PROMPTS = ["the [MASK] sat on the ____ today", "a dog", "the cat [MASK]"]


def load(kind: str, **options: Any) -> Any:
    return ebb.load(MADE[kind](), **{"tokenizer": tokenizer(**FULL), "length": 12, "tokenless": True, **options})


def ask(model: Model, x: Tensor, cond: dict[str, Any]) -> Tensor:
    logits = model.denoiser(x, torch.full((len(x),), 0.5, dtype=torch.float64), cond).logits
    assert isinstance(logits, Tensor)
    return logits


def others(logits: Tensor) -> Tensor:
    """Without the logit of the mask, which is ruled out."""
    return logits[..., [k for k in range(V) if k != MASK]]


# -------------------------------------------------------------------- what it answers


@pytest.mark.parametrize("kind", ["bert", "modernbert", "llada"])
def test_the_logits_are_the_modules_own_under_the_attention_mask(kind: str) -> None:
    model = load(kind)
    cond = model.condition({"prompt": PROMPTS, "new_tokens": [None, 3, None]}, 3)
    x, seen = cond.pop("start"), cond["attention_mask"]
    assert seen.sum(1).tolist() == [9, 7, 5]
    wanted = model.denoiser.module(x, attention_mask=seen).logits
    got = ask(model, x, cond)
    assert got.shape == (3, 12, V)
    assert float((others(got) - others(wanted))[seen > 0].abs().max()) < 1e-5
    blind = model.denoiser.module(x).logits  # and the mask is what made them so
    assert float((blind - wanted)[seen > 0].abs().max()) > 1e-2


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("units", [0, 1])
@pytest.mark.parametrize("solve", PLANS)
def test_padding_never_counts(kind: str, units: int, solve: str) -> None:
    """A prompt alone, beside longer ones, and in longer rows: the same logits and the same tokens."""
    model, longer = load(kind, units=units), load(kind, units=units, length=20)
    cond = {"prompt": PROMPTS, "new_tokens": [None, 3, None]}
    both = model.condition(cond, 3)
    logits = ask(model, both["start"], {"attention_mask": both["attention_mask"]})
    batch = ebb.sample(model, PLANS[solve], cond=cond, n=3, seed=5)
    wide = ebb.sample(longer, PLANS[solve], cond=cond, n=3, seed=5)
    for j, prompt in enumerate(PROMPTS):
        one = {"prompt": prompt, "new_tokens": cond["new_tokens"][j]}
        solo = model.condition(one, 1)
        alone = ask(model, solo["start"], {"attention_mask": solo["attention_mask"]})
        assert float((alone[0] - logits[j]).abs().max()) < 1e-5
        assert torch.equal(ebb.sample(model, PLANS[solve], cond=one, n=1, seed=5 + j).x[0], batch.x[j])
    assert torch.equal(ebb.sample(model, PLANS[solve], cond=cond, n=3, seed=5, batch=2).x, batch.x)
    assert torch.equal(wide.x[:, :12], batch.x)
    assert bool((wide.x[:, 12:] == PAD).all())
    assert wide.text() == batch.text()


def test_shifted_logits_are_those_shifted_by_hand() -> None:
    model = load("llada", shift=True)
    cond = model.condition({"prompt": PROMPTS}, 3)
    x = cond.pop("start")
    for j, n in enumerate(cond["attention_mask"].sum(1).tolist()):
        own = model.denoiser.module(x[j : j + 1, :n]).logits[0]
        got = ask(model, x, cond)[j, :n]
        assert float((others(got[1:]) - others(own[:-1])).abs().max()) < 1e-5
        assert float((others(got[:1]) - others(own[:1])).abs().max()) < 1e-5


def test_padding_may_be_told_by_pairs() -> None:
    """Dream reads (B, 1, L, L): who may be looked at by whom."""
    told = []

    def module(input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        told.append(attention_mask)
        return torch.zeros(*input_ids.shape, V)

    model = ebb.load(module, mask=MASK, attention="pairs", length=6, pad=PAD)
    cond = model.condition({"prompt": [[5, MASK, 6], [7, MASK]]}, 2)
    ask(model, cond.pop("start"), cond)
    assert told[-1].shape == (2, 1, 3, 3)
    assert told[-1].dtype is torch.bool
    assert told[-1][:, 0].all(1).tolist() == [[True, True, True], [True, True, False]]


def test_logits_alone_are_an_answer_too() -> None:
    bare, said = drawn(LLaDA(plain=True)), drawn(LLaDA())
    x = torch.tensor([[5, MASK, 7, MASK]])
    one, two = (ask(ebb.load(m, mask=MASK, length=4), x, {}) for m in (bare, said))
    assert torch.equal(one, two)


def test_ids_without_a_token_are_ruled_out_unless_they_are_wanted() -> None:
    x = torch.full((1, 12), MASK)
    free, ruled = ask(load("bert"), x, {}), ask(load("bert", tokenless=False), x, {})
    assert len(WORDS) == V - 1
    assert bool((ruled[..., -1] < -1e3).all())
    assert torch.equal(ruled[..., :-1], free[..., :-1])
    assert load("bert").process.vocab == V  # a class of the process all the same


# -------------------------------------------------------------------- prompts


@pytest.mark.parametrize("start", ["prior", "given"])
@pytest.mark.parametrize("solve", PLANS)
def test_what_is_given_stays_and_the_rest_is_filled(solve: str, start: str) -> None:
    model = load("bert")
    out = ebb.sample(model, PLANS[solve].replace(start=start), cond="the [MASK] sat on ___ mat", n=8)
    kept = torch.tensor([True, True, False, True, True, False, True, True, *[True] * 4])
    wanted = torch.tensor([CLS, 5, MASK, 9, 11, MASK, 12, SEP, *[PAD] * 4])
    assert bool((out.x[:, kept] == wanted[kept]).all())
    assert bool((out.x[:, ~kept] != MASK).all())
    assert len({tuple(v) for v in out.x[:, ~kept].tolist()}) > 1
    assert all("[CLS]" not in v and "[PAD]" not in v and v.startswith("the ") for v in out.text())


def test_a_prompt_without_masks_is_continued_before_what_ends_a_text() -> None:
    model = load("bert")
    ids = model.condition({"prompt": "the cat", "new_tokens": 2}, 1)["start"][0]
    assert ids.tolist() == [CLS, 5, 7, MASK, MASK, SEP, *[PAD] * 6]
    assert model.condition("the cat", 1)["start"][0].tolist() == [CLS, 5, 7, *[MASK] * 8, SEP]
    assert model.condition(None, 1)["start"][0].tolist() == [CLS, *[MASK] * 10, SEP]


def test_a_mask_that_the_tokenizer_cannot_read_is_put_between_the_pieces() -> None:
    model = load("llada", tokenizer=tokenizer(), mask=V - 1)
    ids = model.condition("the ____ sat on [MASK]", 1)["start"][0]
    assert ids[:7].tolist() == [CLS, 5, V - 1, 9, 11, V - 1, SEP]


def test_without_a_tokenizer_prompts_are_ids() -> None:
    model = ebb.load(drawn(LLaDA()), mask=MASK, length=5, pad=1)
    out = ebb.sample(model, PLANS["ancestral"], cond={"prompt": [[5, MASK], [6, 7, MASK, 8]]}, n=2).x
    assert out[0, 0] == 5
    assert out[0, 2:].tolist() == [1, 1, 1]
    assert out[1, [0, 1, 3, 4]].tolist() == [6, 7, 8, 1]
    assert bool((out != MASK).all())


def test_a_start_that_knows_no_prompt_is_refused() -> None:
    with pytest.raises(EbbError, match="start 'encoded' knows nothing of a prompt"):
        ebb.sample(load("bert"), ebb.Plan(start="encoded"), cond="the cat", n=1)


# -------------------------------------------------------------------- laws


JOINT = torch.tensor([[0.30, 0.02, 0.08], [0.05, 0.25, 0.00], [0.10, 0.05, 0.15]], dtype=torch.float64)


def exact(input_ids: Tensor) -> Tensor:
    """log p of each of two tokens given the other, where it shows: ids 0 to 2, and 3 is the mask."""
    first, second = input_ids[:, 0], input_ids[:, 1]
    rows = torch.cat([JOINT, JOINT.sum(0, keepdim=True)])[first]
    columns = torch.cat([JOINT.T, JOINT.sum(1)[None]])[second]
    return torch.stack([columns, rows], 1).clamp_min(1e-30).log()


def law(x: Tensor) -> Tensor:
    return torch.bincount(3 * x[:, 0] + x[:, 1], minlength=9).reshape(3, 3) / len(x)


@pytest.mark.parametrize("rule", ["left", "random"])
def test_token_after_token_the_law_is_the_modules_joint_one(rule: str) -> None:
    model = ebb.load(exact, mask=3, length=2)
    solve = {"name": "confidence", "rule": rule, "temperature": 1.0}
    x = ebb.sample(model, ebb.Plan(solve=solve, grid={"name": "linear", "steps": 2}), n=20000).x
    assert float((law(x) - JOINT).abs().max()) < 0.012  # more than three standard deviations of the largest
    at_once = ebb.sample(model, ebb.Plan(solve=solve, grid={"name": "linear", "steps": 1}), n=20000).x
    apart = JOINT.sum(1)[:, None] * JOINT.sum(0)  # both at once know nothing of each other
    assert float((law(at_once) - apart).abs().max()) < 0.012
    assert float((apart - JOINT).abs().max()) > 0.05


@pytest.mark.parametrize("units", [0, 1])
def test_by_the_process_the_law_comes_near_with_small_steps_and_is_given_the_prompt(units: int) -> None:
    model = ebb.load(exact, mask=3, length=2, units=units)
    plan = ebb.Plan(solve="ancestral", grid={"name": "linear", "steps": 64})
    assert float((law(ebb.sample(model, plan, n=20000).x) - JOINT).abs().max()) < 0.013
    x = ebb.sample(model, plan, cond={"prompt": [1, 3]}, n=4000).x
    assert bool((x[:, 0] == 1).all())
    assert float((law(x)[1] - JOINT[1] / JOINT[1].sum()).abs().max()) < 0.025


# -------------------------------------------------------------------- folders


def saved(folder: Path, module: Any, words: Any = None) -> Path:
    module.save_pretrained(folder)
    if words is not None:
        words.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_folder_is_the_module_that_was_saved(tmp_path: Path, kind: str) -> None:
    words = tokenizer(**FULL)
    module = MADE[kind]()
    folder = saved(tmp_path / "lm", module, words)
    cond = {"prompt": ["the [MASK] sat", "a dog"]}
    outs = [
        ebb.sample(ebb.load(source, length=12, **more), PLANS["ancestral"], cond=cond, n=2)
        for source, more in ((module, {"tokenizer": words}), (folder, {}), (str(folder), {"tokenizer": words}))
    ]
    assert torch.equal(outs[0].x, outs[1].x)
    assert torch.equal(outs[0].x, outs[2].x)
    assert outs[0].text() == outs[1].text()
    bare = saved(tmp_path / "bare", module)
    with pytest.raises(EbbError, match=r"no tokenizer.*mask=ID"):
        ebb.load(bare)
    assert ebb.load(bare, mask=MASK, length=4).process.mask == MASK
    half = ebb.load(folder, dtype="bfloat16", length=12)
    assert next(half.denoiser.module.parameters()).dtype is torch.bfloat16
    assert ebb.sample(half, cond=cond, n=2).x.shape == (2, 12)


REMOTE = """
import pathlib
import torch
from transformers import PretrainedConfig, PreTrainedModel

pathlib.Path({ran!r}).touch()

class OwnConfig(PretrainedConfig):
    model_type = "own-denoiser"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(9, 9)
        self.post_init()

    def forward(self, input_ids):
        return self.table(input_ids)
"""


def test_code_of_a_folder_runs_only_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    folder, ran = tmp_path / "own", tmp_path / "ran"
    folder.mkdir()
    (folder / "modeling_own.py").write_text(REMOTE.format(ran=str(ran)))
    auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    about = {"model_type": "own-denoiser", "architectures": ["OwnModel"], "auto_map": auto, "mask_token_id": 8}
    (folder / "config.json").write_text(json.dumps(about))
    table = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
    save_file({"table.weight": table}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EbbError, match=r"code of its own for OwnModel.*trust_remote_code=True"):
        ebb.load(folder)
    assert not ran.exists()
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    model = ebb.load(folder, trust_remote_code=True, length=3)
    assert ran.exists()
    x = torch.tensor([[8, 1, 8]])
    assert float((ask(model, x, {}) - table[x])[..., :8].abs().max()) < 1e-6


# -------------------------------------------------------------------- DiffusionGemma


def gemma() -> Any:
    if not hasattr(transformers, "DiffusionGemmaForBlockDiffusion"):
        pytest.skip("this transformers has no DiffusionGemma")
    heads = {"num_attention_heads": 2, "head_dim": 8, "hidden_size": 16, "intermediate_size": 32}
    experts = {"num_experts": 2, "top_k_experts": 1, "moe_intermediate_size": 16}
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    text = {"vocab_size": 40, "num_key_value_heads": 1, "global_head_dim": 8, **heads, **experts, **layers}
    vision = {"model_type": "gemma4_vision", "num_hidden_layers": 1, "num_key_value_heads": 2, **heads}
    config = transformers.DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = transformers.DiffusionGemmaForBlockDiffusion(config).eval().requires_grad_(False)
    for p in module.parameters():
        p.data = p.data * (5 if p.ndim > 1 else 1)
    return module


def test_diffusion_gemma_mends_a_canvas_after_a_prompt() -> None:
    module = gemma()
    model = ebb.load(module)
    assert model.process.vocab == 40
    prompts = [[3, 4, 5], [6, 7, 8, 9, 10]]
    cond = model.condition({"prompt": prompts}, 2)
    x = torch.tensor([[1, 2, 3, 4, 5, 6], [30, 31, 32, 33, 34, 35]])
    got = ask(model, x, cond)
    for j, prompt in enumerate(prompts):  # its own call, of one prompt without padding
        wanted = module(input_ids=torch.tensor([prompt]), decoder_input_ids=x[j : j + 1]).logits[0]
        assert float((got[j] - wanted).abs().max()) < 1e-4
    swapped = ask(model, x, {k: v.flip(0) for k, v in cond.items()})
    assert float((swapped - got).abs().max()) > 1e-2  # the prompt matters
    plan = ebb.Plan(solve="ancestral", grid={"name": "linear", "steps": 4})
    both = ebb.sample(model, plan, cond={"prompt": prompts}, n=2, seed=3).x
    alone = ebb.sample(model, plan, cond={"prompt": prompts[0]}, n=1, seed=3).x
    assert torch.equal(both[:1], alone)
    with pytest.raises(EbbError, match="continues a prompt"):
        ebb.sample(model, plan)
    with pytest.raises(EbbError, match="a canvas of its own"):
        ebb.load(module, length=12)


# -------------------------------------------------------------------- bad input


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=V, num_key_value_heads=2, **SMALL))


def classifier() -> Any:
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=V, **SMALL))


def bart() -> Any:
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(vocab_size=V, **small, **heads))


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (bert, {"tokenizer": tokenizer}, r"this tokenizer has no mask token.*mask=ID"),
        (bert, {}, r"there is no tokenizer.*mask=ID"),
        (bert, {"mask": "[HIDE]", "tokenizer": tokenizer}, r"mask='\[HIDE\]' is no token"),
        (bert, {"mask": -1}, "mask=-1 is no id"),
        (bert, {"mask": 99}, "cannot be asked for .* tokens of id 99"),
        (lambda: exact, {"mask": 7, "length": 2}, "cannot be asked for 2 tokens of id 7"),
        (
            lambda: lambda x: torch.zeros(*x.shape, 5),
            {"mask": 7},
            "mask=7 is no id of this model, whose logits are of 0",
        ),
        (bert, {"mask": MASK, "length": 25}, "length=25 is no row.*1 to 24"),
        (bert, {"mask": MASK, "pad": MASK}, "pad=4 is the mask"),
        (bert, {"mask": MASK, "lenght": 12}, "not loaded with 'lenght'; did you mean length"),
        (bert, {"mask": MASK, "dtype": "float16"}, "dtype and device are for folders"),
        (llama, {"mask": MASK}, "LlamaForCausalLM is causal.*cannot be a denoiser"),
        (lambda: bert(is_decoder=True), {"mask": MASK}, "BertForMaskedLM is causal"),
        (bart, {"mask": MASK}, "BartForConditionalGeneration writes one text from another"),
        (classifier, {"mask": MASK}, r"answers \(1, 2\) for tokens \(1, 128\)"),
        (lambda: lambda x: [], {"mask": MASK}, "cannot be asked|answers"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(make: Any, options: dict[str, Any], said: str) -> None:
    options = {k: v() if k == "tokenizer" else v for k, v in options.items()}
    with pytest.raises(EbbError, match=said) as error:
        ebb.load(make(), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cond", "n", "said"),
    [
        (
            "the cat sat on the mat on the log on the mat today",
            1,
            r"15 tokens and asks for 1 more.*rows of 12.*'the cat sat on",
        ),
        ({"prompt": "the [MASK] sat on the mat on the log on today"}, 1, "takes 13 tokens, and"),
        ({"prompt": "the cat", "new_tokens": 9}, 1, "takes 4 tokens and asks for 9 more"),
        ({"prompt": "the cat", "new_tokens": -2}, 1, "new_tokens is a number of tokens to write, not -2"),
        (["the cat", "a dog"], 3, "'prompt' lists 2 values for 3 samples"),
        ({"prompt": "a dog", "new_tokens": [1, 2]}, 3, "'new_tokens' lists 2 values for 3 samples"),
        ({"prompt": [5, 16]}, 1, "the id 16, and this model knows 0 to 15"),
        ({"prompt": 5}, 1, "a prompt is a text or token ids, or a list of n of them, not 5"),
        ({"prompt": "a dog", "new_tokens": "two"}, 1, "new_tokens is a number, or a list of n of them, not 'two'"),
        ({"prompt": ["a dog", None]}, 2, "a prompt is a text or token ids, not None"),
        ({"prompt": "a dog", "negative": "a cat"}, 1, "no 'negative'"),
        ({"prompt": "a dog", "topic": torch.zeros(1)}, 1, "does not take 'topic'"),
    ],
)
def test_a_bad_prompt_is_one_sentence(cond: Any, n: int, said: str) -> None:
    with pytest.raises(EbbError, match=said) as error:
        ebb.sample(load("llada"), cond=cond, n=n)
    assert "\n" not in str(error.value)


def test_text_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(EbbError, match="has no tokenizer"):
        ebb.sample(ebb.load(bert(), mask=MASK, length=8), cond="the cat", n=1)


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _gone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _headless(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    held = {k: v for k, v in load_file(folder / "model.safetensors").items() if "transform" not in k}
    save_file(held, folder / "model.safetensors", {"format": "pt"})


def _torn(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])


def _config(**changed: Any) -> Any:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changed}))

    return change


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (_pickled, {}, "misses its weights.*pytorch_model.bin is a pickle"),
        (_gone, {}, "misses its weights: there is no"),
        (_headless, {}, r"misses weights of BertForMaskedLM, cls.predictions.transform"),
        (_torn, {}, "cannot be opened as a language model"),
        (_config(), {"dtype": "float17"}, "there is no dtype 'float17' of weights; did you mean"),
        (_config(), {"tokenizer": "nowhere"}, "nowhere holds no tokenizer"),
        (_config(is_decoder=True), {}, "BertForMaskedLM is causal"),
        (_config(architectures=["BertLMHeadModel"]), {}, "BertLMHeadModel is causal"),
        (
            _config(model_type="qert", architectures=["QertForMaskedLM"]),
            {},
            "has no class QertForMaskedLM; did you mean",
        ),
        (_config(hidden_size=18), {}, "cannot be opened as a language model"),
    ],
)
def test_a_folder_that_cannot_be_opened_is_one_sentence(
    tmp_path: Path, spoil: Any, options: dict[str, Any], said: str
) -> None:
    folder = saved(tmp_path / "lm", bert(), tokenizer(**FULL))
    spoil(folder)
    with pytest.raises(EbbError, match=said) as error:
        ebb.load(folder, **options)
    assert "\n" not in str(error.value)
