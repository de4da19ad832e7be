"""FID, KID and Inception Score against scipy, torchmetrics, torch-fidelity and values known by hand."""

import importlib
import subprocess
import sys
import types
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest
import safetensors.torch
import scipy.linalg
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from rub.errors import RubError
from rub.judges import inception
from rub.judges.base import JudgeContext
from rub.metrics import generative as fidelity
from rub.metrics.generative import frechet_distance, inception_score, kernel_distance, singular_covariance


def features(count, dimension, seed, shift=0.0):
    """Correlated features with a falling spectrum, as networks give."""
    random = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((dimension, dimension)) / np.sqrt(dimension)
    return random.standard_normal((count, dimension)) / np.sqrt(1 + np.arange(dimension)) @ mix + shift


def statistics(values):
    return values.mean(0), np.cov(values, rowvar=False)


def by_sqrtm(a, b):
    (mean_a, cov_a), (mean_b, cov_b) = statistics(a), statistics(b)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root)


def exactly(variances, mean, count, seed):
    """Features whose sample mean and covariance are exactly this mean and these variances, rotated together."""
    random = np.random.default_rng(seed)
    white = random.standard_normal((count, len(variances)))
    white -= white.mean(0)
    white = np.linalg.qr(white)[0] * np.sqrt(count - 1)
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((len(variances),) * 2))[0]
    return (white * np.sqrt(variances) + mean) @ turn


@pytest.mark.parametrize(("n", "m", "d"), [(40, 40, 16), (12, 30, 16), (30, 8, 64), (200, 150, 24)])
def test_both_ways_to_the_trace_agree_with_each_other_and_with_sqrtm(monkeypatch, n, m, d):
    a, b = features(n, d, 0), features(m, d, 1, shift=0.1)
    found = []
    for nuclear in (True, False):
        monkeypatch.setattr(fidelity, "_nuclear_is_cheaper", lambda *_, way=nuclear: way)
        found.append(frechet_distance(a, b))
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    # With fewer images than features scipy takes the root of a singular matrix, which is good to half the digits only.
    assert found[0] == pytest.approx(by_sqrtm(a, b), rel=1e-5)


@pytest.mark.parametrize("nuclear", [True, False])
def test_frechet_distance_of_exactly_known_laws(monkeypatch, nuclear):
    """Covariances that commute: |difference of means|^2 + sum (s_a - s_b)^2 over standard deviations."""
    monkeypatch.setattr(fidelity, "_nuclear_is_cheaper", lambda *_: nuclear)
    a = exactly(np.array([4.0, 9.0, 1.0]), np.array([1.0, 0.0, 0.0]), 50, 0)
    b = exactly(np.array([1.0, 1.0, 16.0]), np.array([0.0, 2.0, 0.0]), 70, 1)
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 4 + 9, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(10, 64), (300, 16)])
def test_the_same_set_is_at_distance_0(n, d):
    a = features(n, d, 0)
    assert frechet_distance(a, a.copy()) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_equals_torchmetrics():
    a, b = features(300, 32, 0), features(200, 32, 1, shift=0.2)
    peer = _compute_fid(*(torch.from_numpy(part) for pair in (statistics(a), statistics(b)) for part in pair))
    assert frechet_distance(torch.from_numpy(a), b) == pytest.approx(float(peer), rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(float(peer), rel=1e-8)


def test_each_way_is_taken_where_it_is_less_work(monkeypatch):
    taken = []
    monkeypatch.setattr(fidelity, "_trace_nuclear", lambda A, B: taken.append("nuclear") or 0.0)
    monkeypatch.setattr(fidelity, "_trace_eigen", lambda A, B: taken.append("eigen") or 0.0)
    for n, m in ((20, 20), (20, 2000), (2000, 2000)):
        frechet_distance(np.zeros((n, 64)), np.zeros((m, 64)))
    assert taken == ["nuclear", "nuclear", "eigen"]


def test_few_images_bias_fid_up_and_the_predicate_says_when():
    biases = [frechet_distance(features(n, 256, 0), features(n, 256, 1)) for n in (25, 100, 400)]
    assert biases[0] > 2 * biases[1] > 4 * biases[2] > 0
    for n in (5, 8, 9):  # the predicate is the rank of a real covariance
        rank = np.linalg.matrix_rank(np.cov(features(n, 8, 0), rowvar=False))
        assert singular_covariance(n, 8) == (rank < 8)


def test_float32_features_far_from_the_origin_keep_their_distance():
    a, b = (torch.from_numpy(features(400, 8, seed)).float() + 1000 for seed in (0, 1))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(a - 1000, b - 1000), rel=1e-6)


