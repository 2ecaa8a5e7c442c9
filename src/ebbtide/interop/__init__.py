"""What other libraries have, in ebbtide's terms: the config of a scheduler and the name of a sampler as plans (`schedulers`,
`samplers`), diffusers' pipelines and networks as models (`pipelines`,
`networks`), and transformers' language models as models (`transformers`)."""

from ebbtide.interop import networks, pipelines, samplers, schedulers, transformers

__all__ = ["networks", "pipelines", "samplers", "schedulers", "transformers"]
