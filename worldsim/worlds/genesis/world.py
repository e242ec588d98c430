"""`GenesisWorld`: batched table-top pushing with Genesis rigid-body contact, the judge of last resort.

It exists so that every claim about a learned world can be checked against physics, with ground-truth success and a counter
of the physics steps that were paid. The task itself is a file (`scene.py`). Read `worldsim/tasks/push.py` next.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces.text import alphanumeric
from gymnasium.vector.utils import batch_space
from jaxtyping import Float, Int
from torch import Tensor

from worldsim.core.spec import Channel
from worldsim.core.types import Judgement, Observation, TensorBatch, where_rows
from worldsim.core.world import Branchable, ChunkResult, Reward, Scripted, Sight, Step, World
from worldsim.geometry.cameras import look_at
from worldsim.tasks.push import expert_action
from worldsim.tasks.reward import ProgressReward
from worldsim.worlds.genesis.building import add_static, init_genesis, new_scene, vis_options
from worldsim.worlds.genesis.quick_import import gs
from worldsim.worlds.genesis.scene import ASSETS, Scene

Factor = float | Float[Tensor, " n"]


@dataclass(frozen=True)
class PhysicsState(TensorBatch):
    """Everything that determines the future of b environments (positions m, velocities m/s and rad/s)."""

    block_pose: Float[Tensor, "b n 7"]  # x y z, quaternion w x y z
    block_velocity: Float[Tensor, "b n 6"]  # of its free joint, as Genesis integrates it: the angular part is not in world axes
    goals: Float[Tensor, "b g 2"]
    pusher: Float[Tensor, "b q"]  # the robot's joints
    pusher_velocity: Float[Tensor, "b q"]
    task: Int[Tensor, "b 3"]  # block, goal and phrasing that the instruction names
    elapsed: Int[Tensor, " b"]
    held: Int[Tensor, " b"]  # control steps that the block has been on the disc
    stream: Int[Tensor, "b 2"]  # seed and episode number: the state of the random start distribution


@dataclass(frozen=True, kw_only=True)
class Truth(Judgement):
    """Ground truth that a judge may see and a policy may not; metres on the ground plane."""

    block: Float[Tensor, "b 2"]  # what must be brought to the goal: the block that the instruction names
    goal: Float[Tensor, "b 2"]  # the disc (or the box, for a robot that drives) that the instruction names
    pusher: Float[Tensor, "b 2"]  # the robot
    distance: Float[Tensor, " b"]  # block to goal


class GenesisWorld(World, Branchable, Scripted):
    """`num_envs` copies of a table-top scene under rigid-body physics.

    The action is a planar displacement in [-1, 1]^2 of the pusher's position target from its measured position, in units of
    the scene's `max_delta_m`: no hidden controller state. Proprioception is x, y [m] and vx, vy [m/s] of the pusher.
    An episode terminates when the block's centre lay within `success_radius_m` of the named disc for `success_steps` control steps.

    Args:
        scene: name of a file in `sim_assets/scenes`, or a path.
        num_envs: batch size.
        phrasings: "train" or "eval" sentences.
        seed: start of the random stream; environment i uses seed + i.
        success_steps: control steps in a row on the disc that end an episode; recorded play takes more, to show what follows them.
        reward: null is `ProgressReward`. It is told of success when that ends the episode, and of the task's true progress.

    Raises:
        ValueError: if num_envs < 1, for a malformed scene, or for one whose robot this world cannot move.
    """

    state_channels = (*(Channel(name, "m") for name in ("x", "y")), *(Channel(name, "m/s") for name in ("vx", "vy")))
    action_channels = tuple(Channel(name, "max_delta_m", "delta", -1, 1) for name in ("dx", "dy"))
    robot_needs: tuple[str, ...] = ("max_delta_m",)  # of the scene's robot, to move it
    physics = True
    reward: Reward

    def __init__(
        self,
        scene: str = "push_block",
        num_envs: int = 64,
        phrasings: str = "train",
        seed: int = 0,
        success_steps: int = 1,
        reward: Reward | None = None,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.scene = Scene(scene, phrasings, self.robot_needs)
        data = self.scene.data
        self.num_envs, self.fps, self.max_episode_steps = num_envs, data["fps"], data["max_episode_steps"]
        self.camera, self.robot_type = data["camera"]["name"], Path(data["robot"]["file"]).stem
        self.fov, self.success_steps, self.reward = data["camera"]["fov"], success_steps, reward or ProgressReward()
        self.single_observation_space = gym.spaces.Dict(
            images=gym.spaces.Dict({self.camera: gym.spaces.Box(0, 255, (*data["camera"]["size"], 3), np.uint8)}),
            state=gym.spaces.Box(-np.inf, np.inf, (len(self.state_names),), np.float32),
            instruction=gym.spaces.Text(200, charset=alphanumeric | set(" .,:;!?'-")),
        )
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._build()
        self._stream = torch.stack([seed + torch.arange(num_envs), torch.zeros(num_envs, dtype=torch.long)], dim=1)
        self._elapsed, self._held = torch.zeros(2, num_envs, dtype=torch.long)
        self._task, self._goals = torch.zeros(num_envs, 3, dtype=torch.long), torch.zeros(num_envs, len(self.scene.goal_names), 2)
        self._draw(torch.arange(num_envs))

    def _build(self) -> None:
        init_genesis()
        data = self.scene.data
        physics, robot, camera = data["physics"], data["robot"], data["camera"]
        self._scene = new_scene(
            self,
            sim_options=gs.options.SimOptions(dt=physics["dt"], substeps=physics["substeps"]),
            rigid_options=gs.options.RigidOptions(batch_links_info=True, batch_dofs_info=True),  # `set_dynamics`
            vis_options=self._looks(),
        )
        self._add_static()
        self._goal_entities = [
            self._scene.add_entity(
                gs.morphs.Cylinder(radius=goal["radius"], height=0.002, pos=(0, 0, 0.001), fixed=True, collision=False),
                surface=gs.surfaces.Rough(color=tuple(goal["color"])),
            )
            for goal in data["goals"].values()
        ]
        self._blocks = [
            self._scene.add_entity(
                gs.morphs.Box(size=block["size"], pos=(0.3 * i, 0, block["size"][2] / 2)),
                surface=gs.surfaces.Rough(color=tuple(block["color"])),
                material=gs.materials.Rigid(rho=block["density"], friction=block["friction"]),
            )
            for i, block in enumerate(data["blocks"].values())
        ]
        self._robot = self._scene.add_entity(gs.morphs.MJCF(file=str(ASSETS / robot["file"])))
        self._camera = self._scene.add_camera(
            res=tuple(reversed(camera["size"])), pos=camera["pos"], lookat=camera["lookat"], fov=camera["fov"], GUI=False
        )
        self._scene.build(n_envs=self.num_envs, env_spacing=(0, 0))
        self._dofs = [joint.dofs_idx_local[0] for joint in (self._robot.get_joint(name) for name in robot["joints"])]
        self._masses = [float(block.get_mass()[0]) for block in self._blocks]
        force = np.broadcast_to(robot["max_force"], len(self._dofs))
        self._robot.set_dofs_force_range(-force, force, self._dofs)
        self.set_dynamics(torch.arange(self.num_envs))

    # Gymnasium ----------------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        mask, seeds = self.begun(seed, options)
        if seeds is not None:
            self._stream[mask] = torch.stack([seeds, torch.zeros_like(seeds)], dim=1)[mask]
        self._draw(mask.nonzero().flatten())
        return self._observe(), {}

    def step(self, actions: Float[Tensor, "b ad"]) -> Step:
        return self.step_chunk(self.check_actions(actions, ndim=2)[:, None]).as_step()

    def step_chunk(self, actions: Float[Tensor, "b ah ad"]) -> ChunkResult:
        return self._play(actions, watched=None)

    def watch_chunk(self, actions: Float[Tensor, "b ah ad"]) -> tuple[ChunkResult, list[Sight]]:
        watched: list[Sight] = []
        return self._play(actions, watched), watched

    def snapshot(self) -> PhysicsState:
        def stack(name: str) -> Tensor:
            return torch.stack([torch.as_tensor(getattr(block, name)()).cpu() for block in self._blocks], dim=1)

        return PhysicsState(
            block_pose=torch.cat([stack("get_pos"), stack("get_quat")], dim=-1),
            block_velocity=stack("get_dofs_velocity"),
            goals=self._goals.clone(),
            pusher=self._pusher().clone(),
            pusher_velocity=self._robot.get_dofs_velocity(self._dofs).cpu().clone(),
            task=self._task.clone(),
            elapsed=self._elapsed.clone(),
            held=self._held.clone(),
            stream=self._stream.clone(),
        )

    def restore(self, state: PhysicsState) -> Observation:
        if not isinstance(state, PhysicsState) or state.elapsed.shape != (self.num_envs,):
            raise ValueError(
                f"restore needs a PhysicsState of {self.num_envs} environments; index the snapshot: world.restore(snapshot[rows])"
            )
        self._place(torch.arange(self.num_envs), state)
        return self._observe()

    def replay(
        self, state: PhysicsState, actions: Float[Tensor, "b t ad"]
    ) -> tuple[Float[Tensor, "b t s"], Float[Tensor, "b t 2"]]:
        """Act without pictures and without ends.

        Args:
            state: where each environment begins.
            actions: in [-1, 1], t control steps.

        Returns:
            Proprioception [m, m/s] and the place of the named block [m] after each action.
        """
        self._place(torch.arange(self.num_envs), state)
        felt, places = [], []
        for action in actions.unbind(1):
            self._simulate(action)
            felt.append(self._proprioception())
            places.append(self.truth().block)
        self.count_physics(self.num_envs * len(felt))
        return torch.stack(felt, dim=1), torch.stack(places, dim=1)

    @contextmanager
    def endless(self) -> Iterator[None]:
        """Within it only time ends an episode, success does not: for recordings of full length."""
        ends, self.success_steps = self.success_steps, 10**9
        try:
            yield
        finally:
            self.success_steps = ends

    def set_dynamics(self, index: Int[Tensor, " n"], *, mass: Factor = 1.0, friction: Factor = 1.0, gain: Factor = 1.0) -> None:
        """Change the environments `index` from now on, over resets too; factors of the scene's values, one number or [n].

        Args:
            index: environments.
            mass: of every block, inertia with it.
            friction: of every surface.
            gain: stiffness of the robot's controller; its damping goes with the root, so that the damping ratio stays.

        Raises:
            ValueError: if a factor is not positive and finite.
        """
        mass, friction, gain = (torch.as_tensor(factor).float().expand(len(index)) for factor in (mass, friction, gain))
        for name, factor in (("mass", mass), ("friction", friction), ("gain", gain)):
            if not ((factor > 0) & factor.isfinite()).all():
                raise ValueError(f"the factor of {name} must be positive, got {factor.tolist()}; 1 leaves it as the scene has it")
        for block, nominal in zip(self._blocks, self._masses, strict=True):
            block.set_mass(nominal * mass, envs_idx=index)
        solver = self._scene.rigid_solver
        solver.set_geoms_friction_ratio(friction[:, None].expand(-1, solver.n_geoms), range(solver.n_geoms), index)
        kp, kv = (torch.tensor(self.scene.data["robot"][key]).float().expand(len(self._dofs)) for key in ("kp", "kv"))
        self._robot.set_dofs_kp(gain[:, None] * kp, self._dofs, envs_idx=index)
        self._robot.set_dofs_kv(gain[:, None].sqrt() * kv, self._dofs, envs_idx=index)

    def render(self) -> tuple[np.ndarray, ...]:
        """The current camera frames, one uint8 [h, w, 3] per environment."""
        return tuple(self._pixels().numpy())

    def close_extras(self, **kwargs: Any) -> None:
        self._scene.destroy()

    # Ground truth -------------------------------------------------------------------------------------------------------

    def truth(self) -> Truth:
        """Positions, success and progress of every environment now; for experts, judges and metrics, never for a policy."""
        block, goal = self._block_and_goal()
        distance = (block - goal).norm(dim=-1)
        progress = (1 - distance / self.scene.data["progress_scale_m"]).clamp(0, 1)
        success, robot = distance < self.scene.data["success_radius_m"], self._pusher()[:, :2]
        return Truth(success=success, progress=progress, block=block, goal=goal, pusher=robot, distance=distance)

    judge = truth  # the judge of last resort

    def expert(self) -> Float[Tensor, "b 2"]:
        truth = self.truth()
        return expert_action(truth.block, truth.goal, truth.pusher, max_delta_m=self.max_delta_m)

    @property
    def max_delta_m(self) -> float:
        """Displacement of an action of length 1 [m]."""
        return self.scene.data["robot"]["max_delta_m"]

    @property
    def goals(self) -> Float[Tensor, "b g 2"]:
        """Positions of all discs [m], named or not."""
        return self._goals

    @property
    def named_colors(self) -> Float[Tensor, "b 3"]:
        """RGB 0..1 of the block that each instruction names."""
        return torch.tensor([block["color"] for block in self.scene.data["blocks"].values()])[self._task[:, 0]]

    def camera_poses(self) -> Float[Tensor, "b 4 4"]:
        """Camera-to-world of every environment now, OpenGL axes [m]."""
        camera = self.scene.data["camera"]
        return torch.from_numpy(look_at(camera["pos"], camera["lookat"])).float().expand(self.num_envs, 4, 4)

    # Internals ----------------------------------------------------------------------------------------------------------

    def _play(self, actions: Float[Tensor, "b ah ad"], watched: list[Sight] | None) -> ChunkResult:
        """The result of a chunk; a picture of every action's outcome is taken only for `watched`."""
        actions = self.check_actions(actions, ndim=3)
        done = torch.zeros(self.num_envs, dtype=torch.bool)
        final, log = self.truth(), []
        ends: list[tuple[Tensor, PhysicsState]] = []  # physics goes on for all until the chunk ends; an episode's end is kept here
        for i, action in enumerate(actions.unbind(1)):
            alive = ~done
            self._simulate(action * alive[:, None])
            self._elapsed += alive
            self.count_physics(int(alive.sum()))
            truth = self.truth()
            self._held = torch.where(truth.success, self._held + 1, 0)
            ended = self._held >= self.success_steps
            reward = torch.where(alive, self.reward(final, replace(truth, success=ended)), 0.0)
            terminated, truncated = ended & alive, (self._elapsed >= self.max_episode_steps) & alive & ~ended
            log.append((reward, terminated, truncated, alive))
            final = where_rows(alive, truth, final)
            if watched is not None:
                now = self._observe()
                watched.append((where_rows(alive, now, watched[-1][0]) if watched else now, final))
            over = terminated | truncated
            if over.any() and i + 1 < actions.shape[1]:
                ends.append((over.nonzero().flatten(), self.snapshot()[over]))
            done = done | over
        for index, end in ends:
            self._place(index, end)
        obs = final_obs = watched[-1][0] if watched else self._observe()
        if done.any():
            self._draw(done.nonzero().flatten())
            obs = self._observe()
        columns = (torch.stack(values, dim=1) for values in zip(*log, strict=True))
        return ChunkResult(obs, final_obs, *columns, final_judge=final)

    def _looks(self) -> Any:
        return vis_options(self.scene.data)

    def _add_static(self) -> None:
        add_static(self._scene, self.scene.data)

    def _draw(self, index: Tensor) -> None:
        """Start a new episode in the environments `index`, each from its own random stream."""
        if len(index) == 0:
            return
        state = self.snapshot()
        for i in index.tolist():
            layout = self.scene.draw(*self._stream[i].tolist())
            for n, (x, y, yaw) in enumerate(layout.blocks):
                height = list(self.scene.data["blocks"].values())[n]["size"][2]
                state.block_pose[i, n] = torch.tensor([x, y, height / 2, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
            state.goals[i] = torch.from_numpy(layout.goals)
            state.pusher[i] = torch.from_numpy(layout.pusher)
            state.task[i] = torch.tensor([layout.block, layout.goal, layout.phrasing])
        for values in (state.block_velocity, state.pusher_velocity, state.elapsed, state.held):
            values[index] = 0
        state.stream[index, 1] += 1
        self._place(index, state[index])

    def _place(self, index: Tensor, state: PhysicsState) -> None:
        """Set the environments `index` to the rows of `state`; the others keep theirs."""
        for n, block in enumerate(self._blocks):
            block.set_pos(state.block_pose[:, n, :3], envs_idx=index)
            block.set_quat(state.block_pose[:, n, 3:], envs_idx=index)
            block.set_dofs_velocity(state.block_velocity[:, n], envs_idx=index)
        for n, goal in enumerate(self._goal_entities):
            goal.set_pos(torch.cat([state.goals[:, n], torch.full((len(index), 1), 0.001)], dim=1), envs_idx=index)
        self._robot.set_dofs_position(state.pusher, self._dofs, envs_idx=index)
        self._robot.set_dofs_velocity(state.pusher_velocity, self._dofs, envs_idx=index)
        self._robot.control_dofs_position(state.pusher, self._dofs, envs_idx=index)
        self._goals[index], self._task[index] = state.goals, state.task
        self._elapsed[index], self._held[index], self._stream[index] = state.elapsed, state.held, state.stream

    def _simulate(self, actions: Float[Tensor, "b 2"]) -> None:
        robot = self.scene.data["robot"]
        target = (self._pusher() + actions * robot["max_delta_m"]).clamp(-robot["workspace_m"], robot["workspace_m"])
        self._robot.control_dofs_position(target, self._dofs)
        for _ in range(self.scene.data["physics"]["steps_per_action"]):
            self._scene.step(update_visualizer=False)

    def _block_and_goal(self) -> tuple[Float[Tensor, "b 2"], Float[Tensor, "b 2"]]:
        """What has to be where, see `Truth`."""
        rows = torch.arange(self.num_envs)
        return self._places()[rows, self._task[:, 0]], self._goals[rows, self._task[:, 1]]

    def _places(self) -> Float[Tensor, "b n 2"]:
        """Of all blocks [m]."""
        return torch.stack([torch.as_tensor(block.get_pos()).cpu()[:, :2] for block in self._blocks], dim=1)

    def _pusher(self) -> Float[Tensor, "b q"]:
        return self._robot.get_dofs_position(self._dofs).cpu()

    def _proprioception(self) -> Float[Tensor, "b s"]:
        return torch.cat([self._pusher(), self._robot.get_dofs_velocity(self._dofs).cpu()], dim=1)

    def _aim(self) -> None:
        """Put a camera that moves where it belongs; this one stands still."""

    def _pixels(self) -> Tensor:
        # A placed body moves on screen only once the visual geometry is updated, which `scene.step` would do.
        self._aim()
        rgb = np.ascontiguousarray(self._camera.render(force_render=True)[0])
        return torch.from_numpy(rgb).reshape(self.num_envs, *self.scene.data["camera"]["size"], 3)

    def _observe(self) -> Observation:
        sentences = tuple(self.scene.sentence(*task) for task in self._task.tolist())
        return Observation({self.camera: self._pixels()}, self._proprioception(), sentences)
