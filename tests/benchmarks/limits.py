"""The time of an attack step relative to the network's own passes, and the growth of time and memory."""

from __future__ import annotations

import math
import multiprocessing
import re
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from algorithms import Mean, gradient_step, with_random_statistics
from arena import interleave, spread, timed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from paperlib.acceleration import fold
from paperlib.acceleration.memory import keep_memory
from paperlib.attacks import pgd
from paperlib.models import Experts

Json = dict[str, Any]
STEPS = 20
BUDGET: dict[str, Any] = {"eps": 0.03, "step_size": 0.008}
# (width, side, channels, experts, images)
SIZES = [(8, 8, 1, 1, 128), (8, 8, 1, 9, 128), (16, 32, 3, 1, 64)]
GPU_SIZES = [(64, 32, 3, 1, 256), (64, 32, 3, 9, 256)]


def step_against_bare(*, rounds: int, log: Callable[[str], None]) -> list[Json]:
    """Time of a PGD step, relative to a forward pass with input gradient of the same folded network and batch."""
    rows = []
    for width, side, channels, experts, images in GPU_SIZES if torch.cuda.is_available() else SIZES:
        model, x, y = _network(width, channels, experts), *_images(images, channels, side)
        for dtype in (torch.float32, torch.bfloat16):
            folded = fold(model, x, dtype=dtype)
            bare = gradient_step(folded.network, x, y)
            generator = torch.Generator(x.device).manual_seed(0)

            def attacked(folded: Any = folded, x: Any = x, y: Any = y, generator: Any = generator) -> object:
                return pgd(folded, x, y, **BUDGET, steps=STEPS, generator=generator)

            seconds = interleave({"step": timed(attacked), "bare": timed(bare, repeats=STEPS)}, rounds)
            per_step = [s / STEPS for s in seconds["step"]]
            ratio = spread([a / b for a, b in zip(per_step, seconds["bare"], strict=True)])
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                # Counted on the network without folding, so operations that folding saves count as speed.
                model(x)
            operations = 2 * counter.get_total_flops()  # the input gradient takes as many as the forward pass
            name = str(dtype).removeprefix("torch.")
            peak, best = matrix_peak(dtype), min(per_step)
            row = {"width": width, "side": side, "experts": experts, "images": images, "dtype": name}
            row |= {"step_seconds": per_step, "bare_seconds": seconds["bare"], "ratio": ratio}
            row |= {"images_x_steps_per_second": images / spread(per_step)[0], "matrix_peak_flops": peak}
            row |= {"share_of_peak": operations / best / peak}
            rows.append(row)
            log(
                f"{experts} x width {width}, {side}x{side}, {images} images, {name}: step / bare {ratio[0]:.3f} "
                f"[{ratio[1]:.3f}, {ratio[2]:.3f}], {row['images_x_steps_per_second']:.0f} images x steps/s, "
                f"{row['share_of_peak']:.0%} of the matrix peak ({peak / 1e9:.0f} GFLOP/s)"
            )
    return rows


def matrix_peak(dtype: torch.dtype) -> float:
    """Floating-point operations per second of the fastest large matrix product on this machine and these threads.

    It is measured as a matrix product and as a 1x1 convolution, which may use different libraries.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    best = 0.0
    for n in (512, 1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.rand(n, n, device=device).to(dtype) for _ in range(2))
        images = torch.rand(n // 64, n, 8, 8, device=device).to(dtype, memory_format=torch.channels_last)
        kernel = b.view(n, n, 1, 1).contiguous(memory_format=torch.channels_last)
        for product in (lambda a=a, b=b: a @ b, lambda x=images, w=kernel: nn.functional.conv2d(x, w)):
            for _ in range(4):
                best = max(best, 2 * n**3 / timed(product)())
    return best


def growth(*, rounds: int, log: Callable[[str], None]) -> list[Json]:
    """Seconds against images, steps, experts and width, each with the exponent of a power law fitted to the medians."""
    gpu = torch.cuda.is_available()
    width, channels, side, batch = (64, 3, 32, 256) if gpu else (8, 3, 16, 64)
    rows = []

    def measure(axis: str, points: Sequence[int], work: Callable[[int], Callable[[], object]]) -> None:
        seconds = interleave({str(p): timed(work(p)) for p in points}, rounds)
        medians = [spread(seconds[str(p)])[0] for p in points]
        exponent = _slope([math.log(p) for p in points], [math.log(s) for s in medians])
        rows.append({"axis": axis, "points": list(points), "seconds": list(seconds.values()), "exponent": exponent})
        log(f"cost against {axis}: exponent {exponent:.3f}, " + ", ".join(f"{s:.3f} s" for s in medians))

    one = fold(_network(width, channels, 1), _images(2, channels, side)[0])
    one.max_batch = batch  # a fixed batch size, so more images are more batches

    def by_images(n: int) -> Callable[[], object]:
        x, y = _images(n, channels, side)
        return lambda: pgd(one, x, y, **BUDGET, steps=5)

    def by_steps(steps: int) -> Callable[[], object]:
        x, y = _images(batch, channels, side)
        return lambda: pgd(one, x, y, **BUDGET, steps=steps)

    def by_experts(stacked: bool) -> Callable[[int], Callable[[], object]]:
        def work(experts: int) -> Callable[[], object]:
            x, y = _images(batch, channels, side)
            folded = fold(_network(width, channels, experts, mean=True), x, stacked=stacked)
            return lambda: pgd(folded, x, y, **BUDGET, steps=5)

        return work

    def by_width(width: int) -> Callable[[], object]:
        x, y = _images(batch, channels, side)
        folded = fold(_network(width, channels, 1), x)
        return lambda: pgd(folded, x, y, **BUDGET, steps=5)

    measure("images", [batch * k for k in (1, 2, 4, 8)], by_images)
    measure("steps", [5, 10, 20, 40], by_steps)
    measure("experts", [1, 3, 5, 9], by_experts(stacked=False))
    measure("experts, side by side", [1, 3, 5, 9], by_experts(stacked=True))
    measure("width", [8, 16, 32, 64], by_width)
    return rows


def memory(log: Callable[[str], None]) -> list[Json]:
    """Peak memory added by PGD for several numbers of steps, each in a separate process."""
    rows = []
    context = multiprocessing.get_context("spawn")
    for steps in (20, 40, 80, 160):  # from about 20 steps on, the allocator holds its buffers
        with context.Pool(1) as pool:
            added = pool.apply(_added_memory, (steps,))
        rows.append({"steps": steps, "added_bytes": added})
        log(f"memory with {steps} steps: {added / 1e6:.1f} MB")
    return rows


def _added_memory(steps: int) -> int:
    keep_memory()
    torch.set_num_threads(1)
    width, channels, side, images = 16, 3, 32, 64
    model, x, y = _network(width, channels, 1), *_images(images, channels, side)
    folded = fold(model, x)
    generator = torch.Generator(x.device).manual_seed(0)
    before = _peak()
    pgd(folded, x, y, **BUDGET, steps=steps, generator=generator)
    return _peak() - before


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would include the peak of the parent process.
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _network(width: int, channels: int, experts: int, mean: bool = False) -> nn.Module:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = [with_random_statistics(width, channels) for _ in range(experts)]
    model = networks[0] if experts == 1 and not mean else Mean(Experts(networks))
    return model.to(device).eval()


def _images(n: int, channels: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, y = torch.rand(n, channels, side, side, generator=generator), torch.randint(10, (n,), generator=generator)
    return x.to(device), y.to(device)


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)
