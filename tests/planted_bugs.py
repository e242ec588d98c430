"""Plants known mistakes, one at a time, and says which test notices: `python tests/planted_bugs.py [part of a bug's name ...]`.

A suite is as good as the mistakes it sees. One process imports what everything needs and is copied for each mistake; the copy
changes the text of one module as it is imported and runs the tests that must notice, up to the first failure. Part of `.ci/run`.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT, LONGEST_S = Path(__file__).parents[1], 180
# Imported once. Nothing of this repository may be among them: a module that is there already would not be changed any more.
HEAVY = (
    "torch",
    "lightning",
    "diffusers.training_utils",
    "diffusers.schedulers.scheduling_ddpm",
    "gymnasium.vector",
    "scipy.stats",
)
HEAVY += ("jsonargparse", "hydra", "torchmetrics.functional.classification", "pyarrow.parquet", "av", "cv2", "tokenizers")
HEAVY += ("matplotlib.pyplot", "einops", "jaxtyping", "safetensors.torch", "rich.progress")


class Bug(NamedTuple):
    """What goes wrong, the module, the right text in it (once) and the wrong one, and the file below `tests/` that must notice."""

    what: str
    module: str
    right: str
    wrong: str
    test: str


MATHEMATICS = [
    ("sigma at t = 1 from t = 1 itself", "flow_sde", ".clamp(min=delta)", ".clamp(min=1e-3)", "test_flow_sde"),
    ("noise without sqrt(delta)", "flow_sde", "s * math.sqrt(delta)", "s * delta", "test_flow_sde"),
    ("drift of the SDE with the other sign", "flow_sde", "plain - s.square()", "plain + s.square()", "test_flow_sde"),
    ("log-probability without log std", "chain", ".square() - std.log() -", ".square() -", "test_chain"),
    ("one step index for the whole batch", "chain", "index[:, None] ==", "index[:1, None] ==", "test_flow_sde"),
    ("joint log-probability without the start", "flow_noise", "-0.5 * noise.square()", "-0.0 * noise.square()", "test_chain"),
    ("termination bootstraps", "advantages", "torch.where(terminated, 0, next_value)", "next_value", "test_advantages"),
    ("truncation does not", "advantages", "final_value[:, None])", "torch.zeros_like(value))", "test_advantages"),
    ("groups not centred", "advantages", "shifted - shifted.mean(dim=1, keepdim=True)", "shifted", "test_advantages"),
    ("RLOO with the group's own mean", "advantages", "centred * (n / (n - 1))", "centred", "test_advantages"),
    ("a group's spread without a floor", "advantages", ".clamp(min=min_spread)", ".clamp(min=1e-6)", "test_advantages"),
    ("PPO takes the larger surrogate", "losses", "torch.minimum(unclipped", "torch.maximum(unclipped", "test_losses"),
    (
        "PPO's gradient with the wrong sign",
        "losses",
        "return -masked_mean(surrogate",
        "return masked_mean(surrogate",
        "test_bandit",
    ),
    ("no dual clip", "losses", "torch.maximum(surrogate, dual_clip * advantage)", "surrogate", "test_losses"),
    ("value loss takes the smaller", "losses", "torch.maximum(*losses)", "torch.minimum(*losses)", "test_losses"),
    (
        "DiffusionNFT's policies swapped",
        "losses",
        "(1 - beta) * old_velocity + beta",
        "(1 - beta) * old_velocity - beta",
        "test_bandit",
    ),
    ("lambda and 1 - lambda swapped", "analytic", "(1 - lam) * value_next", "lam * value_next", "test_analytic"),
]
BUGS = [
    Bug(what, f"training.algorithms.{module}", *texts, f"training/algorithms/{test}.py")
    for what, module, *texts, test in MATHEMATICS
]
COLLECT, EVALUATE, DREAM = "worldsim.collect", "worldsim.evaluate", "worldsim.dream"
PLAYING, DREAMING, LEARNING = "worldsim/test_collect.py", "worldsim/test_dream.py", "training/test_learner_truth.py"
BUGS += [
    Bug(
        "one noise for all steps", "worldsim.noise", "self.step[:, None] & WORD", "0 * self.step[:, None]", "worldsim/test_noise.py"
    ),
    Bug(
        "noise that ignores its stream",
        "worldsim.noise",
        "zlib.crc32(draw.encode(), self.stream & WORD)",
        "zlib.crc32(draw.encode())",
        "worldsim/test_noise.py",
    ),
    Bug(
        "effects of one kind in two places draw the same",
        "worldsim.noise",
        "zlib.crc32(name.encode(), self.stream & WORD)",
        "self.stream",
        "worldsim/test_randomization.py",
    ),
    Bug(
        "one uniform number for radius and angle",
        "worldsim.noise",
        "2 * math.pi * second",
        "2 * math.pi * first",
        "worldsim/test_noise.py",
    ),
    Bug(
        "a round of Philox too few",
        "worldsim.noise",
        "ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10",
        "ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 9",
        "worldsim/test_noise.py",
    ),
    Bug("a start is played twice", COLLECT, "taken = int(start.max()) + 1", "taken = int(start.max()) + 2", PLAYING),
    Bug(
        "episodes in the order of their ends",
        COLLECT,
        "while following in waiting:\n            yield waiting.pop(following)",
        "while waiting:\n            yield waiting.popitem()[1]",
        PLAYING,
    ),
    Bug(
        "noise of the environment instead of the start",
        COLLECT,
        "noise, before = Noise(seed + start,",
        "noise, before = Noise(seed + torch.arange(b),",
        PLAYING,
    ),
    Bug(
        "an episode begins where the last one ended",
        COLLECT,
        "torch.where(result.done, 0, elapsed + result.valid.sum(dim=1))",
        "elapsed + result.valid.sum(dim=1)",
        PLAYING,
    ),
    Bug(
        "all actions of a chunk are recorded, those after the end too",
        COLLECT,
        "n = int(result.valid[i].sum())",
        "n = result.valid.shape[1]",
        PLAYING,
    ),
    Bug("starts of the environments that idle are reset, too", COLLECT, '"mask": result.done, **place', "**place", PLAYING),
    Bug("play forgets its noise", COLLECT, "0.7 * torch.where(noise.step[:, None] > 0, kept, 0.0)", "0.0 * kept", PLAYING),
    Bug("idle environments count as episodes", EVALUATE, "rows = result.done & counts", "rows = result.done", PLAYING),
    Bug(
        "lengths count actions that were not executed",
        EVALUATE,
        "result.valid.sum(dim=1)[counts]",
        "(result.valid.sum(dim=1) * 0 + result.valid.shape[1])[counts]",
        PLAYING,
    ),
    Bug("success of any action since the last chunk", EVALUATE, "result.terminated.any(dim=1)[rows]", "result.done[rows]", PLAYING),
    Bug(
        "a dream's reward goes on after its end",
        DREAM,
        "reward = torch.where(done, 0.0, now.progress - final.progress + success.float())",
        "reward = now.progress - final.progress + success.float()",
        DREAMING,
    ),
    Bug(
        "a dream ends a step late",
        DREAM,
        "(now.elapsed >= self.max_episode_steps)",
        "(now.elapsed > self.max_episode_steps)",
        DREAMING,
    ),
    Bug(
        "one frame above the threshold is enough",
        DREAM,
        "state.hits.sum(dim=1) >= self.reflector.consecutive",
        "state.hits.any(dim=1)",
        DREAMING,
    ),
    Bug("the reflector sees frames out of range", DREAM, "frames = frames.clamp(0, 1)  #", "frames = frames  #", DREAMING),
    Bug(
        "a masked reset gives the wrong rows",
        DREAM,
        "place = (mask.cumsum(0) - 1).clamp(min=0)",
        "place = torch.zeros(len(mask), dtype=torch.long)",
        DREAMING,
    ),
    Bug(
        "dreams of one batch share their noise",
        DREAM,
        "Noise(old.stream[:, 0], old.stream[:, 1]",
        "Noise(old.stream[:1, 0].expand(len(old.elapsed)), old.stream[:, 1]",
        DREAMING,
    ),
    Bug(
        "the probability of the last frame for the largest",
        DREAM,
        "highest = highest.maximum(p_success[:, j].float())",
        "highest = p_success[:, j].float() * (j + 1 < m)",
        DREAMING,
    ),
    Bug(
        "a shorter chunk goes on from the whole one",
        "models.world.latent_flow",
        "t=horizon)[:, :given]",
        "t=horizon)",
        "models/test_latent_flow.py",
    ),
    Bug(
        "unknown actions leak",
        "models.world.latent_flow",
        "(actions * known[..., None]).flatten(1)",
        "actions.flatten(1)",
        "models/test_latent_flow.py",
    ),
    Bug(
        "late actions the wrong way round",
        "worldsim.randomization",
        "share * before + (1 - share) * actions",
        "(1 - share) * before + share * actions",
        "worldsim/test_randomization.py",
    ),
    Bug(
        "conditions do not belong to the episode",
        "worldsim.randomization",
        "self._values = self._drawn()\n        self._set_dynamics(mask)",
        "self._set_dynamics(mask)",
        "worldsim/test_randomization.py",
    ),
    Bug(
        "rows of the other batch",
        "worldsim.types",
        "torch.where(mask.reshape(-1, *([1] * (a.ndim - 1))), a, z)",
        "torch.where(mask.reshape(-1, *([1] * (a.ndim - 1))), z, a)",
        DREAMING,
    ),
    Bug(
        "noise by position, so that stopping changes others",
        "training.rollout",
        "noise[rows].at(t)",
        "noise[: len(rows)].at(t)",
        "training/test_post_training.py",
    ),
    Bug(
        "a rollout bootstraps from the next episode",
        "training.rollout",
        "critic(result.final_obs)",
        "critic(result.obs)",
        "training/test_post_training.py",
    ),
    Bug(
        "a hopeless dream is not truncated",
        "training.rollout",
        "result.done | early_stop.hopeless(value[:, 0], t)",
        "result.done",
        "training/test_post_training.py",
    ),
    Bug(
        "a critic learns zeros where nothing was done",
        "training.learner",
        "rollout.valid[rows] if estimate.shape[-1] > 1",
        "torch.ones_like(rollout.valid[rows]) if estimate.shape[-1] > 1",
        LEARNING,
    ),
    Bug(
        "a warm-up of every epoch",
        "training.learner",
        "if self.iteration <= self.advantage.warmup:",
        "if self.trainer.fit_loop.epoch_loop.batch_idx < self.advantage.warmup:",
        LEARNING,
    ),
    Bug(
        "the analytic warm-up of every epoch",
        "training.analytic",
        "if self.iteration > h.critic_warmup:",
        "if batch_idx >= h.critic_warmup:",
        LEARNING,
    ),
    Bug(
        "groups that end alike dilute the others",
        "training.learner",
        "return rollout.decided & DynamicSampling.usable(rollout)[:, None]",
        "return rollout.decided",
        LEARNING,
    ),
    Bug(
        "every rollout is whitened",
        "training.learner",
        "assessment = self.advantage.assess(rollout)",
        "advantage, target = self.advantage.assess(rollout)\n        assessment = Assessment(advantage / advantage.std(), target)",
        LEARNING,
    ),
    Bug(
        "PRDP regresses on advantages",
        "training.prdp",
        "index_copy(0, place, d.returns)",
        "index_copy(0, place, d.advantage.mean(-1))",
        LEARNING,
    ),
    Bug(
        "the learner draws from the global generator",
        "training.nft",
        "torch.rand(len(chunk), generator=d.generator)",
        "torch.rand(len(chunk))",
        LEARNING,
    ),
    Bug(
        "a rival may promise more",
        "training.imagine",
        "(torch.stack(values).amin(dim=0) for values",
        "(torch.stack(values).amax(dim=0) for values",
        "training/test_imagine.py",
    ),
    Bug(
        "progress is not telescoped",
        "training.imagine",
        "progress = verdicts[0][1]",
        "progress = progress + 0 * verdicts[0][1]",
        "training/test_imagine.py",
    ),
    Bug(
        "groups are usable if their trajectories differ from others'",
        "training.economy",
        "(high - low > tolerance)[rollout.group]",
        "(high - low.min() > tolerance)[rollout.group]",
        "training/test_economy.py",
    ),
    Bug(
        "a collapse that is measured against nothing",
        "training.guards",
        "if spread < self.share * first else 0",
        "if spread < self.share else 0",
        "training/guards/test_alarms.py",
    ),
    Bug(
        "an alarm for what cannot happen",
        "training.guards",
        "        if lowest is None:\n            raise",
        "        if lowest == 7:\n            raise",
        "training/guards/test_alarms.py",
    ),
    Bug(
        "a judge's dreams end",
        "training.dreamed",
        "endless.threshold.fill_(torch.inf)",
        "endless.threshold.fill_(0.0)",
        "training/test_dreamed.py",
    ),
    Bug(
        "a threshold that one dream too few exceeds",
        "training.dreamed",
        "ordered[number - 1 : number + 1]",
        "ordered[number - 2 : number]",
        "training/test_dreamed.py",
    ),
    Bug(
        "the budget of a check is exceeded",
        "training.judges",
        "if self.physics_steps + most > self.budget:",
        "if self.physics_steps > self.budget:",
        "training/guards/test_judges.py",
    ),
    Bug(
        "kappa without what chance agrees on",
        "worldsim.metrics",
        "p * q + (1 - p) * (1 - q)",
        "0.5 * p.new_ones(()) + 0 * q",
        "worldsim/test_metrics.py",
    ),
    Bug(
        "seeds pooled as independent starts",
        "worldsim.metrics",
        "stats.t.ppf((1 + confidence) / 2, k - 1)",
        "_z(confidence)",
        "worldsim/test_metrics.py",
    ),
    Bug(
        "a calibration curve of absolute errors",
        "worldsim.metrics",
        "(p - label.float()).square().mean()",
        "(p - label.float()).abs().mean()",
        "worldsim/test_metrics.py",
    ),
    Bug(
        "a gain with the wrong sign",
        "worldsim.metrics",
        '"points": 100 * (won - lost) / n',
        '"points": 100 * (lost - won) / n',
        "worldsim/test_metrics.py",
    ),
    Bug(
        "physics is compared with its own noise",
        "training.evaluation",
        "**_settings(cfg), stream=1)",
        "**_settings(cfg), stream=0)",
        "training/test_evaluation.py",
    ),
    Bug(
        "an evaluation is written when all is done",
        "training.evaluation",
        'result["policies"][name] = _measured(folders[name], *outcomes[name])\n            _write(cfg, result, world)',
        'result["policies"][name] = _measured(folders[name], *outcomes[name])',
        "training/test_evaluation.py",
    ),
    Bug(
        "the exam's starts may be recorded",
        "worldsim.seeds",
        "if not 0 <= seed <= CHOOSING - episodes:",
        "if not 0 <= seed:",
        "training/test_evaluation.py",
    ),
]


BUGS += [
    Bug(
        "calibrated and reported on the same half",
        "training.reflector",
        "self._figures(logit[~fitted & known], success[~fitted & known] == 1)",
        "self._figures(logit[fitted & known], success[fitted & known] == 1)",
        "training/test_reflector.py",
    ),
    Bug(
        "halves by frames of one episode",
        "reflectors.calibration",
        "torch.isin(episode, torch.tensor(order[::2], dtype=episode.dtype))",
        "torch.arange(len(episode)) % 2 == 0",
        "training/test_reflector.py",
    ),
    Bug(
        "what nobody judged is a failure",
        "training.reflector",
        'F.binary_cross_entropy_with_logits(logit[judged], batch["success"][judged])\n        if measured',
        'F.binary_cross_entropy_with_logits(logit, batch["success"].nan_to_num())\n        if measured',
        "training/test_reflector.py",
    ),
    Bug(
        "a recording goes on with a number that is taken",
        "worldsim.data.lerobot",
        "max(committed.episode_indices, default=-1) + 1",
        "committed.num_episodes",
        "worldsim/data/test_journal.py",
    ),
    Bug(
        "a comparison pools the starts of its seeds",
        "training.bench",
        "seeds_interval(per_seed)",
        "of_one",
        "training/test_bench.py",
    ),
    Bug(
        "layers draw whatever was not drawn before",
        "training.batches",
        "torch.default_generator.manual_seed(seed)",
        "pass",
        LEARNING,
    ),
    Bug(
        "rates in another precision than the report states",
        "worldsim.device",
        'enabled=precision == "bf16-mixed")',
        "enabled=False)",
        "training/test_evaluation.py",
    ),
    Bug(
        "a dataset that counts twice reports on what calibrated",
        "training.data",
        "FrameTable.read_held_out(once,",
        "FrameTable.read_held_out(self.roots,",
        "training/test_reflector.py",
    ),
    Bug("ten episodes hold out none", "worldsim.data.windows", "min(max(share, 1), number - 1)", "share", "training/test_data.py"),
    Bug(
        "what is committed is set aside",
        "worldsim.data.journal",
        "if total_episodes > before:",
        "if total_episodes < 0:",
        "worldsim/data/test_journal.py",
    ),
    Bug(
        "two processes record into one dataset",
        "worldsim.data.journal",
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "worldsim/data/test_writer.py",
    ),
    Bug(
        "a journal that names a committed file has it moved",
        "worldsim.data.journal",
        "if root / path in committed]",
        "if path in committed]",
        "worldsim/data/test_writer.py",
    ),
    Bug(
        "a dataset whose frames disagree with its counters is read",
        "worldsim.data.lerobot_reader",
        "for fault in counter_faults(self._contents):",
        "for fault in iter(()):",
        "worldsim/data/test_disagreement.py",
    ),
    Bug(
        "labels outside 0 and 1 are read",
        "worldsim.data.columns",
        "np.isnan(values) | (values == 0) | (values == 1)",
        "np.isnan(values) | np.isfinite(values)",
        "worldsim/data/test_foreign.py",
    ),
    Bug(
        "an episode without its video is whole",
        "worldsim.data.contents",
        "lost = [path for path, _ in episode.videos.values() if not path.is_file()]",
        "lost = []",
        "worldsim/data/test_faults.py",
    ),
]


class Planted(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Finds one module and compiles another text of it."""

    def __init__(self, bug: Bug):
        self.bug, file = bug, ROOT / (bug.module.replace(".", "/") + ".py")
        super().__init__(bug.module, str(file))
        text = file.read_text()
        assert text.count(bug.right) == 1, (
            f"{bug.what}: {bug.right!r} must be in {file.name} once, is {text.count(bug.right)} times"
        )
        self.text = text.replace(bug.right, bug.wrong)

    def find_spec(self, fullname, path=None, target=None):
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self) if fullname == self.bug.module else None

    def get_code(self, fullname):
        return compile(self.text, self.path, "exec", dont_inherit=True)


