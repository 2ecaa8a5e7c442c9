"""What other libraries call things, as plans: the config of a scheduler (`schedulers`), the name of a sampler (`samplers`)."""

from ebbtide.interop import samplers, schedulers

__all__ = ["samplers", "schedulers"]
