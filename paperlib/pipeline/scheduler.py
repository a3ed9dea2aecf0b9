"""Computing the stages of a graph in an order that respects their inputs.

A stage that fails stops only the stages that need its result. All others are finished, and then the failures are
reported together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter

from paperlib.errors import PaperlibError
from paperlib.log import logger
from paperlib.pipeline.executors import Executor


def run_graph(inputs: Mapping[str, Sequence[str]], costs: Mapping[str, float], executor: Executor) -> None:
    """Compute every stage of ``inputs``.

    Args:
        inputs: by stage, the stages that it needs; those that are not in ``inputs`` have been computed already.
        costs: expected cost by stage; of the stages that may start, the most expensive starts first.

    Raises:
        PaperlibError, or whatever a single failed stage raised: at the end, if any failed.
    """
    needs = {name: [needed for needed in required if needed in inputs] for name, required in inputs.items()}
    sorter = TopologicalSorter(needs)
    sorter.prepare()
    ready: list[str] = []
    running, computed, failed = 0, 0, dict[str, Exception]()
    while True:
        ready = sorted([*ready, *sorter.get_ready()], key=lambda name: -costs[name])
        while ready and running < executor.capacity:
            executor.submit(ready.pop(0))
            running += 1
        if not running:
            break
        for name, error in executor.wait():
            running -= 1
            if error is None:
                computed += 1
                sorter.done(name)
                logger.info(f"[{computed}/{len(needs)}] {name}")
            else:
                failed[name] = error
                logger.error(f"FAILED {name}: {error}{_without(needs, name)}")
    _raise_for(failed, len(needs) - computed - len(failed))


def _without(needs: Mapping[str, Sequence[str]], failed: str) -> str:
    """Which stages cannot be computed without the failed one, as the end of a message."""
    affected = {failed}
    for name, required in needs.items():  # the inputs of a stage come before the stage
        if affected.intersection(required):
            affected.add(name)
    skipped = [name for name in needs if name in affected and name != failed]
    return f"; not computed without it: {', '.join(skipped)}" if skipped else ""


def _raise_for(failed: Mapping[str, Exception], skipped: int) -> None:
    if len(failed) == 1:
        raise next(iter(failed.values()))
    if failed:
        lines = [f"{len(failed)} stages failed, {skipped} that need them were not computed:"]
        lines += [f"  {name}: {error}" for name, error in failed.items()]
        raise PaperlibError("\n".join(lines))
