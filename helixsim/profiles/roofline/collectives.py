"""All-reduces among the GPUs of a machine."""

from __future__ import annotations

from helixsim.hardware.gpu import GpuMachine
from helixsim.profiles.operators import AllReduce
from helixsim.profiles.roofline.efficiency import Efficiency


def all_reduce(machine: GpuMachine, efficiency: Efficiency) -> AllReduce:
    """Costs of one all-reduce; a ring, whose steps grow with the number of GPUs."""
    link = efficiency.links.get(machine.gpu.interconnect) or efficiency.links["pcie"]
    further = max(machine.num_gpus - 2, 0)
    bandwidth = machine.gpu.interconnect_bytes_per_s or _NO_LINK_BYTES_PER_S
    return AllReduce(
        latency_s=link.latency_s + further * link.latency_per_gpu_s,
        bytes_per_s=bandwidth * link.bandwidth_share,
    )


_NO_LINK_BYTES_PER_S = 16e9
"""PCIe 3.0 x16, through the host's memory: what any machine has."""
