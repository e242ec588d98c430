"""A trained policy behind the server acts as it does in an evaluation, however its observations are batched."""

from typing import Any

import numpy as np
import pytest
import torch

from models.policies.flow_vla import FlowVLA
from worldsim.core.flow import sample_ode
from worldsim.core.types import Observation
from worldsim.deploy.serving import TorchPolicy

SENTENCES = ("push the red block", "stop", "push the blue block onto the green disc")


def flow_vla(**arguments: Any) -> FlowVLA:
    """Random weights everywhere, so that its actions depend on every input."""
    torch.manual_seed(0)
    policy = FlowVLA(width=16, channels=8, blocks=1, num_steps=3, **arguments).eval()
    torch.nn.init.normal_(policy.trunk.blocks[0].second.weight, std=0.1)
    torch.nn.init.normal_(policy.trunk.out[-1].weight, std=3)
    torch.nn.init.normal_(policy.expert[-1].weight, std=0.5)
    return policy


def observations() -> tuple[Observation, list[dict]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (3, 64, 64, 3), generator=generator, dtype=torch.uint8)
    states, noise = torch.randn(3, 4, generator=generator), torch.randn(3, 4, 2, generator=generator)
    rows = [
        {
            "observation/image": images[i].numpy(),
            "observation/state": states[i].numpy(),
            "prompt": sentence,
            "noise": noise[i].numpy(),
        }
        for i, sentence in enumerate(SENTENCES)
    ]
    return Observation({"front": images}, states, SENTENCES), rows


def test_actions_are_those_of_the_policy_alone_and_in_batches() -> None:
    policy, (obs, rows) = flow_vla(), observations()
    served = TorchPolicy(policy, state_dim=4)
    with torch.no_grad():
        features, noise = policy.encode(obs), torch.from_numpy(np.stack([row["noise"] for row in rows]))
        expected = sample_ode(lambda x, t: policy.velocity(features, x, t), noise, num_steps=3).clamp(-1, 1).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 0.1 and np.abs(expected).min() < 1
    together, alone = served.infer(rows), [served.infer([row])[0] for row in rows]
    for got in (together, alone):
        assert [actions.dtype for actions in got] == [np.float32] * 3
        np.testing.assert_allclose(np.stack(got), expected, rtol=0, atol=1e-5)  # float32 sums of some hundred terms of order 1


def test_robots_with_pictures_of_different_sizes_are_answered_in_one_batch() -> None:
    """The policy itself sees what each of them sends, as it is sent."""
    policy, (obs, rows) = flow_vla(views={"front": (48, 80), "wrist": (64, 64)}), observations()
    served, generator = TorchPolicy(policy, state_dim=4), torch.Generator().manual_seed(2)
    expected = []
    for i, (front, wrist) in enumerate([((48, 80), (64, 64)), ((96, 160), (96, 96)), ((30, 40), (64, 100))]):
        images = {
            name: torch.randint(0, 256, (1, *size, 3), generator=generator, dtype=torch.uint8)
            for name, size in (("front", front), ("wrist", wrist))
        }
        rows[i] |= {f"observation/images/{name}": frames[0].numpy() for name, frames in images.items()}
        noise = torch.from_numpy(rows[i]["noise"])[None]
        with torch.no_grad():
            features = policy.encode(Observation(images, obs.state[i : i + 1], SENTENCES[i : i + 1]))
            expected.append(policy.action_units.native(policy.sample(features, noise))[0].numpy())
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    np.testing.assert_allclose(np.stack(served.infer(rows)), np.stack(expected), rtol=0, atol=1e-5)


def test_noise_is_seeded_where_the_client_sends_none() -> None:
    policy, (_, rows) = flow_vla(), observations()
    for row in rows:
        del row["noise"]
    first, second = (np.stack(TorchPolicy(policy, state_dim=4, seed=7).infer(rows)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = np.stack(TorchPolicy(policy, state_dim=4, seed=8).infer(rows))
    assert np.abs(first - other).max() > 0.01


def test_metadata_says_what_it_expects() -> None:
    metadata = TorchPolicy(flow_vla(), state_dim=4).metadata
    assert metadata["policy"] == "models.policies.flow_vla.FlowVLA" and metadata["views"] == {"front": [64, 64]}
    assert (metadata["state_dim"], metadata["noise_shape"]) == (4, [4, 2])


def test_a_fault_names_itself() -> None:
    _, rows = observations()
    rows[1]["observation/state"] = np.zeros(5, np.float32)
    with pytest.raises(ValueError, match=r"observation/state must be a float array of shape \(4,\), got float32 \(5,\)"):
        TorchPolicy(flow_vla(), state_dim=4).infer(rows)
