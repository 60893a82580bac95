"""Under SLURM without srun: one line, in place of a wait for processes that nobody started."""

import pytest

from remoco.slurm import OF_A_TASK, slurm_without_srun
from tests.support.commands import quick

TASK = dict.fromkeys(OF_A_TASK, "0") | {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train"}
STEP = TASK | {"SLURM_STEP_ID": "0"}


@pytest.fixture
def slurm(monkeypatch):
    """Set the environment of a process of SLURM's."""

    def set_to(values):
        for name in (*TASK, "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "TORCHELASTIC_RUN_ID"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_to


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, None),
        (STEP | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}, None),
        (TASK | {"SLURM_NTASKS": "1"}, None),  # a batch script with one task is that task
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}, None),
        ({"SLURM_NTASKS": "4", "TORCHELASTIC_RUN_ID": "x"}, None),
        ({"SLURM_NTASKS": "4"}, "SLURM_NTASKS is 4, but srun did not start this process"),
        ({"SLURM_NTASKS": "1"}, "SLURM_NTASKS is 1, but srun did not start this process"),  # salloc
        (TASK | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}, "SLURM_NTASKS is 2, but srun did not"),
        (TASK | {"SLURM_NTASKS": "two"}, "SLURM_NTASKS is two, but srun did not"),
        (STEP | {"SLURM_NTASKS": "2"}, "ask SLURM for --ntasks-per-node"),
    ],
    ids=str,
)
def test_who_started_this_process(slurm, values, said):
    slurm(values)
    found = slurm_without_srun()
    assert found is None if said is None else said in found and "\n" not in found
    assert slurm_without_srun([{"class_path": "LightningEnvironment"}, "LightningEnvironment"]) is None


def test_a_fit_says_so_before_it_waits(slurm, cli, sprites, tmp_path):
    slurm(TASK | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"})
    code, line = cli("fit", *quick(sprites, tmp_path / "runs" / "one"))
    assert code == 2 and line.startswith("python -m lightning: error: SLURM_NTASKS is 2, but srun did not start")
    assert "srun" in line and "SLURM_JOB_NAME=interactive" in line and not (tmp_path / "runs").exists()
