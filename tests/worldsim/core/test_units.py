"""Native units and network units: by hand, there and back, within the limits."""

import numpy as np
import pytest
import torch

from worldsim.core.spec import Channel, Spec
from worldsim.core.units import Units

ACTION = (Channel("elbow", "deg", low=-90, high=90, normalisation="min_max"), Channel("gripper", "percent", high=100))


def spec(action: tuple[Channel, ...] = ACTION) -> Spec:
    rows = np.array([[-20.0, 0.0], [60.0, 100.0]])
    return Spec({}, 30, "arm", (Channel("q", normalisation="mean_std"),), action).fitted(np.array([[1.0], [5.0]]), rows)


def test_degrees_become_about_one_and_come_back():
    """-20..60 degrees is -1..1: 40 a unit around 20. A gripper of 0..100 that stays as it is has no lower limit."""
    units = Units(2)
    units.fit(spec(), "action")
    assert (units.shift.tolist(), units.scale.tolist()) == ([20, 0], [40, 1])
    native = torch.tensor([[60.0, 50.0], [-60.0, -3.0]])
    assert units.network(native).tolist() == [[1, 50], [-2, -3]]
    assert torch.equal(units.native(units.network(native)), native)
    assert units.native(torch.tensor([[2.0, 120.0], [-5.0, -9.0]])).tolist() == [[90, 100], [-90, -9]], "only its own limits hold"
    assert units.within(torch.tensor([[2.0, 120.0]])).tolist() == [[1.75, 100]]
    state = Units(1)
    state.fit(spec(), "state")
    assert state.network(torch.tensor([[7.0]])).item() == 2, "mean 3, standard deviation 2"


def test_until_it_is_fitted_the_network_speaks_for_itself():
    assert Units(2).native(torch.tensor([0.5, -3.0])).tolist() == [0.5, -1]


def test_other_numbers_of_channels_are_one_line():
    with pytest.raises(ValueError, match="built for 3 numbers of action, the data have 2: elbow, gripper; set its action_dim to 2"):
        Units(3).fit(spec(), "action")
