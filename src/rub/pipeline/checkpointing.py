"""How long work survives being killed: every few minutes a stage keeps the state that it would go on from.

A part of a stage (a training loop, a search) names what changes while it runs; those things speak torch's convention,
``state_dict`` and ``load_state_dict``. Torch's global random numbers are kept beside them. On one CPU, a run that goes
on from a state ends in the same bytes as one that was never killed; on a GPU, whose sums do not repeat to the bit, and
on another device than the one that wrote the state, it ends as near as another run would.
"""

import io
import os
import time
from collections.abc import Mapping
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast
from uuid import uuid4

from rub.store.artifacts import STATE_HEAD, STATE_SUFFIX, make_folder, share, whole_state

if TYPE_CHECKING:
    import torch


class Stateful(Protocol):
    """What a part keeps: a module, an optimizer, batches, a search; as in `torch.distributed.checkpoint`."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, and lists and dicts of these."""

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Take the values of `state_dict` back."""


Changing = Mapping[str, "Stateful | torch.Generator"]
"""Role -> whatever one step of a loop leaves to the next: weights, optimizer, generators, batches."""


class AttributeState:
    """The state of an object is some of its attributes, which the class names in `changing`."""

    changing: ClassVar[tuple[str, ...]]

    def state_dict(self) -> dict[str, Any]:
        """Values by name."""
        return {name: getattr(self, name) for name in self.changing}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Set them, tensors on the device of those that they replace."""
        import torch

        for name in self.changing:
            now, then = getattr(self, name), state[name]
            setattr(self, name, then.to(now.device) if isinstance(now, torch.Tensor) else then)


class ParameterState:
    """Some of a model's weights, by name; the others stay what they were when the stage began.

    Example:
        >>> import torch
        >>> weight = torch.ones(2)
        >>> ParameterState({"w": weight}).load_state_dict({"w": torch.zeros(2)})
        >>> weight.tolist()
        [0.0, 0.0]
    """

    def __init__(self, named: "Mapping[str, torch.Tensor]") -> None:
        self.named = named

    def state_dict(self) -> dict[str, Any]:
        """Values by name."""
        return {name: weight.detach() for name, weight in self.named.items()}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Set them where they are."""
        import torch

        with torch.no_grad():
            for name, weight in self.named.items():
                weight.copy_(state[name])


class Checkpointer:
    """Where the parts of one running stage keep their states: a folder of this stage alone, or nowhere.

    A state is kept every so many seconds, or after every step for 0; one with another mark, of other code, is passed
    over. One of another device is read.

    Example:
        >>> Checkpointer().section("train", {}).restore()
        0
    """

    def __init__(self, folder: Path | None = None, every: float = 0.0, mark: str = "", device: str = "") -> None:
        self.folder, self.every, self.mark, self.device = folder, every, mark, device
        self.before: tuple[str, ...] = ()  # devices of the runs before this one
        self.earlier = 0.0  # seconds of the runs before this one
        self.images: list[int] = []  # batch sizes that a network was given so far, where they are counted
        self.before_images = 0  # of the runs before this one, less what this one has done anew
        self._began = self._kept = time.monotonic()
        self._cost = 0.0  # seconds that the last state took to write
        self._parts: dict[str, int] = {}

    @property
    def seconds(self) -> float:
        """Seconds of work so far, those before the kill included."""
        return self.earlier + time.monotonic() - self._began

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices that the work was done on, one after the other, the present one last."""
        return self.before if self.before[-1:] == (self.device,) else (*self.before, self.device)

    @property
    def counted(self) -> int:
        """Images that the network was given so far, those before the kill included."""
        return self.before_images + sum(self.images)

    def section(self, name: str, changing: Changing) -> "Section":
        """Part of the stage, such as ``"train"``; a second one of the same name is another part."""
        self._parts[name] = self._parts.get(name, 0) + 1
        return Section(self, f"{name}-{self._parts[name]}{STATE_SUFFIX}", changing)

    def due(self) -> bool:
        """Whether it is time to keep a state; those of large models may take a twentieth of the time."""
        wait = max(self.every, 20 * self._cost) if self.every else 0.0
        return self.folder is not None and time.monotonic() - self._kept >= wait

    def write(self, name: str, state: dict[str, Any]) -> None:
        """Replace a state file whole, or not at all."""
        import torch

        assert self.folder is not None
        began = time.monotonic()
        store = self.folder.parents[1]
        make_folder(self.folder, store)
        written = self.folder / f"{name}.{uuid4().hex}.new"
        try:
            with written.open("x+b") as file:  # never through a link
                file.write(b"0" * STATE_HEAD)
                facts = {"mark": self.mark, "devices": list(self.devices), "seconds": self.seconds}
                facts["images"] = self.counted
                torch.save({**facts, "state": state}, file)
                file.seek(STATE_HEAD)
                digest = file_digest(file, "sha256").hexdigest()
                file.seek(0)
                file.write(digest.encode())
                file.flush()
                os.fsync(file.fileno())
            share(written, store)
            written.replace(self.folder / name)
        except FileNotFoundError:  # another process on the same stage has ended it meanwhile
            return
        finally:
            written.unlink(missing_ok=True)
        self._kept = time.monotonic()
        self._cost = self._kept - began

    def read(self, name: str) -> dict[str, Any] | None:
        """State that was kept; None where there is none, or it is damaged, of other code, or no state."""
        import torch

        if self.folder is None or not whole_state(self.folder / name):
            return None
        with (self.folder / name).open("rb") as file:
            file.seek(STATE_HEAD)
            try:
                content = torch.load(io.BytesIO(file.read()), map_location="cpu", weights_only=True)
                mark, seconds, state = content["mark"], float(content["seconds"]), content["state"]
                images = int(content["images"])
                devices = tuple(str(name) for name in content["devices"])
            except Exception:  # someone else's file fails in any way
                return None
        if mark != self.mark:
            return None
        self.before_images = images - sum(self.images)
        self.earlier = max(self.earlier, seconds)
        self.before = max(self.before, devices, key=len)
        return cast("dict[str, Any]", state)


