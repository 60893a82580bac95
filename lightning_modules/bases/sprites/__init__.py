"""Small bases of the kind of Stable Video Diffusion, from random weights."""
