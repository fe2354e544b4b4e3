"""TorchRL's collectors of several processes run environment and policy as they are."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close
from torchrl.collectors import MultiAsyncCollector, MultiSyncCollector

from astrolabe_rollout import (
    GroupSampler,
    PromptEnv,
    StreamingPolicy,
    add_lora,
    make_collector,
    trainable_parameters,
)
from astrolabe_rollout.keys import CONTEXT, EMBEDS, FPS, GROUP, INDEX, LATENTS, PIXELS, SEED, TEXT
from astrolabe_rollout.tiny import build_tiny
from astrolabe_rollout.weight_sync import (
    AdapterWeights,
    RayAdapterScheme,
    SharedAdapterScheme,
    adapter_weights,
)

FRAMES = 8  # a step: 2 prompts x 2 videos x 2 windows

#: `make_collector`'s, without what a collector of several processes sets itself.
SETTINGS = {
    "use_buffers": False,
    "trust_policy": True,
    "no_cuda_sync": True,
    "compact_obs": True,
    "auto_register_policy_transforms": False,
}


def makers(rank=0, world_size=1, lora_rank=4):
    """Return makers of environment and policy; workers can unpickle them without this file."""

    def make_env():
        prompts = ["a red circle moves left", "a blue square spins"]
        sampler = GroupSampler(
            prompts, num_prompts=2, group_size=2, seed=1, rank=rank, world_size=world_size
        )
        return PromptEnv(sampler, build_tiny(0).freeze(), windows=2)

    def make_policy():
        model = build_tiny(0).freeze()
        add_lora(model.transformer.network, rank=lora_rank, alpha=8)
        return StreamingPolicy(model, num_frames=3, stackable=True)

    return make_env, make_policy


def make_policy(**options):
    return makers(**options)[1]()


def nudge(policy, seed):
    """Change the adapter, so that it changes the videos."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in trainable_parameters(policy).values():
            values += 0.05 * torch.randn(values.shape, generator=generator)


def trained_policy():
    policy = make_policy()
    nudge(policy, 0)
    return policy


def collect(steps, nudges, rank, world_size):
    """Batches of one process, the adapter nudged after each."""
    policy, batches = trained_policy(), []
    for batch in make_collector(makers(rank, world_size)[0](), policy, steps):
        batches.append(batch.clone())
        if nudges:
            nudge(policy, len(batches))
    return batches


def collect_alone(steps, nudges=True):
    """What two processes draw, by one: each share alone, and all together but for last bits.

    How a matrix product rounds may depend on its number of rows, as some CPUs have other kernels
    for few.
    """
    together, *shares = (collect(steps, nudges, *share) for share in ((0, 1), (0, 2), (1, 2)))
    batches = [torch.cat(both) for both in zip(*shares, strict=True)]
    for batch, expected in zip(batches, together, strict=True):
        assert_same_videos(batch, expected, rounding=1e-5)
    return batches


def assert_same_videos(batch, expected, rounding=0.0):
    for key in (GROUP, SEED, EMBEDS, FPS, INDEX, CONTEXT, LATENTS):
        assert_close(batch[key], expected[key], rtol=0, atol=rounding, msg=str(key))
    difference = (batch[PIXELS].int() - expected[PIXELS].int()).abs().max()
    assert difference <= (1 if rounding else 0)
    assert batch[TEXT] == expected[TEXT]


def size(policy):
    return sum(values.nbytes for values in trainable_parameters(policy).values())


