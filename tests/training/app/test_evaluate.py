"""`worldsim evaluate` and `rollout`: on every world that dreams can be compared with, the same rates, and nothing lost."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from known_world import KnownActor, KnownWorld, truth

from models.policies.flow_vla import FlowVLA
from models.renderers.baked import BakedField
from reflectors.instant import InstantReflector
from training.app import cli
from training.app import evaluate as evaluation
from training.app.verbs import _store
from training.supervised.dream_judge import highest_success
from worldsim.core import checkpoint
from worldsim.core.interfaces import Policy, WorldModel
from worldsim.core.types import Features
from worldsim.data.lerobot import Dataset
from worldsim.data.store import FrameStore
from worldsim.measure.collect import PolicyActor
from worldsim.measure.identification import SPREAD
from worldsim.measure.metrics import agreement, confusion, percent, success_rate
from worldsim.worlds.dream import DreamWorld, Starts

EPISODES = 8


@pytest.fixture
def field(tmp_path: Path) -> str:
    """A grey table."""

    def query(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 1000.0 * (points[:, 2] < 0), torch.full((len(points), 3), 0.4)

    baked = BakedField((-0.44, -0.44, -0.04), (0.44, 0.44, 0.16), (24, 24, 12), coarse=24, fine=24)
    return str(checkpoint.save(baked.bake(query), tmp_path / "field"))


@pytest.fixture
def identified(tmp_path: Path) -> str:
    file = tmp_path / "identified.json"
    nothing = dict.fromkeys(SPREAD, 1.0) | {name: 0.0 for name in SPREAD if name.startswith(("view.", "latency.", "sensor.n"))}
    file.write_text(json.dumps({"found": nothing | {"view.zoom": 1.0}}))
    return str(file)


WORLDS = {
    "plain": [],
    "hard": ["world=push_block", "world.scene=push_block_hard"],
    "randomized": ["randomization=moderate"],
    "identified": ["randomization=identified", "randomization.file={identified}"],
    "nerf": ["renderer=nerf", "world.fields=[{field}]"],
    "nerf_randomized": ["renderer=nerf", "world.fields=[{field}]", "randomization=strong"],
}


@pytest.mark.genesis
@pytest.mark.parametrize("name", WORLDS)
def test_dreams_are_compared_with_every_world_of_a_table(
    name: str, folders: dict[str, str], field: str, identified: str, tmp_path: Path
) -> None:
    options = [option.format(field=field, identified=identified) for option in WORLDS[name]]
    models = [f"{key}={folders[key]}" for key in ("policy", "world_model", "reflector")]
    out = tmp_path / "out"
    if name == "plain":  # three policies are ranked
        options = [f"baseline={folders['policy']}", f"+others.third={folders['policy']}"]
    assert cli.main(["evaluate", *models, "world.num_envs=4", *options, f"episodes={EPISODES}", f"out={out}"]) == 0
    result = json.loads((out / "evaluation.json").read_text())
    entry = result["policies"]["policy"]
    assert ("ranking" in result) == (out / "ranking.png").is_file() == (name == "plain")
    if name == "plain":
        rates = [entry["rate"], entry["imagination"]["rate"]]
        assert result["ranking"]["policies"] == dict.fromkeys(("baseline", "policy", "third"), rates)
        assert result["ranking"]["mmrv"] == [0, 0, 0], "one policy under three names"
    assert len(entry["outcomes"]) == len(entry["outcomes_again"]) == EPISODES
    imagination = entry["imagination"]
    assert set(imagination["self_agreement"]) == {"physics", "dream"}
    real, again = (outcomes(entry[key]) for key in ("outcomes", "outcomes_again"))
    imagined, second = (outcomes(imagination[key]) for key in ("outcomes", "outcomes_again"))
    assert imagination | success_rate(imagined) == imagination, "the rate and its interval are of imagined success"
    assert imagination["error_points"] == pytest.approx(100 * (imagination["rate"] - entry["rate"]))
    for key, first, other in (("against_physics", imagined, real), ("always_success", imagined | True, real)):
        assert imagination[key] == json.loads(dumped({**confusion(first, other), **agreement(first, other)}))
    for key, first, other in (("physics", real, again), ("dream", imagined, second)):
        assert imagination["self_agreement"][key] == json.loads(dumped(agreement(first, other)))
    assert sum(point["episodes"] for point in imagination["calibration"]["curve"]) == EPISODES
    assert result["circumstances"] == {
        "precision": "32-true",
        "device": "cpu",
        "num_envs": 4,
        "threads": torch.get_num_threads(),
    }
    steps = 60 if name == "hard" else 40
    assert len(result["world_model"]["block_error_m_by_step"]) == steps
    for name, by_step in (("psnr", "psnr_by_step"), ("block_error_m", "block_error_m_by_step")):
        for k in (4, steps // 2, steps):
            assert result["world_model"][f"{name}_at_{k}"] == result["world_model"][by_step][k - 1], "after k steps"
    assert result["world_model"]["tracker_error_m"] < 0.03, "on real frames the tracker finds the block that the sentence names"
    assert (out / "media" / "policy_real_and_dream.mp4").stat().st_size > 1000


# Worlds whose robot drives, small: what is refused is refused before anything is rendered.
ROOMS = [
    ([], "DriveWorld"),
    (["renderer=nerf_rooms", "world.fields=[{field},{field},{field}]"], "NerfDriveWorld"),
    (["renderer=nerf_rooms", "world.fields=[{field},{field},{field}]", "randomization=moderate"], "NerfDriveWorld"),
]


def outcomes(letters: str) -> torch.Tensor:
    return torch.tensor([letter == "1" for letter in letters])


def dumped(value: Any) -> str:
    """As in a file: what is not a number is null."""
    return json.dumps(value, allow_nan=True).replace("NaN", "null")


@pytest.mark.genesis
def test_what_cannot_be_compared_is_refused_in_one_line(folders, recorded: str, field: str, tmp_path: Path, capsys) -> None:
    models = [f"{key}={folders[key]}" for key in ("policy", "world_model", "reflector")]
    dream = [f"world.world_model={folders['world_model']}", f"world.reflector={folders['reflector']}", f"world.data=[{recorded}]"]
    rooms = [(["world=room", "world.num_envs=2", *(part.format(field=field) for part in more)], kind) for more, kind in ROOMS]
    for world, kind in (*rooms, (["world=dream", *dream], "DreamWorld")):
        assert cli.main(["evaluate", *models, *world, f"out={tmp_path}"]) == 2
        *decoding, error = capsys.readouterr().err.splitlines()
        assert error.startswith(f"worldsim: dreams are compared with physics on a table with discs, got a {kind}")
        assert all(line.startswith("decoding 4 episodes of") for line in decoding)
    assert cli.main(["evaluate", f"policy={folders['policy']}", f"world_model={folders['world_model']}"]) == 2
    assert "imagining needs both world_model and reflector" in capsys.readouterr().err
    assert cli.main(["evaluate", f"policy={folders['policy']}", "precision=half"]) == 2
    assert "precision must be 32-true or bf16-mixed, got 'half'" in capsys.readouterr().err


@pytest.mark.genesis
@pytest.mark.parametrize(
    ("choices", "words"),
    [
        (["world=room", "renderer=nerf"], "the robot of scene room has no max_delta_m, which this world moves it by;"),
        (["renderer=nerf_rooms"], "the robot of scene push_block has no max_speed_m_s and no track_m, which this world"),
        (["world=dream", "renderer=nerf"], "a dream draws its own pictures; leave renderer out"),
        (["capture=orbit", "randomization=moderate"], "a capture photographs the scene as it is; leave randomization out"),
    ],
)
def test_what_does_not_go_together_is_one_line(choices: list[str], words: str, tmp_path: Path, capsys) -> None:
    assert cli.main(["collect", *choices, f"root={tmp_path / 'data'}"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def known(name: str, tmp_path: Path, *more: str) -> list[str]:
    """Arguments of a verb that plays `KnownWorld` with a policy of its size."""
    sizes = {"state_dim": 2, "action_dim": 1, "views": {"front": (8, 8)}}
    folder = checkpoint.save(FlowVLA(width=16, channels=8, blocks=1, **sizes), tmp_path / "policy")
    world = ["~world", "+world._target_=known_world.KnownWorld", "+world.p=0.8"]
    return [name, f"policy={folder}", *world, *more]


@pytest.mark.parametrize("num_envs", [64, 7])
@pytest.mark.parametrize("episodes", [64, 100])
def test_rollout_and_evaluate_say_the_same_of_the_same_starts(
    num_envs: int, episodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With 64 environments the first 64 episodes to end are nearly all successes, at a true rate of 0.8."""
    monkeypatch.setattr(FlowVLA, "encode", lambda self, obs: Features(torch.zeros(len(obs.state), self.feature_dim)))  # 8x8 pixels
    size = [f"+world.num_envs={num_envs}", f"episodes={episodes}", "seed=11"]
    assert cli.main(known("rollout", tmp_path, *size, f"out={tmp_path / 'rollout'}")) == 0
    printed = capsys.readouterr().out
    assert cli.main(known("evaluate", tmp_path, *size, f"out={tmp_path / 'evaluation'}")) == 0
    success, length = truth(range(11, 11 + episodes), 0.8)
    expected = success_rate(success)
    statistics = json.loads((tmp_path / "rollout" / "statistics.json").read_text())
    assert statistics["success"] == expected and statistics["mean_length"] == pytest.approx(float(length.float().mean()))
    assert f"success {100 * expected['rate']:.1f} %" in printed
    entry = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["policies"]["policy"]
    assert {name: entry[name] for name in expected} == expected
    assert entry["outcomes"] == "".join("01"[int(value)] for value in success)


