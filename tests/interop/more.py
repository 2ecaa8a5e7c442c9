"""More tiny pipelines: what else a denoiser is told (sizes, masks, channels, residuals), each with what its call takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers as df
import tiny
import torch


def _tools(shared: Path) -> Any:
    return tiny.tools(shared)


def sdxl(shared: Path) -> tuple[Any, dict[str, Any]]:
    tp = _tools(shared)
    unet = df.UNet2DConditionModel(
        block_out_channels=(8, 16),
        norm_num_groups=2,
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
    )
    pipe = df.StableDiffusionXLPipeline(
        unet=unet,
        scheduler=tiny.SCHEDULERS["euler-leading"](),
        vae=tp.sd().vae,
        text_encoder=tp.clip_text(),
        tokenizer=tp.clip_tokenizer(),
        text_encoder_2=tp.clip_text(True),
        tokenizer_2=tp.clip_tokenizer(),
    )
    return pipe, {"height": 32, "width": 32}


def pixart(shared: Path) -> tuple[Any, dict[str, Any]]:
    tp = _tools(shared)
    transformer = df.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    parts = {"vae": tp.dit().vae, "text_encoder": tp.t5_text(), "tokenizer": tp.t5_tokenizer()}
    pipe = df.PixArtAlphaPipeline(transformer=transformer, scheduler=df.DPMSolverMultistepScheduler(), **parts)
    size = {"height": 8, "width": 8, "use_resolution_binning": False, "max_sequence_length": 16, "clean_caption": False}
    return pipe, size


def ltx(shared: Path) -> tuple[Any, dict[str, Any]]:
    tp = _tools(shared)
    transformer = df.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )
    vae = df.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
    )
    parts = {"vae": vae, "text_encoder": tp.t5_text(), "tokenizer": tp.t5_tokenizer()}
    pipe = df.LTXPipeline(transformer=transformer, scheduler=df.FlowMatchEulerDiscreteScheduler(), **parts)
    return pipe, {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16}


def sana(shared: Path) -> tuple[Any, dict[str, Any]]:
    """With another text encoder than its own, which is only asked for hidden states."""
    tp = _tools(shared)
    transformer = df.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=32,
        sample_size=32,
    )
    vae = df.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    parts = {"vae": vae, "text_encoder": tp.t5_text(), "tokenizer": tp.t5_tokenizer()}
    pipe = df.SanaPipeline(transformer=transformer, scheduler=df.FlowMatchEulerDiscreteScheduler(shift=7.0), **parts)
    size = {"height": 32, "width": 32, "max_sequence_length": 16, "use_resolution_binning": False}
    return pipe, {**size, "complex_human_instruction": None}


def qwen(shared: Path) -> tuple[Any, dict[str, Any]]:
    """With another text encoder than its own, which is only asked for hidden states."""
    tp = _tools(shared)
    transformer = df.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=32,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    vae = df.AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    parts = {"vae": vae, "text_encoder": tp.t5_text(), "tokenizer": tp.t5_tokenizer()}
    scheduler = df.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = df.QwenImagePipeline(transformer=transformer, scheduler=scheduler, **parts)
    # by letters, the sentence that its own tokenizer drops from before the prompt is long
    return pipe, {"height": 32, "width": 32, "max_sequence_length": 256}


def _picture(seed: int = 1, channels: int = 3) -> torch.Tensor:
    return torch.rand((1, channels, 32, 32), generator=torch.Generator().manual_seed(seed))


def _of_sd(shared: Path) -> tuple[Any, dict[str, Any]]:
    tp = _tools(shared)
    parts = {k: v for k, v in tp.sd().components.items() if k != "image_encoder"}
    return tp, {**parts, "requires_safety_checker": False}


def inpaint(shared: Path, channels: int = 4) -> tuple[Any, dict[str, Any]]:
    _, parts = _of_sd(shared)
    if channels != 4:
        config = dict(parts["unet"].config)
        parts["unet"] = df.UNet2DConditionModel.from_config({**config, "in_channels": channels})
    masked = {"image": _picture(), "mask_image": (_picture(2, 1) > 0.5).float(), "strength": 0.8}
    return df.StableDiffusionInpaintPipeline(**parts), {"height": 32, "width": 32, **masked}


def inpaint_joined(shared: Path) -> tuple[Any, dict[str, Any]]:
    return inpaint(shared, 9)


def controlnet(shared: Path) -> tuple[Any, dict[str, Any]]:
    _, parts = _of_sd(shared)
    net = df.ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(2, 2))
    for part in (net.controlnet_down_blocks, net.controlnet_cond_embedding.conv_out):
        for weight in part.parameters():
            torch.nn.init.normal_(weight, std=0.3)  # they begin at zero
    pipe = df.StableDiffusionControlNetPipeline(**parts, controlnet=net)
    return pipe, {"height": 32, "width": 32, "image": _picture()}


BUILDERS = {f.__name__: f for f in (sdxl, pixart, ltx, sana, qwen, inpaint, inpaint_joined, controlnet)}
LOADED = ("sdxl", "pixart", "ltx", "sana")
"""Those that make something of a prompt alone."""


def build(shared: Path, name: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline with random weights, in evaluation mode, and what its call takes besides a prompt."""
    torch.manual_seed(0)
    pipe, asked = BUILDERS[name](shared)
    return tiny.ready(pipe), asked
