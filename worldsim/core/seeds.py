"""Which starts are for what: an exam is worth something only if nobody has chosen or learned by it.

Start k of a command with `seed` is the stream seed + k. Streams below `CHOOSING` are to record and to learn from. From there on
they choose between learners and settings (benches, ablations, thresholds), from `GUARDING` on they watch a run that learns, and
those from `REPORTING` on report, once everything is settled.
"""

CHOOSING, GUARDING, REPORTING = 700_000_000, 800_000_000, 900_000_000


def check_training(seed: int, episodes: int) -> None:
    """Starts to record or to learn from.

    Raises:
        ValueError: if they reach into those that choose, guard or report.
    """
    if not 0 <= seed <= CHOOSING - episodes:
        raise ValueError(
            f"starts to record or learn from lie in [0, {CHOOSING:,}), got {episodes} from seed={seed}; those beyond choose, guard "
            "and report, take a smaller seed"
        )


def check_choosing(seed: int, episodes: int) -> None:
    """Starts by which learners or settings are compared.

    Raises:
        ValueError: if they are others, those that report above all.
    """
    if not CHOOSING <= seed <= GUARDING - episodes:
        raise ValueError(
            f"starts that choose lie in [{CHOOSING:,}, {GUARDING:,}), got {episodes} from seed={seed}; what starts from "
            f"{REPORTING:,} on have chosen, they could not report"
        )


def check_guarding(seed: int, episodes: int) -> None:
    """Starts that watch a run.

    Raises:
        ValueError: if they are others.
    """
    if not GUARDING <= seed <= REPORTING - episodes:
        raise ValueError(
            f"starts that guard a run lie in [{GUARDING:,}, {REPORTING:,}), got {episodes} from seed={seed}; training, choosing "
            "and the final evaluation have others"
        )
