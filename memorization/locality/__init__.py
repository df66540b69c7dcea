"""Locality: how alike are triggers of one image in text-embedding space, in activations and in selected weights?

"Finding Dori" (arXiv 2507.16880, section 5) starts many text-embedding attacks on one image from noise and finds the
triggers scattered, their activations far apart and the weights that pruning would select for them different; it
concludes that memorization is not local. None of those figures can be interpreted alone: independent normal starts in
``n`` dimensions are ``sqrt(2 n)`` apart before any optimisation. Here every figure is compared with its nulls:

- ``others``: triggers of *different* memorized images, each at a start of its own;
- ``controls``: the same starts, attacked towards images the model has never seen;
- ``starts``: the same starts, before any attack;
- ``captions``: the captions of different memorized images; ``ordinary``: captions of nothing memorized;
- ``chance``: for sets of weights, random sets of the same sizes.

All groups have the same number of embeddings, so that no figure depends on a group's size.
"""

from __future__ import annotations
