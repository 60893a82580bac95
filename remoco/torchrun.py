"""Under torchrun a process that dies is started again, with all others; what would keep them apart is said before."""

import os

OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"


def restart_without_own_store() -> str | None:
    """One line where restarted processes would not find each other; else None.

    torchrun lends them its own store, which still has the addresses of those that died. They wait for these until a
    timeout (https://github.com/pytorch/pytorch/issues/135712).
    """
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or not restarts.isdecimal() or int(restarts) == 0:
        return None
    return (
        f"torchrun --max-restarts {restarts} without {OWN_STORE} in its environment: restarted processes would look "
        f"for those that died; put {OWN_STORE} before torchrun"
    )
