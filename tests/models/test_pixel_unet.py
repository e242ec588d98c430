"""The pixel world model of diffusers' parts: chunks may be cut, gradients pass, it learns where an action moves what it sees."""

from typing import Any

import pytest
import torch
from toy_spec import toy_spec

from models.world.pixel_unet import PixelUNetWorldModel
from worldsim.core.noise import Noise
from worldsim.core.types import float_image

SIDE = 16


def moving_squares(b: int, context: int, horizon: int, seed: int) -> dict[str, Any]:
    """Windows in which a white square of 6 pixels moves by 2 times the action, two steps beforehand as well; the state is its
    place."""
    generator = torch.Generator().manual_seed(seed)
    action = torch.randint(-1, 2, (b, horizon, 2), generator=generator).float()
    place = torch.randint(4, 7, (b, 1, 2), generator=generator) + 2 * torch.nn.functional.pad(action.cumsum(1), (0, 0, context, 0))
    pixel, place = torch.arange(SIDE), place[:, 1:]
    place = torch.cat([place[:, :1], place], dim=1)[:, -(context + horizon) :]
    rows, columns = ((pixel >= place[..., i : i + 1]) & (pixel < place[..., i : i + 1] + 6) for i in (0, 1))
    frames = (rows[..., None] & columns[..., None, :])[..., None].expand(-1, -1, -1, -1, 3).to(torch.uint8) * 200 + 20
    state = torch.cat([place, torch.zeros_like(place)], dim=-1)
    return {"images": {"front": frames}, "state": state, "action": action, "valid": torch.ones(b, horizon, dtype=torch.bool)}


def model(**more: Any) -> PixelUNetWorldModel:
    torch.manual_seed(0)
    made = PixelUNetWorldModel(context=2, action_horizon=2, channels=(16, 32), layers=1, views={"front": (SIDE, SIDE)}, **more)
    made.fit_statistics({}, toy_spec(10 * torch.rand(50, 4)))
    return made.eval()


def begun(made: PixelUNetWorldModel, batch: dict[str, Any]) -> Any:
    return made.init({"front": batch["images"]["front"][:, :2]}, batch["state"][:, :2])


def test_a_chunk_may_be_cut_anywhere() -> None:
    made, batch = model(), moving_squares(3, 2, 2, 0)
    noise, start = Noise.rows(1, 3), begun(made, batch)
    with torch.no_grad():
        end, images, states = made.step(start, batch["action"], noise)
        first, one, _ = made.step(start, batch["action"][:, :1], noise)
        last, other, _ = made.step(first, batch["action"][:, 1:], noise.at(1))
        _, strange, _ = made.step(first, batch["action"][:, 1:], noise)
    torch.testing.assert_close(images["front"], torch.cat([one["front"], other["front"]], dim=1), rtol=0, atol=1e-5)
    torch.testing.assert_close(end.frames, last.frames, rtol=0, atol=1e-5)
    torch.testing.assert_close(end.state, states[:, -1])
    assert (other["front"] - strange["front"]).abs().max() > 1e-2, "noise of another step gives another frame"


def test_gradients_pass_from_the_last_frame_to_the_first_action() -> None:
    made, batch = model(), moving_squares(2, 2, 2, 0)
    actions = batch["action"].clone().requires_grad_()
    _, images, states = made.step(begun(made, batch), actions, Noise.rows(1, 2))
    (seen,) = torch.autograd.grad(images["front"][:, 1].square().sum(), actions, retain_graph=True)
    (felt,) = torch.autograd.grad(states[:, 1].sum(), actions)
    assert (seen[:, 0].abs() > 0).all() and (felt[:, 0].abs() > 0).all()


def test_frames_of_any_number_but_its_context_are_refused() -> None:
    made, batch = model(), moving_squares(2, 2, 2, 0)
    with pytest.raises(ValueError, match="starts from 2 frames, got 4"):
        made.init(batch["images"], batch["state"])
    with pytest.raises(ValueError, match="1 to 2 actions, got 3"):
        made.step(begun(made, batch), torch.zeros(2, 3, 2), Noise.rows(1, 2))


def test_it_learns_where_an_action_moves_what_it_sees() -> None:
    """After some updates a dreamed square is nearer to where it went than where it was, in the picture and in the state."""
    made = model().train()
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    for number in range(150):
        loss, _ = made.loss(moving_squares(32, 2, 2, number), torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made.eval()
    batch = moving_squares(64, 2, 2, 10**6)
    with torch.no_grad():
        _, images, states = made.step(begun(made, batch), batch["action"], Noise.rows(1, 64))
    frames = float_image(batch["images"]["front"])
    error, still = ((guess - frames[:, 2:]).square().mean() for guess in (images["front"], frames[:, 1:2]))
    assert error < 0.5 * still
    error, still = ((guess - batch["state"][:, 2:]).square().mean() for guess in (states, batch["state"][:, 1:2]))
    assert error < 0.5 * still


def test_steps_behind_an_episodes_end_do_not_count() -> None:
    made, batch = model(), moving_squares(4, 2, 2, 0)
    batch["valid"][:, 1] = False
    others = {**batch, "images": {"front": batch["images"]["front"].clone()}, "state": batch["state"].clone()}
    others["images"]["front"][:, 3], others["state"][:, 3] = 0, 100
    losses = [made.loss(one, torch.Generator().manual_seed(0))[0] for one in (batch, others)]
    assert torch.equal(*losses)
