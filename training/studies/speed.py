"""`worldsim bench speed`: what a second of this machine buys in dreams, in physics and in heavier networks.

All cells are worlds, play the same chunks in one process and take turns, so that a slow moment of the machine is nobody's. Networks
are untrained, as time does not depend on weights. `scaling.py` foretells other sizes, `algorithms.py` compares what learners gain.
"""

from worldsim.core import torchvision_remedy  # isort: skip  # noqa: F401 - before diffusers

import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from hydra.utils import instantiate
from rich.progress import track
from torch import Tensor, nn

from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from training.app.compiled import compile_networks
from training.studies.algorithms import run_algorithms
from training.studies.scaling import Measured, Size, described, on_paper, overhead, peak_of, rates, scaling_table, sizes
from worldsim.core.cores import cores
from worldsim.core.files import write_json
from worldsim.core.interfaces import WorldModel
from worldsim.core.memory import keep_memory
from worldsim.core.precision import precision
from worldsim.core.world import World
from worldsim.worlds.dream import DreamWorld, Starts

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

CHUNK = 4  # actions of every call
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dream(world_model: WorldModel, num_envs: int) -> DreamWorld:
    """Dreams of an untrained world model, judged as learners have them judged, from blank pictures."""
    views = world_model.views
    with DEVICE:
        world_model, reflector = world_model.eval().to(DEVICE), InstantReflector(views=views).eval().to(DEVICE)
        reflector.threshold.fill_(2.0)  # no dream ends, as it would by chance: others would begin, at a cost that comes and goes
        images = {name: torch.zeros(1, world_model.context, *size, 3, dtype=torch.uint8) for name, size in views.items()}
        starts = Starts(images, torch.zeros(1, world_model.context, 4), ("push the red block onto the green disc",))
    return DreamWorld(world_model, reflector, starts, num_envs, max_episode_steps=10**9, every=2)


class DiffusersNet(nn.Module):
    """diffusers' `UNet2DModel` in the place of our `LatentUNet`, of about its size: two levels."""

    def __init__(self, inputs: int, outputs: int, channels: tuple[int, int], condition: int = 256):
        super().__init__()
        kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        more = {"layers_per_block": 1, "norm_num_groups": 8, "add_attention": False, "class_embed_type": "identity"}
        self.net = UNet2DModel(in_channels=inputs, out_channels=outputs, block_out_channels=channels, **kinds, **more)
        self.label = nn.Linear(condition, 4 * channels[0])

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.net(x, x.new_zeros(()), class_labels=self.label(condition)).sample


def with_diffusers(channels: tuple[int, int] = (32, 96)) -> LatentFlowWorldModel:
    """Our world model with diffusers' network."""
    model = LatentFlowWorldModel(channels=channels)
    model.net = DiffusersNet(model.net.first.in_channels, model.net.last.out_channels, channels)  # type: ignore[assignment]
    return model


def compiled(world_model: WorldModel, num_envs: int) -> DreamWorld:
    """`dream`, with its network compiled; plain where there is no compiler."""
    world = dream(world_model, num_envs)
    compile_networks(world.world_model, DEVICE)
    return world


def half() -> torch.autocast:
    """The precision in which learners dream on this machine."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision() == "bf16-mixed")


def seconds_of(steps: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The least that each step took, of some repeats in turn after a first one that does not count."""
    best = dict.fromkeys(steps, float("inf"))
    for number in range(1 + repeats):
        for name, step in steps.items():
            began = time.perf_counter()
            with half():
                step()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            if number:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def chunk(world: World, *, watched: bool = False) -> Callable[[], object]:
    """One call of this world, of which the last frame is drawn, or each."""
    actions = torch.zeros(world.num_envs, CHUNK, *world.single_action_space.shape, device=world.device)  # type: ignore[misc]
    return lambda: world.watch_chunk(actions) if watched else world.step_chunk(actions)


def update(world_model: WorldModel, windows: int) -> Callable[[], object]:
    """Loss and gradient of a training step on so many blank windows."""
    length, horizon = world_model.context + world_model.horizon, world_model.horizon
    with DEVICE:
        images = {name: torch.zeros(windows, length, *size, 3, dtype=torch.uint8) for name, size in world_model.views.items()}
        felt, asked = torch.zeros(windows, length, 4), torch.zeros(windows, horizon, world_model.action_dim)
        batch = {"images": images, "state": felt, "action": asked, "valid": torch.ones(windows, horizon, dtype=torch.bool)}
        generator = torch.Generator(DEVICE)

    def step() -> None:
        world_model.zero_grad()
        world_model.requires_grad_().loss(batch, generator)[0].backward()

    return step


