"""Plain stacks of named layers."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class Stack(nn.Sequential):
    """An `nn.Sequential` with a constructor of its own, which can be sliced all the same.

    `nn.Sequential` makes a slice by calling its own class with the layers; subclasses that take sizes instead would
    fail there.
    """

    def __getitem__(self, index):
        """A layer, or the layers of a slice as a plain `nn.Sequential`."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)
