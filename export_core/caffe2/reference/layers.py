"""Convolutions, pooling and matrix products. Features are float32 (N, C, H, W)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from zooport.export_core.caffe2.reference.registry import Call, NotImplementedHere, operator, refuse_unless


def _pair(call: Call, single: str, default: int) -> tuple[int, int]:
    """Return (vertical, horizontal) of an argument that has three spellings: x, x_h and x_w, xs."""
    both = call.integers(f"{single}s")
    if both:
        refuse_unless(len(both) == 2, f"{single}s has {len(both)} values")
        return both[0], both[1]
    if call.has(f"{single}_h") or call.has(f"{single}_w"):
        return call.integer(f"{single}_h", default), call.integer(f"{single}_w", default)
    return (call.integer(single, default),) * 2


def _pads(call: Call) -> tuple[int, int, int, int]:
    """Return (top, left, bottom, right)."""
    four = call.integers("pads")
    if four:
        refuse_unless(len(four) == 4, f"pads has {len(four)} values")
        return four[0], four[1], four[2], four[3]
    if any(call.has(f"pad_{side}") for side in "tlbr"):
        top, left, bottom, right = (call.integer(f"pad_{side}", 0) for side in "tlbr")
        return top, left, bottom, right
    return (call.integer("pad", 0),) * 4


def _check_order(call: Call) -> None:
    call.only("order", "NCHW")
    call.only("legacy_pad", 0)


def _padded(x: Tensor, pads: tuple[int, int, int, int], value: float) -> Tensor:
    top, left, bottom, right = pads
    return functional.pad(x, (left, right, top, bottom), value=value) if any(pads) else x


@operator("Conv")
def conv(call: Call) -> Tensor:
    """Convolution; the filter is (M, C / group, kH, kW), the bias (M,) or absent."""
    _check_order(call)
    x, weight, *bias = call.inputs
    refuse_unless(x.dim() == weight.dim() == 4, "only images are convolved here")
    kernel = _pair(call, "kernel", 0)
    refuse_unless(tuple(weight.shape[2:]) == kernel, f"a filter of {tuple(weight.shape)} is not {kernel}")
    pads = _pads(call)
    dilation = _pair(call, "dilation", 1)
    for axis in (0, 1):
        reach = x.shape[axis + 2] + pads[axis] + pads[axis + 2] - dilation[axis] * (kernel[axis] - 1)
        refuse_unless(reach > 0, "the kernel is larger than the padded input")
    return functional.conv2d(
        _padded(x, pads, 0.0),
        weight,
        bias[0] if bias else None,
        stride=_pair(call, "stride", 1),
        dilation=dilation,
        groups=call.integer("group", 1),
    )


@operator("ConvTranspose")
def conv_transpose(call: Call) -> Tensor:
    """Transposed convolution; the filter is (C, M / group, kH, kW). Pads are cut off the result."""
    _check_order(call)
    if _pair(call, "dilation", 1) != (1, 1):
        raise NotImplementedHere("with dilation")
    x, weight, *bias = call.inputs
    kernel = _pair(call, "kernel", 0)
    refuse_unless(tuple(weight.shape[2:]) == kernel, f"a filter of {tuple(weight.shape)} is not {kernel}")
    stride = _pair(call, "stride", 1)
    extra = _pair(call, "adj", 0)
    refuse_unless(extra[0] < stride[0] and extra[1] < stride[1], "adj is not below the stride")
    top, left, bottom, right = _pads(call)
    groups = call.integer("group", 1)
    made = functional.conv_transpose2d(x, weight, bias[0] if bias else None, stride, 0, extra, groups)
    return made[:, :, top : made.shape[2] - bottom, left : made.shape[3] - right].contiguous()


def _pooling(call: Call) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
    """Return (kernel, stride, pads) of a pooling operator."""
    _check_order(call)
    if call.flag("global_pooling", False):
        x = call.inputs[0]
        return (x.shape[2], x.shape[3]), (1, 1), (0, 0, 0, 0)
    if _pair(call, "dilation", 1) != (1, 1):
        raise NotImplementedHere("with dilation")
    kernel, pads = _pair(call, "kernel", 0), _pads(call)
    refuse_unless(min(kernel) > 0, "no kernel is given")
    refuse_unless(max(pads[::2]) < kernel[0] and max(pads[1::2]) < kernel[1], "pads are not below the kernel")
    return kernel, _pair(call, "stride", 1), pads


@operator("MaxPool")
def max_pool(call: Call) -> Tensor:
    """The largest number under a window; what pads does not count."""
    kernel, stride, pads = _pooling(call)
    return functional.max_pool2d(_padded(call.inputs[0], pads, -math.inf), kernel, stride)


@operator("AveragePool")
def average_pool(call: Call) -> Tensor:
    """The mean under a window; ``count_include_pad`` says whether what pads counts."""
    kernel, stride, pads = _pooling(call)
    x = call.inputs[0]
    sums = functional.avg_pool2d(_padded(x, pads, 0.0), kernel, stride, divisor_override=1)
    if call.flag("count_include_pad", False):
        return sums / (kernel[0] * kernel[1])
    inside = _padded(torch.ones_like(x[:1, :1]), pads, 0.0)
    return sums / functional.avg_pool2d(inside, kernel, stride, divisor_override=1)


@operator("FC", "FCTransposed")
def fully_connected(call: Call) -> Tensor:
    """A linear layer on all dimensions from ``axis`` on; weights (M, K), or (K, M) when transposed."""
    x, weight, bias = call.inputs
    axis, axis_w = call.integer("axis", 1), call.integer("axis_w", 1)
    rows = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    matrix = weight.reshape(math.prod(weight.shape[:axis_w]), math.prod(weight.shape[axis_w:]))
    if call.kind == "FC":
        matrix = matrix.t()
    refuse_unless(rows.shape[1] == matrix.shape[0], f"{rows.shape[1]} features, {matrix.shape[0]} weights")
    refuse_unless(bias.shape == matrix.shape[1:], f"a bias of {tuple(bias.shape)}")
    return torch.addmm(bias, rows, matrix).reshape(*x.shape[:axis], matrix.shape[1])


@operator("MatMul")
def matrix_product(call: Call) -> Tensor:
    """A product of two matrices, each transposed when ``trans_a`` or ``trans_b`` says so."""
    a, b = call.inputs[:2]
    refuse_unless(a.dim() == b.dim() == 2, "inputs that are no matrices")
    return (a.t() if call.flag("trans_a", False) else a) @ (b.t() if call.flag("trans_b", False) else b)


@operator("BatchMatMul")
def batch_matrix_product(call: Call) -> Tensor:
    """Products of the matrices in the last two dimensions."""
    a, b = call.inputs
    if not call.flag("broadcast", False):
        refuse_unless(a.dim() == b.dim() >= 2 and a.shape[:-2] == b.shape[:-2], "batches differ")
    a = a.transpose(-1, -2) if call.flag("trans_a", False) else a
    b = b.transpose(-1, -2) if call.flag("trans_b", False) else b
    return torch.matmul(a, b)
