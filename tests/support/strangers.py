"""Files of weights as a stranger may write them, and what each of them takes when it is read."""

import json
import pickle
import resource
import signal
import struct
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from conditions import RegionWise
from datamodules.trackers.weights import read_weights
from lightning_modules import MotionControlModule, embedded
from lightning_modules.bases import SVD
from lightning_modules.pipeline import MotionControlPipeline
from lightning_modules.released import load_released
from metrics import features
from remoco.cli import main as remoco
from tests.support.nets import motion_control

LIMIT = 16 << 30  # bytes of address space beyond the start, and seconds: the machine is not ours alone
SECONDS = 150


def sound(**changes):
    """A checkpoint over a `micro` base, of an untrained module, with fields of its record changed."""
    module = motion_control(size="micro", lora="attention", rank=4, latents="pca")
    module.configure_model()
    module.base.pca.scale.fill_(1.0)
    state = {name: tensor.detach().clone() for name, tensor in module.stored().items()}
    record = json.loads(json.dumps(module.own_record()))
    for path, value in changes.items():
        *folders, last = path.split("__")
        part = record
        for name in folders:
            part = part[name]
        part[last] = value
    return {"state_dict": state, "remoco": record, "global_step": 1, "callbacks": {}, "epoch": 0,
            "pytorch-lightning_version": "2.6.0"}  # fmt: skip


def large(size, **arguments):
    """Shapes of what a module over a base of `full` size stores, each tensor one number repeated."""
    with torch.device("meta"):
        module = motion_control(size=size, **arguments)
        module.configure_model()
    shapes = {name: tensor.shape for name, tensor in module.stored(arguments.get("trained", False)).items()}
    return module, {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}


