"""From a robot's own units to those of a network, and back: an affine map of each channel, stored with the weights.

Policies and world models take and give native units (degrees, metres, percent); their networks see numbers of about one. The map
comes from a `Spec`, whose statistics are those of the training data. Read `interfaces.py` next.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldsim.core.spec import Spec


class Units(nn.Module):
    """network = (native - shift) / scale, and the limits of each channel in native units.

    Until it is fitted native units are those of the network, within [-1, 1].

    Args:
        dim: number of channels.
    """

    shift: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, dim: int):
        super().__init__()
        for name, value in {"shift": 0.0, "scale": 1.0, "low": -1.0, "high": 1.0}.items():
            self.register_buffer(name, torch.full((dim,), value))

    def fit(self, spec: Spec, feature: Literal["state", "action"]) -> None:
        """Take the map and the limits of a specification's channels.

        Raises:
            ValueError: if there is another number of channels, or a normalisation lacks its statistics.
        """
        channels = getattr(spec, feature)
        if len(channels) != len(self.shift):
            names = ", ".join(channel.name for channel in channels)
            raise ValueError(
                f"the model was built for {len(self.shift)} numbers of {feature}, the data have {len(channels)}: {names}; "
                f"set its {feature}_dim to {len(channels)}"
            )
        shift, scale = spec.affine(feature)
        limits = [[channel.low for channel in channels], [channel.high for channel in channels]]
        for buffer, values in zip((self.shift, self.scale, self.low, self.high), (shift, scale, *limits), strict=True):
            buffer.copy_(torch.as_tensor(values, dtype=torch.float64))

    def network(self, native: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """What a network sees of numbers in native units."""
        return (native - self.shift) / self.scale

    def native(self, network: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Native units of what a network says, within the limits."""
        return (network * self.scale + self.shift).clamp(self.low, self.high)

    def within(self, network: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """What a network says, moved within the limits."""
        return self.network(self.native(network))
