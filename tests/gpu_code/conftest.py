"""Puts tests/ on the path, so that `gpu_code` is a package wherever the tests are started."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault(
    "TRITON_DEFAULT_FP_FUSION", "1"
)  # as every backend asks for; unset, Triton warns
