"""`python -m worldsim.robot.check`: exit codes, and that no damage to any file of a bundle goes unnoticed."""

import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from toy_bundle import sign
from toy_robot import ROOT

from worldsim.robot.bundle import description_sha256, load_bundle, sha256
from worldsim.robot.check import largest_difference, latency_ms, main, read_recorded, replay
from worldsim.robot.reliability import read_reference

FILES = ("bundle.json", "policy.onnx", "guided.onnx", "tokenizer.json", "reliability.npy", "reliability.json")
FILES += tuple(f"observations/{name}" for name in ("images.npy", "states.npy", "noises.npy", "actions.npy", "instructions.json"))


@pytest.fixture
def bundle(toy_bundle, tmp_path):
    return shutil.copytree(toy_bundle, tmp_path / "bundle")


def test_a_good_bundle_passes(toy_bundle):
    command = [sys.executable, "-m", "worldsim.robot.check", str(toy_bundle), "--seconds", "0.1", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == ""
    report = json.loads(done.stdout)
    assert report["ok"] is True and report["observations"] == 8
    assert report["max_abs_difference"] <= 1e-6
    latency = report["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"] and latency["decisions"] >= 1


def test_the_fixture_names_every_file(toy_bundle):
    assert {str(path.relative_to(toy_bundle)) for path in toy_bundle.rglob("*") if path.is_file()} == set(FILES)


def test_another_answer_is_a_mismatch(bundle, capsys):
    actions = np.load(bundle / "observations" / "actions.npy")
    actions[3, 2, 1] += 2e-4
    np.save(bundle / "observations" / "actions.npy", actions)
    sign(bundle, json.loads((bundle / "bundle.json").read_text()))
    assert main([str(bundle), "--seconds", "0.05"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["ok"] is False
    assert err == "error: the actions differ from the recorded ones by 2.0e-04, at most 1e-04 is allowed; do not use it\n"


def test_a_bundle_without_observations_says_so(bundle, capsys):
    shutil.rmtree(bundle / "observations")
    description = json.loads((bundle / "bundle.json").read_text())
    sign(bundle, description, [name for name in description["sha256"] if not name.startswith("observations")])
    assert main([str(bundle), "--seconds", "0.05"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["observations"], report["max_abs_difference"]) == (0, None)


def one_line(bundle, capsys) -> str:
    assert main([str(bundle), "--seconds", "0.01"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and len(err) > 20
    return err


@pytest.mark.parametrize("file", FILES)
def test_each_file_is_missed_and_its_damage_noticed(bundle, capsys, file):
    content = (bundle / file).read_bytes()
    (bundle / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert file in one_line(bundle, capsys)
    (bundle / file).write_bytes(content[: len(content) // 2])
    one_line(bundle, capsys)
    (bundle / file).unlink()
    assert "missing" in one_line(bundle, capsys)


@pytest.mark.parametrize("key", ["format", "inputs", "outputs", "views", "fps", "tokenizer"])
def test_a_signed_description_without_a_key_is_refused(bundle, capsys, key):
    description = json.loads((bundle / "bundle.json").read_text())
    del description[key]
    sign(bundle, description)
    assert f"lacks ['{key}']" in one_line(bundle, capsys)


@pytest.mark.parametrize(
    ("views", "words"),
    [
        ({}, "has views {}, expected camera: [height, width] in pixels"),
        (["front"], "has views ['front'], expected"),
        (None, "has views None, expected"),
        ({"front": 32}, "has views {'front': 32}, expected"),
        ({"front": [32]}, "has views {'front': [32]}, expected"),
        ({"front": [32, 32, 3]}, "expected camera: [height, width]"),
        ({"front": [32, 32.0]}, "expected camera: [height, width]"),
        ({"front": [True, 32]}, "expected camera: [height, width]"),
        ({"front": [32, 32], "wrist": [-8, 0]}, "expected camera: [height, width]"),
        ({"front": ["32", "32"]}, "expected camera: [height, width]"),
        ({"": [32, 32]}, "expected camera: [height, width]"),
        ({"front\n": [32]}, "expected camera: [height, width]"),
        ({"front": [64, 64]}, "has views that make a picture [1, 64, 64, 3], its graph takes [[1, 32, 32, 3]]"),
        ({"front": [32, 32], "wrist": [32, 8]}, "has views that make a picture [1, 32, 40, 3], its graph takes"),
    ],
)
def test_signed_views_that_do_not_fit_are_refused(bundle, capsys, views, words):
    sign(bundle, json.loads((bundle / "bundle.json").read_text()) | {"views": views})
    assert words in one_line(bundle, capsys)


def test_views_side_by_side_may_be_of_different_heights(bundle):
    views = {"front": [32, 24], "wrist": [8, 8]}
    sign(bundle, json.loads((bundle / "bundle.json").read_text()) | {"views": views})
    assert load_bundle(bundle).description["views"] == views


def test_views_in_another_order_are_noticed(bundle, capsys):
    """Sorted by a tool they would put the cameras in each other's places."""
    sign(bundle, json.loads((bundle / "bundle.json").read_text()) | {"views": {"wrist": [32, 16], "front": [32, 16]}})
    load_bundle(bundle)
    description = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(description, sort_keys=True))
    assert "bundle.json was altered" in one_line(bundle, capsys)


@pytest.mark.parametrize("graph", ["policy.onnx", "guided.onnx"])
def test_a_signed_description_that_leaves_a_graph_unchecked_is_refused(bundle, capsys, graph):
    description = json.loads((bundle / "bundle.json").read_text())
    sign(bundle, description, [name for name in description["sha256"] if name != graph])
    assert f"no hash of {graph}" in one_line(bundle, capsys)
    sign(bundle, description | {"format": "tarball"})
    assert "unknown format 'tarball'" in one_line(bundle, capsys)


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Content with one accident: bits, bytes, pieces, or all of it."""
    at, length = chance.randrange(len(content)), chance.randrange(1, 40)
    kind = chance.randrange(6)
    if kind == 0:
        return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]
    if kind == 1:
        return content[:at] + chance.randbytes(length) + content[at + length :]
    if kind == 2:
        return content[:at] + content[at + length :]
    if kind == 3:
        return content[:at] + chance.randbytes(length) + content[at:]
    if kind == 4:
        return content[:at]
    return chance.choice([b"", b"{}", b"null", b"[" * 100_000, b"\xff\xfe", content * 2])


@pytest.mark.parametrize("file", FILES)
def test_random_mutations_are_refused_in_one_line(bundle, file):
    chance, path = random.Random(file), bundle / file
    content, description = path.read_bytes(), load_bundle(bundle).description
    refused = []
    for _ in range(60):
        path.write_bytes(mutate(content, chance))
        if path.read_bytes() == content:
            continue
        try:
            loaded = load_bundle(bundle, threads=1)
        except (ValueError, FileNotFoundError) as error:
            refused.append(str(error))
        else:
            assert file == "bundle.json" and loaded.description == description  # another blank between the same words
    assert len(refused) > 50 and all(message and "\n" not in message for message in refused)


def test_observations_that_do_not_fit_together_are_refused(bundle):
    file = bundle / "observations" / "instructions.json"
    file.write_text(json.dumps(["go"] * 7))
    sign(bundle, json.loads((bundle / "bundle.json").read_text()))
    with pytest.raises(ValueError, match="have different lengths"):
        read_recorded(bundle)


def test_pickled_observations_are_never_read(bundle):
    np.save(bundle / "observations" / "states.npy", np.array([{}] * 8, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_recorded(bundle)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "observations/../../secret", "a\\..\\b", ""])
def test_names_cannot_leave_the_folder(bundle, name):
    (bundle.parent / "secret").touch()
    document = json.loads((bundle / "bundle.json").read_text())
    del document["sha256_of_this_description"]
    document["sha256"][name] = sha256(bundle.parent / "secret")
    document["sha256_of_this_description"] = description_sha256(document)
    (bundle / "bundle.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="is missing from the bundle"):
        load_bundle(bundle)


def test_parts_in_process(toy_bundle):
    loaded, recorded = load_bundle(toy_bundle, threads=1), read_recorded(toy_bundle)
    assert recorded is not None and recorded.images.shape == (8, 32, 32, 3)
    assert replay(loaded, recorded) <= 1e-6
    assert latency_ms(loaded, recorded.images[0], recorded.states[0], "go", 0)["decisions"] == 1
    assert read_reference(toy_bundle).rows.shape[1] == 50


def test_rounding_is_no_difference_and_more_is():
    """A unit in the last place of 90 is 7.6e-6: four of them on a channel of scale 0.04 are two too many, 3.8e-4."""
    expected, scale = np.full((1, 2), 90, np.float32), np.array([0.04, 10])
    step = np.spacing(np.float32(90))
    assert largest_difference(expected + 2 * step, expected, scale) == 0
    assert largest_difference(expected + 4 * step, expected, scale) == pytest.approx(2 * step / 0.04)
    assert np.isnan(largest_difference(expected * np.float32(np.nan), expected, scale))
