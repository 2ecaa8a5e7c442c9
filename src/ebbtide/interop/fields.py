"""What diffusers' schedulers know: the fields of each class with their defaults, and which values are honoured here.

Source   huggingface/diffusers 0.42 (Apache-2.0): the signatures of its schedulers; a test holds these tables to them
"""

from __future__ import annotations

import math
from typing import Any

_TABLE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_LATENT = {**_TABLE, "beta_start": 0.00085, "beta_end": 0.012}
_LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_CLIP = {"clip_sample": False, "clip_sample_range": 1.0}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
LEVELS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_DYNAMIC = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0}
_ZERO = {"rescale_betas_zero_snr": False}
_FINAL = {"final_sigmas_type": "zero"}
_LAMBDA = {"lambda_min_clipped": -math.inf, "variance_type": None}
_DPM = {
    **_TABLE, **_THRESHOLD, **LEVELS, **_FLOW, **_DYNAMIC, **_FINAL, **_LAMBDA,
    "solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": True,
}  # fmt: skip
_DDIM = {**_TABLE, **_LEADING, **_CLIP, "clip_sample": True, **_THRESHOLD, **_ZERO, "set_alpha_to_one": True}
_DDPM = {**_TABLE, **_LEADING, **_CLIP, "clip_sample": True, **_THRESHOLD, **_ZERO, "variance_type": "fixed_small"}
_KDPM2 = {**_LATENT, **_LINSPACE, **LEVELS}
_CONSISTENT = {
    **_LATENT, "beta_schedule": "scaled_linear", **_LEADING, **_CLIP, **_THRESHOLD, **_ZERO,
    "set_alpha_to_one": True, "original_inference_steps": 50, "timestep_scaling": 10.0,
}  # fmt: skip
_EDM = {
    "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "rho": 7.0, **_FINAL,
}  # fmt: skip

CLASSES: dict[str, dict[str, Any]] = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "EulerDiscreteScheduler": {
        **_TABLE, **_LINSPACE, **LEVELS, **_ZERO, **_FINAL,
        "interpolation_type": "linear", "sigma_min": None, "sigma_max": None, "timestep_type": "discrete",
    },
    "EulerAncestralDiscreteScheduler": {**_TABLE, **_LINSPACE, **_ZERO},
    "HeunDiscreteScheduler": {**_KDPM2, **_CLIP},
    "KDPM2DiscreteScheduler": _KDPM2,
    "KDPM2AncestralDiscreteScheduler": _KDPM2,
    "LMSDiscreteScheduler": {**_TABLE, **_LINSPACE, **LEVELS},
    "PNDMScheduler": {**_TABLE, **_LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
    "IPNDMScheduler": {"num_train_timesteps": 1000, "trained_betas": None},
    "DPMSolverMultistepScheduler": {**_DPM, **_LINSPACE, **_ZERO, "euler_at_final": False, "use_lu_lambdas": False},
    "DPMSolverSinglestepScheduler": {**_DPM, "lower_order_final": False},
    "UniPCMultistepScheduler": {
        **_TABLE, **_THRESHOLD, **LEVELS, **_FLOW, **_DYNAMIC, **_FINAL, **_LINSPACE, **_ZERO,
        "solver_order": 2, "solver_type": "bh2", "predict_x0": True, "lower_order_final": True,
        "disable_corrector": [], "solver_p": None, "sigma_min": None, "sigma_max": None, "shift_terminal": None,
    },
    "DEISMultistepScheduler": {
        **_TABLE, **_THRESHOLD, **LEVELS, **_FLOW, **_DYNAMIC, **_LINSPACE,
        "solver_order": 2, "algorithm_type": "deis", "solver_type": "logrho", "lower_order_final": True,
    },
    "SASolverScheduler": {
        **_TABLE, **_THRESHOLD, **LEVELS, **_FLOW, **_LAMBDA, **_LINSPACE,
        "predictor_order": 2, "corrector_order": 2, "tau_func": None, "algorithm_type": "data_prediction",
        "lower_order_final": True,
    },
    "LCMScheduler": _CONSISTENT,
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": 1000, "shift": 1.0, **_DYNAMIC, **LEVELS, "base_shift": 0.5, "max_shift": 1.15,
        "base_image_seq_len": 256, "max_image_seq_len": 4096, "invert_sigmas": False, "shift_terminal": None,
        "stochastic_sampling": False,
    },
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": {
        **_EDM, **_THRESHOLD, "solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint",
        "lower_order_final": True, "euler_at_final": False,
    },
}  # fmt: skip
"""Every class that can be read: its fields and their defaults."""

SILENT = frozenset({"_class_name", "_diffusers_version", "_use_default_values", "name_or_path", "_name_or_path"})
"""Fields of the file, not of the sampler."""

DISTANT = (
    "CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler", "TCDScheduler", "CMStochasticIterativeScheduler",
    "KarrasVeScheduler", "ScoreSdeVeScheduler", "VQDiffusionScheduler", "UnCLIPScheduler", "RePaintScheduler",
    "DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler", "SCMScheduler",
)  # fmt: skip

REFUSED: dict[str, tuple[Any, str]] = {
    "thresholding": (False, "dynamic thresholding of the data estimate is not done here"),
    "clip_sample": (False, "the data estimate is not clipped here"),
    "invert_sigmas": (
        False,
        "the data lies at time 0 here, and a network trained the other way needs clock='reversed'",
    ),
    "timestep_type": ("discrete", "a network told log(sigma) / 4 is a model of the process 'edm'"),
    "solver_p": (None, "the predictor of UniPC is its own"),
    "disable_corrector": ([], "the corrector runs at every step"),
    "tau_func": (None, "a function is not plain data; give the plan's solver its `tau`"),
    "predict_x0": (True, "UniPC works on data predictions here"),
}
"""Field -> (the one value that is honoured, why no other is)."""

PREDICTS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}
"""diffusers' prediction types in the words of the border."""

OF_THE_SAMPLER = ("clip_sample", "thresholding", "disable_corrector", "solver_p", "tau_func", "predict_x0")
"""Fields that say nothing of the network, and so do not matter to whoever asks what it was trained on."""
