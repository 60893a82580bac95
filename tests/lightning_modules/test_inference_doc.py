"""The snippet in docs/inference.md, exactly as it stands there, in an empty folder."""

import os
import re
import subprocess
import sys

import numpy as np

from remoco.common.videos.files import read_video
from tests.support.places import REPO


def test_it_saves_a_video_in_which_the_disc_moves(tmp_path):
    text = (REPO / "docs" / "inference.md").read_text()
    code = re.search(r"^## From Python$.*?^```python\n(.*?)^```$", text, re.M | re.S)[1]
    (tmp_path / "snippet.py").write_text(code)
    place = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, env=place, check=True, timeout=300)
    video, fps = read_video(tmp_path / "clip.mp4")
    assert fps == 8 and len(video) >= 8
    orange = np.clip(video[..., 0].astype(float) - video[..., 2], 0, None) ** 2
    across = np.arange(video.shape[2]) * 128 / video.shape[2]
    left, right = ((orange[index] * across).sum() / orange[index].sum() for index in (0, -1))
    assert abs(left - 40) < 8 and right - left > 24  # the track is 48 pixels long
