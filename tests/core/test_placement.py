"""Which nodes can hold a shard, and which actor goes on with which chain."""

from __future__ import annotations

import pytest

from sisa_ray.core.config import SisaConfig
from sisa_ray.core.errors import ConfigError
from sisa_ray.core.placement import (
    ACCELERATOR_LABEL,
    Node,
    Slot,
    kind_for,
    lack_of,
    next_match,
    num_slots,
    slot_of,
    worker_slot_of,
)
from tests.core.builders import make_config

BIG = Node(resources={"CPU": 16, "GPU": 2, "accelerator_type:A100": 1}, labels={ACCELERATOR_LABEL: "A100"})
SMALL = Node(resources={"CPU": 3}, labels={"zone": "b"})


@pytest.mark.parametrize(
    ("slot", "fits"),
    [
        (Slot(num_cpus=1, num_gpus=0), 19),
        (Slot(num_cpus=4, num_gpus=0), 4),
        (Slot(num_cpus=1, num_gpus=1), 2),
        (Slot(num_cpus=1, num_gpus=0.3), 6),
        (Slot(num_cpus=0.1, num_gpus=0), 190),
        (Slot(num_cpus=1, num_gpus=4), 0),
        (Slot(num_cpus=1, num_gpus=0, accelerator_type="A100"), 16),
        (Slot(num_cpus=1, num_gpus=0, accelerator_type="H100"), 0),
        (Slot(num_cpus=1, num_gpus=0, labels={"zone": "b"}), 3),
        (Slot(num_cpus=1, num_gpus=0, labels={"zone": "!b"}), 16),
        (Slot(num_cpus=1, num_gpus=0, labels={"zone": "in(a, b)"}), 3),
        (Slot(num_cpus=1, num_gpus=0, labels={"zone": "!in(a, b)"}), 16),
    ],
)
def test_slots_of_a_cluster(slot: Slot, fits: int) -> None:
    assert num_slots(slot, [BIG, SMALL]) == fits


def test_a_shard_of_several_workers_needs_a_slot_for_each() -> None:
    slot = Slot(num_cpus=1, num_gpus=0, holder="worker")
    assert num_slots(slot, [BIG, SMALL], num_each=4) == 4
    assert num_slots(slot, [SMALL], num_each=4) == 0
    lack = lack_of(slot, [SMALL], num_each=4)
    assert "needs 4 workers at once" in lack
    assert "cpus_per_worker=1" in lack
    assert "room for 3 (nodes: 3 CPUs and 0 GPUs)" in lack


def test_a_lack_says_what_is_asked_for_and_what_there_is() -> None:
    lack = lack_of(Slot(num_cpus=1, num_gpus=8, accelerator_type="H100"), [BIG, SMALL])
    assert "gpus_per_shard=8 and accelerator_type=H100" in lack
    assert "16 CPUs and 2 GPUs (A100); 3 CPUs and 0 GPUs" in lack
    assert "resources.max_slots" in lack


def test_what_shards_and_workers_occupy() -> None:
    config = make_config(
        arithmetic__device="cuda", resources__cpus_per_worker=2, resources__labels={"zone": "b"}
    )
    assert slot_of(config) == Slot(num_cpus=1, num_gpus=1, labels={"zone": "b"})
    assert worker_slot_of(config) == Slot(num_cpus=2, num_gpus=1, labels={"zone": "b"}, holder="worker")


def test_the_kind_of_accelerator_behind_a_platform() -> None:
    slot = Slot(num_cpus=1, num_gpus=1)
    assert kind_for({"device": "NVIDIA A100-SXM4-80GB"}, slot, [SMALL, BIG]) == "A100"
    assert kind_for({"device": "NVIDIA H100 PCIe"}, slot, [SMALL, BIG]) is None
    assert kind_for({"device": "NVIDIA A100-SXM4-80GB"}, Slot(num_cpus=1, num_gpus=4), [BIG]) is None


def test_a_chain_waits_for_its_own_platform_while_there_is_one() -> None:
    old, new = {"device": "A"}, {"device": "B"}
    assert next_match([old, None], [new], [old]) == (1, 0)
    assert next_match([old], [new], [old]) is None
    assert next_match([old], [new, old], []) == (0, 1)
    assert next_match([old], [new], []) == (0, 0)
    assert next_match([None], [], []) is None


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("max_slots", 0, "must be auto or a whole number from 1 to 100000, not 0"),
        ("wait_for_nodes_s", -1, "must be zero or a positive, finite number, not -1"),
        ("strategy", "spred", "did you mean 'spread'?"),
        ("labels", ["a"], "must map labels of nodes to values"),
        ("labels", {"zone": 3}, "put it in quotes"),
        ("labels", {"a b": "c"}, "rename it"),
    ],
)
def test_what_resources_refuse(key: str, value: object, rule: str) -> None:
    with pytest.raises(ConfigError, match="resources") as caught:
        make_config(**{f"resources__{key}": value})
    assert rule in str(caught.value)


def test_an_accelerator_type_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="accelerator_type is A100, but gpus_per_shard is 0"):
        make_config(resources__accelerator_type="A100", resources__gpus_per_shard=0)
    kept: SisaConfig = make_config(resources__accelerator_type="A100", resources__gpus_per_shard=1)
    assert kept.resources.accelerator_type == "A100"
