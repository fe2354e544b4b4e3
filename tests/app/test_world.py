from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from astrolabe.world import ALONE

SCRIPT = Path(__file__).parent / "scripts" / "collectives.py"


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_gather_sum_and_exchange(processes, count):
    assert "all hold" in processes(SCRIPT, count)


def test_a_lone_process_exchanges_with_itself():
    rows = TensorDict({"n": torch.arange(6)}, batch_size=[6])
    order = torch.tensor([3, 1, 0, 5, 2, 4])
    assert ALONE.exchange(rows, order, parts=3)["n"].tolist() == order.tolist()
    assert ALONE.gather(rows) is not rows
    assert ALONE.gather_text("a") == ["a"]
    with pytest.raises(ValueError, match="invalid literal"):
        ALONE.lead(lambda: int("no number"))
