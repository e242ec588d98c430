"""A bundle behind the server: the keys of openpi's clients, checked in one line each."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from openpi import OpenpiClient
from tokenizers import Tokenizer

from worldsim.core.views import resize
from worldsim.robot.bundle import Bundle
from worldsim.robot.served_bundle import BundlePolicy
from worldsim.robot.server import Server

H, W, S, AH, AD = 4, 6, 3, 5, 2
DESCRIPTION = {
    "policy": "models.policies.flow_vla.FlowVLA",
    "views": {"wrist": [H, W]},
    "fps": 10,
    "state_names": ["x", "y", "z"],
    "action_names": None,
    "tokenizer": {"lowercase": True},
    "inputs": [
        {"name": "image", "shape": [1, H, W, 3], "dtype": "uint8"},
        {"name": "state", "shape": [1, S], "dtype": "float32"},
        {"name": "tokens", "shape": [1, 4], "dtype": "int64"},
        {"name": "noise", "shape": [1, AH, AD], "dtype": "float32"},
    ],
}


def graph(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Actions that tell which image, state, sentence and noise came in."""
    seen = feed["image"].astype(np.float32).mean() + 10 * feed["state"].sum() + 100 * feed["tokens"].sum()
    return {"actions": (seen + feed["noise"]).astype(np.float32)}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    vocabulary = '{"[PAD]":0,"push":1,"stop":2,"[UNK]":3}'
    tokenizer = Tokenizer.from_str(
        '{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,'
        '"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,'
        f'"model":{{"type":"WordLevel","vocab":{vocabulary},"unk_token":"[UNK]"}}}}'
    )
    tokenizer.enable_padding(length=4)
    tokenizer.enable_truncation(4)
    return Bundle(DESCRIPTION, tokenizer, graph, guided=graph)


def observation(**changes: Any) -> dict[str, Any]:
    image = np.arange(H * W * 3, dtype=np.uint8).reshape(H, W, 3)
    fields = {"observation/image": image, "observation/state": np.array([1, 2, 3], np.float32), "prompt": "push"}
    fields |= {key.replace("__", "/"): value for key, value in changes.items()}
    return {key: value for key, value in fields.items() if value is not ...}


def test_an_openpi_client_gets_the_actions_of_the_bundle(bundle: Bundle) -> None:
    noise = np.random.default_rng(1).standard_normal((AH, AD))
    with Server(BundlePolicy(bundle), port=0) as server, OpenpiClient(server.url) as client:
        got = client.infer(observation(noise=noise))["actions"]
        metadata = client.metadata
    fields = observation()
    expected = bundle(fields["observation/image"], fields["observation/state"], "push", noise.astype(np.float32))
    np.testing.assert_array_equal(got, expected)
    said = ("views", "fps", "state_names", "action_names")
    assert {key: metadata[key] for key in said} == {key: DESCRIPTION[key] for key in said}
    assert (metadata["state_dim"], metadata["noise_shape"]) == (S, [AH, AD])
    assert (metadata["action_horizon"], metadata["action_dim"], metadata["spec"]) == (AH, AD, None)


def test_every_part_of_the_observation_matters(bundle: Bundle) -> None:
    policy, noise = BundlePolicy(bundle), np.zeros((AH, AD), np.float32)
    image = np.zeros((H, W, 3), np.uint8)
    cases = [
        observation(noise=noise),
        observation(noise=noise + 1),
        observation(noise=noise, observation__image=image),
        observation(noise=noise, observation__state=np.zeros(S)),
        observation(noise=noise, prompt="stop"),
    ]
    answers = [float(actions[0, 0]) for actions in policy.infer(cases)]
    assert len(set(answers)) == len(answers)
    named = observation(noise=noise, observation__images__wrist=image)  # the named camera wins
    assert policy.infer([named])[0][0, 0] == answers[2]
    assert policy.infer([named | {"observation/image": ...}])[0][0, 0] == answers[2]
    assert policy.infer([observation(noise=noise, observation__wrist_image="not for us")])[0][0, 0] == answers[0]


def test_pictures_come_in_any_size_and_are_seen_as_the_policy_sees_them(bundle: Bundle) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (5 * H, 4 * W, 3), dtype=np.uint8)
    for size in ((5 * H, 4 * W), (1, 1), (2, W)):
        request = BundlePolicy(bundle).sizes.read(observation(observation__image=image[: size[0], : size[1]]))
        np.testing.assert_array_equal(request.image, resize(image[: size[0], : size[1]], (H, W)))


