"""What is known of a task beyond its data: its left-right symmetry, other wordings of its sentences, other light, as more to learn
from.

Nothing of it holds for data in general, so none is the default; `configs/augmentation/` has a file per task. Read
`training/supervised/data.py` next: its modules draw augmented batches.
"""

from dataclasses import dataclass

from worldsim.data.windows import Colour, Mirror
from worldsim.worlds.genesis.scene import Paraphrases


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a task's episodes so that they stay true.

    Attributes:
        mirror: the scene's left-right symmetry; half of all rows are mirrored. None if it has none.
        paraphrases: each sentence is heard in one of its wordings; None for the recorded one. Models that hear none ignore it.
        colour: pictures are seen in other light; None as they were recorded.
    """

    mirror: Mirror | None = None
    paraphrases: Paraphrases | None = None
    colour: Colour | None = None
