"""Sizes of pictures come from their headers, and a picture that is not whole has none."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from museum.recorder import CAMERA, DATA, FPS, encode, png, takes, write, write_v2
from toy_datasets import edit_column, edit_info

from worldsim.data import lerobot_format as fmt
from worldsim.data.counters import mend_counters
from worldsim.data.faults import dataset_faults
from worldsim.data.stored_pictures import size_of

PICTURE = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)


@pytest.mark.parametrize("end", [".png", ".jpg"])
def test_a_size_is_that_of_a_whole_picture(end: str) -> None:
    data = cv2.imencode(end, PICTURE)[1].tobytes()
    assert size_of(data) == (20, 30)
    assert size_of(data[:-20]) is None and size_of(b"") is None


def test_a_png_with_other_bytes_in_the_middle_is_not_whole() -> None:
    data = bytearray(cv2.imencode(".png", PICTURE)[1].tobytes())
    data[len(data) // 2] ^= 1
    assert size_of(bytes(data)) is None


def test_pictures_of_another_size_name_their_episodes(tmp_path: Path) -> None:
    """Rows 80 to 119 are episode 2."""
    write(tmp_path, takes())
    edit_column(tmp_path / DATA, CAMERA, {90: png(np.zeros((48, 64, 3), np.uint8))})
    (fault,) = dataset_faults(tmp_path)
    assert "48 x 64 pixels (height x width), expected 32 x 32: 1 pictures of 1 episode (2)" in fault.found
    assert "drop=[2]" in fault.remedy


def test_statistics_of_other_frames_are_computed_again(tmp_path: Path) -> None:
    """And the old ones are kept; nothing else is touched."""
    write(tmp_path, takes())
    stats = fmt.read_json(tmp_path / fmt.STATS)
    old = {key: {**said, "count": [120]} for key, said in stats.items()}
    fmt.write_json(tmp_path / fmt.STATS, old)
    (fault,) = dataset_faults(tmp_path)
    assert (fault.kind, fault.severity, fault.found) == ("statistics", "warning", "meta/stats.json is of 120 frames, there are 160")
    assert "stats.json was computed again; the old one is stats.json.bak-1" in mend_counters(tmp_path)
    assert not dataset_faults(tmp_path)
    assert fmt.read_json(tmp_path / "meta/stats.json.bak-1") == old
    new = fmt.read_json(tmp_path / fmt.STATS)["action"]
    assert new["count"] == [160] and np.allclose(new["mean"], stats["action"]["mean"])


def test_nobody_is_told_to_move_what_counted_episodes_lack(tmp_path: Path) -> None:
    """Files lie in chunks of two, info.json says 1000; or its paths have backslashes."""
    write_v2(tmp_path / "a", takes())
    for path in sorted([*(tmp_path / "a").rglob("*_000002.*"), *(tmp_path / "a").rglob("*_000003.*")]):
        target = Path(str(path).replace("chunk-000", "chunk-001"))
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    write(tmp_path / "b", takes())
    edit_info(tmp_path / "b", data_path="data\\chunk-{chunk_index:03d}\\file-{file_index:03d}.parquet")
    for name, cause in (("a", "chunks_size 1000"), ("b", "backslashes")):
        remedies = " ".join(fault.remedy for fault in dataset_faults(tmp_path / name))
        assert cause in remedies and "keep them" in remedies and "mv -n" not in remedies


@pytest.mark.parametrize(
    ("file", "content", "remedy"),
    [
        (DATA, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        ("meta/stats.json", b"\xef\xbb\xbf{}", "save it without a BOM"),
        (DATA, b"nothing", "copy it again"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(file: str, content: bytes, remedy: str, tmp_path: Path) -> None:
    write(tmp_path, takes(1))
    (tmp_path / file).write_bytes(content)
    assert any(remedy in fault.remedy for fault in dataset_faults(tmp_path))


def test_a_torn_line_of_statistics_is_named(tmp_path: Path) -> None:
    """Two episodes are two lines, the third is torn."""
    write_v2(tmp_path, takes(2), storage="image")
    path = tmp_path / "meta/episodes_stats.jsonl"
    path.write_text(path.read_text() + '{"episode_index": 1, "st')
    (fault,) = dataset_faults(tmp_path)
    assert f"{path} is not valid JSON in line 3" in fault.found


def test_a_slow_video_is_said_with_its_rate(tmp_path: Path) -> None:
    """Every picture twice: half of the frames show the one before, so 10 frames per second are 5."""
    for i, take in enumerate(write_v2(tmp_path, takes(4))):
        path = tmp_path / f"videos/chunk-000/{CAMERA}/episode_{i:06d}.mp4"
        encode(path, take.pictures[::2].repeat(2, axis=0), fps=FPS)
    (fault,) = dataset_faults(tmp_path)
    assert fault.kind == "pictures" and f"of {FPS // 2} frames per second" in fault.found
