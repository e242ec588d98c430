"""Videos that decode to what was written, and pictures put together in the right places."""

import av
import cv2
import numpy as np
import pytest
import torch

from worldsim.report import video

RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)


def clip(length, colour, size=(6, 8)):
    return np.full((length, *size, 3), colour, np.uint8)


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream, np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


def test_mp4_decodes_to_the_frames_enlarged(tmp_path):
    frames = np.concatenate([clip(5, RED, (64, 64)), clip(7, BLUE, (64, 64))])
    stream, decoded = decode(video.write_mp4(tmp_path / "a.mp4", frames, fps=10))
    assert decoded.shape == (12, 256, 256, 3)
    assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 10)
    # crf 18 and 4:2:0 leave a flat colour within a few grey levels
    np.testing.assert_allclose(decoded[[0, -1], 100, 100], [RED, BLUE], atol=6)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_mp4_of_odd_size_and_of_torch_frames(tmp_path):
    _, decoded = decode(video.write_mp4(tmp_path / "odd.mp4", torch.from_numpy(clip(3, GREEN, (33, 47))), fps=7.5, min_side=16))
    assert decoded.shape == (3, 34, 48, 3)


def test_mp4_keeps_small_detail(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 1), dtype=np.uint8)
    frames = np.broadcast_to(noise, (4, 64, 64, 3)).copy()
    _, decoded = decode(video.write_mp4(tmp_path / "a.mp4", frames, fps=10))
    assert np.abs(decoded.astype(int) - video.enlarge(frames)).mean() < 2  # crf 18 loses 0.8 grey levels, crf 30 3.6


def test_failed_write_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"former")

    def fail(*args):
        raise OSError("disk died")

    monkeypatch.setattr(video.os, "replace", fail)
    with pytest.raises(OSError, match="disk died"):
        video.write_mp4(path, clip(2, RED), fps=10)
    assert path.read_bytes() == b"former"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3)),
        np.zeros((4, 4, 3), np.uint8),
        torch.zeros(2, 4, 4, 1, dtype=torch.uint8),
    ],
    ids=["empty", "float", "image", "grey"],
)
def test_frames_are_checked(tmp_path, frames):
    with pytest.raises(ValueError, match="uint8"):
        video.write_mp4(tmp_path / "a.mp4", frames, fps=10)


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_fps_must_be_positive(tmp_path, fps):
    with pytest.raises(ValueError, match="fps"):
        video.write_mp4(tmp_path / "a.mp4", clip(2, RED), fps=fps)


def test_enlarge_repeats_pixels():
    frames = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    enlarged = video.enlarge(frames, min_side=5)  # the least whole factor with 2 x factor >= 5 is 3
    assert enlarged.shape == (1, 6, 6, 3)
    np.testing.assert_array_equal(enlarged[:, ::3, ::3], frames)
    np.testing.assert_array_equal(enlarged[:, 2::3, 2::3], frames)
    assert video.enlarge(frames, min_side=2).shape == frames.shape


def test_tile_places_videos_and_holds_the_last_frame():
    short = np.concatenate([clip(1, RED), clip(1, GREEN)])
    tiles = video.tile([short, clip(4, BLUE), clip(3, RED)], columns=2)
    assert tiles.shape == (4, 6 + 2 + 6, 8 + 2 + 8, 3)
    np.testing.assert_array_equal(tiles[:, 0, 0], [RED, GREEN, GREEN, GREEN])
    np.testing.assert_array_equal(tiles[:, 0, 10], [BLUE] * 4)
    np.testing.assert_array_equal(tiles[:, 8, 0], [RED] * 4)
    assert (tiles[:, 8:, 10:] == tiles[0, 6, 0]).all()  # an unused cell looks like the gap


def test_tile_of_a_tensor_with_more_columns_than_videos():
    assert video.tile(torch.zeros(2, 3, 6, 8, 3, dtype=torch.uint8), columns=9).shape == (3, 6, 18, 3)


@pytest.mark.parametrize(("videos", "columns"), [([], 1), ([clip(1, RED), clip(1, RED, (8, 8))], 2), ([clip(1, RED)], 0)])
def test_tile_refuses_what_does_not_fit(videos, columns):
    with pytest.raises(ValueError, match="size|columns"):
        video.tile(videos, columns)


def test_side_by_side_has_captions_above_and_pictures_below():
    both = video.side_by_side(clip(2, RED, (64, 64)), clip(3, BLUE, (64, 64)), ("real", "a caption far too long for a picture"))
    assert both.shape == (3, 26 + 256, 256 + 2 + 256, 3)
    np.testing.assert_array_equal(both[:, 26:, :256], np.broadcast_to(RED, (3, 256, 256, 3)))
    np.testing.assert_array_equal(both[:, 26:, 258:], np.broadcast_to(BLUE, (3, 256, 256, 3)))
    bright = (both[0, :26] > 128).all(axis=-1).any(axis=0)
    assert bright[8:60].any()
    assert bright[258:].any()
    assert not bright[60:258].any()
    assert not bright[-6:].any()  # the long caption was shrunk to fit


def test_filmstrip_spans_first_to_last():
    frames = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 8, 3), np.uint8)
    strip = video.filmstrip(frames, 3)
    assert strip.shape == (6, 3 * 8 + 2 * 2, 3)
    assert strip[0, [0, 10, 20], 0].tolist() == [0, 4, 8]
    assert video.filmstrip(frames[:2], 3).shape == strip.shape


def test_filmstrip_needs_a_frame():
    with pytest.raises(ValueError, match="count"):
        video.filmstrip(clip(2, RED), 0)


def test_png_round_trip():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    decoded = cv2.imdecode(np.frombuffer(video.png_bytes(torch.from_numpy(image)), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded[..., ::-1], image)
