from __future__ import annotations

import torch
from torch import nn

from rsd_edge.distill.ema import Ema


def test_the_average_trails_its_network_and_forgets_the_start() -> None:
    network = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(1.0)
    ema = Ema(network, 0.5)
    expected = 1.0
    for update in range(1, 30):
        with torch.no_grad():
            network.weight.fill_(float(update))
        ema.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
        assert abs(ema.average.get_parameter("weight").item() - expected) < 1e-5 * update  # float32
    assert ema.updates == 29
    # Once the ramp is over, a constant slope of 1 leaves the average decay / (1 - decay) behind.
    assert abs(29 - expected - 1) < 1e-3


def test_buffers_are_copied_and_nothing_is_trained() -> None:
    network = nn.BatchNorm2d(2)
    ema = Ema(network, 0.9)
    assert not ema.average.training
    assert not any(parameter.requires_grad for parameter in ema.average.parameters())
    network(torch.arange(16.0).view(2, 2, 2, 2))
    assert not torch.equal(ema.average.get_buffer("running_mean"), network.get_buffer("running_mean"))
    ema.update()
    assert torch.equal(ema.average.get_buffer("running_mean"), network.get_buffer("running_mean"))
    assert ema.average.get_buffer("num_batches_tracked") == 1
    network(torch.zeros(2, 2, 2, 2))
    # A copy, not the same tensor.
    assert not torch.equal(ema.average.get_buffer("running_mean"), network.get_buffer("running_mean"))
