"""What a user reads where the hub gives no weights, by a server that answers as the hub does."""

import pytest

from astrolabe_rewards.errors import WeightsError
from astrolabe_rewards.wanted import Wanted


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gated", ["licence that you have not accepted", "{hub}/owner/gated", "HF_TOKEN"]),
        ("private", ["shows no owner/private to you", "HF_TOKEN", "hf auth login"]),
        ("forbidden", ["shows no owner/forbidden to you", "this token cannot read it"]),
        ("broken", ["the disk of the hub is full", "hf download owner/broken"]),
    ],
)
def test_a_repository_that_gives_nothing_says_why(refusing_hub, name, told):
    wanted = Wanted(f"owner/{name}", "owner/name", "weights", "path", ("a.safetensors",))
    with pytest.raises(WeightsError) as caught:
        wanted.locate()
    message = str(caught.value)
    assert "\n" not in message
    for part in told:
        assert part.format(hub=refusing_hub) in message
