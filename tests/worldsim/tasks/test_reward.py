"""One reward for truth, verdicts and probabilities; the numbers are worked out here."""

import torch

from worldsim.core.types import Judgement
from worldsim.tasks.reward import ProgressReward, SparseSuccess

NAN = float("nan")


def judged(success: list, progress: list[float]) -> Judgement:
    return Judgement(success=torch.tensor(success), progress=torch.tensor(progress))


def test_progress_is_gained_and_lost_and_success_earns_its_bonus():
    """Half a task forward and done; a quarter back; done before already and still."""
    before = judged([False, False, True], [0.25, 0.5, 1.0])
    now = judged([True, False, True], [0.75, 0.25, 1.0])
    assert ProgressReward()(before, now).tolist() == [1.5, -0.25, 1.0]
    assert ProgressReward(progress=2.0, success=3.0)(before, now).tolist() == [4.0, -0.5, 3.0]


def test_success_alone_needs_no_progress():
    before, now = judged([False, False], [NAN, NAN]), judged([True, False], [NAN, 0.5])
    assert SparseSuccess(2.0)(before, now).tolist() == [2.0, 0.0]
    assert ProgressReward()(before, now).isnan().all(), "unknown progress is not none"


def test_a_probable_success_earns_its_share_and_has_a_gradient():
    """d reward / d (p, progress) = (success, progress): 3 and 2."""
    p, progress = torch.tensor([0.25], requires_grad=True), torch.tensor([0.5], requires_grad=True)
    reward = ProgressReward(progress=2.0, success=3.0)(judged([0.9], [0.25]), Judgement(success=p, progress=progress))
    assert reward.tolist() == [2 * 0.25 + 3 * 0.25]
    reward.sum().backward()
    assert p.grad.tolist() == [3.0] and progress.grad.tolist() == [2.0]
