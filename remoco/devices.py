"""The device that a flag names."""

import torch

from remoco.common.errors import UserError, one_line


def usable_device(name: str | None) -> torch.device:
    """The device of `--device`, tried: what is put there can be read again. The GPU by default, where there is one.

    Raises:
        UserError: torch has no such device, or none that computes.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: {one_line(error)}") from None
    return device
