"""Time of a step by a roofline: a phase takes as long as its arithmetic or its traffic, the longer.

It leaves out the CPU (rewards that run there, files, Python) and waiting for the slowest process.
"""

from dataclasses import dataclass
from typing import Final

from astrolabe.plan_passes import Figures

GIB: Final = 2**30
#: Share of the peak that float32 products reach, which are limited by nothing else.
FP32_SHARE: Final = 0.7


@dataclass(frozen=True)
class Card:
    """A GPU, by its data sheet (dense, without sparsity).

    Attributes:
        name: What it is called.
        memory: Bytes that a process finds free on an idle one.
        bf16: Floating-point operations per second on bfloat16, summed in float32.
        fp32: The same on float32, without tensor cores.
        bandwidth: Bytes per second from its memory.
        link: Bytes per second to other GPUs of the machine, one way.
    """

    name: str
    memory: int
    bf16: float
    fp32: float
    bandwidth: float
    link: float


CARDS: Final = (
    Card("RTX 4090 (24 GB)", int(23.6 * GIB), 165e12, 83e12, 1008e9, 25e9),
    Card("L40S (48 GB)", int(44.4 * GIB), 362e12, 92e12, 864e9, 25e9),
    Card("H100 (80 GB)", int(79.1 * GIB), 989e12, 67e12, 3350e9, 450e9),
    Card("H200 (141 GB)", int(139.8 * GIB), 989e12, 67e12, 4800e9, 450e9),
)


@dataclass(frozen=True)
class Work:
    """What a phase of a step does on one GPU.

    Attributes:
        flops: Operations on bfloat16.
        flops_fp32: On float32.
        traffic: Bytes that must come from the card's memory at least.
        network: Bytes that this process sends.
    """

    flops: float = 0.0
    flops_fp32: float = 0.0
    traffic: float = 0.0
    network: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        """Both, one after the other."""
        return Work(
            self.flops + other.flops,
            self.flops_fp32 + other.flops_fp32,
            self.traffic + other.traffic,
            self.network + other.network,
        )

    def seconds(self, card: Card, utilisation: float) -> float:
        """Seconds on a card whose bfloat16 units do this share of what they could."""
        arithmetic = self.flops / (card.bf16 * utilisation)
        arithmetic += self.flops_fp32 / (card.fp32 * FP32_SHARE)
        return max(arithmetic, self.traffic / card.bandwidth) + self.network / card.link


def work(figures: Figures, times: float, traffic: float = 0.0, network: float = 0.0) -> Work:
    """What some passes do, so many times."""
    on_bf16 = figures.flops - figures.flops_fp32
    return Work(times * on_bf16, times * figures.flops_fp32, traffic, network)


def around(payload: float, processes: int) -> float:
    """Bytes that each process sends to sum a payload over all of them in a ring."""
    return 2 * payload * (processes - 1) / processes


def gathered(payload: float, processes: int) -> float:
    """Bytes that each process sends while all gather a payload of which each holds a part."""
    return payload * (processes - 1) / processes
