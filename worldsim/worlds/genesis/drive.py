"""`DriveWorld`: a mobile robot in a room that must get to the box which the instruction names, seen through its own camera.

It exists because a moving camera is what radiance fields are for: `NerfDriveWorld` shows captured rooms around the same bodies
(after arXiv:2405.02425). No robot reaches walls or furniture: its joints end before them. Read `worldsim/tasks/drive.py` next.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from worldsim.core.precision import exact
from worldsim.core.spec import Channel
from worldsim.geometry.cameras import look_at
from worldsim.tasks.drive import driver_action
from worldsim.worlds.genesis.nerf import NerfWorld
from worldsim.worlds.genesis.world import GenesisWorld, PhysicsState


class DriveWorld(GenesisWorld):
    """A robot with two driven wheels among boxes.

    The action is the speed of the left and of the right wheel in [-1, 1], in units of the scene's `max_speed_m_s`. Proprioception
    is forward speed [m/s] and turn rate [rad/s], never where the robot is. An episode terminates when the robot's centre is within
    `success_radius_m` of the named box's. Wheels do not slip sideways: the chassis slides on joints x, y and heading, which follow
    v = (left + right) / 2 and w = (right - left) / track. Arguments as for `GenesisWorld`; the scene's camera is given in the
    robot's own axes (x ahead, z up).
    """

    state_channels = (Channel("v", "m/s"), Channel("w", "rad/s"))
    action_channels = tuple(Channel(name, "max_speed_m_s", "velocity", -1, 1) for name in ("left", "right"))
    robot_needs = ("max_speed_m_s", "track_m")

    @property
    def heading(self) -> Float[Tensor, " b"]:
        """Of the robots, counter-clockwise from x [rad]."""
        return self._pusher()[:, 2]

    def expert(self) -> Float[Tensor, "b 2"]:
        truth = self.truth()
        return driver_action(truth.pusher, self.heading, truth.goal)

    @exact
    def camera_poses(self) -> Float[Tensor, "b 4 4"]:
        cos, sin = self.heading.cos(), self.heading.sin()
        body = torch.eye(4).repeat(self.num_envs, 1, 1)
        body[:, :2, 0], body[:, :2, 1] = torch.stack([cos, sin], dim=1), torch.stack([-sin, cos], dim=1)
        body[:, :2, 3] = self._pusher()[:, :2]
        camera = self.scene.data["camera"]
        return body @ torch.from_numpy(look_at(camera["pos"], camera["lookat"])).float()

    def _aim(self) -> None:
        self._camera.set_pose(transform=self.camera_poses().numpy())

    def _block_and_goal(self) -> tuple[Tensor, Tensor]:
        return self._pusher()[:, :2], self._places()[torch.arange(self.num_envs), self._task[:, 0]]

    def _proprioception(self) -> Float[Tensor, "b 2"]:
        x, y, turn = self._robot.get_dofs_velocity(self._dofs).cpu().unbind(1)
        return torch.stack([x * self.heading.cos() + y * self.heading.sin(), turn], dim=1)

    def _place(self, index: Tensor, state: PhysicsState) -> None:
        super()._place(index, state)
        self._robot.control_dofs_velocity(torch.zeros_like(state.pusher), self._dofs, envs_idx=index)

    def _simulate(self, actions: Float[Tensor, "b 2"]) -> None:
        robot = self.scene.data["robot"]
        left, right = (robot["max_speed_m_s"] * actions).unbind(1)
        ahead, turn = (left + right) / 2, (right - left) / robot["track_m"]
        for _ in range(self.scene.data["physics"]["steps_per_action"]):
            wanted = torch.stack([ahead * self.heading.cos(), ahead * self.heading.sin(), turn], dim=1)
            self._robot.control_dofs_velocity(wanted, self._dofs)
            self._scene.step(update_visualizer=False)


class NerfDriveWorld(NerfWorld, DriveWorld):
    """A `DriveWorld` in captured rooms: bodies and robot of `DriveWorld`, pixels of `NerfWorld`, whose arguments it takes.

    The camera moves with every step, so give baked fields (`runs/nerf/baked`); a field itself takes thirty times as long.
    """
