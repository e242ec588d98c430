"""A wheel carries the configurations and scenes, which stand at the top level of the repository, inside `worldsim/`.

Everything else about packaging is in `pyproject.toml`; `worldsim/core/installation.py` finds the folders again."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithFolders(build_py):
    """Copies `configs/` and `sim_assets/` beside the modules; an editable installation reads those of the checkout."""

    def run(self):
        super().run()
        for folder in () if self.editable_mode else ("configs", "sim_assets"):
            copy = Path(self.build_lib, "worldsim", folder)
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)


setup(cmdclass={"build_py": BuildWithFolders})