class Failures:
    """A pytest plugin that notes which tests fail."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.names.append(report.nodeid.rpartition("::")[2])


def failing(test: str, bug: Bug | None = None) -> list[str]:
    """The first test of a file that fails with this mistake, in a copy of this process; without one there should be none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            found = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
            return []  # too slow a test notices nothing
        assert found, f"{test} did not run to its end with {bug}"
        return json.loads(found)
    signal.alarm(LONGEST_S)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    if bug is not None:
        sys.meta_path.insert(0, Planted(bug))
    failures = Failures()
    options = ["-q", "-x", "-p", "no:cacheprovider", "-W", "ignore", "-m", "not gpu and not slow and not genesis"]
    code = pytest.main([*options, str(ROOT / "tests" / test)], plugins=[failures])
    with os.fdopen(writing, "w") as pipe:
        json.dump(failures.names if code == pytest.ExitCode.TESTS_FAILED else [], pipe)
    os._exit(0)


def chosen(words: list[str]) -> Iterator[Bug]:
    """The mistakes whose name has one of the words; all without any."""
    return (bug for bug in BUGS if not words or any(word in bug.what for word in words))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # before this script's folder, which has a `worldsim` of tests
    began, bugs = time.monotonic(), list(chosen(sys.argv[1:]))
    for bug in bugs:
        Planted(bug)  # a text that has changed is told before anything runs
    for name in HEAVY:
        importlib.import_module(name)
    missed, files = 0, sorted({bug.test for bug in bugs})
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for file, tests in zip(files, pool.map(failing, files), strict=True):
            if tests:
                sys.exit(f"{file} fails as it is, so it notices nothing: {', '.join(tests)}")
        for bug, tests in zip(bugs, pool.map(lambda bug: failing(bug.test, bug), bugs), strict=True):
            missed += not tests
            print(f"{bug.what}: {', '.join(tests) or 'NOBODY NOTICED'}", flush=True)
    print(f"{len(bugs)} planted, {missed} missed, {time.monotonic() - began:.0f} s")
    sys.exit(min(missed, 1))
