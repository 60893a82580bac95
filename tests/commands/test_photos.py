"""`remoco photos` and `remoco holes`: rows without a network, and a model of two steps of the shipped configuration."""

import cv2
import numpy as np
import pytest

from tests.support.commands import CONFIGS, command, remoco


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(16):
        image = cv2.GaussianBlur(rng.integers(0, 256, (200, 240, 3)).astype(np.uint8), (0, 0), 3)
        image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX)
        cv2.imwrite(str(root / f"picture{number}.jpg"), image)
    return root


def rows(capsys):
    lines = capsys.readouterr().out.splitlines()
    return {line[:34].strip(): [float(value) for value in line[34:].split()] for line in lines[2:]}


def test_the_moved_pixels_are_where_the_things_are(folder, capsys):
    assert remoco("photos", "--photos", folder, "--clips", 3) == 0
    table = rows(capsys)
    still, moved = table["standing still"], table["moved pixels, filled"]
    assert moved[1] > 27 > still[1] and moved[2] > 37 and moved[5] > still[5]
    assert table["moved pixels, cv2.inpaint"][1] == pytest.approx(moved[1], abs=0.5)
    assert remoco("photos", "--photos", folder, "--clips", 0) == 2
    assert "--clips is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag, value", [("--clips", 0), ("--val-clips", 0), ("--side", 60), ("--side", 2048), ("--seed", -1)]
)
def test_holes_of_another_kind_of_number_are_one_line(folder, tmp_path, capsys, flag, value):
    assert remoco("holes", "--photos", folder, "--out", tmp_path / "holes", f"{flag}={value}") == 2
    assert f"{flag} is {value}" in capsys.readouterr().err and not (tmp_path / "holes").exists()


@pytest.mark.slow
def test_the_shipped_configuration_trains_in_slices_and_is_measured(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("remoco.holes.EACH", 4)
    options = {
        "trainer.max_steps": 1, "trainer.val_check_interval": 100, "trainer.num_sanity_val_steps": 0,
        "trainer.logger.init_args.save_dir": tmp_path, "trainer.logger.init_args.name": "photo",
        "data.init_args.holes": tmp_path / "holes", "data.init_args.batch_size": 2,
    }  # fmt: skip
    assert remoco("holes", "--photos", folder, "--out", tmp_path / "holes", "--clips", 1, "--val-clips", 1) == 0
    for steps, more in ((1, []), (2, ["--ckpt_path", "last"])):
        words = [f"--{name}={value}" for name, value in {**options, "trainer.max_steps": steps}.items()]
        command("fit", "--config", CONFIGS / "photo.yaml", *words, *more)
    assert (
        remoco(
            "photos", "--checkpoint", tmp_path / "photo" / "checkpoints" / "last.ckpt", "--photos", folder, "--clips", 1
        )
        == 0
    )
    table = rows(capsys)
    assert table["with the network"][2] == pytest.approx(table["moved pixels, filled"][2], abs=0.1)
