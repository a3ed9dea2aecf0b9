"""The state of an unfinished training run, in a file from which it can continue."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from paperlib.atomic_files import read_tensors, write_tensors
from paperlib.errors import StoreError
from paperlib.training.history import History
from paperlib.training.update import UpdateState


def save_checkpoint(
    path: Path | None, model: nn.Module, states: Sequence[UpdateState], best: dict[str, Tensor], history: History
) -> None:
    """Write weights, best weights so far, momentum and history; nothing if ``path`` is None. Raises StoreError."""
    if path is None:
        return
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    for name, optimiser_state in _optimiser_states(states).items():
        if (buffer := optimiser_state.get("momentum_buffer")) is not None:
            tensors[name] = buffer
    write_tensors(path, tensors, {"history": json.dumps(history.table())})


def resume(path: Path | None, model: nn.Module, states: Sequence[UpdateState]) -> tuple[History, dict[str, Tensor]]:
    """Load a checkpoint into the model and the optimisers; returns its history and the best weights so far.

    Without a file both are empty, and nothing changes. Raises StoreError for a damaged file or one of another model.
    """
    if path is None or not path.exists():
        return History(), {}
    try:
        tensors, notes = read_tensors(path)
        history = History.from_table(json.loads(notes["history"]))
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "momentum": {}}
        for name, value in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = value
        model.load_state_dict(groups["best"])  # checked now; it is needed only after the last epoch
        model.load_state_dict(groups["model"])
    except (StoreError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise StoreError(f"checkpoint {path.name}: cannot go on from it ({reason}); delete it to start over") from error
    device = next(model.parameters()).device
    for name, optimiser_state in _optimiser_states(states).items():
        if name in tensors:
            optimiser_state["momentum_buffer"] = tensors[name].to(device)
    return history, {name: value.to(device) for name, value in groups["best"].items()}


def _optimiser_states(states: Sequence[UpdateState]) -> dict[str, dict[str, Tensor]]:
    """The state that an optimiser keeps for each parameter, by its name in the checkpoint."""
    each = [state.optimiser.state[parameter] for state in states for parameter in state.parameters]
    return {f"momentum/{i}": optimiser_state for i, optimiser_state in enumerate(each)}