@pytest.fixture
def one_thread():
    """On more, the last bits of a matrix product depend on its number of rows.

    A collector of TorchRL goes back to more when it is shut down.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def policy():
    return trained_policy()


def local_workers(kind, scheme, steps, **options):
    return kind(
        [makers(rank, 2)[0] for rank in (0, 1)],
        policy_factory=makers()[1],
        total_frames=steps * FRAMES,
        num_threads=1,
        weight_sync_schemes={"policy": scheme},
        **SETTINGS,
        **options,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_synchronous_workers_give_what_one_process_gives_before_and_after_an_update(policy):
    expected, unchanged = collect_alone(3), collect_alone(2, nudges=False)
    scheme = SharedAdapterScheme(policy)
    collector = local_workers(
        MultiSyncCollector, scheme, 3, frames_per_batch=FRAMES, cat_results="stack"
    )
    try:
        batches = []
        for batch in collector:  # [workers, videos, windows]
            batches.append(batch.flatten(0, 1).clone())
            nudge(policy, len(batches))
            collector.update_policy_weights_(policy)
        assert set(scheme.weights.keys(True, True)) == set(adapter_weights(policy).keys(True, True))
        assert sum(values.nbytes for values in scheme.weights.values(True, True)) == size(policy)
    finally:
        collector.shutdown()
    for batch, theirs in zip(batches, expected, strict=True):
        assert_same_videos(batch, theirs)
    assert not batches[1][LATENTS].equal(unchanged[1][LATENTS])  # an update is to be seen


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_asynchronous_workers_give_the_videos_of_one_process_in_some_order(policy):
    # The faster worker may go ahead by up to four steps.
    expected = torch.cat(collect_alone(4, nudges=False))
    scheme = SharedAdapterScheme(policy)
    collector = local_workers(MultiAsyncCollector, scheme, 2, frames_per_batch=FRAMES // 2)
    try:
        batches = [batch.clone() for batch in collector]
    finally:
        collector.shutdown()
    assert len(batches) == 4
    seeds = expected[SEED][:, 0].tolist()
    rows = [seeds.index(seed) for batch in batches for seed in batch[SEED][:, 0].tolist()]
    assert len(set(rows)) == 8
    assert_same_videos(torch.cat(batches), expected[torch.tensor(rows)])


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:The policy is not an nn.Module:UserWarning")
def test_two_ray_workers_give_what_one_process_gives_before_and_after_an_update(
    policy, monkeypatch
):
    pytest.importorskip("ray")
    from torchrl.collectors.distributed import RayCollector

    # Ray would start its workers by the `uv run` that started this test.
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    expected, sent = collect_alone(3), []
    scheme = RayAdapterScheme(policy)
    collector = RayCollector(
        [makers(rank, 2)[0] for rank in (0, 1)],
        policy_factory=makers()[1],
        frames_per_batch=FRAMES,
        total_frames=3 * FRAMES,
        num_collectors=2,
        sync=True,
        weight_sync_schemes={"policy": scheme},
        collector_kwargs=dict(SETTINGS),
        ray_init_config={"num_cpus": 2, "include_dashboard": False, "log_to_driver": False},
        remote_configs={"num_cpus": 1, "num_gpus": 0, "memory": 2**30},
    )
    try:
        collector.update_policy_weights_(policy)
        for transport in scheme.sender_transports.values():
            send = transport.send_weights_async
            monkeypatch.setattr(
                transport,
                "send_weights_async",
                lambda weights, send=send: (sent.append(weights), send(weights)),
            )
        batches = []
        for batch in collector:  # [workers, videos, windows]
            batches.append(batch.flatten(0, 1).clone())
            nudge(policy, len(batches))
            if len(batches) < 3:  # it is shut down after the last
                collector.update_policy_weights_()
    finally:
        collector.shutdown()
    assert len(sent) == 4
    for weights in sent:
        assert sum(values.nbytes for values in weights.values(True, True)) == size(policy)
    for batch, theirs in zip(batches, expected, strict=True):
        assert_same_videos(batch, theirs)


def test_adapter_weights_are_the_part_of_the_policy_that_is_trained_and_share_its_memory(policy):
    weights = adapter_weights(policy)
    whole = TensorDict.from_module(policy)
    names = set(weights.keys(True, True))
    assert len(names) == len(trainable_parameters(policy))
    assert names < set(whole.keys(True, True))
    assert all("lora" in ".".join(name) for name in names)
    for name in names:
        assert weights[name].data_ptr() == whole[name].data_ptr()
        assert not weights[name].requires_grad


@pytest.mark.parametrize("scheme", [SharedAdapterScheme, RayAdapterScheme])
def test_a_policy_without_an_adapter_is_refused(scheme):
    with pytest.raises(ValueError, match="no parameter of the StreamingPolicy is trained"):
        scheme(StreamingPolicy(build_tiny(0).freeze(), 3))


@pytest.fixture
def linked(policy):
    """A policy and that of a worker, here in the same process, linked by a scheme."""
    scheme, theirs = SharedAdapterScheme(policy), make_policy()
    scheme.init_on_sender(
        model_id="policy",
        context=SimpleNamespace(num_workers=1),
        ctx=torch.multiprocessing.get_context("spawn"),
    )
    receiver = copy.copy(scheme)  # as pickle does
    receiver.init_on_receiver(model_id="policy", model=theirs, worker_idx=0)
    scheme.connect()
    receiver.connect(worker_idx=0)
    yield scheme, policy, theirs
    thread = receiver._background_thread
    receiver._stop_event.set()
    thread.join()
    receiver._is_shutdown = True  # the queues are the sender's here, too
    scheme.shutdown()


def agree(policy, other):
    pairs = zip(policy.parameters(), other.parameters(), strict=True)
    return all(ours.equal(theirs) for ours, theirs in pairs)


def test_a_worker_starts_with_the_adapter_and_changes_in_place_when_weights_are_sent(linked):
    scheme, policy, theirs = linked
    assert agree(policy, theirs)
    parameters = list(theirs.parameters())
    nudge(policy, 1)
    assert not agree(policy, theirs)  # an optimiser's step alone is not seen
    scheme.send()
    assert agree(policy, theirs)
    assert all(a is b for a, b in zip(theirs.parameters(), parameters, strict=True))
    assert not any(values.is_shared() for values in policy.parameters())


@pytest.mark.parametrize(
    "given", [lambda policy: policy, adapter_weights, TensorDict.from_module, lambda _: None]
)
def test_whatever_is_given_to_an_update_only_the_adapter_is_sent(linked, given):
    scheme, policy, theirs = linked
    nudge(policy, 1)
    with torch.no_grad():
        policy.transformer.network.patch_embedding.weight += 1
    scheme.send(given(policy))
    frozen, other = (dict(one.named_parameters()) for one in (policy, theirs))
    differ = [name for name, values in frozen.items() if not values.equal(other[name])]
    assert differ == ["transformer.network.patch_embedding.weight"]
    assert sum(values.nbytes for values in scheme.weights.values(True, True)) == size(policy)


def test_the_memory_that_is_shared_is_one_piece(linked):
    scheme, _, _ = linked
    pieces = {values.untyped_storage().data_ptr() for values in scheme.weights.values(True, True)}
    assert len(pieces) == 1


@pytest.mark.parametrize("kind", [SharedAdapterScheme, RayAdapterScheme])
def test_a_scheme_goes_to_a_worker_without_the_base(policy, kind):
    assert size(policy) < 500_000 < 15_000_000 < sum(p.nbytes for p in policy.parameters())
    assert len(pickle.dumps(kind(policy))) < 2 * size(policy)


def test_an_adapter_of_another_rank_is_refused_and_not_stretched(policy):
    theirs = make_policy(lora_rank=1)
    before = [values.clone() for values in theirs.parameters()]
    shapes = r"120 of another shape: .*\(4, 192\) instead of \(1, 192\)"
    with pytest.raises(ValueError, match=f"does not fit the worker's policy: {shapes}"):
        AdapterWeights().apply_weights(theirs, adapter_weights(policy))
    assert all(a.equal(b) for a, b in zip(theirs.parameters(), before, strict=True))


def test_a_worker_without_an_adapter_refuses_one(policy):
    bare = StreamingPolicy(build_tiny(0).freeze(), 3)
    with pytest.raises(ValueError, match=r"120 unexpected: .* Let policy_factory call add_lora"):
        AdapterWeights().apply_weights(bare, adapter_weights(policy))
