"""A folder as a configuration names it: the model that it holds, and one object for all who name it within a run."""

from pathlib import Path

import pytest

from worldsim.core import loading


def test_a_folder_is_read_once_within_and_anew_without(folders: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folders["policy"])
    with loading.once():
        first = loading.policy(folders["policy"])
        assert loading.policy(f"{folders['policy']}/.") is first is loading.policy(str(tmp_path / "link"))
        with pytest.raises(ValueError, match="holds a FlowVLA, expected a Reflector"):
            loading.reflector(folders["policy"])
        assert loading.policy(folders["policy"]) is first
    assert loading.policy(folders["policy"]) is not loading.policy(folders["policy"]), (
        "outside of a run everybody has a model of his own"
    )
    with loading.once():
        assert loading.policy(folders["policy"]) is not first


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no exported model in .*nowhere"):
        loading.world_model(str(tmp_path / "nowhere"))
