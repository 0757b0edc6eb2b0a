"""What goes through a model."""

import collections
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from args_fast.ops.decoder_layers import InCpp

PRODUCTS = {"linear", "mm", "addmm", "bmm"}  # of torch's ops and of ours


def rows_of(model):
    """A list that receives the number of rows of every forward pass, and the hook to remove."""
    counted = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: counted.append(args[0].numel())
    )
    return counted, hook


class BytesRead(TorchDispatchMode):
    """Bytes that products read of tensors, by where they lie."""

    def __init__(self):
        super().__init__()
        self.of = collections.Counter()

    def count(self, args):
        single = (x for arg in args for x in (arg if isinstance(arg, list) else [arg]))
        tensors = [x for x in single if isinstance(x, torch.Tensor)]
        self.of.update({x.data_ptr(): x.nbytes for x in tensors})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in PRODUCTS:
            self.count(args)
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        """Layers in C++ are counted where they are called: the library holds their weights."""
        call = InCpp.__call__

        def counted(op, hidden, weights, *others):
            self.count([weights])
            return call(op, hidden, weights, *others)

        self._patched = mock.patch.object(InCpp, "__call__", counted)
        self._patched.start()
        return super().__enter__()

    def __exit__(self, *error):
        self._patched.stop()
        return super().__exit__(*error)


def reads_per_token(model, decode, through_modules=True):
    """How often a token after the first reads the weight of each linear layer: by name, calls of
    the module and bytes in the ops over the weight's.

    Args:
        model: whose layers are counted.
        decode: a function that decodes a number of tokens.
        through_modules: count calls of the modules. Hooks do that, with which no op runs in place
            of them.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    decode(1)  # what is done once
    totals = []
    for tokens in (1, 4):
        calls = collections.Counter()
        hooks = [
            layer.register_forward_hook(lambda *_, name=name, calls=calls: calls.update([name]))
            for name, layer in layers.items()
            if through_modules
        ]
        with BytesRead() as read:
            decode(tokens)
        for hook in hooks:
            hook.remove()
        bytes_read = {n: read.of[m.weight.data_ptr()] / m.weight.nbytes for n, m in layers.items()}
        totals.append({name: (calls[name], bytes_read[name]) for name in layers})
    few, many = totals
    return {
        name: tuple((b - a) / 3 for a, b in zip(few[name], many[name], strict=True))
        for name in layers
    }
