"""Recording of what a robot saw and did, as plain files that only ever grow, written by a thread of their own.

A robot has neither torch nor pyarrow, and may lose power: so rows are raw arrays appended to one file per stream, and a row counts
once its line in `rows.jsonl` is complete. `worldsim/data/robot_log.py`, on the side of training, makes a LeRobot v3 dataset of
such a folder; read it next.
"""

import json
import queue
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from worldsim.robot.drivers import RobotObservation
from worldsim.robot.safety import Command, Intervention

META, ROWS, INTERVENTIONS = "meta.json", "rows.jsonl", "interventions.jsonl"
FORMAT_VERSION = 1


class Recorder:
    """Appends rows and interventions to a new folder. `row` and `intervention` never wait for the disk and never raise.

    Args:
        folder: created; must not exist or be empty.
        fps: rows per second.
        state_names, action_names: one name per element.
        cameras: (height, width) by camera name.
        instruction: the sentence that the robot obeys.
        queue_size: rows that may wait for the disk; beyond that they are dropped and counted.

    Attributes:
        error: why recording ended early, or None.
        dropped: rows that found the queue full, or no recorder any more.

    Raises:
        ValueError: if the folder holds something.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        fps: int,
        state_names: list[str],
        action_names: list[str],
        cameras: Mapping[str, tuple[int, int]],
        instruction: str,
        queue_size: int = 64,
    ):
        self.folder = Path(folder)
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(f"{self.folder} exists and is not an empty folder; record into a new one")
        if wrong := [name for name in cameras if not name or set(name) & set("/\\.")]:
            raise ValueError(f"camera name {wrong[0]!r} must not be empty or contain a slash or a dot; rename the camera")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._shapes: dict[str, tuple[int, ...]] = {"state": (len(state_names),), "action": (len(action_names),)}
        self._shapes |= {f"camera_{name}": (*size, 3) for name, size in cameras.items()}
        meta = {
            "format_version": FORMAT_VERSION,
            "fps": fps,
            "state_names": state_names,
            "action_names": action_names,
            "cameras": {name: list(size) for name, size in cameras.items()},
            "instruction": instruction,
        }
        (self.folder / META).write_text(json.dumps(meta, indent=2) + "\n")
        self.error: str | None = None
        self.dropped = 0
        self._queue: queue.Queue[tuple[str, Any] | None] = queue.Queue(queue_size)
        self._thread = threading.Thread(target=self._write, name="recorder", daemon=True)
        self._thread.start()

    def row(self, step: int, observation: RobotObservation, command: Command) -> None:
        """What was seen at policy step `step`, and the command that was sent for it."""
        images = {f"camera_{name}": np.array(image) for name, image in observation.images.items()}  # a driver may reuse its own
        arrays = {"state": np.array(observation.state), "action": command.action, **images}
        line = {"step": step, "time": observation.time, "mode": command.mode.value, "reasons": list(command.reasons)}
        self._put("row", (arrays, line))

    def intervention(self, intervention: Intervention) -> None:
        """For `Safety(sink=...)`."""
        self._put("intervention", asdict(intervention))

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is waiting, as far as that is possible within `timeout_s`."""
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _put(self, kind: str, content: Any) -> None:
        try:
            if self.error is None:
                self._queue.put_nowait((kind, content))
                return
        except queue.Full:
            pass
        self.dropped += kind == "row"

    def _write(self) -> None:
        files: dict[str, BinaryIO] = {}
        try:
            for name in (*self._shapes, ROWS, INTERVENTIONS):
                files[name] = (self.folder / (name if name in (ROWS, INTERVENTIONS) else stream_file(name))).open("ab")
            while (item := self._queue.get()) is not None:
                kind, content = item
                if kind == "intervention":
                    _append(files[INTERVENTIONS], _line(content))
                else:
                    self._write_row(files, *content)
        except (OSError, ValueError) as error:  # a full disk, or an image of another size
            self.error = f"recording into {self.folder} ended: {error}"
        finally:
            for file in files.values():
                _close(file)

    def _write_row(self, files: Mapping[str, BinaryIO], arrays: Mapping[str, np.ndarray], line: Mapping[str, Any]) -> None:
        for name, shape in self._shapes.items():
            if name not in arrays or arrays[name].shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {arrays[name].shape if name in arrays else 'nothing'}")
            _append(files[name], arrays[name].astype(stream_dtype(name)).tobytes())
        _append(files[ROWS], _line(line))  # last: this is the commit


def stream_dtype(stream: str) -> np.dtype:
    """Of the stream "state", "action" or "camera_NAME"; little endian."""
    return np.dtype("u1" if stream.startswith("camera_") else "<f4")


def stream_file(stream: str) -> str:
    """Name of the file of a stream."""
    return f"{stream}.{'u8' if stream.startswith('camera_') else 'f32'}"


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _append(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()


def _close(file: BinaryIO) -> None:
    with suppress(OSError):  # a full disk again; the error that ended recording is already known
        file.close()
