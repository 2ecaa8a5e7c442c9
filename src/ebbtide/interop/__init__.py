"""What other libraries have, in ebbtide's terms: the config of a scheduler and the name of a sampler as plans (`schedulers`,
`samplers`), diffusers' pipelines as models (`pipelines`), and transformers' language models as models (`transformers`)."""

from ebbtide.interop import pipelines, samplers, schedulers, transformers

__all__ = ["pipelines", "samplers", "schedulers", "transformers"]
