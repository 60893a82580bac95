"""What frozen networks make of clips, cached beside them: names, dtypes and shapes, and the texts of a whole set.

A clip's member `latent.safetensors` holds some of `NAMES`. The set's `index.json` says under `cache` which, of what
dtype and shape, so that a member is checked before it is used, and the bytes of which networks made them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from remoco.common.errors import BadClip, UserError, brief, one_line
from remoco.common.json_files import parse_json
from remoco.common.whole_files import json_bytes

if TYPE_CHECKING:  # no command's help has need of it
    from torch import Tensor

NAMES = ("latent_mean", "latent_std", "first_latent", "image_embedding", "text")
TEXT = "text.safetensors"  # beside index.json: the empty text and perhaps the negative prompt, for all clips
ABOUT = "about"  # in its metadata: hashes and negative prompt as JSON
HASHES = ("text_encoder", "tokenizer")  # there, of what made the texts
MAX_TEXT = 64 << 20  # bytes of that file
LONGEST = 4096  # tokens of a text
DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}  # torch's name -> the layout's
PLAIN = {"latent_mean": "F16", "latent_std": "F16", "image_embedding": "F16"}
Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Name -> dtype and shape; 0 tokens of a text are each clip's own number."""


@dataclass(frozen=True)
class SetTexts:
    """The texts that all clips of a set share.

    Attributes:
        hashes: Of the text encoder's weights and the tokenizer's file.
        empty: (n, D) embedding of the empty text.
        negative: (n, D) embedding of the negative prompt; None without.
        negative_prompt: Its text.
    """

    hashes: Mapping[str, str]
    empty: Tensor
    negative: Tensor | None
    negative_prompt: str | None


@dataclass(frozen=True)
class Cached:
    """What a training's clips bring of the frozen networks' work.

    Attributes:
        path: Index of the set, for errors.
        layout: Name in a batch -> dtype and shape.
        hashes: Name of a network -> hash of the weights that it had.
        files: Name of a network -> fingerprint of its files, where it had some.
        texts: Of the whole set; None without.
    """

    field: ClassVar[str] = "data.shards"  # what errors about it begin with
    maker: ClassVar[str] = "remoco cache"  # what makes it
    path: Any
    layout: Layout
    hashes: Mapping[str, str]
    files: Mapping[str, str]
    texts: SetTexts | None

    @property
    def empty(self) -> Tensor | None:
        """(n, D) embedding of the empty text."""
        return None if self.texts is None else self.texts.empty

    @property
    def negative_prompt(self) -> str | None:
        """The text that guidance leads away from."""
        return None if self.texts is None else self.texts.negative_prompt

    def check(self, name: str, digest: str) -> None:
        """Raise UserError where it was made with other weights of a network; for before larger ones are read."""
        if self.hashes.get(name, digest) != digest:
            raise UserError(
                f"{self.field}: {self.path} was made with another {name} (hash {self.hashes[name][:12]}) than this "
                f"base's ({digest[:12]}); make it again with `{self.maker}`, or set data.use_latents to false"
            )


def parse_layout(value: Any) -> Layout:
    """The layout in an untrusted index; UserError where it is none."""
    if not isinstance(value, dict):
        raise UserError(f"cache: tensors is {brief(value)}, expected the names of {', '.join(NAMES)}")
    layout: Layout = {}
    for name, each in value.items():
        dtype, shape = each if isinstance(each, list) and len(each) == 2 else (None, None)
        sizes = tuple(shape) if isinstance(shape, list) else ()
        least = [0 if name == "text" and not place else 1 for place in range(len(sizes))]
        sound = all(type(size) is int and low <= size <= 1 << 16 for size, low in zip(sizes, least, strict=True))
        axes = 2 if name in ("image_embedding", "text") else 4
        if name not in NAMES or dtype not in DTYPES.values() or not sound or len(sizes) != axes:
            raise UserError(
                f"cache: {name!r:.40} is {each!r:.80}, expected one of {', '.join(DTYPES.values())} and a shape"
            )
        layout[name] = (str(dtype), sizes)
    return layout


