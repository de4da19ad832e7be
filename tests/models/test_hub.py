"""Models by hub id: what is cached is trusted only where it is whole, and only what is read is fetched."""

import json
from pathlib import Path

import pytest

from rub.errors import RubError
from rub.models.diffusion.files import find_checkpoint, find_frame, find_model, missing, read_files, wanted
from rub.models.hub import HubName

PIPELINE = {
    "model_index.json": json.dumps({"vae": ["diffusers", "AutoencoderKL"]}),
    "scheduler/scheduler_config.json": "{}", "tokenizer/vocab.json": "{}", "tokenizer/merges.txt": "",
    "README.md": "words", "v1-4.ckpt": "bytes", "safety_checker/model.safetensors": "bytes",
    **{f"{part}/config.json": "{}" for part in ("unet", "text_encoder", "vae")},
    **{f"unet/diffusion_pytorch_model{kind}": "weights" for kind in (".safetensors", ".fp16.safetensors", ".bin")},
    "text_encoder/model.safetensors": "weights", "text_encoder/pytorch_model.bin": "weights",
    "vae/diffusion_pytorch_model.bin": "weights",
}  # fmt: skip
READ = sorted(set(PIPELINE) - {
    "README.md", "v1-4.ckpt", "safety_checker/model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin",
})  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with files and a cache, both in memory of this test: `files` is the hub's, `cache` a folder."""

    class Hub:
        files, cache, fetched, answers = dict(PIPELINE), tmp_path / "cache", [], True

    def snapshot_download(repo_id, revision=None, allow_patterns=None, local_files_only=False):
        if not local_files_only:
            for name in allow_patterns or Hub.files:
                Hub.fetched.append(name)
                (Hub.cache / name).parent.mkdir(parents=True, exist_ok=True)
                (Hub.cache / name).write_text(Hub.files[name])
        elif not Hub.cache.exists():
            raise FileNotFoundError
        return str(Hub.cache)

    class HfApi:
        def list_repo_files(self, repo_id, revision=None):
            return list(Hub.files)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.HfApi", HfApi)
    monkeypatch.setattr("rub.data.hub.reachable", lambda seconds: Hub.answers)
    Hub.fetched = []
    return Hub


def test_only_what_is_read_is_fetched(hub):
    assert find_model("CompVis/stable-diffusion-v1-4") == hub.cache
    assert sorted(hub.fetched) == READ


def test_a_cache_that_holds_the_tokenizer_alone_is_completed(hub):
    for name in ("tokenizer/vocab.json", "tokenizer/merges.txt"):
        (hub.cache / name).parent.mkdir(parents=True, exist_ok=True)
        (hub.cache / name).write_text("{}")
    hub.answers = False
    with pytest.raises(RubError, match=r"cache has not all of it \(model_index.json is missing\), and the hub cannot"):
        find_model("CompVis/stable-diffusion-v1-4")
    hub.answers = True
    find_model("CompVis/stable-diffusion-v1-4")
    assert sorted(hub.fetched) == READ


def test_of_the_configs_of_a_single_file_no_weights_are_fetched(hub):
    assert find_frame("CompVis/stable-diffusion-v1-4") == hub.cache
    assert sorted(hub.fetched) == [name for name in READ if not name.endswith((".safetensors", ".bin"))]
    with pytest.raises(RubError, match=r"the hub has no unet/config\.json there"):
        hub.files = {name: text for name, text in PIPELINE.items() if name != "unet/config.json"}
        (hub.cache / "unet" / "config.json").unlink()
        find_frame("CompVis/stable-diffusion-v1-4")


def test_a_single_file_on_the_hub_is_named_with_a_colon(hub):
    assert find_model("CompVis/stable-diffusion-v-1-4-original:v1-4.ckpt") == hub.cache / "v1-4.ckpt"
    assert hub.fetched == ["v1-4.ckpt"]


def test_a_whole_cache_is_not_asked_for_again(hub):
    find_model("CompVis/stable-diffusion-v1-4")
    hub.fetched, hub.answers = [], False
    assert find_model("CompVis/stable-diffusion-v1-4@main") == hub.cache
    assert hub.fetched == []


def test_a_place_in_a_repository_is_named_with_a_colon(hub):
    hub.files = {
        "church_unlearned/config.json": "{}", "church_unlearned/model.safetensors": "weights",
        "church_unlearned/pytorch_model.bin": "weights", "nudity_unlearned/model.safetensors": "weights",
        "zips/esd.pt": "weights",
    }  # fmt: skip
    found = find_checkpoint("OPTML-Group/AdvUnlearn@v1:church_unlearned", "--unlearned")
    assert found == hub.cache / "church_unlearned"
    assert sorted(hub.fetched) == ["church_unlearned/config.json", "church_unlearned/model.safetensors"]
    hub.fetched = []
    assert find_checkpoint("OPTML-Group/AdvUnlearn:zips/esd.pt", "--unlearned") == hub.cache / "zips/esd.pt"
    assert hub.fetched == ["zips/esd.pt"]
    with pytest.raises(RubError, match="the hub has no tench_unlearned there"):
        find_checkpoint("OPTML-Group/AdvUnlearn:tench_unlearned", "--unlearned")


@pytest.mark.parametrize("name", ["church.pt", "./a/b", "a/b/c", "/a/b", "a/b:../../etc", "a b/c", "a/b@"])
def test_what_is_no_hub_id_is_refused(name):
    with pytest.raises(RubError, match="no such file or folder, and no hub id"):
        HubName.parse(name, "--unlearned")


def test_the_files_of_shards_come_with_their_index():
    names = [f"unet/diffusion_pytorch_model-0000{place}-of-00002.safetensors" for place in (1, 2)]
    names += [
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "model_index.json",
        "unet/other-00001-of-00002.bin",
    ]
    assert sorted(wanted(names)) == sorted(names[:4])


def test_the_key_of_a_folder_is_made_of_what_is_read(tmp_path):
    for name, text in PIPELINE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [path.relative_to(tmp_path).as_posix() for path in read_files(tmp_path)]
    assert sorted(found) == READ
    (tmp_path / ".cache/huggingface").mkdir(parents=True)
    (tmp_path / ".cache/huggingface/download.metadata").write_text("now")
    assert [path.relative_to(tmp_path).as_posix() for path in read_files(tmp_path)] == found
    assert missing(set(found)) == "" and missing(set(found) - {"vae/config.json"}) == "vae/config.json"
    assert read_files(Path(tmp_path, "v1-4.ckpt")) == [tmp_path / "v1-4.ckpt"]