def test_kernel_distance_equals_torchmetrics_on_whole_sets_and_on_the_same_subsets():
    a, b = features(60, 16, 0), features(60, 16, 1, shift=0.3)
    whole, deviation = kernel_distance(a, b, subset_size=60)
    assert whole == pytest.approx(float(poly_mmd(torch.from_numpy(a), torch.from_numpy(b))), rel=1e-10)
    assert deviation == 0
    random = np.random.RandomState(7)
    peers = []
    for _ in range(5):
        x, y = (torch.from_numpy(s[random.choice(60, 20, replace=False)]) for s in (a, b))
        peers.append(float(poly_mmd(x, y)))
    found = kernel_distance(a, b, subsets=5, subset_size=20, seed=7)
    assert found == pytest.approx((np.mean(peers), np.std(peers)), rel=1e-10)


def test_kernel_distance_of_sets_of_two_sizes_by_hand():
    a, b = features(4, 3, 0), features(6, 3, 1)

    def k(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    expected = sum(k(a[i], a[j]) for i in range(4) for j in range(4) if i != j) / 12
    expected += sum(k(b[i], b[j]) for i in range(6) for j in range(6) if i != j) / 30
    expected -= 2 * sum(k(x, y) for x in a for y in b) / 24
    assert kernel_distance(a, b) == pytest.approx((expected, 0.0), rel=1e-10)
    mean, deviation = kernel_distance(a, b, subsets=2000, subset_size=5)  # all of a, five of b
    assert mean == pytest.approx(expected, abs=4 * deviation / np.sqrt(2000))
    assert deviation > 0


def test_kernel_distance_of_one_law_is_0_on_average():
    found = [kernel_distance(features(30, 8, 2 * s), features(30, 8, 2 * s + 1))[0] for s in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))
    assert min(found) < 0


def one_hot(count, classes=100):
    """Perfect and sure predictions, as many of each class, sorted by class."""
    return 1e3 * np.eye(classes)[np.arange(count) * classes // count]


def test_inception_scores_of_perfect_predictions_by_hand():
    """Without shuffling, a split of one-hot rows scores the exponential of the entropy of its class counts."""
    assert inception_score(one_hot(1000), splits=1) == pytest.approx((100, 0))
    assert inception_score(one_hot(5000), seed=None) == pytest.approx((10, 0))
    assert inception_score(one_hot(100))[0] == pytest.approx(10)
    assert inception_score(np.zeros((20, 7)), splits=3) == pytest.approx((1, 0))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "value"), [(5000, 90.4), (1000, 60.2)])
def test_inception_scores_of_shuffled_perfect_predictions(count, value):
    """The values of the reference page are one shuffle each, of images in an order that it does not state."""
    found = [inception_score(one_hot(count), seed=seed)[0] for seed in range(30)]
    assert abs(np.mean(found) - value) < 2 * np.std(found)
    assert np.std(found) < 1.5


