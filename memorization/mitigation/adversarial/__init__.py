"""Adversarial fine-tuning: the denoiser is trained on the triggers that an attack on it finds."""
