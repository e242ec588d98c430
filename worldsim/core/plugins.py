"""Plug-ins: installed distributions whose entry points say which of their classes worldsim may build.

A checkpoint may name a class of worldsim's own or one that is listed here, and nothing else; an entry point is read from the
distribution's metadata, so that looking costs no import. Configurations need no entry point, since whoever writes one chose the
class. Read `checkpoint.py` next, and `examples/plugin/` for a whole plug-in.
"""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract
from pkgutil import resolve_name
from typing import Any, NamedTuple

# Entry-point group -> the contract of its classes. By name: `interfaces.py` imports `checkpoint.py`, which imports this module.
GROUPS = {
    "worldsim.worlds": "worldsim.core.world:World",
    "worldsim.world_models": "worldsim.core.interfaces:WorldModel",
    "worldsim.policies": "worldsim.core.interfaces:Policy",
    "worldsim.reflectors": "worldsim.core.interfaces:Reflector",
    "worldsim.parts": "worldsim.core.checkpoint:Configured",  # what a model of a plug-in is built of, such as a backbone
}


class Plugin(NamedTuple):
    """One class that an installed distribution lists.

    Attributes:
        entry: the entry point: its group, its name, and the class as "module:Class".
        distribution: name and version of who installed it.
    """

    entry: EntryPoint
    distribution: str

    @property
    def target(self) -> str:
        """The class as a description or a configuration names it, "module.Class"."""
        return self.entry.value.partition("[")[0].replace(":", ".").replace(" ", "")

    def load(self) -> type[Any]:
        """Import the class.

        Raises:
            ValueError: if it does not import or does not fulfil the contract of its group; it names the distribution.
        """
        who = f"plug-in {self.distribution} lists {self.target} under {self.entry.group}, which"
        try:
            cls = self.entry.load()
        except Exception as error:  # other people's modules, which may raise anything when they are imported
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ValueError(f"{who} does not import ({reason}); repair or uninstall {self.distribution}") from error
        contract = resolve_name(GROUPS[self.entry.group])
        if not (isinstance(cls, type) and issubclass(cls, contract)):
            raise ValueError(f"{who} is no subclass of {contract.__name__}; list it under another group")
        if isabstract(cls):
            raise ValueError(f"{who} lacks {', '.join(sorted(cls.__abstractmethods__))} of {contract.__name__}; write them")
        if (defined := f"{cls.__module__}.{cls.__qualname__}") != self.target:
            raise ValueError(f"{who} is {defined}, as its checkpoints will say; list it as {cls.__module__}:{cls.__qualname__}")
        return cls


def installed(groups: Iterable[str] = GROUPS) -> list[Plugin]:
    """What the distributions on the path list under these groups, without importing any of it."""
    found = (entry for group in groups for entry in entry_points(group=group))
    return [Plugin(entry, f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown") for entry in found]


def groups_of(contract: type) -> list[str]:
    """Groups that may list a `contract`: those of narrower contracts, else the first one whose contract it fulfils."""
    contracts = {group: resolve_name(name) for group, name in GROUPS.items()}
    narrower = [group for group, its in contracts.items() if issubclass(its, contract)]
    return narrower or [next(group for group, its in contracts.items() if issubclass(contract, its))]
