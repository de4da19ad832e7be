"""The Inception network of 2015 that FID and the Inception Score are defined by, through torch-fidelity.

This is the TensorFlow network (1008 logits), not torchvision's (1000 logits): their scores differ. It is optional
(``pip install 'rub-bench[inception]'``), and its weights are never downloaded.
"""

import importlib
import io
from pathlib import Path

import torch
from torch import Tensor

from rub.errors import RubError
from rub.judges.base import Argmax, JudgeContext, Judgement
from rub.judges.spec import JudgeSource, judge
from rub.models.weights import read_state
from rub.registry import Card
from rub.store.artifacts import file_sha256

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # the end of its name is how its SHA-256 begins
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
NAME = "inception-v3-compat"  # torch-fidelity's
FEATURES, LOGITS = 2048, 1008

CARD = Card(
    paper="Szegedy et al., Rethinking the Inception Architecture, CVPR 2016 (arXiv:1512.00567); for FID: Heusel et al.,"
    " GANs Trained by a Two Time-Scale Update Rule, NeurIPS 2017 (arXiv:1706.08500)",
    upstream="toshas/torch-fidelity v0.2.0 (weights)",
)


def find_inception(weights: str | None, data_root: Path | None) -> Path:
    """The weight file that a suite names, as it is or below the data root, else that in either or torch's cache."""
    name = INCEPTION_FILE if weights is None else weights
    below = [] if data_root is None else [data_root / name]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    places = [*below, cached] if weights is None else [Path(name), *below]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        looked = " or ".join(str(place) for place in places)
        raise RubError(
            f"judge: Inception's weights are not at {looked}; give judge.weights ({URL}), or judge.name: classifier"
        )
    return found


@judge(
    "inception",
    task="inpainting",
    card=CARD,
    source=JudgeSource(find=find_inception, kept_as=INCEPTION_FILE, title="Inception"),
)
def inception(files: Path | None, context: JudgeContext) -> Argmax:
    """Read the TF-2015 Inception with torch-fidelity's numerics, in float32.

    Images are resized to 299 x 299 by TensorFlow 1's bilinear rule, without antialiasing. Features are the pooled last
    layer (2048), scores its logits without the bias (1008), which the Inception Score reads.
    """
    if files is None or not files.is_file():
        raise RubError(f"Inception weights {files}: no such file; download {URL} and give its path")
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except (ImportError, RuntimeError, OSError) as error:  # torchvision of another torch fails in any of these ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RubError(
            f"Inception: torch-fidelity with torchvision cannot be used ({reason}); pip install 'rub-bench[inception]'"
        ) from None
    # torch-fidelity unpickles whatever a file holds, so it is given only the tensors that were read safely.
    tensors = io.BytesIO()
    torch.save(read_state(files), tensors)
    tensors.seek(0)
    try:
        network = module.FeatureExtractorInceptionV3(NAME, [str(FEATURES), "logits_unbiased"], tensors)
    except RuntimeError:
        raise RubError(f"Inception weights {files}: weights of another network; should be those of {URL}") from None
    network.to(context.device)

    @torch.no_grad()
    def seen(images: Tensor) -> Judgement:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise RubError(f"images: {images.dtype} {tuple(images.shape)}; Inception takes uint8 (N, 1 or 3, H, W)")
        features, logits = [torch.empty(0, FEATURES)], [torch.empty(0, LOGITS)]
        for start in range(0, len(images), context.batch_size):
            part = images[start : start + context.batch_size]
            feature, logit = network(part.to(context.device).expand(-1, 3, -1, -1).contiguous())
            features.append(feature.float().cpu())
            logits.append(logit.float().cpu())
        return Judgement(torch.cat(logits), torch.cat(features))

    return Argmax(NAME, file_sha256(files), "", (), seen)
