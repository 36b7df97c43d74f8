"""Convolution and batch norm of all tasks at once, with second derivatives that cost what they must.

PyTorch's own second derivatives are right here but slow: that of a grouped convolution runs group by group, and that of
batch norm takes some thirty passes over the maps. Both are written out below in terms of the kernels of the first
derivative. Third derivatives are refused.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ftml_bench.derivatives import once_differentiable

_convolution_backward = torch.ops.aten.convolution_backward
_norm_backward = torch.ops.aten.native_batch_norm_backward


# On a GPU products with patches are faster than a grouped convolution, which goes through the groups one by one, as
# long as the patches of one image are not more numbers than this.
MOST_PATCHES = 20_000


def conv2d(x: Tensor, weight: Tensor, geometry: tuple) -> Tensor:
    """The convolutions of T tasks, without bias.

    :param x: (N, T * C, H, W).
    :param weight: (T, O, C / g, kh, kw), where each convolution has g groups.
    :param geometry: stride, padding, dilation, T * g.
    :return: (N, T * O, oh, ow).
    """
    if x.is_cuda and geometry[2] == (1, 1):
        oh, ow = _size_after(x, weight, geometry)
        if oh * ow * weight[0, 0].numel() <= MOST_PATCHES:
            return conv2d_by_patches(x, weight, geometry)
    return _Conv.apply(x, weight.flatten(0, 1), geometry)


def _size_after(x: Tensor, weight: Tensor, geometry: tuple) -> list[int]:
    stride, padding = geometry[:2]
    return [
        (size + 2 * p - k) // s + 1
        for size, k, p, s in zip(x.shape[2:], weight.shape[3:], padding, stride, strict=True)
    ]


def conv2d_by_patches(x: Tensor, weight: Tensor, geometry: tuple) -> Tensor:
    """As `conv2d`, by batched matrix products with the patches under the kernel; without dilation."""
    stride, padding, _, groups = geometry
    patches = _Patches.apply(x, tuple(weight.shape[3:]), stride, padding, groups)
    maps = torch.bmm(weight.reshape(groups, -1, patches.shape[1]), patches)  # (G, O / g, N * oh * ow)
    maps = maps.view(groups, -1, len(x), *_size_after(x, weight, geometry))
    return maps.permute(2, 0, 1, 3, 4).flatten(1, 2)


class _Patches(torch.autograd.Function):
    """(N, G * C, H, W) -> (G, C * kh * kw, N * oh * ow), the patches of each group side by side."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: tuple, stride: tuple, padding: tuple, groups: int) -> Tensor:
        ctx.of = (tuple(x.shape[2:]), len(x), kernel, stride, padding, groups)
        (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
        patches = F.pad(x, (pw, pw, ph, ph)).unfold(2, kh, sh).unfold(3, kw, sw).unflatten(1, (groups, -1))
        channels = patches.shape[2]
        return patches.permute(1, 2, 5, 6, 0, 3, 4).reshape(groups, channels * kh * kw, -1)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _Fold.apply(gradient, *ctx.of), None, None, None, None


class _Fold(torch.autograd.Function):
    """The adjoint of `_Patches`: every patch is added where it was taken from."""

    @staticmethod
    def forward(ctx, patches: Tensor, size: tuple, n: int, kernel: tuple, stride: tuple, padding: tuple, groups: int):
        ctx.of = (kernel, stride, padding, groups)
        columns = patches.unflatten(2, (n, -1)).permute(2, 0, 1, 3).flatten(0, 1)  # (N * G, C * kh * kw, oh * ow)
        return F.fold(columns, size, kernel, padding=padding, stride=stride).unflatten(0, (n, groups)).flatten(1, 2)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _Patches.apply(gradient, *ctx.of), *[None] * 6


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
        g = g.contiguous()
        # dL/da = the same projection of g, + gw h + gb
        da, sum_gh, sum_g = _norm_backward(g, x, weight, None, None, mean, r, True, ctx.eps, [True, True, True])
        r_gw = r * gw
        da.addcmul_(x, _channels(r_gw)).add_(_channels(torch.addcmul(gb, mean, r_gw, value=-1)))
        # L = w r c + ..., so dL/dr = w c at fixed h
        c = (g * a).sum([0, 2, 3]).addcmul_(sum_g, sum_a, value=-1 / n).addcmul_(sum_gh, sum_ah, value=-1 / n)
        # dL/dh = u g + v a, then through h and r to x; few operations, since on a GPU each is a kernel
        wr = r if weight is None else weight * r
        u = wr * sum_ah * (-1 / n)
        v = torch.addcmul(gw, wr, sum_gh, value=-1 / n)
        sum_d = (u * sum_g).addcmul_(v, sum_a)
        sum_dh = (u * sum_gh).addcmul_(v, sum_ah)
        along = sum_dh.addcmul_(wr, c).mul_(r * r)  # -n times the factor of x
        dx = g * _channels(r * u)
        dx.addcmul_(a, _channels(r * v)).addcmul_(x, _channels(along), value=-1 / n)
        dx.add_(_channels((along * mean).addcmul_(r, sum_d, value=-1)), alpha=1 / n)
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
