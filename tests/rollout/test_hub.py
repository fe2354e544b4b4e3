"""What a user reads where the hub gives nothing, by a server that answers as the hub does."""

import pytest

from astrolabe_rollout import hub
from astrolabe_rollout.errors import CheckpointError


@pytest.mark.parametrize("source", ["owner/{}/weights.pt", "owner/{}"])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gated", ["licence is not accepted", "accept it at {hub}/owner/gated", "HF_TOKEN"]),
        ("private", ["shows no owner/private to you", "HF_TOKEN", "hf auth login"]),
        ("forbidden", ["shows no owner/forbidden to you", "this token cannot read it"]),
        ("broken", ["the disk of the hub is full", "hf download owner/broken"]),
    ],
)
def test_a_repository_that_gives_nothing_says_why(refusing_hub, name, told, source):
    with pytest.raises(CheckpointError) as caught:
        hub.locate(source.format(name), "checkpoint", "checkpoint")
    message = str(caught.value)
    assert "\n" not in message
    for part in told:
        assert part.format(hub=refusing_hub) in message
    assert "then set checkpoint=DIR" in message
