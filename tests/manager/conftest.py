"""The devices that the requirements on the manager are tested on."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_managers import CUDA


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=CUDA)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)
