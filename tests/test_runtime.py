from __future__ import annotations

import pytest
import torch
from torch import nn

from rsd_edge.distill.runtime import Runtime
from rsd_edge.errors import InputError


def test_one_process_is_the_default() -> None:
    runtime = Runtime("cpu")
    assert (runtime.processes, runtime.rank, runtime.is_main) == (1, 0, True)
    assert runtime.device == torch.device("cpu")
    network, value = nn.Linear(1, 1), torch.ones(1)
    assert runtime.wrap(network) is network
    assert runtime.mean(value) is value
    assert runtime.any(True)
    assert not runtime.any(False)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_the_precision_is_that_of_autocast(precision: str, dtype: str) -> None:
    runtime = Runtime("cpu", precision)
    with runtime.autocast():
        assert str(nn.Linear(2, 2)(torch.ones(1, 2)).dtype) == f"torch.{dtype}"
    assert runtime.scaler().is_enabled() == (precision == "fp16")


@pytest.mark.parametrize("device", ["gpu", "meta", "cpu:0", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(InputError, match=f"device '{device}'"):
        Runtime(device)