class Section:
    """One loop of a stage: call `restore` before it, and `keep` at the end of each step.

    Example:
        >>> import torch
        >>> noise = torch.Generator().manual_seed(0)
        >>> part = Checkpointer().section("loop", {"noise": noise})
        >>> for step in range(part.restore(), 3):
        ...     part.keep(step + 1)
    """

    def __init__(self, checkpointer: Checkpointer, name: str, changing: Changing) -> None:
        self.checkpointer, self.name, self.changing = checkpointer, name, changing

    def restore(self) -> int:
        """Put everything back to where it was kept, and return the number of steps done by then; 0: from the start."""
        import torch

        kept = self.checkpointer.read(self.name)
        if kept is None:
            return 0
        for role, thing in self.changing.items():
            if isinstance(thing, torch.Generator):
                thing.set_state(kept["changing"][role])
            else:
                thing.load_state_dict(kept["changing"][role])
        torch.set_rng_state(kept["random"]["cpu"])
        cuda = kept["random"]["cuda"]
        if cuda and len(cuda) == torch.cuda.device_count():  # else it is of another machine
            torch.cuda.set_rng_state_all(cuda)
        return int(kept["done"])

    def keep(self, done: int) -> None:
        """Keep the state after so many steps, if it is time."""
        if self.checkpointer.due():
            import torch

            cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
            random = {"cpu": torch.get_rng_state(), "cuda": cuda}
            changing = {
                role: thing.get_state() if isinstance(thing, torch.Generator) else thing.state_dict()
                for role, thing in self.changing.items()
            }
            self.checkpointer.write(self.name, {"done": done, "random": random, "changing": changing})
