"""What the README shows of several processes, run as the script that it is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from torchrl._utils import seed_generator

from astrolabe_rollout import GroupSampler

README = Path(__file__).parents[2] / "packages" / "astrolabe-rollout" / "README.md"


@pytest.mark.slow
def test_two_workers_made_alike_give_different_videos_that_a_seed_decides(tmp_path):
    (code,) = re.findall(
        r"```python\n(from torchrl.collectors import Multi.*?)```", README.read_text(), re.S
    )
    assert code.count("\n") <= 45
    (tmp_path / "workers.py").write_text(code)
    run = [sys.executable, "workers.py"]
    shown = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    lines = [line for line in shown.splitlines() if line.startswith("[") and "colour" in line]
    seeds, rows = zip(*(re.match(r"(\[.*?\]) (.*)", line).groups() for line in lines), strict=True)
    prompts, expected = ["a red circle moves", "a blue square spins"], []
    samplers = [GroupSampler(prompts, num_prompts=1, group_size=2) for _ in range(2)]
    for worker, (sampler, seed) in enumerate(zip(samplers, (3, seed_generator(3)), strict=True)):
        sampler.set_seed(seed)
        sampler.for_worker(worker)
    for _ in range(2):
        drawn = [sampler.draw() for sampler in samplers]
        expected.append([seed for draw in drawn for seed in draw.seeds.tolist()])
    assert [list(map(int, re.findall(r"\d+", text))) for text in seeds] == expected
    assert len({seed for step in expected for seed in step}) == 8
    assert all(row.count("'colour'") == 8 for row in rows)  # 4 videos of 2 windows
