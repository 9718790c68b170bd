"""Deformable convolution (Dai et al. 2017), also modulated (Zhu et al. 2019), by torchvision's operator."""

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from zooport.export_core.modeling.layers import make_norm


class DeformableConv2d(nn.Module):
    """A square convolution that samples where an offset map says, then a norm and ReLU; no bias.

    Args:
        stride: of the output, likewise ``dilation`` of the kernel; the padding keeps the size.
        groups: of the convolution. The number of offset groups follows from the offsets.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        dilation: int,
        groups: int,
        norm: str,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.dilation = dilation
        self.padding = dilation * (kernel_size // 2)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        self.norm = make_norm(norm, out_channels)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor, offsets: Tensor, mask: Tensor | None) -> Tensor:
        """Return (N, out_channels, H', W').

        Args:
            x: (N, in_channels, H, W).
            offsets: (N, 2 * G * K * K, H', W'), pixels in y and x for each kernel cell of each offset group.
            mask: (N, G * K * K, H', W') factors of each sample, None for all 1.
        """
        x = deform_conv2d(
            x,
            offsets,
            self.weight,
            bias=None,
            stride=(self.stride, self.stride),
            padding=(self.padding, self.padding),
            dilation=(self.dilation, self.dilation),
            mask=mask,
        )
        return self.activation(self.norm(x))
