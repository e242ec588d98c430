"""Data for a judge of dreams: frames that a world model dreamed along recorded actions, with what physics recorded at that moment.

A reflector that has seen real frames only takes a near miss in a blurred dream for a hit. One that also learned from such frames,
and whose threshold lets as many dreams succeed as episodes did, says how much a dreamed success is worth. Read
`training/guards/held_out.py` next."""

import copy
import json
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from training.supervised.batches import Batch
from training.supervised.data import ReflectorData, is_judged, labels, whole_batches
from training.supervised.reflector import ReflectorTraining
from worldsim.core import checkpoint
from worldsim.core.files import write_json
from worldsim.core.interfaces import Policy, Reflector, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.sight import clips, recent
from worldsim.core.sizes import check_names, check_sizes
from worldsim.core.views import Views, check_cameras
from worldsim.data.store import FrameStore
from worldsim.measure.evaluate import imagine_outcomes
from worldsim.worlds.dream import Starts


class DreamedReflectorData(ReflectorData):
    """As `ReflectorData`, but a share of each batch, and all held-out frames, are dreamed open loop along recorded actions.

    Args:
        world_model: what dreams.
        dreams: how many, drawn once; an eighth as many for the held-out episodes.
        chunks: length of a dream in calls of the world model, at most to the end of the recorded episode.
        first_share: share of dreams that start with an episode; the others start anywhere in it.
        dreamed_share: share of dreamed frames in a batch.
        held_out: as `ReflectorData`, but no more than the world model's own share: figures are of dreams along episodes that it did
            not learn from either.
        others: as `ReflectorData`.
    """

    def __init__(
        self,
        roots: list[str],
        world_model: WorldModel,
        held_out: float = 0.05,
        dreams: int = 1500,
        chunks: int = 10,
        first_share: float = 0.3,
        dreamed_share: float = 0.5,
        **others: Any,
    ):
        super().__init__(roots, held_out=held_out, **others)
        if dreams < 8 or chunks < 1:
            raise ValueError(f"a judge needs dreams >= 8 and chunks >= 1, got {dreams} and {chunks}; 1500 and 10 are usual")
        self.world_model, self.dreams, self.chunks = world_model, dreams, chunks
        self.first_share, self.dreamed_share = first_share, dreamed_share

    @property
    def views(self) -> Views:
        """Those of the world model: the reflector is to see real frames as it sees dreamed ones."""
        return self.world_model.views

    def setup(self, stage: str) -> None:
        super().setup(stage)
        check_cameras(self.module.reflector.views, self.world_model.views, "the reflector", "the world model dreams")
        model, generator = self.world_model.eval(), torch.Generator().manual_seed(self.seed)
        check_sizes(model, self.table.spec)
        with self.trainer.precision_plugin.forward_context() if self.trainer else nullcontext():
            self.dreamed, self.moments = self._dream(model, self.table, self.dreams, generator)
            self.held_out_dreamed, self.held_out_moments = self._dream(model, self.calibration, self.dreams // 8, generator)
        self.dreamed_successes = (self.table.success[self.moments] == 1).nonzero().flatten()
        self.dreamed_judged = is_judged(self.table)[self.moments].nonzero().flatten()
        if len(self.dreamed_successes) == 0:
            raise ValueError(f"no dream along {self.roots} passes a recorded success; raise data.dreams={self.dreams}")

    def _as_learned(self, table: FrameStore) -> FrameStore:
        """In the world model's order of channels."""
        spec = self.world_model.spec
        return table if spec is None else table.ordered(spec, "the world model")

    def draw(self, generator: torch.Generator) -> Batch:
        real = super().draw(generator)
        index = self.enriched(self.dreamed_judged, self.dreamed_successes, generator)
        dreamed = self.labelled(_rows(self.dreamed, index), self.moments[index], generator)
        which = torch.rand(self.batch_size, generator=generator) < self.dreamed_share
        sentences = zip(which.tolist(), dreamed["instruction"], real["instruction"], strict=True)

        def either(dreamed: Tensor, real: Tensor) -> Tensor:
            return torch.where(which.reshape(-1, *[1] * (real.ndim - 1)), dreamed, real)

        merged: Batch = {name: either(dreamed[name], real[name]) for name in ("success", "progress")}
        merged["images"] = {name: either(frames, real["images"][name]) for name, frames in dreamed["images"].items()}
        return merged | {"instruction": tuple(imagined if chosen else seen for chosen, imagined, seen in sentences)}

    def val_dataloader(self) -> DataLoader:
        """Dreams along the episodes that calibrate, 256 frames a batch, with the numbers of the episodes as ``episode``."""
        table, parts = self.calibration, torch.arange(len(self.held_out_moments)).split(256)
        moments = self.held_out_moments
        return whole_batches(
            [
                {**labels(table, moments[i]), "images": _rows(self.held_out_dreamed, i), "episode": table.episode[moments[i]]}
                for i in parts
            ]
        )

    @torch.no_grad()
    def _dream(
        self, model: WorldModel, table: FrameStore, number: int, generator: torch.Generator
    ) -> tuple[dict[str, UInt8[Tensor, "n _ _ 3"]], Int[Tensor, " n"]]:
        """Frames of `number` dreams by camera, and the row of the table that each of them foretells."""
        candidates, horizon = table.acting_rows, model.action_horizon
        rows = candidates[torch.randint(len(candidates), (number,), generator=generator)]
        rows = torch.where(torch.rand(number, generator=generator) < self.first_share, table.first[rows], rows)
        images: dict[str, list[Tensor]] = {name: [] for name in model.views}
        moments = []
        for part in rows.split(self.batch_size):
            noise = Noise.rows(int(torch.randint(2**62, (), generator=generator)), len(part))
            context = max(model.context, self.context)
            window = table.window(part, context=context, horizon=self.chunks * horizon)
            before = {name: frames[:, :context] for name, frames in window["images"].items()}
            first_frames = {name: recent(frames, model.context) for name, frames in before.items()}
            state = model.init(first_frames, recent(window["state"][:, :context], model.context), table.sentences(part))
            past = {name: recent(frames, self.context) for name, frames in before.items()}
            for first in range(0, self.chunks * horizon, horizon):
                span = slice(first, first + horizon)
                valid = window["valid"][:, span]
                if not valid.any():
                    break
                state, predicted, _ = model.step(state, window["action"][:, span], noise.at(first))
                for name, frames in predicted.items():
                    whole = torch.cat([past[name], (255 * frames.float().clamp(0, 1)).round().byte()], dim=1)
                    images[name].append(clips(whole, self.context)[:, 1:][valid])
                    past[name] = recent(whole, self.context)
                moments.append((part[:, None] + first + torch.arange(1, horizon + 1))[valid])
        return {name: torch.cat(frames) for name, frames in images.items()}, torch.cat(moments)


def _rows(images: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {name: frames[index] for name, frames in images.items()}


class DreamThreshold(Callback):
    """After training sets the threshold at which as many dreams of a policy succeed as its recorded episodes did.

    The dreams start where the episodes did, and the policy acts in them itself: what makes closed-loop dreams optimistic, which
    frames along recorded actions do not show, is counted too. `calibration.json` then has this ``threshold``, beside it the
    ``frame_threshold`` that frames suggested and the ``recorded_success``, and no f1, which would be of the latter.

    Args:
        policy: the one that was recorded.
        world_model: what dreams.
        recording: dataset of its episodes in physics, of which those count that somebody judged; a little noise on their actions
            does no harm.
        max_episode_steps: as in physics.
        n_action_steps: of each chunk, how many actions were executed before the policy looked again; null: all.
    """

    def __init__(
        self,
        policy: Policy,
        world_model: WorldModel,
        recording: str,
        max_episode_steps: int = 40,
        n_action_steps: int | None = None,
    ):
        self.policy, self.world_model = policy.eval(), world_model.eval()
        table = FrameStore.read([recording], {**self.policy.views, **self.world_model.views})
        if self.world_model.spec is not None:
            table = table.ordered(self.world_model.spec, "the world model")
        for model in (self.policy, self.world_model):
            check_sizes(model, table.spec)
            check_names(model, table.spec, recording)
        acted_on = torch.arange(len(table.first)) != table.first  # whoever has next.success alone judged no first frame
        rows_of = (table.success == 1, table.success.isnan() & acted_on)
        success, unknown = (set(table.episode[rows].tolist()) for rows in rows_of)
        judged = [number for number in range(len(table.instruction)) if number in success or number not in unknown]
        if not judged:
            raise ValueError(f"nobody judged whether an episode in {recording} succeeded; give one whose frames have a success")
        self.starts = Starts.first_frames(table, self.world_model.context)[judged]
        self.success = torch.tensor([number in success for number in judged])
        self.settings = {"max_episode_steps": max_episode_steps, "n_action_steps": n_action_steps}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Dream, set the threshold and export the reflector again."""
        assert isinstance(pl_module, ReflectorTraining)
        reflector = pl_module.reflector.cpu().eval()
        with torch.no_grad():  # in single precision, as evaluations are
            highest = highest_success(self.policy, self.world_model, reflector, self.starts, **self.settings)
        threshold = matching_threshold(highest, self.success)
        if threshold is None:
            warnings.warn("all or none of the recorded episodes succeeded: the threshold stays as frames suggest", stacklevel=2)
            return
        reflector.threshold.fill_(threshold)
        checkpoint.save(reflector, trainer.default_root_dir)
        file = Path(trainer.default_root_dir) / "calibration.json"
        scores, rate = json.loads(file.read_text()), float(self.success.float().mean())
        scores.pop("f1", None)  # of the threshold that frames suggested
        write_json(file, {**scores, "threshold": threshold, "frame_threshold": scores["threshold"], "recorded_success": rate})


def highest_success(
    policy: Policy, world_model: WorldModel, reflector: Reflector, starts: Starts, **settings: Any
) -> Float[Tensor, " n"]:
    """The highest success probability in each of n dreams, one from every start, of a policy that acts until time is up; `settings`
    are `max_episode_steps` and `n_action_steps`."""
    endless = copy.deepcopy(reflector)
    endless.threshold.fill_(torch.inf)
    return imagine_outcomes(policy, world_model, endless, starts, batch=min(128, len(starts)), seed=0, **settings).p_success


def matching_threshold(highest: Float[Tensor, " n"], success: Bool[Tensor, " n"]) -> float | None:
    """A threshold that as many of `highest` exceed as there are successes; None if all or none succeeded."""
    number, ordered = int(success.sum()), highest.sort(descending=True).values
    return None if number in (0, len(success)) else float(ordered[number - 1 : number + 1].mean())
