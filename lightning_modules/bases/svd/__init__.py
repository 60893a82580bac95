"""Stable Video Diffusion: everything that is known of this base alone."""
