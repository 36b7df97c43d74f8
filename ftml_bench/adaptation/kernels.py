"""Convolution and batch norm of all tasks at once, with second derivatives that cost what they must.

PyTorch's own second derivatives are right here but slow: that of a grouped convolution runs group by group, and that of
batch norm takes some thirty passes over the maps. Both are written out below in terms of the kernels of the first
derivative. Third derivatives are refused by autograd.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_convolution_backward = torch.ops.aten.convolution_backward
_norm_backward = torch.ops.aten.native_batch_norm_backward


def conv2d(x: Tensor, weight: Tensor, geometry: tuple) -> Tensor:
    """`F.conv2d` without bias; geometry = (stride, padding, dilation, groups)."""
    return _Conv.apply(x, weight, geometry)


def _both(gradient: Tensor, x: Tensor, weight: Tensor, geometry: tuple, wanted: tuple[bool, bool]) -> list:
    """The gradients of <gradient, conv(x, weight)> in x and in weight, those that are wanted."""
    stride, padding, dilation, groups = geometry
    return _convolution_backward(
        gradient, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [*wanted, False]
    )[:2]


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, geometry: tuple) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return F.conv2d(x, weight, None, *geometry)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        dx, dw = _ConvBackward.apply(gradient, x, weight, ctx.geometry, ctx.needs_input_grad[:2])
        return dx, dw, None


class _ConvBackward(torch.autograd.Function):
    """<g, conv(x, w)> is linear in each of g, x and w, so its second derivatives are convolutions of the same kinds."""

    @staticmethod
    def forward(ctx, gradient: Tensor, x: Tensor, weight: Tensor, geometry: tuple, wanted: tuple[bool, bool]):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, x, weight)
        ctx.geometry = geometry
        return tuple(_both(gradient.contiguous(), x, weight, geometry, wanted))

    @staticmethod
    @once_differentiable
    def backward(ctx, gx: Tensor | None, gw: Tensor | None):
        gradient, x, weight = ctx.saved_tensors
        back = None
        if gx is not None:
            back = F.conv2d(gx, weight, None, *ctx.geometry)
        if gw is not None:
            other = F.conv2d(x, gw, None, *ctx.geometry)
            back = other if back is None else back.add_(other)
        wanted = (gw is not None and ctx.needs_input_grad[1], gx is not None and ctx.needs_input_grad[2])
        if not any(wanted):
            return back, None, None, None, None
        # in x: of <gradient, conv(x, gw)>; in the weight: of <gradient, conv(gx, weight)>
        dx, dw = _both(gradient, x if gx is None else gx, weight if gw is None else gw, ctx.geometry, wanted)
        return back, dx, dw, None, None


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """`F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)` for x (N, C, H, W)."""
    return _Norm.apply(x, weight, bias, eps)


def _channels(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        y, mean, rstd = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, mean, rstd = ctx.saved_tensors
        dx, dw, db = _NormBackward.apply(gradient, x, weight, mean, rstd, ctx.eps)
        return dx, *((dw, db) if weight is not None else (None, None)), None


class _NormBackward(torch.autograd.Function):
    """The gradients of <a, norm(x)> in x, in the scale (w) and in the offset; a is the incoming gradient.

    With h = (x - mean) r and sums over a channel's n values:
        dx = w r (a - sum(a) / n - h sum(a h) / n),  dw = sum(a h),  db = sum(a).
    `backward` derives L = <g, dx> + <gw, dw> + <gb, db>. What remains after the sums is linear in g, a and x with one
    factor a channel, so that it takes few passes over the maps.
    """

    @staticmethod
    def forward(ctx, a: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor, eps: float):
        a = a.contiguous()
        dx, dw, db = _norm_backward(a, x, weight, None, None, mean, rstd, True, eps, [True, True, True])
        ctx.save_for_backward(a, x, weight, mean, rstd, dw, db)
        ctx.eps = eps
        return dx, dw, db

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor, gw: Tensor, gb: Tensor):
        a, x, weight, mean, r, sum_ah, sum_a = ctx.saved_tensors
        n = x.numel() // len(mean)
        w = torch.ones_like(r) if weight is None else weight
        g = g.contiguous()
        # dL/da = the same projection of g, + gw h + gb
        da, sum_gh, sum_g = _norm_backward(g, x, weight, None, None, mean, r, True, ctx.eps, [True, True, True])
        da.addcmul_(x, _channels(r * gw)).add_(_channels(gb - mean * r * gw))
        sum_ga = (g * a).sum([0, 2, 3])
        c = sum_ga - sum_g * sum_a / n - sum_gh * sum_ah / n  # L = w r c + ..., so dL/dr = w c at fixed h
        # dL/dh = u g + v a, then through h and r to x
        u, v = -w * r * sum_ah / n, gw - w * r * sum_gh / n
        mean_d, mean_dh = (u * sum_g + v * sum_a) / n, (u * sum_gh + v * sum_ah) / n
        along = -r * mean_dh - w * c * r * r / n  # the factor of h
        dx = g * _channels(r * u)
        dx.addcmul_(a, _channels(r * v)).addcmul_(x, _channels(along * r))
        dx.add_(_channels(-r * mean_d - along * r * mean))
        return da, dx, None if weight is None else r * c, None, None, None


def batch_norm_by_first(x: Tensor, first: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """x (N, C, H, W) normalised by the statistics of its first `first` rows; differentiable once."""
    return _NormByFirst.apply(x, first, weight, bias, eps)


class _NormByFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, first: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        # the statistics alone, from `var_mean`, would take several times as long
        _, mean, rstd = torch.native_batch_norm(x[:first], None, None, None, None, True, 0.0, eps)
        var = rstd**-2
        ctx.save_for_backward(x, weight, mean, var, rstd)
        ctx.first = first
        return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, 0.0)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight, mean, var, r = ctx.saved_tensors
        rows = x[: ctx.first]
        gradient = gradient.contiguous()
        dx, dw, db = _norm_backward(gradient, x, weight, mean, var, None, None, False, 0.0, [True, True, True])
        # The first rows also move the statistics, by which all rows are normalised.
        scale = (r if weight is None else r * weight) / (rows.numel() // len(mean))
        own = dx[: ctx.first]
        own.addcmul_(rows, _channels(-scale * dw * r)).add_(_channels(scale * (mean * r * dw - db)))
        return dx, None, *((dw, db) if weight is not None else (None, None)), None