def run_speed(cfg: dict[str, Any]) -> None:
    """Measure, foretell, and with finished demos (`runs`) learn; write table, plot and JSON.

    Raises:
        ValueError: if there is no cell, nothing would be measured, or too little calibrates.
    """
    if not cfg["cells"] or cfg["repeats"] < 1:
        raise ValueError(f"cells must name a world and repeats be at least 1, got {list(cfg['cells'])} and {cfg['repeats']}")
    everything = sizes(cfg["dreams"], cfg["sides"], cfg["channels"], cfg["batch"])
    if sum(calibrates(cfg, size) for size in everything) < 3:
        raise ValueError(
            f"calibration must name 3 of the sizes or more, for three rates; they are {', '.join(map(str, everything))}"
        )
    torch.manual_seed(0)
    keep_memory()  # as learners do
    out, n = Path(cfg["out"]), cfg["batch"]
    out.mkdir(parents=True, exist_ok=True)
    worlds: dict[str, World] = {name: instantiate(cell, _convert_="all")(num_envs=n) for name, cell in cfg["cells"].items()}
    for world in worlds.values():
        world.reset(seed=0)
    played = seconds_of({name: chunk(world) for name, world in worlds.items()}, cfg["repeats"])
    watched = seconds_of({name: chunk(world, watched=True) for name, world in worlds.items()}, cfg["repeats"])
    models = {name: world.world_model for name, world in worlds.items() if isinstance(world, DreamWorld)}
    trained = seconds_of({name: update(model, cfg["windows"]) for name, model in models.items()}, cfg["repeats"])
    rows = {
        name: {
            "steps_per_s": CHUNK * n / played[name],
            "frames_per_s": CHUNK * n / watched[name],
            "times_first": played[name] / played[next(iter(worlds))],
            "parameters": sum(p.numel() for p in models[name].parameters()) if name in models else 0,
            "update_s": trained.get(name),
        }
        for name in worlds
    }
    scaled = scaling(cfg, everything)
    machine = {
        "processor": processor(),
        "threads": cores(),
        "precision": precision(),
        "device": DEVICE.type,
        "torch": torch.__version__,
    }
    found = {"machine": machine, "batch": n, "windows": cfg["windows"], "cells": rows, **scaled}
    write_json(out / "speed.json", found)
    (out / "speed.md").write_text(table(found))
    plot(found, out / "speed.png")
    print((out / "speed.md").read_text(), end="")
    if cfg["runs"]:
        run_algorithms(cfg["learning"] | {"runs": cfg["runs"], "seeds": list(cfg["runs"]), "out": str(out / "learning")})
        print((out / "learning" / "algorithms.md").read_text(), end="")


def calibrates(cfg: dict[str, Any], size: Size) -> bool:
    """Whether this size determines the rates."""
    return [size.dreams, size.side, list(size.channels)] in cfg["calibration"]


def scaling(cfg: dict[str, Any], everything: list[Size]) -> dict[str, Any]:
    """Dreams of many sizes, measured, and foretold from those with a number of dreams that calibrates."""

    def build(size: Size) -> World:
        return dream(LatentFlowWorldModel(channels=size.channels, views={"front": (size.side, size.side)}), size.dreams)  # type: ignore[arg-type]

    papers = [on_paper(size, build, chunk, half) for size in everything]
    steps = {size: chunk(build(size)) for size in everything}
    seconds = [seconds_of({"it": step}, cfg["repeats"])["it"] for step in track(steps.values(), description="seconds of sizes")]
    with half():
        peaks = [peak_of(step, DEVICE) for step in track(steps.values(), description="memory of sizes")]
    measured = [Measured(*one) for one in zip(seconds, peaks, strict=True)]
    known = [i for i, size in enumerate(everything) if calibrates(cfg, size)]
    law = rates([papers[i] for i in known], [seconds[i] for i in known])
    law["bytes_factor"] = overhead([papers[i] for i in known], [peaks[i] for i in known])
    columns = zip(everything, papers, measured, strict=True)
    return {"law": law, "sizes": [described(size, paper, one, law, calibrates(cfg, size)) for size, paper, one in columns]}


def processor() -> str:
    """Name of what computes."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    machine, n = found["machine"], found["batch"]
    where = f"{machine['processor']}, {machine['threads']} threads, {machine['precision']}, torch {machine['torch']}"
    first = next(iter(found["cells"]))
    columns = ("world", "parameters", "control steps/s", "frames/s, each drawn", f"times as long as {first}")
    lines = [
        "# What a second buys",
        "",
        f"`worldsim bench speed` on {where}. Chunks of {CHUNK} control steps of {n} environments side by side.",
        "",
        f"| {' | '.join(columns)} | ms per update of {found['windows']} |",
        "|" + " --- |" * 6,
    ]
    for name, row in found["cells"].items():
        network = f"{row['parameters'] / 1e6:.2f} M" if row["parameters"] else ""
        update = f"{1000 * row['update_s']:.0f}" if row["update_s"] else ""
        speeds = f"{row['steps_per_s']:,.0f} | {row['frames_per_s']:,.0f} | {row['times_first']:.2f}"
        lines.append(f"| {name} | {network} | {speeds} | {update} |")
    law = found["law"]
    lines += [
        "",
        f"Rates: {1e6 * law['overhead_s']:.1f} us per operation, {law['flops_per_s'] / 1e9:,.0f} GFLOP/s, "
        f"{law['bytes_per_s'] / 1e9:,.1f} GB/s; {law['bytes_factor']:.2f} times the memory of the tensors.",
        "",
        *scaling_table(found["sizes"], CHUNK),
    ]
    return "\n".join(lines) + "\n"


def plot(found: dict[str, Any], path: Path) -> None:
    """Cells as bars; foretold and measured frames per second over the number of dreams."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    names = list(found["cells"])
    left.barh(names[::-1], [found["cells"][name]["steps_per_s"] for name in names[::-1]])
    left.set(xscale="log", xlabel="control steps per second")
    first = found["sizes"][0]
    alike = [row for row in found["sizes"] if (row["side"], row["channels"]) == (first["side"], first["channels"])]
    for label, key, style in (("measured", "measured_s", "o"), ("foretold", "foretold_s", "-")):
        right.plot([row["dreams"] for row in alike], [CHUNK * row["dreams"] / row[key] for row in alike], style, label=label)
    right.set(xscale="log", yscale="log", xlabel="dreams side by side", ylabel="frames per second")
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