def test_a_recording_says_the_rate_of_its_starts_and_goes_on_where_it_was_interrupted(tmp_path: Path, capsys) -> None:
    world, root = KnownWorld(16, p=0.8), tmp_path / "data"
    _store(world, KnownActor(4), root, episodes=20, seed=11)
    assert f"20 new with {percent(success_rate(truth(range(11, 31), 0.8)[0]))} success" in capsys.readouterr().out
    _store(world, KnownActor(4), root, episodes=50, seed=11)
    assert f"30 new with {percent(success_rate(truth(range(31, 61), 0.8)[0]))} success" in capsys.readouterr().out
    whole = tmp_path / "whole"
    _store(KnownWorld(7, p=0.8), KnownActor(4), whole, episodes=50, seed=11)
    for one, other in zip(Dataset(root).episodes(), Dataset(whole).episodes(), strict=True):
        assert (
            one.instruction == other.instruction and torch.equal(one.action, other.action) and torch.equal(one.state, other.state)
        )


@pytest.mark.parametrize(("verb", "seed"), [("rollout", 700_000_000), ("rollout", 699_999_990), ("rollout", 900_000_000)])
def test_starts_that_choose_guard_or_report_are_not_recorded(verb: str, seed: int, tmp_path: Path, capsys) -> None:
    assert cli.main(known(verb, tmp_path, "+world.num_envs=4", f"seed={seed}", f"out={tmp_path / 'out'}")) == 2
    assert "starts to record or learn from lie in [0, 700,000,000)" in capsys.readouterr().err
    assert not (tmp_path / "out" / "dataset").exists()


