"""How many threads: physical cores that the process is bound to, within the container's quota."""

from pathlib import Path

import pytest
from tokenmill_worker.engine.threads import usable_cores


def machine(folder: Path, *siblings: str, quota: str | None = None) -> Path:
    for cpu, shared in enumerate(siblings):
        topology = folder / f"devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{shared}\n")
    (folder / "fs/cgroup").mkdir(parents=True)
    if quota is not None:
        (folder / "fs/cgroup/cpu.max").write_text(f"{quota}\n")
    return folder


def test_two_cpus_of_one_core_count_once(tmp_path: Path) -> None:
    assert usable_cores(range(4), system=machine(tmp_path, "0,2", "1,3", "0,2", "1,3")) == 2


def test_only_cpus_that_the_process_is_bound_to_count(tmp_path: Path) -> None:
    system = machine(tmp_path, "0-1", "0-1", "2-3", "2-3")
    assert usable_cores([0, 1], system=system) == 1
    assert usable_cores([1, 2], system=system) == 2


@pytest.mark.parametrize(
    ("quota", "num_cores"), [("max 100000", 4), ("200000 100000", 2), ("350000 100000", 3), ("50000 100000", 1)]
)
def test_a_container_gets_no_more_threads_than_its_quota_pays_for(tmp_path: Path, quota: str, num_cores: int) -> None:
    assert usable_cores(range(4), system=machine(tmp_path, "0", "1", "2", "3", quota=quota)) == num_cores


def test_a_machine_that_tells_nothing_has_a_core_for_each_cpu(tmp_path: Path) -> None:
    assert usable_cores(range(3), system=tmp_path) == 3


def test_this_machine_has_some() -> None:
    assert usable_cores() >= 1