def is_plain(layout: Layout | None) -> bool:
    """Whether it is that of sets which say none: float16 latents and an image embedding, as SVD has them."""
    return layout is None or {name: dtype for name, (dtype, _) in layout.items()} == PLAIN


def dtype_of(tensor: Tensor) -> str:
    """The layout's name of a tensor's dtype, or torch's where a layout has none."""
    name = str(tensor.dtype).removeprefix("torch.")
    return DTYPES.get(name, name)


def layout_of(tensors: Mapping[str, Tensor], padded: bool) -> Layout:
    """The layout of a clip's tensors; `padded`: whether all texts have the same number of tokens."""
    layout = {name: (dtype_of(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}
    if "text" in layout and not padded:
        layout["text"] = (layout["text"][0], (0, tensors["text"].shape[1]))
    return layout


def read_cached(data: bytes, layout: Layout) -> dict[str, Tensor]:
    """A clip's cached tensors.

    Raises:
        BadClip: not those of the layout, not finite, or a negative standard deviation.
    """
    import safetensors.torch

    from remoco.common.tensor_files import finite

    try:
        found = safetensors.torch.load(data)
    except Exception as error:  # safetensors raises its own type, and more
        raise BadClip(f"cached tensors do not read ({one_line(error)})") from error
    if found.keys() != layout.keys():
        raise BadClip(f"cached tensors are {', '.join(sorted(found))}, expected {', '.join(sorted(layout))}")
    for name, (dtype, shape) in layout.items():
        tensor = found[name]
        own = name == "text" and not shape[0] and 0 < len(tensor) <= LONGEST
        wanted = (len(tensor), *shape[1:]) if own else shape
        if dtype_of(tensor) != dtype or tuple(tensor.shape) != wanted:
            raise BadClip(f"{name} is {dtype_of(tensor)} {tuple(tensor.shape)}, expected {dtype} {wanted}")
        if not finite(tensor):
            raise BadClip(f"{name} has values that are not finite")
    if "latent_std" in found and (found["latent_std"] < 0).any():
        raise BadClip("latent_std is negative")
    return found


def pack_texts(texts: SetTexts) -> bytes:
    """The file `TEXT`."""
    import safetensors.torch

    tensors = {"empty": texts.empty} | ({} if texts.negative is None else {"negative": texts.negative})
    about = {**texts.hashes, "negative_prompt": texts.negative_prompt}
    one = {ABOUT: json_bytes(about).decode()}  # safetensors puts several in another order each time
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, one)


def unpack_texts(data: bytes, path: Any) -> SetTexts:
    """What `pack_texts` wrote; UserError where it is something else."""
    import safetensors.torch

    from remoco.common.tensor_files import finite

    try:
        size = int.from_bytes(data[:8], "little")
        about = parse_json(parse_json(data[8 : 8 + size])["__metadata__"][ABOUT].encode())
        tensors = safetensors.torch.load(data)
        empty, negative = tensors["empty"], tensors.get("negative")
        hashes = {name: about[name] for name in HASHES}
        sound = all(
            each.ndim == 2 and 0 < len(each) <= LONGEST and dtype_of(each) in DTYPES.values() and finite(each)
            for each in (empty, *(() if negative is None else (negative,)))
        )
        prompt = about["negative_prompt"]
        texts = [*hashes.values(), *(() if prompt is None else (prompt,))]
        if not sound or (prompt is None) != (negative is None) or not all(isinstance(text, str) for text in texts):
            raise UserError("its texts are no embeddings")
    except Exception as error:  # safetensors raises its own type, and more
        raise UserError(f"{path} does not read as `{Cached.maker}` writes it: {one_line(error)}") from None
    return SetTexts(hashes, empty, negative, prompt)
