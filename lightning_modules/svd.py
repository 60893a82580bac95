"""Names of Stable Video Diffusion's base that scripts outside of the project import from here."""

from lightning_modules.bases.svd.base import SVD as SVD
from lightning_modules.control.lora import without_lora as without_lora
