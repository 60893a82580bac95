"""`remoco page`: draw on an image in the browser, generate, and save what was drawn."""

from __future__ import annotations

import socket
from importlib.util import find_spec

from datamodules.drawings import Fit
from remoco.common.errors import UserError
from remoco.common.pictures import colour_of
from remoco.generate import Dtype, Gib, Loading, OtherSystem

HOST = "127.0.0.1"
EMBEDDED = "embedded"  # `lightning_modules.embedded.NAME`, without importing torch for `--help`
_OTHER = OtherSystem()


def page(
    checkpoint: str = EMBEDDED,
    /,
    port: int = 7860,
    svd: str | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
    background: str = "white",
    fit: Fit = "crop",
    offload: bool = False,
    second: str | None = None,
    memory: Gib | None = None,
    other: OtherSystem = _OTHER,
) -> None:
    """Serve a page on this machine to open an image, draw tracks and a brush, and generate. Ctrl+C stops it.

    Args:
        checkpoint: Checkpoint of a run, or `embedded`, the small model in the package.
        port: Port on 127.0.0.1; 0 takes a free one.
        svd: Folder or hub id of the base. Default: where the checkpoint says that it is.
        device: Torch device, for example `cuda:0` or `cpu`. Default: the GPU if there is one.
        dtype: Number format of the frozen networks. Default: bfloat16 on a GPU, float32 on a CPU; of another system
            float32.
        background: Colour behind transparent parts of images and driving videos, for example `black` or `#00ff00`.
        fit: How an image is brought to the clip's shape: `crop`, `pad` or `stretch`, as for `remoco generate`.
        offload: Keep the image encoder and the VAE off the GPU while sampling, and the one of two experts that a step
            does not use.
        second: Checkpoint or folder of the run of the other expert, where the base is Wan 2.2 A14B. Default: that
            expert runs without control.
        other: Another system in the place of the checkpoint.
        memory: Memory of the card in GiB, which clips of the training's length and size then fit. What keeps them
            within it is chosen by count and printed.

    Example:
        remoco page
    """
    behind = colour_of(background, "--background")
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise UserError("the page needs fastapi and uvicorn: pip install -e '.[page]' -c constraints.txt")
    with _bound(port) as listening:  # before minutes of loading
        from remoco.page.makers import loaded

        maker = loaded(checkpoint, other, Loading(svd, device, dtype, offload, second, memory), fit, EMBEDDED)
        from remoco.page.connections import server
        from remoco.page.jobs import Studio
        from remoco.page.routes import application

        app = application(Studio(maker, behind))
        listening.listen()  # who asks before the server is ready waits
        print(f"http://{HOST}:{listening.getsockname()[1]}", flush=True)
        server(app).run(sockets=[listening])


def _bound(port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: expected a number from 0 to 65535")
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        listening.close()
        raise UserError(f"--port {port}: {error.strerror}; choose another port, or 0 for any free one") from None
    return listening
