from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from astrolabe_rollout.errors import PromptFileError
from astrolabe_rollout.prompts import GroupSampler, noise_seed, read_prompts

LETTERS = [f"prompt {letter}" for letter in "abcdefg"]


def sampler(prompts=LETTERS, num_prompts=3, group_size=2, **options):
    return GroupSampler(prompts, num_prompts=num_prompts, group_size=group_size, **options)


def same(draw, other):
    return draw.prompts == other.prompts and all(
        (mine == theirs).all() for mine, theirs in zip(draw[1:4], other[1:4], strict=True)
    )


def test_prompts_are_the_lines_without_blanks_and_byte_order_mark(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat\r\n\n  ein Bär \n   \nlast\u2028line".encode())
    assert read_prompts(path) == ["a cat", "ein Bär", "last\u2028line"]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n  \n\t\n"])
def test_a_file_without_a_prompt_is_refused(tmp_path, content):
    (tmp_path / "empty.txt").write_bytes(content)
    with pytest.raises(PromptFileError, match=r"empty\.txt' holds no prompt"):
        read_prompts(tmp_path / "empty.txt")


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(PromptFileError, match=r"no prompt file .*gone\.txt"):
        read_prompts(tmp_path / "gone.txt")
    with pytest.raises(PromptFileError, match="is a directory"):
        read_prompts(tmp_path)


def test_a_file_that_is_not_utf8_is_refused_with_line_and_byte(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"a cat\nein B\xe4r\n")
    with pytest.raises(PromptFileError, match="byte 6 of line 2 is 0xe4"):
        read_prompts(path)


def test_utf16_is_refused_with_and_without_its_mark(tmp_path):
    path = tmp_path / "windows.txt"
    path.write_bytes("a cat\na dog".encode("utf-16-le"))
    with pytest.raises(PromptFileError, match="byte 2 of line 1 is 0x00"):
        read_prompts(path)
    for encoding in ("utf-16", "utf-32"):
        path.write_bytes("a cat".encode(encoding))
        with pytest.raises(PromptFileError, match=f"is {encoding.upper()}, not UTF-8. Convert it"):
            read_prompts(path)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 5))
def test_prompts_come_once_an_epoch_and_as_seldom_as_possible_in_a_draw(prompts, drawn, seed):
    names = [str(number) for number in range(prompts)]
    groups = sampler(names, num_prompts=drawn, seed=seed)
    order = []
    for _ in range(3 * prompts):
        names_of_draw = groups.draw().prompts[::2]
        order += names_of_draw
        assert max(Counter(names_of_draw).values()) == -(-drawn // prompts)
    epochs = [order[start : start + prompts] for start in range(0, len(order), prompts)]
    assert all(sorted(epoch, key=int) == names for epoch in epochs)


def test_a_prompt_is_repeated_for_its_whole_group():
    groups = sampler(group_size=3)
    for number in range(4):
        draw = groups.draw()
        assert draw.groups.tolist() == [3 * number + g for g in range(3) for _ in range(3)]
        for start in range(0, 9, 3):
            assert len(set(draw.prompts[start : start + 3])) == 1


def test_no_two_videos_of_a_run_share_their_noise():
    groups = sampler()
    seeds = [seed for _ in range(2000) for seed in groups.draw().seeds.tolist()]
    assert len(set(seeds)) == len(seeds) == 12_000
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_noise_seeds_of_neighbours_differ_in_half_of_their_bits():
    flips = [
        (noise_seed(run, video) ^ noise_seed(run, video + 1)).bit_count()
        for run in range(10)
        for video in range(100)
    ]
    assert 15 < sum(flips) / len(flips) < 17


def test_another_seed_gives_another_order_and_other_noise():
    first, second = sampler(seed=0).draw(), sampler(seed=1).draw()
    assert first.prompts != second.prompts
    assert not set(first.seeds.tolist()) & set(second.seeds.tolist())


@pytest.mark.parametrize("draws", [0, 1, 11])
def test_a_loaded_sampler_goes_on_where_the_saved_one_was(draws):
    saved, other = sampler(seed=3), sampler(seed=3)
    for _ in range(draws):
        saved.draw()
    saved.peek()
    other.draw()
    other.load_state_dict(saved.state_dict())
    assert all(same(saved.draw(), other.draw()) for _ in range(5))
    assert saved.state_dict() == other.state_dict()


def test_peeking_does_not_go_on():
    groups = sampler()
    state = groups.state_dict()
    assert same(groups.peek(), groups.peek())
    assert groups.state_dict() == state
    assert same(groups.peek(), groups.draw())
    assert groups.state_dict()["draws"] == state["draws"] + 1


def test_a_state_of_other_settings_is_refused():
    state = sampler().state_dict()
    with pytest.raises(ValueError, match="saved state has group_size 2, this sampler has 4"):
        sampler(group_size=4).load_state_dict(state)
    with pytest.raises(ValueError, match=r"prompts_sha256.*Resume with"):
        sampler(LETTERS[:5]).load_state_dict(state)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_the_ranks_together_draw_what_one_process_draws(world_size):
    alone = sampler()
    ranks = [sampler(rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(4):
        whole, parts = alone.draw(), [rank.draw() for rank in ranks]
        assert whole.prompts == [prompt for part in parts for prompt in part.prompts]
        assert whole.groups.tolist() == [group for part in parts for group in part.groups.tolist()]
        assert whole.seeds.tolist() == [seed for part in parts for seed in part.seeds.tolist()]


def test_a_run_may_go_on_with_another_number_of_processes():
    alone, second = sampler(), sampler(rank=1, world_size=2)
    alone.draw()
    second.load_state_dict(alone.state_dict())
    assert second.draw().seeds.tolist() == alone.draw().seeds.tolist()[3:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "advantage of a lone sample is always 0.*Set it to 2 or more"),
        ({"num_prompts": 0}, "num_prompts is 0"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": "a cat"}, "Give a list"),
        ({"rank": 2, "world_size": 2}, "rank is 2 with world_size 2"),
        ({"world_size": 4}, "cannot be shared evenly by 4 processes"),
    ],
)
def test_wrong_arguments_are_refused_with_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        sampler(**options)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_a_step_may_be_drawn_in_parts(batch_size):
    options = {"num_prompts": 2, "group_size": 4, "seed": 3}
    whole = GroupSampler(["a", "b", "c"], **options)
    parts = GroupSampler(["a", "b", "c"], **options, batch_size=batch_size)
    for _ in range(3):
        expected, drawn = whole.draw(), [parts.draw() for _ in range(parts.parts)]
        assert [text for draw in drawn for text in draw.prompts] == expected.prompts
        assert torch.cat([draw.seeds for draw in drawn]).equal(expected.seeds)
        assert torch.cat([draw.groups for draw in drawn]).equal(expected.groups)
    resumed = GroupSampler(["a", "b", "c"], **options)
    resumed.load_state_dict(parts.state_dict())
    assert resumed.draw().prompts == whole.draw().prompts


def test_a_step_that_has_begun_is_not_saved():
    parts = GroupSampler(["a"], num_prompts=1, group_size=4, batch_size=2)
    parts.draw()
    with pytest.raises(ValueError, match="1 of 2 parts of a step"):
        parts.state_dict()
    with pytest.raises(ValueError, match="does not divide the 4 videos"):
        GroupSampler(["a"], num_prompts=1, group_size=4, batch_size=3)