def test_cameras_lie_side_by_side_in_the_order_of_the_views(bundle: Bundle) -> None:
    two = Bundle({**DESCRIPTION, "views": {"wrist": [H, 2], "front": [2, 4]}}, bundle._tokenizer, graph, guided=graph)
    random, sizes = np.random.default_rng(0), BundlePolicy(two).sizes
    fields = observation(
        observation__image=...,
        observation__images__front=random.integers(0, 256, (7, 9, 3), dtype=np.uint8),
        observation__images__wrist=random.integers(0, 256, (H, 2, 3), dtype=np.uint8),
    )
    image = sizes.read(fields).image
    assert image.shape == (H, W, 3)
    np.testing.assert_array_equal(image[:, :2], fields["observation/images/wrist"])
    np.testing.assert_array_equal(image[:2, 2:], resize(fields["observation/images/front"], (2, 4)))
    assert not image[2:, 2:].any()
    assert sizes.metadata()["views"] == {"wrist": [H, 2], "front": [2, 4]}
    del fields["observation/images/front"]
    for others in ({}, {"observation/image": image}):  # whose it is nobody could tell
        with pytest.raises(ValueError, match="observation/images/front must be a picture, .*, got nothing"):
            sizes.read(fields | others)
    del fields["observation/images/wrist"]
    with pytest.raises(ValueError, match="observation/images/wrist must be a picture, .*, got nothing"):
        sizes.read(fields | {"observation/image": image})


def test_noise_is_seeded_where_the_client_sends_none(bundle: Bundle) -> None:
    first, second, other = BundlePolicy(bundle), BundlePolicy(bundle), BundlePolicy(bundle, seed=1)
    a, b = first.infer([observation()] * 2)
    np.testing.assert_array_equal(second.infer([observation()] * 2), [a, b])
    assert not np.array_equal(a, b) and not np.array_equal(a, other.infer([observation()])[0])


NAN = np.array([1, np.nan, 3], np.float32)
FAULTS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "no image": (
        lambda: observation(observation__image=...),
        "observation/images/wrist must be a picture, uint8 [height, width, 3] with sides of 1 to 4096, got nothing; convert it",
    ),
    "list": (
        lambda: observation(observation__image=[1]),
        "observation/image must be a picture, uint8 [height, width, 3] with sides of 1 to 4096, got a list",
    ),
    "float image": (
        lambda: observation(observation__image=np.zeros((H, W, 3), np.float32)),
        "observation/image must be a picture, uint8 [height, width, 3] with sides of 1 to 4096, got float32 (4, 6, 3)",
    ),
    "channels first": (lambda: observation(observation__image=np.zeros((3, H, W), np.uint8)), "got uint8 (3, 4, 6)"),
    "wrong named image": (
        lambda: observation(observation__images__wrist=np.zeros((4, 6, 4), np.uint8)),
        "observation/images/wrist must be a picture, uint8 [height, width, 3] with sides of 1 to 4096, got uint8 (4, 6, 4)",
    ),
    "grey image": (lambda: observation(observation__image=np.zeros((H, W), np.uint8)), "got uint8 (4, 6)"),
    "batch of images": (lambda: observation(observation__image=np.zeros((1, H, W, 3), np.uint8)), "got uint8 (1, 4, 6, 3)"),
    "empty image": (lambda: observation(observation__image=np.zeros((0, W, 3), np.uint8)), "got uint8 (0, 6, 3)"),
    "endless image": (lambda: observation(observation__image=np.zeros((1, 4097, 3), np.uint8)), "got uint8 (1, 4097, 3)"),
    "no state": (
        lambda: observation(observation__state=...),
        "observation/state must be a float array of shape (3,), got nothing",
    ),
    "long state": (
        lambda: observation(observation__state=np.zeros(4, np.float32)),
        "observation/state must be a float array of shape (3,), got float32 (4,)",
    ),
    "integer state": (lambda: observation(observation__state=np.zeros(3, np.int64)), "got int64 (3,)"),
    "NaN": (lambda: observation(observation__state=NAN), "observation/state must be finite"),
    "beyond float32": (lambda: observation(observation__state=np.full(3, 1e300)), "observation/state must be finite"),
    "no prompt": (lambda: observation(prompt=...), "prompt must be a sentence of at most 1000 characters, got a NoneType"),
    "bytes": (lambda: observation(prompt=b"push"), "got a bytes"),
    "long prompt": (lambda: observation(prompt="a" * 1001), "got 1001 characters"),
    "wrong noise": (lambda: observation(noise=np.zeros((AD, AH))), "noise must be a float array of shape (5, 2)"),
    "infinite noise": (lambda: observation(noise=np.full((AH, AD), np.inf)), "noise must be finite"),
    "no noise": (lambda: observation(noise=None), "noise must be a float array of shape (5, 2), got nothing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_clear_line(bundle: Bundle, fault: str) -> None:
    make, words = FAULTS[fault]
    with pytest.raises(ValueError, match="must be") as error:
        BundlePolicy(bundle).infer([make()])
    assert words in str(error.value) and "\n" not in str(error.value)


def test_actions_that_are_not_finite_are_the_clients_to_know(bundle: Bundle) -> None:
    broken = Bundle(DESCRIPTION, bundle._tokenizer, lambda feed: {"actions": np.full((1, AH, AD), np.nan, np.float32)}, graph)
    words = "actions are not finite; do not execute them"
    with (
        Server(BundlePolicy(broken), port=0) as server,
        OpenpiClient(server.url) as client,
        pytest.raises(RuntimeError, match=words),
    ):
        client.infer(observation())
