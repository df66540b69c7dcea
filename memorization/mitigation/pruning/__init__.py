"""Pruning: switch off a share of the denoiser's weights. A saliency orders each layer's weights, an allocation says how
many of them each layer loses."""
