"""The Inception network of 2015 that FID and the Inception Score are defined by, through torch-fidelity.

This is the TensorFlow network (1008 logits), not torchvision's (1000 logits): their scores differ. It is optional
(``pip install 'rub-bench[inception]'``), and its weights are never downloaded.
"""

import importlib
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rub.errors import RubError
from rub.judges.extractor_stage import INCEPTION_FILE
from rub.models.weights import read_state
from rub.store.artifacts import file_sha256

"""The published weights; the last part of the name is how their SHA-256 begins."""
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"


@dataclass(frozen=True)
class Inception:
    """An `rub.metrics.generative.Extractor`: the TF-2015 Inception with torch-fidelity's numerics.

    Images are resized to 299 x 299 by TensorFlow 1's bilinear rule, without antialiasing. Everything is float32.
    Results do not depend on the batch size beyond rounding.

    Attributes:
        sha256: of the weights file.
        network: torch-fidelity's module, frozen, in evaluation mode, on the device.
        device: where it runs.
        batch_size: images per forward pass.
        name: as torch-fidelity calls it.
        dimension: 2048 features.
        classes: 1008 logits.
    """

    sha256: str
    network: nn.Module
    device: torch.device
    batch_size: int = 64
    name: str = "inception-v3-compat"
    dimension: int = 2048
    classes: int = 1008

    @property
    def published(self) -> bool:
        """Return whether the weights are the published ones, so that scores compare with other papers'."""
        return self.sha256.startswith(Path(INCEPTION_FILE).stem.rpartition("-")[2])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, 2048) and logits without the bias (N, 1008), float32 on the CPU.

        Args:
            images: uint8 (N, C, H, W), 0 to 255, C = 3 or 1 (grey, shown to all three channels), any size.

        Raises:
            RubError: images of another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise RubError(f"images: {images.dtype} {tuple(images.shape)}; Inception takes uint8 (N, 1 or 3, H, W)")
        features, logits = [torch.empty(0, self.dimension)], [torch.empty(0, self.classes)]
        for start in range(0, len(images), self.batch_size):
            part = images[start : start + self.batch_size]
            feature, logit = self.network(part.to(self.device).expand(-1, 3, -1, -1).contiguous())
            features.append(feature.float().cpu())
            logits.append(logit.float().cpu())
        return torch.cat(features), torch.cat(logits)

    def features(self, images: Tensor) -> Tensor:
        """Return the features (N, 2048) of `__call__`: the pooled last layer, which FID and KID compare."""
        return self(images)[0]

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (N, 1008) of `__call__`: "logits_unbiased", which the Inception Score reads."""
        return self(images)[1]


def load_inception(
    weights: Path | None = None, *, device: torch.device | str = "cpu", batch_size: int = 64
) -> Inception:
    """Return the Inception network with the weights of a file on this machine.

    Args:
        weights: torch-fidelity's weights file; None looks where torch-fidelity itself keeps it (torch's hub folder).
        device: where to run.
        batch_size: images per forward pass.

    Raises:
        RubError: torch-fidelity or torchvision is missing or does not work.
        RubError: no weights file; it is never downloaded.
        RubError: a file that holds something else.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE if weights is None else Path(weights)
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except (ImportError, RuntimeError, OSError) as error:  # torchvision of another torch fails in any of these ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RubError(
            f"Inception: torch-fidelity with torchvision cannot be used ({reason}); pip install 'rub-bench[inception]'"
        ) from None
    if not path.is_file():
        raise RubError(f"Inception weights {path}: no such file; download {URL} and give its path")
    # torch-fidelity unpickles whatever a file holds, so it is given only the tensors that were read safely.
    tensors = io.BytesIO()
    torch.save(read_state(path), tensors)
    tensors.seek(0)
    try:
        network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], tensors)
    except RuntimeError:
        raise RubError(f"Inception weights {path}: weights of another network; should be those of {URL}") from None
    target = torch.device(device)
    return Inception(file_sha256(path), network.to(target), target, batch_size)
