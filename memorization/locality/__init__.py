"""Locality: do the triggers of one image agree - in text-embedding space, inside the denoiser, in the weights?

"Finding Dori" (arXiv 2507.16880, section 5) starts many text-embedding attacks on one image from noise and finds the
triggers scattered, their activations far apart and the weights that pruning would select for them different; it
concludes that memorization is not local. Each of those figures means little by itself: independent normal starts in
``n`` dimensions are ``sqrt(2 n)`` apart before anything is optimised. Here every figure stands beside its nulls:

- ``others``: triggers of *different* memorized images, each at a start of its own;
- ``controls``: the same starts, attacked towards images the model has never seen;
- ``starts``: the same starts, before any attack;
- ``captions``: the captions of different memorized images; ``ordinary``: captions of nothing memorized;
- ``chance``: for sets of weights, random sets of the same sizes.

A group is a handful of embeddings of equal number everywhere, so that no figure depends on a group's size.
"""

from __future__ import annotations
