import pytest
import torch

from astrolabe_eval import Suite, generate

SUITE = Suite("demo", tuple(f"level {level}" for level in (10, 20, 30, 40, 50)))


def test_batches_cover_the_suite_in_order(bright_model):
    batches = list(generate(bright_model(0), SUITE, fps=8, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert [text for batch in batches for text in batch["prompt", "text"]] == list(SUITE.prompts)
    seeds = torch.cat([batch["prompt", "seed"] for batch in batches])
    assert tuple(seeds.tolist()) == SUITE.seeds


def test_a_model_gets_exactly_the_promised_entries(bright_model):
    seen = []

    def spy(batch):
        seen.append(batch.clone())
        return bright_model(0)(batch)

    list(generate(spy, SUITE, fps=7.5, batch_size=5))
    (batch,) = seen
    assert {key for key in batch.keys(include_nested=True) if isinstance(key, tuple)} == {
        ("prompt", "text"),
        ("prompt", "seed"),
        ("window", "index"),
        ("video", "fps"),
    }
    assert batch["window", "index"].dtype == torch.int64
    assert batch["window", "index"].eq(0).all()
    assert batch["video", "fps"].dtype == torch.float32
    assert batch["video", "fps"].eq(7.5).all()


def test_batch_size_does_not_change_the_videos(bright_model):
    one = torch.cat(
        [b["video", "pixels"] for b in generate(bright_model(0), SUITE, fps=8, batch_size=1)]
    )
    three = torch.cat(
        [b["video", "pixels"] for b in generate(bright_model(0), SUITE, fps=8, batch_size=3)]
    )
    assert torch.equal(one, three)


def test_progress_counts_finished_samples(bright_model):
    seen = []
    batches = generate(
        bright_model(0), SUITE, fps=8, batch_size=2, on_progress=lambda *count: seen.append(count)
    )
    next(batches)
    assert seen == []
    list(batches)
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_gradients_are_off_for_the_model_only(bright_model):
    states = []

    def spy(batch):
        states.append(torch.is_grad_enabled())
        return bright_model(0)(batch)

    for _ in generate(spy, SUITE, fps=8):
        states.append(torch.is_grad_enabled())
    assert states == [False, True]


def _without(key):
    def spoil(batch):
        return batch.exclude(key)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without(("video", "pixels")), r"no \('video', 'pixels'\)"),
        (_without(("prompt", "seed")), r"no \('prompt', 'seed'\)"),
        (lambda batch: batch.flip(0), "another order"),
        (lambda batch: batch[:1], r"\(1, 5, 3, 8, 8\) for 5 prompts"),
        (
            lambda batch: batch.set(("video", "pixels"), batch["video", "pixels"].float()),
            "float32",
        ),
        (
            lambda batch: batch.set(("video", "pixels"), batch["video", "pixels"].movedim(2, -1)),
            r"\(5, 5, 8, 8, 3\) for 5 prompts",
        ),
    ],
)
def test_answers_that_lost_their_prompts_are_refused(bright_model, spoil, message):
    def sample(batch):
        return spoil(bright_model(0)(batch))

    with pytest.raises(ValueError, match=message):
        list(generate(sample, SUITE, fps=8))


def test_options_are_checked_before_the_first_batch(bright_model):
    with pytest.raises(ValueError, match="batch_size is 0"):
        generate(bright_model(0), SUITE, fps=8, batch_size=0)
    with pytest.raises(ValueError, match="fps is 0"):
        generate(bright_model(0), SUITE, fps=0)
