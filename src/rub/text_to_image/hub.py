"""Models by hub id: from the hub's cache, or downloaded where there is a network; never a hang."""

from pathlib import Path

from rub.errors import RubError

PATTERNS = ["*.json", "*.txt", "*.safetensors", "*.bin"]
SECONDS = 10  # a hub that does not answer in this time is not there


def snapshot(name: str) -> Path:
    """Return the folder of a hub model, downloading what is not in the cache.

    Raises:
        RubError: it is neither in the cache nor reachable.
    """
    import os

    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise RubError(f"model.weights {name}: no such file or folder, and no hub id (owner/name)")
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(SECONDS))
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(SECONDS))
    from huggingface_hub import snapshot_download

    patterns = [f"{part}/{pattern}" for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler") for pattern in PATTERNS]
    try:
        return Path(snapshot_download(name, allow_patterns=["model_index.json", *patterns], local_files_only=True))
    except Exception:
        try:
            return Path(snapshot_download(name, allow_patterns=["model_index.json", *patterns]))
        except Exception as error:
            raise RubError(
                f"model.weights {name}: not in the hub's cache, and the hub cannot be reached ({type(error).__name__});"
                " give a diffusers folder, or run once with a network"
            ) from None
