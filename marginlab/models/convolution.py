"""Convolutions whose gradients are right on a CPU, whatever the size of the map.

Two kernels of the convolution library under torch on CPUs (oneDNN 3.12, with torch 2.14) are wrong
in memory that is laid out with channels last, as it is in training here. Small ResNets on small
images meet both. An equal product replaces each:

    1 x 1 map, larger kernel     For the taps that see nothing but padding, the gradient of the
                                 weights in bfloat16 multiplies memory that nobody wrote by the
                                 output's gradient. This memory is mostly zeros or tiny numbers, at
                                 times NaN, which ends a run. Images of 8 to 16 pixels behind a
                                 strided stem meet it: one short run of seven ended so. One tap sees
                                 the pixel. The product with it is the whole convolution, and the
                                 gradient of the other taps is zero.
    1 x 1 kernel with a stride   The gradient of the weights in float32 writes past its workspace
                                 when there are fewer input channels than a block (8 or 16, oneDNN
                                 issue 6035). The result is a corrupted heap, a crash or a hang.
                                 Here every second pixel is taken first.
"""

import torch.nn.functional as F
from torch import Tensor, nn

# input channels from which the kernel with a stride is right on any CPU; taking every second pixel
# costs up to three times its time
BLOCK = 16


class Convolution(nn.Conv2d):
    """`torch.nn.Conv2d` with the two products above in place of two kernels.

    It has the same parameters under the same names.

    Example:
        >>> layer = Convolution(8, 16, 3, stride=2, padding=1)
        >>> layer(torch.ones(4, 8, 1, 1)).shape
        torch.Size([4, 16, 1, 1])
    """

    @classmethod
    def within(cls, module: nn.Module) -> None:
        """Turn every plain `nn.Conv2d` in a module into a `Convolution`, in place.

        Layers of other classes stay as they are.
        """
        for layer in module.modules():
            if type(layer) is nn.Conv2d:
                layer.__class__ = cls

    def forward(self, input: Tensor) -> Tensor:
        """Return the output (B, C_out, H_out, W_out) for an input (B, C_in, H, W)."""
        if input.dim() == 4 and self.padding_mode == "zeros" and not isinstance(self.padding, str):
            tap = self._tap(input.shape[-2:], self.padding)
            if tap is not None:
                i, j = tap
                return F.conv2d(
                    input, self.weight[:, :, i : i + 1, j : j + 1], self.bias, groups=self.groups
                )
            down, across = self.stride
            few = input.device.type == "cpu" and self.in_channels // self.groups < BLOCK
            if (
                few
                and self.kernel_size == (1, 1)
                and (down, across) != (1, 1)
                and self.padding == (0, 0)
            ):
                return F.conv2d(
                    input[:, :, ::down, ::across], self.weight, self.bias, groups=self.groups
                )
        return super().forward(input)

    def _tap(self, size: tuple[int, ...], paddings: tuple[int, ...]) -> tuple[int, int] | None:
        """Return where in the kernel a map of one pixel lies when the output has one pixel too.

        None for other maps, and for kernels of one tap.
        """
        if tuple(size) != (1, 1) or self.kernel_size == (1, 1):
            return None
        place = []
        for kernel, stride, padding, dilation in zip(
            self.kernel_size, self.stride, paddings, self.dilation, strict=True
        ):
            one = 0 <= (2 * padding - dilation * (kernel - 1)) < stride
            if not one or padding % dilation or padding // dilation >= kernel:
                return None
            place.append(padding // dilation)
        return place[0], place[1]
