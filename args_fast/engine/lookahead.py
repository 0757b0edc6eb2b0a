"""Whether the language model looks ahead, where nobody has said."""

import math

import torch

from args_fast.models.backbone import Backbone

# Rows at which a matrix product's arithmetic takes as long as reading its weights, which is
# peak / bandwidth * bytes per weight / 2, by data sheet: compute capability -> bytes per weight.
# A100-80GB: 312 and 19.5 TFLOP/s, 2.04 TB/s. H200: 989 and 67 TFLOP/s, 4.8 TB/s; an H100 has less
# bandwidth, so more rows.
RIDGE = {(8, 0): {2: 153, 4: 19}, (9, 0): {2: 206, 4: 28}}
# Up to this part of them k rows cost about what one costs, on one bus with the other model.
SHARED = 0.25


def most_rows(lm: Backbone, rm: Backbone, lookahead: bool | str) -> float:
    """The largest B * k with which the language model looks ahead. "auto" is computed, not
    measured: never on the CPU, where a row more is a row more of work; up to the ridge where each
    model has a device of its own; up to a part of it where they share one."""
    if lookahead != "auto":
        return math.inf if lookahead else 0
    if lm.device.type != "cuda":
        return 0
    capability = torch.cuda.get_device_capability(lm.device)
    known = [each for each in RIDGE if each <= capability]
    ridge = RIDGE[max(known)].get(lm.layout.dtype.itemsize, 0) if known else 0
    return ridge if lm.device != rm.device else SHARED * ridge
