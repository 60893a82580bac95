"""`remoco photos`: its rows without a network, and a model of two steps from the shipped configuration."""

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


@pytest.mark.slow
def test_the_shipped_configuration_trains_in_slices_and_is_measured(folder, tmp_path, capsys):
    options = {
        "trainer.max_steps": 1, "trainer.val_check_interval": 100, "trainer.num_sanity_val_steps": 0,
        "trainer.logger.init_args.save_dir": tmp_path, "trainer.logger.init_args.name": "photo",
        "data.init_args.photos": folder, "data.init_args.num_workers": 0,
        "model.init_args.base.init_args.components": 16,
    }  # fmt: skip
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
