"""Programs as the Triton kernel wants them (kernels/trajectory.py): in square tiles."""

from __future__ import annotations

from fpfast.assemble import Layout
from fpfast.packing import SIDE

LAYOUT = Layout(rows=SIDE, matrix_rows=SIDE)