def by_definition(logits, splits, seed):
    """Mean and standard deviation of exp(mean KL), image by image through torch's own KL divergence."""
    order = np.random.RandomState(seed).permutation(len(logits))
    log_p = torch.from_numpy(logits[order]).log_softmax(1)
    edges = [i * len(logits) // splits for i in range(splits + 1)]
    scores = []
    for low, high in pairwise(edges):
        part = log_p[low:high]
        q = part.exp().mean(0, keepdim=True).log().expand_as(part)
        scores.append(float(F.kl_div(q, part, log_target=True, reduction="batchmean").exp()))
    return np.mean(scores), np.std(scores)


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_inception_score_equals_its_definition(splits):
    logits = 3 * np.random.default_rng(0).standard_normal((101, 12))
    assert inception_score(logits, splits=splits) == pytest.approx(by_definition(logits, splits, 2020), rel=1e-10)
    shifted = logits + 1e4  # softmax does not see a shift, and exp of it must not overflow
    assert inception_score(shifted, splits=splits) == pytest.approx(inception_score(logits, splits=splits), rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(np.zeros((1, 3)), np.zeros((5, 3))), "1 images in a set"),
        (lambda: frechet_distance(np.zeros((5, 3)), np.zeros((5, 4))), "d = 3 in one set, 4 in the other"),
        (lambda: frechet_distance(np.zeros(3), np.zeros((5, 3))), "should be \\(N, d\\)"),
        (lambda: frechet_distance(np.full((5, 3), np.nan), np.zeros((5, 3))), "not finite for 5 of 5 images"),
        (lambda: kernel_distance(np.zeros((5, 3)), np.full((5, 3), np.inf)), "not finite"),
        (lambda: kernel_distance(np.zeros((5, 3)), np.zeros((1, 3))), "1 images in a set"),
        (lambda: kernel_distance(np.zeros((5, 3)), np.zeros((5, 3)), subset_size=1), "subsets of 1 images"),
        (lambda: kernel_distance(np.zeros((5, 3)), np.zeros((5, 3)), subsets=0), "KID: 0 subsets"),
        (lambda: inception_score(np.zeros((9, 3))), "9 images in 10 splits"),
        (lambda: inception_score(np.zeros((9, 3)), splits=0), "9 images in 0 splits"),
        (lambda: inception_score(np.full((10, 3), np.nan)), "logits: not finite"),
        (lambda: frechet_distance(np.full((5, 3), 1e200), np.zeros((5, 3))), "beyond 1e\\+30 for 5 of 5 images"),
        (lambda: kernel_distance(np.full((5, 3), -1e120), np.zeros((5, 3))), "beyond 1e\\+30"),
        (lambda: inception_score(np.full((10, 3), 1e308)), "beyond 1e\\+30"),
        (lambda: frechet_distance(np.ones((5, 3)) + 1j, np.zeros((5, 3))), "should be real numbers"),
        (lambda: kernel_distance(torch.zeros(5, 3, dtype=torch.complex64), np.zeros((5, 3))), "should be real"),
        (lambda: inception_score(np.zeros((10, 3)) + 0j), "logits: should be real numbers \\(N, C\\)"),
        (lambda: frechet_distance([["a", "b"]] * 5, np.zeros((5, 2))), "should be real numbers"),
        (lambda: frechet_distance([[1, 2], [1]], np.zeros((5, 2))), "should be real numbers"),
        (lambda: frechet_distance(torch.zeros(5, 3, requires_grad=True), np.zeros((5, 3))), "a detached tensor"),
    ],
)
def test_impossible_requests_are_one_line_errors(call, message):
    with pytest.raises(RubError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


class Stand(nn.Module):
    """What torch-fidelity's extractor promises: uint8 RGB in, (features, logits) out, weights read when built."""

    def __init__(self, name, features_list, weights):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.lin = nn.Linear(3, 2048)
        self.fc = nn.Linear(2048, 1008)
        self.load_state_dict(torch.load(weights, weights_only=False))
        self.requires_grad_(False).eval()

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        Stand.last = len(x)
        pooled = self.lin(x.float().mean((2, 3)))
        return pooled, pooled @ self.fc.weight.T


@pytest.fixture
def stand(monkeypatch, tmp_path):
    """A stand-in for torch-fidelity with a small network, and a file with its weights."""
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Stand
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.manual_seed(0)
    shapes = {"lin.weight": (2048, 3), "lin.bias": (2048,), "fc.weight": (1008, 2048), "fc.bias": (1008,)}
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    torch.save(state, tmp_path / "w.pth")
    return tmp_path / "w.pth", state


def test_inception_takes_images_in_batches_grey_or_not(stand):
    path, state = stand
    judge = inception.inception(path, JudgeContext("inception", batch_size=4))
    assert judge.sha256 == sha256(path.read_bytes()).hexdigest()
    assert (judge.name, judge.description) == ("inception-v3-compat", "")
    grey = torch.randint(0, 256, (10, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = judge(grey)
    found, logits = seen.features, seen.scores
    expected = grey.float().mean((2, 3)).expand(-1, 3) @ state["lin.weight"].T + state["lin.bias"]
    # float32 products of numbers up to 255, added in another order on other processors
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(logits, expected @ state["fc.weight"].T, rtol=1e-5, atol=0.1)  # sums of 2048 of 1e4
    assert Stand.last == 2  # 4 + 4 + 2
    assert torch.equal(judge(grey.repeat(1, 3, 1, 1)).features, found)
    none = judge(grey[:0])
    assert (none.features.shape, none.scores.shape) == ((0, 2048), (0, 1008))
    with pytest.raises(RubError, match="uint8"):
        judge(grey.float())
    with pytest.raises(RubError, match=r"\(10, 2, 8, 8\)"):
        judge(grey.repeat(1, 2, 1, 1))


def test_inceptions_weights_are_looked_for_on_disk_and_in_torchs_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    cached, name = tmp_path / "hub" / "checkpoints" / inception.INCEPTION_FILE, inception.INCEPTION_FILE
    with pytest.raises(RubError, match=f"not at {cached}; give judge.weights") as error:
        inception.find_inception(None, None)
    assert inception.URL in str(error.value)
    with pytest.raises(RubError, match=f"not at mine.pth or {tmp_path / 'mine.pth'}"):
        inception.find_inception("mine.pth", tmp_path)
    cached.parent.mkdir(parents=True)
    for place, given in ((cached, None), (tmp_path / name, None), (tmp_path / "mine.pth", "mine.pth")):
        place.write_bytes(b"weights")
        assert inception.find_inception(given, tmp_path) == place


def test_inception_reads_safetensors_too(stand, tmp_path):
    path, state = stand
    images = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 2, 2)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    first, second = (
        inception.inception(file, JudgeContext("inception")) for file in (path, tmp_path / "w.safetensors")
    )
    assert torch.equal(first(images).features, second(images).features)


def test_inception_refuses_what_it_cannot_use(stand, monkeypatch, tmp_path):
    path, state = stand
    with pytest.raises(RubError, match=r"absent\.pth: no such file"):
        inception.inception(tmp_path / "absent.pth", JudgeContext("inception"))
    torch.save({"fc.weight": state["fc.weight"]}, tmp_path / "other.pth")
    with pytest.raises(RubError, match="weights of another network"):
        inception.inception(tmp_path / "other.pth", JudgeContext("inception"))
    torch.save({"fc.weight": print}, tmp_path / "code.pth")
    with pytest.raises(RubError, match="could run code"):
        inception.inception(tmp_path / "code.pth", JudgeContext("inception"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(RubError, match=r"pip install 'rub-bench\[inception\]'") as error:
        inception.inception(path, JudgeContext("inception"))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_neither_module_imports_the_extra():
    code = "import sys, rub.judges.inception, rub.metrics.generative as f; f.frechet_distance([[0.], [1]], [[0.], [1]])"
    code += "; print({'torchvision', 'torch_fidelity', 'torchmetrics'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.fixture(scope="module")
def peer():
    """The real torch-fidelity; it imports torchvision, which not every build of torch has."""
    try:
        return importlib.import_module("torch_fidelity")
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"torch-fidelity cannot be imported: {error}")


def test_pure_functions_equal_torch_fidelity(peer):
    a, b = features(90, 32, 0), features(70, 32, 1, shift=0.2)
    fid = importlib.import_module("torch_fidelity.metric_fid")
    theirs = fid.fid_statistics_to_metric(
        *(fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)), verbose=False
    )
    assert frechet_distance(a, b) == pytest.approx(theirs[fid.KEY_METRIC_FID], rel=1e-8)
    kid = importlib.import_module("torch_fidelity.metric_kid")
    theirs = kid.kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=6, kid_subset_size=40, verbose=False
    )
    found = kernel_distance(a, b, subsets=6, subset_size=40)
    assert found == pytest.approx((theirs[kid.KEY_METRIC_KID_MEAN], theirs[kid.KEY_METRIC_KID_STD]), rel=1e-9)
    isc = importlib.import_module("torch_fidelity.metric_isc")
    theirs = isc.isc_features_to_metric(torch.from_numpy(10 * a), splits=7)
    found = inception_score(10 * a, splits=7)
    assert found == pytest.approx((theirs[isc.KEY_METRIC_ISC_MEAN], theirs[isc.KEY_METRIC_ISC_STD]), rel=1e-9)


def test_inception_with_random_weights_equals_torch_fidelity(peer, monkeypatch, tmp_path):
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(0)
    with monkeypatch.context() as patch:  # build it without reading or fetching weights
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = module.FeatureExtractorInceptionV3("random", ["2048"], None)
    for layer in network.modules():  # keep the signal alive through the depth, so that images differ at the end
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    nn.init.normal_(network.fc.weight, std=0.05)
    path = tmp_path / "random.pth"
    torch.save(network.state_dict(), path)
    a, b = torch.randint(0, 256, (2, 12, 3, 16, 16), dtype=torch.uint8)
    b[:, :, :8] //= 2
    theirs = peer.calculate_metrics(
        input1=Bare(a), input2=Bare(b), cuda=False, batch_size=12, fid=True,
        isc=True, isc_splits=3, kid=True, kid_subsets=3, kid_subset_size=8, feature_extractor_weights_path=str(path),
        cache=False, verbose=False,
    )  # fmt: skip
    judge = inception.inception(path, JudgeContext("inception", batch_size=5))
    logits, ours_a, ours_b = judge(a).scores, judge(a).features, judge(b).features
    assert frechet_distance(ours_a, ours_b) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    score, deviation = inception_score(logits, splits=3)
    assert score == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=1e-3)
    kid = kernel_distance(ours_a, ours_b, subsets=3, subset_size=8)
    assert kid[0] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)


class Bare(torch.utils.data.Dataset):
    """Images as torch-fidelity takes them."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]