def measured(out, door, *arguments):
    """Go through a door; writes the error, how much memory it took beyond the start, and whether a module was built."""
    built = []
    MotionControlModule.configure_model = _noted(MotionControlModule.configure_model, built)
    resource.setrlimit(resource.RLIMIT_AS, (_pages() + LIMIT,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(SECONDS)
    torch.set_num_threads(1)
    before, error = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, None
    try:
        code = DOORS[door](*arguments)
    except ValueError as refused:
        error, code = str(refused), 2
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    Path(out).write_text(json.dumps({"error": error, "code": code, "taken": taken, "built": bool(built)}))


def _noted(function, built):
    def noted(*arguments, **options):
        built.append(function)
        return function(*arguments, **options)

    return noted


def _pages():
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 40


def _command(*words):
    return remoco([str(word) for word in words])


DOORS = {
    "checkpoint": lambda path: MotionControlPipeline.from_checkpoint(path) and 0,
    "folder": lambda path: MotionControlPipeline.from_pretrained(path) and 0,
    "lora": lambda path: MotionControlPipeline.from_pretrained("embedded-sprites").load_lora_weights(path) or 0,
    "adapter": lambda path: MotionControlPipeline.from_adapter(path, "embedded-sprites", RegionWise()) and 0,
    "released": lambda path: load_released(path) and 0,
    "base": lambda path: SVD(path).build() and 0,
    "tracker": lambda path: read_weights(Path(path), "--tracker-path") and 0,
    "i3d": lambda path: features.I3DLogits(path).load() or 0,
    "pack": lambda path: _command("pack", path, f"{path}.safetensors"),
    "export": lambda path: _command("export", path, f"{path}.pt", "--base", str(embedded.BASE)),
    "named": lambda path: MotionControlPipeline.from_checkpoint(path, svd="owner/name") and 0,
    "generate": lambda path: _command("generate", path, str(Path(path).with_name("image.png")), "--camera", "pan:0.1"),
    "clip": lambda path: features.CLIPFeatures(path).load() or 0,
    "export-base": lambda path: _command("export-base", path, f"{path}-folder"),
}


# What a pickle may ask for within `weights_only`


def pickled(path, body, storages=()):
    """A file in torch's zip format with a pickle of this body, and storages by key."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
        for key, data in storages:
            archive.writestr(f"a/data/{key}", data)


def text(value):
    """BINUNICODE."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def called(name, *arguments):
    """A REDUCE of a global with arguments that are already opcodes."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def number(value):
    """LONG1."""
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def _storage(values):
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(values) + b"tQ"


def _dag(levels, start, step):
    """A tuple of values, each of which holds the one before twice."""
    body = b"(" + start + b"q\x00"
    for level in range(levels):
        body += step(bytes([level]), bytes([level + 1]))
    return body + b"t"


PICKLES = {
    "bytearray": called("builtins.bytearray", number(12 << 30)),
    "storage": called("torch.storage.UntypedStorage", number(12 << 30)),
    "tensor": called("torch.FloatTensor", number(3 << 30)),
    "repeated": b"}" + text("state_dict") + b"}" + text("x") + called(
        "torch._utils._rebuild_tensor_v2", _storage(1), number(0), number(3 << 30) + b"\x85", number(0) + b"\x85",
        b"\x89", called("collections.OrderedDict"),
    ) + b"ss",
    "long storage": b"}" + text("state_dict") + b"}" + text("x") + called(
        "torch._utils._rebuild_tensor_v2", _storage(3 << 30), number(0), number(3 << 30) + b"\x85",
        number(1) + b"\x85", b"\x89", called("collections.OrderedDict"),
    ) + b"ss",
    "nested keys": b"}" + _dag(60, b")", lambda low, high: b"h" + low + b"h" + low + b"\x86q" + high) + b"Ns",
    "doubled lists": _dag(60, b"]", lambda low, high: b"](h" + low + b"h" + low + b"eq" + high),
    "deep": b"](" * 1_000_000 + b"e" * 1_000_000,
    "encoded": _dag(28, text("x" * 64), lambda low, high: called(
        "_codecs.encode", b"h" + low, text("utf-32")) + b"q" + high),
    "counted": called("collections.Counter", called("builtins.bytearray", number(1 << 33))),
    "encoded again": b"]" + text("x" * (4 << 20)) + b"q\x00a" + b"](" + called(
        "_codecs.encode", b"h\x00", text("latin1")) * 600 + b"ea",
    "sets again": b"]](" + b"".join(map(number, range(100_000))) + b"eq\x00a" + b"](" + called(
        "builtins.set", b"h\x00") * 600 + b"ea",
    "no mark": b"t",
    "one hash": b"}(" + b"".join(number(((1 << 61) - 1) * each) + b"N" for each in range(1, 60_000)) + b"u",
}  # fmt: skip


def legacy(path, numel):
    """torch's older format, with a storage that is said to hold so many floats."""
    torch.save({"x": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    data = Path(path).read_bytes()
    old = pickle.dumps(4, 2)[2:-1]
    at = data.index(b"cpu") + 3
    place = data.index(old, at)
    Path(path).write_bytes(data[:place] + number(numel) + data[place + len(old) :])


def overlapping(path, copies):
    """A zip file whose many members are all the same bytes."""
    torch.save({"state_dict": {"x": torch.zeros(8 << 20)}}, path)
    with zipfile.ZipFile(path, "a") as archive:
        first = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
        for copy in range(copies):
            again = zipfile.ZipInfo(first.filename + f"-{copy}")
            for field in ("header_offset", "CRC", "compress_size", "file_size", "flag_bits"):
                setattr(again, field, getattr(first, field))
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
        archive._didModify = True


def whole_file(path, record, state):
    """A file as `remoco pack` writes one."""
    stored = embedded.tensors(state)
    save_file(stored, path, metadata=embedded.metadata(record, stored, [], 1) | {"global_step": "1"})


def copied_base(folder):
    """The small base of the package, as a stranger's folder."""
    for file in embedded.BASE.rglob("*"):
        if file.is_file():
            target = Path(folder) / file.relative_to(embedded.BASE)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return Path(folder)
