"""`MetaworldWorld`: Meta-World's fifty tasks of a Sawyer arm on a table, told apart by pictures and a sentence.

It is here for demonstrations of many tasks by scripted experts, in contact-rich physics that can be branched to the bit. Where
objects and goals are is in the pictures alone. Read `worldsim/worlds/gym.py` for the world around it, `metaworld_tasks.py` for the
sentences.
"""
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
# MuJoCo's names come from a shared object, and Meta-World's classes are made when it is imported.

import atexit
import os
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache, partial
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from worldsim.core.spec import Channel
from worldsim.core.world import Reward
from worldsim.worlds.gym import GymWorld, ScriptedAdapter, display
from worldsim.worlds.metaworld_tasks import SENTENCES

with display("Meta-World"):  # MuJoCo opens OSMesa when it is imported
    import mujoco
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
    from metaworld.policies import ENV_POLICY_MAP

RATE = 80  # control steps of Meta-World itself [Hz]
KEPT = 384  # numbers of what is kept, zeros at its end; the largest task has 368
BEGUN = "_target_to_obj_init"  # bin-picking's distance when it first paid for one, which its later rewards refer to
WHOLE = mujoco.mjtState.mjSTATE_INTEGRATION


class Painter:
    """Draws one task's scene for all of its environments, without shadows, reflections and smoothed edges."""

    def __init__(self, model: mujoco.MjModel, camera: str, size: int):
        self._gl = gl_context()
        self._gl.make_current()
        model.vis.quality.offsamples, model.vis.quality.shadowsize = 0, 0
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        self._scene, self._options, self._nobody = mujoco.MjvScene(model, 1000), mujoco.MjvOption(), mujoco.MjvPerturb()
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, model.camera(camera).id
        self._frame, self._size = mujoco.MjrRect(0, 0, size, size), size

    def draw(self, model: mujoco.MjModel, data: mujoco.MjData) -> UInt8[np.ndarray, "h w 3"]:
        """What the camera sees, as OpenGL has it: the lowest row first."""
        self._gl.make_current()  # another simulator may have drawn
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._options, self._nobody, self._camera, everything, self._scene)
        mujoco.mjr_render(self._frame, self._scene, self._context)
        picture = np.empty((self._size, self._size, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, self._frame, self._context)
        return picture


@cache
def gl_context() -> Any:
    """That of this process: through EGL, or OSMesa if the variable MUJOCO_GL says so."""
    with display("Meta-World"):
        if os.environ.get("MUJOCO_GL") == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco.egl import GLContext
        context = GLContext(1, 1)
    atexit.register(lambda: (painter.cache_clear(), context.free()))  # before EGL is shut down
    return context


@cache
def painter(task: str, camera: str, size: int) -> Painter:
    """Of a task, drawn from a model of its own."""
    return Painter(ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"]().model, camera, size)


class Metaworld(ScriptedAdapter):
    """One arm that meets one of the `tasks` in every episode: that of the number seed % len(tasks).

    Actions are displacements of the hand's target and the effort that closes the gripper, carried out `skip` times; the unit of the
    first three says how far that goes. The state is the hand's place and the gripper's opening, 1 for 0.1 m or more.

    Args:
        tasks: names such as push-v3.
        camera: corner2, which is turned upright, or another of the scene's.
        size: height and width of the pictures.
        skip: steps of Meta-World for one action, a divisor of 80; the rate is 80 / skip.
        max_episode_steps: actions.

    Raises:
        ValueError: for a task or a camera that is not there, or a skip that gives no whole rate.
    """

    robot_type = "sawyer"
    state_channels = (*(Channel(name, "m", "absolute") for name in ("x", "y", "z")), Channel("gripper", "0.1 m", "absolute", 0, 1))

    def __init__(self, tasks: Sequence[str], camera: str, size: int, skip: int, max_episode_steps: int):
        for task in tasks:
            if task not in SENTENCES:
                near = get_close_matches(task, SENTENCES, n=3, cutoff=0.3)
                raise ValueError(f"Meta-World has no task {task}; did you mean {' or '.join(near) or 'push-v3'}?")
        if not tasks or skip < 1 or RATE % skip:
            raise ValueError(
                f"got the tasks {list(tasks)} and skip={skip}, expected a task or more and a divisor of {RATE}; take 2 or 4"
            )
        self.fps, self.max_episode_steps, self.skip = RATE // skip, max_episode_steps, skip
        moves = (Channel(name, f"{skip / 100:g} m", "delta", -1, 1) for name in ("dx", "dy", "dz"))
        self.action_channels = (*moves, Channel("close", "effort", "absolute", -1, 1))
        self._tasks, self._camera, self._size = tuple(tasks), camera, size
        self._arms: dict[str, Any] = {}
        self._task = self._tasks[0]
        super().__init__(self._arm(self._task))
        names = [self.env.unwrapped.model.camera(i).name for i in range(self.env.unwrapped.model.ncam)]  # type: ignore[attr-defined]
        if camera not in names:
            raise ValueError(f"Meta-World has no camera {camera}; one of {', '.join(names)}")

    def _arm(self, task: str) -> Any:
        """The environment of a task, made when it is first met."""
        if task not in self._arms:
            arm: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"](seed=0)
            arm._freeze_rand_vec, arm.seeded_rand_vec = (
                False,
                True,
            )  # starts by its own seed, none of fifty that are drawn beforehand
            arm.max_path_length = np.inf  # the world counts
            self._arms[task] = arm
        return self._arms[task]

    def reset(self, seed: int) -> None:
        self._task = self._tasks[seed % len(self._tasks)]
        self.env = arm = self._arm(self._task)
        arm.seed(seed)  # its reset ignores one
        self.seen, self.info = arm.reset()
        self._place(self._whole())  # it moves what stands on the table after it has worked out where all is

    def step(self, action: Float[np.ndarray, "4"]) -> tuple[float, bool, bool]:
        """Up to `skip` steps, fewer where the task is done; their rewards are summed."""
        paid = 0.0
        for _ in range(self.skip):
            paid += super().step(action)[0]
            if self.success():
                break
        return paid, False, False

    def images(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        arm: Any = self.env
        picture = painter(self._task, self._camera, self._size).draw(arm.model, arm.data)
        return {self._camera: picture[:, ::-1] if self._camera == "corner2" else picture[::-1]}  # corner2 hangs upside down

    def state(self) -> Float[np.ndarray, "4"]:
        return self.seen[:4]

    def instruction(self) -> str:
        return SENTENCES[self._task]

    def expert(self) -> Float[np.ndarray, "4"]:
        """Of Meta-World's policy for the task, which sees where everything is and asks for more than an action can be."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of just that
            return np.clip(ENV_POLICY_MAP[self._task]().get_action(self.seen), -1, 1)

    def keep(self) -> Float[np.ndarray, " n"]:
        arm: Any = self.env.unwrapped
        begun = getattr(arm, BEGUN, None)
        kept = np.concatenate([self.seen, arm._prev_obs, [-1 if begun is None else begun], self._whole()])
        return np.pad(kept, (0, KEPT - len(kept)))

    def resume(self, seed: int, actions: Float[np.ndarray, "t 4"], kept: Float[np.ndarray, " n"]) -> None:
        """The start, which places what does not move, and MuJoCo's whole state."""
        self.reset(seed)
        arm: Any = self.env
        self.seen, arm._prev_obs, begun, whole, _ = np.split(kept, np.cumsum([39, 18, 1, len(self._whole())]))
        if hasattr(arm.unwrapped, BEGUN):
            setattr(arm.unwrapped, BEGUN, None if begun[0] < 0 else float(begun[0]))
        self._place(whole)

    def _whole(self) -> Float[np.ndarray, " n"]:
        """All that MuJoCo's next step depends on."""
        arm: Any = self.env
        whole = np.empty(mujoco.mj_stateSize(arm.model, WHOLE))
        mujoco.mj_getState(arm.model, arm.data, whole, WHOLE)
        return whole

    def _place(self, whole: Float[np.ndarray, " n"]) -> None:
        """Go there, and work out what is drawn and measured."""
        arm: Any = self.env
        mujoco.mj_setState(arm.model, arm.data, whole, WHOLE)
        mujoco.mj_forward(arm.model, arm.data)
        mujoco.mj_setState(arm.model, arm.data, whole, WHOLE)  # where the solver begins, which `mj_forward` has moved on


class MetaworldWorld(GymWorld):
    """`num_envs` arms; the rewards are Meta-World's own, 0 to 10 for each of its steps, unless `reward` says otherwise.

    Progress is 1 where the task is done and 0 before: rewards grow on the way, but in every task in another one.

    Args:
        task: a name such as push-v3, or a list of them, which start k takes in turn.
        num_envs: batch size.
        camera, size, skip, max_episode_steps: see `Metaworld`.
        seed: environment i begins with seed + i.
        reward: of judgements; null leaves it to Meta-World.
    """

    def __init__(
        self,
        task: str | Sequence[str] = "push-v3",
        num_envs: int = 16,
        camera: str = "corner2",
        size: int = 96,
        skip: int = 2,
        max_episode_steps: int = 150,
        seed: int = 0,
        reward: Reward | None = None,
    ):
        tasks = [task] if isinstance(task, str) else [*task]
        super().__init__(partial(Metaworld, tasks, camera, size, skip, max_episode_steps), num_envs, seed, reward)
        arm: Any = self._adapters[0].env
        self.fov = float(arm.model.camera(camera).fovy[0])  # degrees, for randomised views
