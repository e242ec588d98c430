"""Scene files: clearances, reproducible layouts, sentences and errors."""

import numpy as np
import pytest
import torch
import yaml

from worldsim.worlds.genesis.scene import ASSETS, Paraphrases, Scene

SCENES = ("push_block", "push_block_hard")


@pytest.mark.parametrize("name", SCENES)
def test_two_hundred_layouts_keep_the_clearances_and_the_boxes(name):
    scene = Scene(name)
    clearance = scene.data["clearance_m"]
    for episode in range(200):
        layout = scene.draw(7, episode)
        blocks, goals = layout.blocks[:, :2], layout.goals
        for i in range(len(blocks)):
            assert np.linalg.norm(layout.pusher - blocks[i]) >= clearance["pusher_block"]
            assert all(np.linalg.norm(blocks[i] - blocks[j]) >= clearance["block_block"] for j in range(i))
            assert all(np.linalg.norm(blocks[i] - goal) >= clearance["goal_block"] for goal in goals)
            box = list(scene.data["blocks"].values())[i]
            assert box["x"][0] <= blocks[i, 0] <= box["x"][1]
            assert box["y"][0] <= blocks[i, 1] <= box["y"][1]
            assert np.deg2rad(box["yaw"][0]) <= layout.blocks[i, 2] <= np.deg2rad(box["yaw"][1])
        assert np.linalg.norm(goals[0] - goals[1]) >= clearance["goal_goal"]


def test_same_seed_and_episode_give_the_same_layout_and_others_another():
    scene = Scene("push_block")
    one, same, episode, seed = (scene.draw(*key) for key in ((3, 4), (3, 4), (3, 5), (4, 4)))
    for name in ("blocks", "goals", "pusher"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
        assert not np.array_equal(getattr(one, name), getattr(episode, name))
        assert not np.array_equal(getattr(one, name), getattr(seed, name))
    assert (one.block, one.goal, one.phrasing) == (same.block, same.goal, same.phrasing)


@pytest.mark.parametrize("name", SCENES)
def test_every_instruction_is_drawn(name):
    """2 discs x the blocks x the phrasings, up to 36: 400 draws miss one of 36 with a chance of 36 * (35/36)^400 = 5e-4."""
    scene = Scene(name)
    drawn = {scene.sentence(layout.block, layout.goal, layout.phrasing) for layout in (scene.draw(1, e) for e in range(400))}
    assert drawn == set(scene.sentences())


@pytest.mark.parametrize("name", SCENES)
def test_evaluation_phrasings_are_never_trained(name):
    train, evaluation = Scene(name, "train"), Scene(name, "eval")
    assert not set(train.templates) & set(evaluation.templates)
    assert not set(train.sentences()) & set(evaluation.sentences())
    for scene in (train, evaluation):
        for block, goal in ((b, g) for b in range(len(scene.block_names)) for g in range(2)):
            for phrasing in range(len(scene.templates)):
                words = scene.sentence(block, goal, phrasing)
                assert scene.block_names[block] in words
                assert [colour for colour in scene.goal_names if colour in words] == [scene.goal_names[goal]]


def test_paraphrases_keep_the_meaning_and_use_every_wording():
    """400 draws miss one of 18 wordings with a chance of 2e-9."""
    scene, generator = Scene("push_block"), torch.Generator().manual_seed(0)
    blue = scene.goal_names.index("blue")
    wordings = {scene.sentence(0, blue, phrasing) for phrasing in range(len(scene.templates))}
    spoken = Paraphrases("push_block")([scene.sentence(0, blue, 3)] * 400 + ["fold the towel"], generator)
    assert set(spoken[:400]) == wordings
    assert spoken[400] == "fold the towel", "what the scene does not speak stays as it is"


def test_unknown_scene_lists_the_known_ones():
    with pytest.raises(
        FileNotFoundError, match="scene 'no_such' not found .* known scenes: push_block, push_block_gate, push_block_hard"
    ):
        Scene("no_such")


def test_unknown_phrasings():
    with pytest.raises(ValueError, match="phrasings must be one of"):
        Scene("push_block", "test")


@pytest.mark.parametrize("key", ["robot", "success_radius_m", "instructions"])
def test_missing_key_is_named(tmp_path, key):
    data = yaml.safe_load((ASSETS / "scenes" / "push_block.yaml").read_text())
    del data[key]
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match=f"lacks the keys .*{key}"):
        Scene(str(path))


def test_impossible_clearances(tmp_path):
    data = yaml.safe_load((ASSETS / "scenes" / "push_block.yaml").read_text())
    data["clearance_m"]["goal_goal"] = 2.0
    path = tmp_path / "crowded.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match="no start keeps the clearances"):
        Scene(str(path)).draw(0, 0)
