"""Exact denoisers: models without a network, whose every answer is a closed form.

    Gaussian, GaussianMixture        under any affine process: mean, variance, noised density and score
    Product, MarkovChain, Table      under any discrete process: the conditionals of every place

They are the oracles of the tests, the teachers of the theory cards and models in their own right.
"""

from __future__ import annotations

from ebbtide.denoise.exact_discrete import MarkovChain, Product, Table
from ebbtide.denoise.exact_gaussian import Gaussian, GaussianMixture

__all__ = ["Gaussian", "GaussianMixture", "MarkovChain", "Product", "Table"]
