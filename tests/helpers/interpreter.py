"""Where the interpreter of Triton 3.6.0 does not do what a GPU does, here it is made to.

Importing this module is enough.

Loop bounds are read in a way that numpy 2.4 refuses (triton issue 9171, fixed in later releases).
bfloat16 is stored as its bits in a uint16: tl.dot multiplies the bits themselves (issue 11584), and
the conversion from float32 rounds down, where a GPU rounds to the nearest.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

Builder = interpreter.InterpreterBuilder
_patch_lang_tensor = interpreter._patch_lang_tensor
_convert_float = interpreter._convert_float
_create_dot = Builder.create_dot


def _patch_with_index(tensor, scope):
    _patch_lang_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())


def _convert(data, source, target, rounding_mode):
    if source == tl.bfloat16 and target == tl.float32:
        return data.astype(np.uint32) << 16
    if source == tl.float32 and target == tl.bfloat16:
        rounded = torch.from_numpy(np.ascontiguousarray(data)).bfloat16()
        return rounded.view(torch.int16).numpy().view(np.uint16)
    return _convert_float(data, source, target, rounding_mode)


def _float32(handle):
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    wide = _convert(handle.data, tl.bfloat16, tl.float32, None).view(np.float32)
    return interpreter.TensorHandle(wide, tl.float32)


def _dot(self, a, b, *rest):
    return _create_dot(self, _float32(a), _float32(b), *rest)


interpreter._patch_lang_tensor = _patch_with_index
interpreter._convert_float = _convert
Builder.create_dot = _dot
