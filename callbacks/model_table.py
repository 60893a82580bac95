"""What trains, in a table: Lightning's own counts a network with LoRA as one line, in eval mode."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from callbacks.run_folder import rank_zero_print


class ModelTable(Callback):
    """Prints, when a fit begins, the parameters of each part, how many of them train, and their dtypes."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print; only now are the networks built."""
        rank_zero_print(table(pl_module))


def table(module: nn.Module) -> str:
    """The table; a part of which a share trains is shown by its own parts."""
    rows = [("", "parameters", "trained", "dtype")]
    for name, part in module.named_children():
        inner = dict(part.named_children())
        if 0 < _count(part, trained=True) < _count(part) and len(inner) > 1 and not list(part.parameters(False)):
            rows += [_row(f"{name}.{below}", piece) for below, piece in inner.items() if _count(piece)]
        elif _count(part):
            rows.append(_row(name, part))
    rows.append(_row("all", module))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip() for row in rows]
    return "\n".join(lines)


def _row(name: str, part: nn.Module) -> tuple[str, str, str, str]:
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in part.parameters()})
    return name, f"{_count(part):,}", f"{_count(part, trained=True):,}", ", ".join(dtypes)


def _count(part: nn.Module, trained: bool = False) -> int:
    return sum(p.numel() for p in part.parameters() if p.requires_grad or not trained)
