"""MOFA-Video, trajectory version: a flow from a few displacements moves the first frame's features.

Source: MyNiuuu/MOFA-Video, folder MOFA-Video-Traj (Apache-2.0, except third parties: softsplat is for academic use, CMP
and svd-temporal-controlnet state no licence). Facts and formulas alone are used, written anew. Weights:
MyNiuuu/MOFA-Video-Traj on the hub (no licence was seen), the user's own files; the base is SVD-XT 1.1 under Stability
AI's licence.
"""

from lightning_modules.systems.mofa.system import MOFAVideo

__all__ = ["MOFAVideo"]
