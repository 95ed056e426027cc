"""The memory and the devices of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.errors import UserError
from models.machine import choose_device, container_room, memory_budget


def cgroups(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_memory_left_in_a_container_is_read_from_both_versions_of_control_groups(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/pod/task\n")
    root = tmp_path / "two"
    cgroups(root, {
        "pod/task/memory.max": "max\n", "pod/task/memory.current": "50\n",
        "pod/memory.max": "1000\n", "pod/memory.current": "600\n", "pod/memory.stat": "anon 500\ninactive_file 100\n",
    })  # fmt: skip
    assert container_room(own, root) == [500]
    own.write_text("4:cpu,cpuacct:/\n3:memory:/pod\n0::/\n")
    root = tmp_path / "one"
    cgroups(root, {
        "memory/pod/memory.limit_in_bytes": "1000\n", "memory/pod/memory.usage_in_bytes": "700\n",
        "memory/pod/memory.stat": "cache 1\ntotal_inactive_file 200\n",
    })  # fmt: skip
    assert container_room(own, root) == [500]
    assert container_room(tmp_path / "no such file", root) == []


def test_the_budget_of_this_machine_is_below_its_memory() -> None:
    assert 0 <= memory_budget(torch.device("cpu")) < 2**50


def test_a_device_that_is_not_there_is_refused() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UserError, match="cuda:99"):
        choose_device("cuda:99")
