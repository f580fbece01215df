"""Measuring the backends of a GPU, when the user asks for it: accuracy first, then speed, then a table that runs read.

Nothing below this package measures. Shapes come from the model, inputs from `inputs`: they tell right from wrong, which
a user's own need not.
"""

from .measuring import CANDIDATES, autotune, workload
from .table import share, write

__all__ = ["CANDIDATES", "autotune", "share", "workload", "write"]