@pytest.mark.parametrize("seed", [700, 800, 900])
def test_a_demo_does_not_learn_from_the_starts_of_its_exam(seed: int, tmp_path: Path, capsys) -> None:
    assert cli.main(["demo", f"seed={seed}", f"run={tmp_path / 'run'}"]) == 2
    assert "starts to record or learn from lie in" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("study", ["algorithms", "exploitation", "rehearsal"])
def test_a_bench_does_not_choose_by_the_starts_that_report(study: str, tmp_path: Path, capsys) -> None:
    assert cli.main(["bench", study, "evaluation_seed=900000000", f"out={tmp_path / 'out'}"]) == 2
    assert "starts that choose lie in [700,000,000, 800,000,000)" in capsys.readouterr().err


class OnlyChunks(DreamWorld):
    """A dream that nobody may step."""

    def step(self, actions):
        raise AssertionError("a verb played single steps, which are another dream")


def test_no_verb_steps_a_dream(folders: dict[str, str], recorded: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(DreamWorld, "step", OnlyChunks.step)
    reflector = checkpoint.load(folders["reflector"], InstantReflector)
    policy, model = (checkpoint.load(folders[name], kind) for name, kind in (("policy", Policy), ("world_model", WorldModel)))
    starts = Starts.first_frames(FrameStore.read([recorded], model.views), model.context)
    highest = highest_success(policy, model, reflector, starts, max_episode_steps=8)
    reflector.threshold.fill_(float(highest.median()))  # content now and then
    checkpoint.save(reflector, folders["reflector"])
    models = [f"world.world_model={folders['world_model']}", f"world.reflector={folders['reflector']}", f"world.data=[{recorded}]"]
    dream = ["world=dream", *models, "world.num_envs=3", "episodes=12"]
    assert cli.main(["rollout", f"policy={folders['policy']}", *dream, "seed=5", f"out={tmp_path / 'rollout'}"]) == 0
    assert cli.main(["evaluate", f"policy={folders['policy']}", *dream, "seed=5", f"out={tmp_path / 'evaluation'}"]) == 0
    actor = ["actor=policy", f"actor.folder={folders['policy']}", "actor.noise=0"]
    assert cli.main(["collect", *actor, *dream, "seed=5", f"root={tmp_path / 'collected'}"]) == 0
    rolled, collected = (list(Dataset(root).episodes()) for root in (tmp_path / "rollout" / "dataset", tmp_path / "collected"))
    measured = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["policies"]["policy"]["outcomes"]
    assert measured == "".join("01"[int(episode.success[-1] == 1)] for episode in rolled) and len(set(measured)) == 2
    for one, other in zip(rolled, collected, strict=True):
        assert torch.equal(one.images["front"], other.images["front"]) and torch.equal(one.action, other.action)


@pytest.mark.parametrize("fails", ["_compared", "_quality"])
@pytest.mark.genesis
def test_physics_is_written_before_a_comparison_or_a_picture_fails(
    fails: str, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any, **kwargs: Any) -> Any:
        raise AttributeError("a world without a tracker")

    monkeypatch.setattr(evaluation, fails, failing)
    out, models = tmp_path / "out", [f"{key}={folders[key]}" for key in ("policy", "world_model", "reflector")]
    with pytest.raises(AttributeError, match="without a tracker"):
        cli.main(["evaluate", *models, "world=push_block", "world.num_envs=4", "episodes=4", f"out={out}"])
    entry = json.loads((out / "evaluation.json").read_text())["policies"]["policy"]
    assert len(entry["outcomes"]) == len(entry["outcomes_again"]) == 4
    assert ("imagination" in entry) == (fails == "_quality"), "dreams are compared before pictures are made"


@pytest.mark.parametrize("verb", ["rollout", "evaluate"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_policies_compute_in_the_precision_that_the_report_states(
    verb: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = set()

    def encode(self: FlowVLA, obs: Any) -> Features:
        computed.add((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return Features(torch.zeros(len(obs.state), self.feature_dim))

    monkeypatch.setattr(FlowVLA, "encode", encode)
    out = tmp_path / "out"
    assert cli.main(known(verb, tmp_path, "+world.num_envs=4", "episodes=4", f"precision={precision}", f"out={out}")) == 0
    assert computed == {torch.bfloat16 if precision == "bf16-mixed" else torch.float32}
    report = json.loads((out / ("statistics.json" if verb == "rollout" else "evaluation.json")).read_text())
    assert report["circumstances"] == {
        "precision": precision,
        "device": "cpu",
        "num_envs": 4,
        "threads": torch.get_num_threads(),
    }


@pytest.mark.parametrize("more", [[], ["repeat=true"]])
def test_what_was_measured_is_written_before_anything_optional_fails(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next policy, or the same one again with other noise."""
    monkeypatch.setattr(FlowVLA, "encode", lambda self, obs: Features(torch.zeros(len(obs.state), self.feature_dim)))
    played: list[Any] = []
    play = evaluation.play_episodes

    def fails_later(*args: Any, **kwargs: Any) -> Any:
        if played:
            raise MemoryError
        played.append(0)
        return play(*args, **kwargs)

    monkeypatch.setattr(evaluation, "play_episodes", fails_later)
    out = tmp_path / "out"
    arguments = known("evaluate", tmp_path, "+world.num_envs=4", "episodes=8", f"out={out}")
    with pytest.raises(MemoryError):
        cli.main([*arguments, *more, f"baseline={tmp_path / 'policy'}"])
    assert len(json.loads((out / "evaluation.json").read_text())["policies"]["policy"]["outcomes"]) == 8


def test_the_same_starts_are_played_again_with_other_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlowVLA, "encode", lambda self, obs: Features(torch.zeros(len(obs.state), self.feature_dim)))
    acted: list[torch.Tensor] = []
    act = PolicyActor.act

    def noted(self: PolicyActor, world: Any, obs: Any, noise: Any) -> Any:
        chunk = act(self, world, obs, noise)
        acted.append(chunk[noise.step == 0])
        return chunk

    monkeypatch.setattr(PolicyActor, "act", noted)
    out = tmp_path / "out"
    assert cli.main(known("evaluate", tmp_path, "+world.num_envs=8", "episodes=8", "repeat=true", f"out={out}")) == 0
    first, again = (chunk for chunk in acted if len(chunk) == 8)
    assert (first != again).flatten(1).any(dim=1).all()
    entry = json.loads((out / "evaluation.json").read_text())["policies"]["policy"]
    assert entry["outcomes_again"] == entry["outcomes"], "chance has no say in this world"
    assert entry["self_agreement"]["agreement"] == 1


def test_a_rollout_of_something_else_is_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(FlowVLA, "encode", lambda self, obs: Features(torch.zeros(len(obs.state), self.feature_dim)))
    out = f"out={tmp_path / 'out'}"
    arguments = known("rollout", tmp_path, "+world.num_envs=4", "episodes=4", out)
    assert cli.main(arguments) == 0
    assert cli.main(arguments) == 0, "an interrupted one would go on"
    capsys.readouterr()
    assert cli.main([*arguments, "seed=3"]) == 2
    assert "holds a rollout with another seed; choose another folder" in capsys.readouterr().err
    assert cli.main(known("rollout", tmp_path, "+world.num_envs=4", "episodes=4", out)) == 2  # other weights
    assert "another weights_sha256" in capsys.readouterr().err
