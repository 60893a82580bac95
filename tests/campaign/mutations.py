"""Damaged and hostile inputs, by chance: bytes flipped, cut and grown, fields that a tool may have signed."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
import zlib
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.campaign.strangers import Strangers
from tests.campaign.table import CONFIG, Attempt, Box
from tests.campaign.values import DEEP, changed, damaged, written

LIMIT = 300.0  # seconds; an attempt takes one or two on a machine that is not busy
READING, FITTING = 400 << 20, 3 << 30  # bytes more than after the imports


NUMBERS = [0, -1, 1, 2, 3, 7, 0.5, 1e-9, 10**9, float("nan"), float("inf"), None, "2", True]
TRAINER = [
    "log_every_n_steps", "accumulate_grad_batches", "val_check_interval", "check_val_every_n_epoch",
    "num_sanity_val_steps", "gradient_clip_val", "limit_train_batches", "limit_val_batches", "overfit_batches",
    "reload_dataloaders_every_n_epochs", "devices",
]  # fmt: skip
CALLBACKS: dict[str, dict[str, Any]] = {
    "EMA": {"decay": 0.9}, "Evaluation": {"every_n_validations": 1},
    "Evaluation.samples": {"clips": 1, "every_n_steps": 2, "sigma": 2.0, "fps": 8.0},
    "Evaluation.metrics": {"clips": 2, "mask_ratio": 0.5}, "Evaluation.control_errors": {"clips": 2}, "Throughput": {},
    "LastCheckpoint": {"every_n_train_steps": 2}, "BestCheckpoint": {},
}  # fmt: skip


class Mutations:
    """Attempts on copies of a sound set, checkpoint, config, videos and tar, and on files of strangers."""

    def __init__(self, box: Box, videos: Path) -> None:
        self.box, self.videos, self.strangers = box, videos, Strangers(box)
        own = {
            "bytes of shards": (self._shards, 5), "fields of indices": (self._signed, 6),
            "signed members": (self._members, 4), "bytes of checkpoints": (self._checkpoint, 3),
            "fields of checkpoints": (self._fields, 1), "YAMLs": (self._yaml, 1), "periods": (self._periods, 2),
            "videos": (self._video, 4), "tars": (self._tar, 4),
        }  # fmt: skip
        self._own = {name: function for name, (function, _) in own.items()}
        self._weights = {name: weight for name, (_, weight) in own.items()} | dict.fromkeys(self.strangers.kinds, 5)

    @property
    def kinds(self) -> list[str]:
        """Names of all kinds."""
        return list(self._weights)

    def attempt(self, seed: int, number: int, kind: str | None = None) -> tuple[str, Attempt]:
        """(what was damaged, how it ended) of a number of a seed; of one kind the same, where it is named."""
        if kind is None:
            kind = random.Random(f"{seed} mutation {number}").choices(*zip(*self._weights.items()))[0]
        rng = random.Random(f"{seed} {kind} {number}")
        if kind in self.strangers.kinds:
            return kind, self.strangers.attempt(kind, rng)
        _ = self.set, self.run  # made here, and not in an attempt, which would count them as written outside
        return kind, self._own[kind](rng)

    @cached_property
    def set(self) -> Path:
        """A sound set."""
        kept = self.box.root / "whole-mutations-set"
        with self.box.attempt() as attempt:
            if attempt.run("prepare", str(self.videos), str(attempt.out / "set"), limit=LIMIT):
                raise SystemExit(f"a sound preparation failed:\n{attempt.said[-3000:]}")
            shutil.copytree(attempt.out / "set", kept)
        return kept

    @cached_property
    def run(self) -> Path:
        """A sound run."""
        kept = self.box.root / "whole-mutations-run"
        with self.box.attempt() as attempt:
            config = self._config(attempt, max_steps=4)
            if attempt.run("fit", ["--config", str(config)], limit=LIMIT):
                raise SystemExit(f"a sound fit failed:\n{attempt.said[-3000:]}")
            shutil.copytree(attempt.out / "run", kept)
        return kept

    # Sets

    def _copy(self, attempt: Attempt) -> Path:
        folder = attempt.inputs / "set"
        shutil.copytree(self.set, folder)
        for path in folder.iterdir():
            path.chmod(0o644)
        return folder

    def _read(self, attempt: Attempt, folder: Path, signed: bool) -> None:
        code = attempt.run("read", str(folder), str(self.set), signed, limit=LIMIT, memory=READING)
        attempt.survived, attempt.differing = code == 0, attempt.answer()

    def _shards(self, rng: random.Random) -> Attempt:
        with self.box.attempt() as attempt:
            folder = self._copy(attempt)
            path = rng.choice([path for path in sorted(folder.iterdir()) if path.suffix in (".tar", ".json")])
            # the index itself has no checksum over it
            path.write_bytes(damaged(path.read_bytes(), rng))
            self._read(attempt, folder, signed=path.name in ("index.json", "prepare.json"))
        return attempt

    def _signed(self, rng: random.Random) -> Attempt:
        with self.box.attempt() as attempt:
            folder = self._copy(attempt)
            index = json.loads((folder / "index.json").read_bytes())
            sidecars = sorted(folder.glob("*.index.json"))
            if rng.random() < 0.5:
                path = rng.choice(sidecars)
                data = written(changed(json.loads(path.read_bytes()), rng))
                path.write_bytes(data)
                for entry in index["shards"]:
                    if entry["name"] == path.name.replace(".index.json", ".tar"):
                        entry["index_crc32"] = zlib.crc32(data)
                (folder / "index.json").write_bytes(written(index))
            else:
                (folder / "index.json").write_bytes(written(changed(index, rng)))
            self._read(attempt, folder, signed=True)
        return attempt

    def _members(self, rng: random.Random) -> Attempt:
        """Members damaged in place, every checksum made anew."""
        with self.box.attempt() as attempt:
            folder = self._copy(attempt)
            path = rng.choice(sorted(folder.glob("*.tar")))
            where = path.with_name(path.name.replace(".tar", ".index.json"))
            sidecar, index = json.loads(where.read_bytes()), json.loads((folder / "index.json").read_bytes())
            kind = rng.choice(sorted(sidecar["members"]))
            place = rng.choice(sidecar["members"][kind])
            shard = path.read_bytes()
            member = shard[place[0] : place[0] + place[1]]
            if kind == "json" and rng.random() < 0.8:
                member = written(changed(json.loads(member), rng))
            else:
                member = damaged(member, rng)
            place[:] = [len(shard), len(member), zlib.crc32(member)]
            path.write_bytes(shard + member)
            sidecar["bytes"] = len(shard) + len(member)
            where.write_bytes(written(sidecar))
            for entry in index["shards"]:
                if entry["name"] == path.name:
                    entry |= {"bytes": sidecar["bytes"], "index_crc32": zlib.crc32(where.read_bytes())}
            (folder / "index.json").write_bytes(written(index))
            self._read(attempt, folder, signed=True)
        return attempt

    # Runs

    def _config(self, attempt: Attempt, **trainer: Any) -> Path:
        config = yaml.safe_load(CONFIG.read_text())
        config["trainer"] |= trainer
        config["trainer"]["logger"]["init_args"]["save_dir"] = str(attempt.out)
        # its own copy, for a set of another shape than that of the sprites there is made in the same folder
        config["data"]["init_args"]["root"] = str(shutil.copytree(self.box.sprites, attempt.out / "sprites"))
        (attempt.inputs / "config.yaml").write_text(yaml.safe_dump(config))
        return attempt.inputs / "config.yaml"

    def _checkpoint(self, rng: random.Random) -> Attempt:
        with self.box.attempt() as attempt:
            sound = self.run / "checkpoints/last.ckpt"
            path = attempt.inputs / "last.ckpt"
            path.write_bytes(damaged(sound.read_bytes(), rng))
            code = attempt.run("checkpoint", str(path), str(sound), limit=LIMIT, memory=READING)
            attempt.survived, attempt.differing = code == 0, attempt.answer()
        return attempt

    def _fields(self, rng: random.Random) -> Attempt:
        """Fields of a checkpoint, missing or of any value; the run goes on, or is refused in one line."""
        with self.box.attempt() as attempt:
            sound, path = self.run / "checkpoints/last.ckpt", attempt.inputs / "last.ckpt"
            attempt.run("change_checkpoint", str(sound), str(path), str(rng.random()))
            self._fit(attempt, self._config(attempt, max_steps=6), "--ckpt_path", str(path))
        return attempt

    def _yaml(self, rng: random.Random) -> Attempt:
        with self.box.attempt() as attempt:
            path = self._config(attempt, max_steps=2)
            draw = rng.random()
            if draw < 0.2:
                path.write_bytes(damaged(path.read_bytes(), rng))
            elif draw < 0.3:
                rows = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]" for n in range(20)]
                path.write_text(path.read_text() + "\n".join(rows) + "\n")
            else:
                # the user's own YAML may write anywhere
                text = yaml.safe_dump(changed(yaml.safe_load(path.read_text()), rng, paths=False))
                path.write_text(text.replace(DEEP, "[" * 5000 + "]" * 5000, 1))
            self._fit(attempt, path, "--trainer.fast_dev_run", "1", "--model.init_args.base.init_args.size", "micro")
        return attempt

    def _periods(self, rng: random.Random) -> Attempt:
        """A number of the trainer or of a callback, out of its range or odd; a run of three steps, as it comes."""
        with self.box.attempt() as attempt:
            path = self._config(attempt, max_steps=3, val_check_interval=2, limit_val_batches=1)
            config = yaml.safe_load(path.read_text())
            arguments = {name: dict(given) for name, given in CALLBACKS.items()}
            name = rng.choice(["trainer"] * 3 + [name for name in arguments if arguments[name]])
            value = rng.choice(NUMBERS)
            if name == "trainer":
                config["trainer"][rng.choice(TRAINER)] = value
            else:
                arguments[name][rng.choice(sorted(arguments[name]))] = value
            for part in [name for name in arguments if "." in name]:
                owner, argument = part.split(".")
                arguments[owner][argument] = arguments.pop(part)
            callbacks = [{"class_path": f"callbacks.{name}", "init_args": given} for name, given in arguments.items()]
            config["trainer"]["callbacks"] = [{"class_path": "callbacks.RunFolder"}, *callbacks]
            path.write_text(yaml.safe_dump(config))
            self._fit(attempt, path)
        return attempt

    def _fit(self, attempt: Attempt, config: Path, *more: str) -> None:
        code = attempt.run("fit", ["--config", str(config), *more], limit=LIMIT, memory=FITTING)
        attempt.survived = code == 0 or code == 2

    # Sources

    def _prepare(self, attempt: Attempt) -> None:
        out = str(attempt.out / "set")
        code = attempt.run("prepare", str(attempt.inputs), out, limit=LIMIT, memory=FITTING)
        # a decoder that crashes, hangs or takes all memory costs its video alone: SIGALRM, SIGSEGV, ...
        attempt.survived = code in (0, 2, -14, -11, -6, -8)

    def _video(self, rng: random.Random) -> Attempt:
        with self.box.attempt() as attempt:
            source = rng.choice(sorted(path for path in self.videos.iterdir() if path.suffix != ".txt"))
            (attempt.inputs / source.name).write_bytes(damaged(source.read_bytes(), rng))
            self._prepare(attempt)
        return attempt

    def _tar(self, rng: random.Random) -> Attempt:
        with self.box.attempt() as attempt:
            video = min((path.read_bytes() for path in self.videos.glob("*.mp4")), key=len)
            data = io.BytesIO()
            with tarfile.open(fileobj=data, mode="w") as tar:
                for name, content in (
                    ("a.mp4", video),
                    ("a.txt", b"text"),
                    ("b.json", b'{"caption": "c"}'),
                    ("b.mp4", video),
                ):
                    info = tarfile.TarInfo(rng.choice(["../" + name, "/abs/" + name]) if rng.random() < 0.1 else name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
            whole = bytearray(data.getvalue())
            if rng.random() < 0.7:  # a number or type of a header, with its checksum made anew
                at = 512 * rng.choice(
                    [block for block in range(len(whole) // 512) if whole[512 * block + 257 :][:5] == b"ustar"]
                )
                header = whole[at : at + 512]
                if rng.random() < 0.5:
                    header[156] = rng.choice(b"01234567xgLKSV")
                else:
                    header[124:136] = rng.choice(
                        [b"\x80" + (2**40).to_bytes(11, "big"), b"\xff" * 11 + b"\x00", b"77777777777\0"]
                    )
                header[148:156] = b" " * 8
                header[148:156] = b"%06o\0 " % sum(header)
                whole[at : at + 512] = header
            else:
                whole = bytearray(damaged(bytes(whole), rng))
            (attempt.inputs / "x.tar").write_bytes(whole)
            self._prepare(attempt)
        return attempt
