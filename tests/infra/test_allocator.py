"""The allocator keeps what forwards free."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from infra.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import numpy
numpy.ones(2**26, numpy.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    numpy.ones(2**26, numpy.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has the setting")
def test_large_blocks_are_not_mapped_anew_each_time() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True).stdout)
        for way in ("keep", "let go")
    }
    assert faults["keep"] < faults["let go"] / 10
