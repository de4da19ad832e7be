"""Models by hub id: from the hub's cache, or downloaded where there is a network; never a hang."""

from collections.abc import Sequence
from pathlib import Path

from rub.errors import RubError

SECONDS = 5  # a hub that does not answer in this time is not there
PIPELINE = (
    "model_index.json",
    *(
        f"{part}/*.{kind}"
        for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
        for kind in ("json", "txt", "safetensors", "bin")
    ),
)
"""The files of a diffusers folder that are read."""


def snapshot(name: str, where: str = "model.weights", patterns: Sequence[str] | None = PIPELINE) -> Path:
    """Folder of a hub model (owner/name), downloading what is not in the cache; `patterns` None takes all files."""
    ways = "give a folder on disk (also below --data-root), or run once with a network to fill the hub's cache"
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise RubError(f"{where} {name}: no such file or folder, and no hub id (owner/name); {ways}")
    from huggingface_hub import snapshot_download

    from rub.data.hub import reachable

    kept = None if patterns is None else list(patterns)
    try:
        return Path(snapshot_download(name, allow_patterns=kept, local_files_only=True))
    except Exception:
        reason = "not in the hub's cache, and the hub cannot be reached"
        if not reachable(SECONDS):  # asked first: a download waits for a silent hub without end
            raise RubError(f"{where} {name}: {reason}; {ways}") from None
        try:
            return Path(snapshot_download(name, allow_patterns=kept))
        except Exception as error:
            raise RubError(f"{where} {name}: {reason} ({type(error).__name__}); {ways}") from None
