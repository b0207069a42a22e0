"""How much memory there is: the least of what the machine and its control groups leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from session_http.memory import available_memory

MB = 2**20


def machine(folder: Path, *groups: str, available: int = 1_000) -> tuple[Path, Path]:
    """Make what the kernel would show; return `/proc` and where control groups are."""
    proc, mounted = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    mounted.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {available * 1024} kB\n")
    (proc / "self" / "cgroup").write_text("".join(f"{line}\n" for line in groups))
    return proc, mounted


def v1(folder: Path, limit: int, used: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit * MB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used * MB}\n")
    (folder / "memory.stat").write_text(f"cache 5\ntotal_inactive_file {cache * MB}\n")


def v2(folder: Path, limit: int | None, used: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text("max\n" if limit is None else f"{limit * MB}\n")
    (folder / "memory.current").write_text(f"{used * MB}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache * MB}\n")


def test_without_limits_it_is_the_machine_s(tmp_path: Path) -> None:
    proc, mounted = machine(tmp_path, "4:memory:/a", "0::/")
    v1(mounted / "memory" / "a", 2**43, 1)
    assert available_memory(proc, mounted) == 1_000 * MB


def test_a_unit_s_limit_counts_and_its_cache_can_be_had(tmp_path: Path) -> None:
    proc, mounted = machine(tmp_path, "0::/system.slice/ours.service")
    v2(mounted / "system.slice" / "ours.service", 500, 300, cache=50)
    assert available_memory(proc, mounted) == 250 * MB


def test_what_it_is_in_may_have_less(tmp_path: Path) -> None:
    proc, mounted = machine(tmp_path, "0::/a/b")
    v2(mounted / "a" / "b", None, 10)
    v2(mounted / "a", 100, 90)
    assert available_memory(proc, mounted) == 10 * MB


def test_version_1_counts_too(tmp_path: Path) -> None:
    proc, mounted = machine(tmp_path, "5:cpu:/x", "4:hugetlb,memory:/ours", "0::/")
    v1(mounted / "memory" / "ours", 400, 100, cache=20)
    assert available_memory(proc, mounted) == 320 * MB


@pytest.mark.parametrize("path", ["/docker/0123", "/../../docker/0123"])
def test_in_a_container_that_is_told_the_host_s_path_the_top_is_its_own(
    tmp_path: Path, path: str
) -> None:
    proc, mounted = machine(tmp_path, f"4:memory:{path}", f"0::{path}")
    v1(mounted / "memory", 64, 60)
    v2(mounted, 32, 30)
    assert available_memory(proc, mounted) == 2 * MB


def test_more_than_the_limit_may_be_in_use(tmp_path: Path) -> None:
    proc, mounted = machine(tmp_path, "0::/")
    v2(mounted, 10, 20)
    assert available_memory(proc, mounted) == 0


def test_where_nobody_says_it_is_not_known(tmp_path: Path) -> None:
    assert available_memory(tmp_path, tmp_path) is None
