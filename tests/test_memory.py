import platform
import resource
import sys

import numpy as np
import pytest

from datxai.memory import keep_freed_memory, measure_peak

SIZE = 2**26  # bytes, 16384 pages of 4 KiB
MAX_FAULTS = 100


def page_faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    _ = b"x" * SIZE
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_a_freed_block_is_used_again_without_page_faults():
    assert keep_freed_memory()
    page_faults()
    assert min(page_faults() for _ in range(3)) < MAX_FAULTS


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_the_peak_is_what_was_in_use_at_once():
    def work(n: int) -> int:
        return len([np.ones(SIZE // 8) for _ in range(n)])  # float64

    for n in (3, 1, 2):
        result, peak = measure_peak(lambda n=n: work(n))
        assert result == n
        assert peak == pytest.approx(n * SIZE, rel=0.1)
