"""Decoded once: by whom, where, again when, and what happens to damaged, foreign, half-written and read-only caches."""

import errno
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import pytest
import torch
from toy_datasets import files, random_episode, smooth_episode, write

from worldsim.data import frame_cache, lerobot_reader
from worldsim.data.lerobot import Dataset
from worldsim.data.store import FrameStore
from worldsim.report.doctor import CHECKS

TOP = {"top": None}
CACHE = Path(".cache/frames/top-16x24")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The camera and episode of every decoding, in order."""
    seen: list[tuple[str, int]] = []
    original = Dataset.clips

    def clips(self, camera, index):
        seen.append((camera, index))
        return original(self, camera, index)

    monkeypatch.setattr(Dataset, "clips", clips)
    return seen


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WORLDSIM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "60")  # lines are not broken, however narrow a terminal is


def whole(root: Path) -> torch.Tensor:
    return torch.cat([episode.images["top"] for episode in Dataset(root, cameras=["top"]).episodes()])


def is_right(root: Path) -> bool:
    return torch.equal(FrameStore.read(root, TOP).frames[:], whole(root))


@pytest.mark.parametrize("storage", ["video", "image"])
def test_a_recording_is_decoded_once_and_then_only_what_is_new(storage, tmp_path, decoded, monkeypatch, capsys):
    episodes = [smooth_episode(n, size=(64, 64)) for n in range(3)]
    settings = {"cameras": {"top": (64, 64), "wrist": (64, 64)}, "storage": storage}
    write(tmp_path / "data", episodes[:2], **settings)
    assert is_right(tmp_path / "data") and decoded == [("top", 0), ("top", 1)]
    assert "decoding 2 episodes of" in (said := capsys.readouterr().err) and "camera top at 64x64: 295 kB in" in said  # 24 x 12,288
    with monkeypatch.context() as patch:
        for decoder in ("video_frames", "decode_images"):
            patch.setattr(lerobot_reader, decoder, lambda *_, **__: pytest.fail("the second stage decodes"))
        FrameStore.read(tmp_path / "data", TOP, held_out=0.5)
        assert FrameStore.read_held_out(tmp_path / "data", TOP, held_out=0.5) is not None
    write(tmp_path / "data", [episodes[2]], **settings)
    assert capsys.readouterr().err == "" and is_right(tmp_path / "data") and decoded[2:] == [("top", 2)]
    if storage == "image":  # a file that changed: whoever has the old frames mapped keeps them
        old = FrameStore.read(tmp_path / "data", TOP)
        first, before = next((tmp_path / "data" / "data").rglob("*.parquet")), whole(tmp_path / "data")
        os.utime(first, ns=(0, 0))
        assert is_right(tmp_path / "data") and len(decoded) == 6 and torch.equal(old.frames[:], before)
        assert "is of other episodes" in capsys.readouterr().err


def damage(cache: Path, how: str) -> None:
    frames, index = cache / frame_cache.FRAMES, cache / frame_cache.INDEX
    if how == "truncated":
        os.truncate(frames, 1000)
    elif how == "another byte":
        with frames.open("r+b") as file:
            file.seek(777)
            byte = file.read(1)[0]
            file.seek(777)
            file.write(bytes([byte ^ 1]))
    elif how == "no frames":
        frames.unlink()
    elif how == "link":
        frames.rename(cache / "elsewhere")
        frames.symlink_to(cache / "elsewhere")
    elif how == "half an index":
        index.write_bytes(index.read_bytes()[:-20])
    else:
        index.write_text(json.dumps({**json.loads(index.read_text()), "episodes": {"sources": 1}}))


@pytest.mark.parametrize("how", ["truncated", "another byte", "no frames", "link", "half an index", "another index"])
def test_damage_is_one_line_and_decoded_again(how, tmp_path, decoded, capsys):
    write(tmp_path, [random_episode(0), random_episode(1)])
    assert is_right(tmp_path)
    capsys.readouterr()
    damage(tmp_path / CACHE, how)
    assert is_right(tmp_path) and decoded == [("top", 0), ("top", 1)] * 2
    assert [line for line in capsys.readouterr().err.splitlines() if "is damaged" in line] == [
        f"{tmp_path / CACHE} is damaged: {tmp_path} is decoded again"
    ]


def test_what_is_copied_or_killed_while_it_grows_is_kept_by_its_checksums(tmp_path, decoded):
    """A copy has other times, and the frames of a build that was killed stand behind those that the index counts."""
    write(tmp_path, [random_episode(0)])
    assert is_right(tmp_path)
    with (tmp_path / CACHE / frame_cache.FRAMES).open("ab") as file:
        file.write(b"half a frame")
    write(tmp_path, [random_episode(1)])
    assert is_right(tmp_path) and is_right(tmp_path) and decoded == [("top", 0), ("top", 1)]


def test_a_fault_keeps_what_was_decoded_before_it(tmp_path, decoded, monkeypatch):
    write(tmp_path, [random_episode(n) for n in range(3)])
    with monkeypatch.context() as patch:
        original = Dataset.clips

        def clips(self, camera, index):
            for clip in original(self, camera, index):
                yield clip[:2]  # and a part of an episode
                if index == 1:
                    raise ValueError("a damaged frame")
                yield clip[2:]

        patch.setattr(Dataset, "clips", clips)
        with pytest.raises(ValueError, match="a damaged frame"):
            FrameStore.read(tmp_path, TOP)
    decoded.clear()
    assert is_right(tmp_path) and decoded == [("top", 1), ("top", 2)]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    write(tmp_path, [random_episode(n) for n in range(2)])
    free = shutil.disk_usage(tmp_path)._replace(free=5000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: free)
        message = r"do not fit in .*top-16x24: 13.8 kB are needed and 5 kB are free; set WORLDSIM_CACHE to a folder on a larger"
        with pytest.raises(ValueError, match=message):  # 2 x 6 frames of 16 x 24 x 3
            FrameStore.read(tmp_path, TOP)
    assert is_right(tmp_path)
    shutil.rmtree(tmp_path / ".cache")
    with monkeypatch.context() as patch:  # it fills up within the second episode

        class FullDisk(FileIO):
            def write(self, data: memoryview) -> int:
                if self.tell() + len(data) > 9000:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return super().write(data[:1000])  # a disk may take less than it is given

        patch.setattr(frame_cache, "FileIO", FullDisk)
        with pytest.raises(ValueError, match="do not fit in .*: the disk is full; set WORLDSIM_CACHE"):
            FrameStore.read(tmp_path, TOP)
    assert (tmp_path / CACHE / frame_cache.FRAMES).stat().st_size == 6912, "the first episode stays"
    assert is_right(tmp_path)


def test_where_caches_lie(tmp_path, decoded, monkeypatch, capsys):
    """Beside the dataset; where that cannot be written in the user's folder; and where WORLDSIM_CACHE says, if it says so."""
    write(tmp_path / "data", [random_episode(0)])
    (tmp_path / "data" / ".cache").touch()  # no folder can be made there, whoever asks
    before = files(tmp_path / "data")
    assert is_right(tmp_path / "data") and is_right(tmp_path / "data") and len(decoded) == 1
    assert [*(tmp_path / "home" / "worldsim").glob("data-????????/top-16x24/frames.rgb")]
    monkeypatch.setenv("WORLDSIM_CACHE", str(tmp_path / "chosen"))
    assert is_right(tmp_path / "data") and len(decoded) == 2 and files(tmp_path / "data") == before
    assert [*(tmp_path / "chosen").glob("data-????????/top-16x24/frames.rgb")]
    (tmp_path / "file").touch()
    monkeypatch.setenv("WORLDSIM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="file/data-.* cannot be written .*; set WORLDSIM_CACHE to a folder that can"):
        FrameStore.read(tmp_path / "data", TOP)


def test_two_who_ask_at_once_decode_once(tmp_path, decoded, monkeypatch, capsys):
    """Locks belong to open files, so threads wait for each other as processes do."""
    write(tmp_path, [random_episode(n) for n in range(2)])
    original = Dataset.clips

    def slow(self, camera, index):
        time.sleep(0.1)
        return original(self, camera, index)

    monkeypatch.setattr(Dataset, "clips", slow)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: FrameStore.read(tmp_path, TOP).frames[:], range(2)))
    assert decoded == [("top", 0), ("top", 1)] and all(torch.equal(frames, whole(tmp_path)) for frames in both)
    assert f"another process decodes into {tmp_path / CACHE}; waiting for it" in capsys.readouterr().err


def test_the_doctor_lists_caches_and_what_may_go(tmp_path, monkeypatch):
    for name in ("good", "changed", "gone"):
        write(tmp_path / name, [random_episode(0)])
    FrameStore.read(tmp_path / "good", {"top": (8, 12)})
    FrameStore.read(tmp_path / "changed", TOP)
    for parquet in (tmp_path / "changed").rglob("*.parquet"):
        os.utime(parquet, ns=(0, 0))
    monkeypatch.setenv("WORLDSIM_CACHE", str(tmp_path / "chosen"))
    FrameStore.read(tmp_path / "gone", TOP)
    shutil.rmtree(tmp_path / "gone")
    monkeypatch.chdir(tmp_path)
    findings = {finding.section.rpartition("/")[2]: finding for finding in CHECKS["cache"]()}
    good, changed, gone, total = (findings[name] for name in ("good", "changed", "gone", "Caches of decoded frames"))
    assert (good.status, good.name, good.remedy) == (
        "ok",
        "top at 8x12",
        "",
    ) and "1 episodes, 1.73 kB, written 0.0 days" in good.value
    assert "its dataset has changed, 6.91 kB" in changed.value and changed.remedy == f"rm -r {tmp_path / 'changed' / CACHE}"
    assert "its dataset is gone" in gone.value and gone.remedy.startswith(f"rm -r {tmp_path / 'chosen'}/gone-")
    assert total.value.startswith("15.6 kB, of which 13.8 kB are of no use")
    assert changed.status == gone.status == "broken"
