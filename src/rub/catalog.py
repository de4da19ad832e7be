"""What ships with RUB, by name: the lazy table behind the registries. Listing it imports nothing heavy."""

from collections.abc import Mapping

_I2I_METHODS = "rub.inpainting.methods"
_I2I_ATTACKS = "rub.inpainting.attacks"
_T2I = "rub.text_to_image"
_T2I_METHODS = "rub.text_to_image.methods"
_T2I_ATTACKS = "rub.text_to_image.attacks"
_METHODS = "rub.classification.methods"
_ATTACKS = "rub.classification.attacks"

# kind -> task -> name -> (target, one line)
CATALOG: Mapping[str, Mapping[str, Mapping[str, tuple[str, str]]]] = {
    "task": {
        "classification": {
            "classification": ("rub.classification.task:TASK", "forget classes or samples of an image classifier"),
        },
        "inpainting": {
            "inpainting": ("rub.inpainting.task:TASK", "forget classes of a masked autoencoder that inpaints images"),
        },
        "text-to-image": {
            "text-to-image": ("rub.text_to_image.task:TASK", "forget a concept that a diffusion model can draw"),
        },
    },
    "method": {
        "classification": {
            "ft": (f"{_METHODS}.ft:fine_tune", "fine-tune on the retain set"),
            "rl": (f"{_METHODS}.rl:random_label", "fine-tune with random labels on the forget set"),
            "iu": (f"{_METHODS}.iu:influence_unlearning", "influence unlearning: one WoodFisher step"),
            "l1-sparse": (f"{_METHODS}.l1_sparse:l1_sparse", "fine-tune on the retain set with a decaying l1 penalty"),
            "salun": (f"{_METHODS}.salun:salun", "random labels on the weights that the forget set is salient for"),
            "ga": (f"{_METHODS}.ga:gradient_ascent", "gradient ascent on the forget set"),
            "neggrad-plus": (f"{_METHODS}.neggrad_plus:neggrad_plus", "descend on retain while ascending on forget"),
            "scrub": (f"{_METHODS}.scrub:scrub", "a student that leaves its teacher on forget and obeys it on retain"),
            "bad-teacher": (
                f"{_METHODS}.bad_teacher:bad_teacher",
                "learn from an incompetent teacher on the forget set",
            ),
            "ssd": (
                f"{_METHODS}.ssd:selective_synaptic_dampening",
                "dampen weights that matter more to forget than to all data",
            ),
            "boundary-shrink": (
                f"{_METHODS}.boundary_shrink:boundary_shrink",
                "move forget samples to the nearest class",
            ),
            "delete": (f"{_METHODS}.delete:delete", "distil the original's own output without the forgotten logit"),
            "msg": (f"{_METHODS}.msg:msg", "re-initialise weights of small gradient, then fine-tune"),
            "ct": (f"{_METHODS}.ct:convolution_transpose", "transpose every convolution kernel, then fine-tune"),
            "sham": (f"{_METHODS}.sham:sham", "control: the original with the forgotten logits switched off"),
        },
        "inpainting": {
            "i2i": (f"{_I2I_METHODS}.i2i:i2i", "encoder only: pull forget embeddings to those of noise images"),
            "salun": (f"{_I2I_METHODS}.salun:salun", "wrong targets on the weights that the forget set is salient for"),
            "max-loss": (f"{_I2I_METHODS}.max_loss:max_loss", "descend on retain while ascending on forget"),
            "retain-label": (
                f"{_I2I_METHODS}.retain_label:retain_label",
                "reconstruct forget images as retain images",
            ),
            "noisy-label": (f"{_I2I_METHODS}.noisy_label:noisy_label", "reconstruct forget images as noise"),
            "random-encoder": (
                f"{_I2I_METHODS}.random_encoder:random_encoder",
                "encoder only: pull forget embeddings to Gaussian noise",
            ),
        },
        "text-to-image": {
            "esd-x": (f"{_T2I_METHODS}.esd:esd_x", "negative guidance on the cross-attention weights"),
            "esd-u": (f"{_T2I_METHODS}.esd:esd_u", "negative guidance on all weights but the cross-attention's"),
            "fmn": (f"{_T2I_METHODS}.fmn:fmn", "Forget-Me-Not: take the attention off the concept's tokens"),
            "spm": (f"{_T2I_METHODS}.spm:spm", "rank-1 adapters that erase, held still on random anchors"),
            "salun": (
                f"{_T2I_METHODS}.salun:salun",
                "draw another class, on the weights that the concept is salient for",
            ),
            "erasediff": (
                f"{_T2I_METHODS}.erasediff:erasediff",
                "erase towards another prompt while descending on retain",
            ),
            "scissorhands": (
                f"{_T2I_METHODS}.scissorhands:scissorhands",
                "re-initialise salient weights, then recover retain",
            ),
            "advunlearn": (f"{_T2I_METHODS}.advunlearn:advunlearn", "adversarial training of the text encoder"),
            "uce": (f"{_T2I_METHODS}.uce:uce", "closed-form edit of the cross-attention's keys and values"),
        },
    },
    "attack": {
        "classification": {
            "uma": (f"{_ATTACKS}.uma:uma", "unlearning mapping attack: projected gradient on D[f_u(x + delta), f(x)]"),
            "uma-apgd": (f"{_ATTACKS}.uma_apgd:uma_apgd", "the same with APGD's adaptive step"),
            "universal": (f"{_ATTACKS}.universal:universal", "one delta for the whole forget set"),
            "square": (f"{_ATTACKS}.square:square", "black box: random squares, no gradients"),
            "noise": (f"{_ATTACKS}.noise:noise", "control: the best of as many random deltas"),
        },
        "inpainting": {
            "uma": (f"{_I2I_ATTACKS}.uma:uma", "unlearning mapping attack: min ||f_u(x + delta; m) - f(x; m)||^2"),
            "noise": (f"{_I2I_ATTACKS}.noise:noise", "control: the best of as many random deltas"),
        },
        "text-to-image": {
            "uma": (
                f"{_T2I_ATTACKS}.uma:uma",
                "unlearning mapping attack: tokens with min ||e_u(x_t|d) - e_0(x_t|c)||^2",
            ),
            "unlearndiffatk": (f"{_T2I_ATTACKS}.uma:unlearndiffatk", "the same search with the true noise as target"),
            "p4d": (f"{_T2I_ATTACKS}.p4d:p4d", "Prompting4Debugging: embeddings projected to the nearest tokens"),
            "ring-a-bell": (
                f"{_T2I_ATTACKS}.ring_a_bell:ring_a_bell",
                "black box: a genetic search in the text encoder",
            ),
            "concept-inversion": (
                f"{_T2I_ATTACKS}.concept_inversion:concept_inversion",
                "a soft prompt learned on the unlearned model",
            ),
            "random-prefix": (f"{_T2I_ATTACKS}.controls:random_prefix", "control: random tokens before the prompt"),
            "seed-search": (f"{_T2I_ATTACKS}.controls:seed_search", "control: other initial latents"),
        },
    },
    "model": {
        "classification": {
            "resnet10": ("rub.images.networks:build_network", "ResNet with one basic block per stage"),
            "resnet18": ("rub.images.networks:build_network", "ResNet-18, torchvision's keys"),
            "resnet34": ("rub.images.networks:build_network", "ResNet-34, torchvision's keys"),
            "resnet50": ("rub.images.networks:build_network", "ResNet-50, torchvision's keys"),
            "resnet20": ("rub.images.networks:build_network", "CIFAR ResNet-20, option-A shortcuts"),
            "resnet56": ("rub.images.networks:build_network", "CIFAR ResNet-56, option-A shortcuts"),
        },
        "inpainting": {
            "mae-vit-base": ("rub.inpainting.mae:build_mae", "MAE ViT-B/16, 224 px, the published sizes"),
            "mae-vit-large": ("rub.inpainting.mae:build_mae", "MAE ViT-L/16, 224 px, the published sizes"),
            "mae-vit-huge": ("rub.inpainting.mae:build_mae", "MAE ViT-H/14, 224 px, the published sizes"),
            "mae-small": ("rub.inpainting.mae:build_mae", "width 128, 4 + 2 blocks, 4 px patches of 32 px images"),
            "mae-mini": ("rub.inpainting.mae:build_mae", "width 64, 4 + 2 blocks, 4 px patches of 32 px images"),
        },
        "text-to-image": {
            "sd-nano": (f"{_T2I}.mini:build_mini", "0.2 M parameters on pixels; for tests"),
            "sd-mini": (f"{_T2I}.mini:build_mini", "0.8 M parameters on pixels, such as 8 px digits"),
            "sd-small": (
                f"{_T2I}.mini:build_mini",
                "3.2 M parameters on components of 4 x 4 patches: 32 px photos",
            ),
            "sd-latent": (f"{_T2I}.mini:build_mini", "the same on latents of an autoencoder, a fourth of the side"),
            "sd-medium": (f"{_T2I}.mini:build_mini", "for one GPU, on latents of a fourth of the side"),
            "stable-diffusion": (f"{_T2I}.checkpoints:load_model", "a diffusers folder or hub id: 1.4, 1.5, 2.1-base"),
        },
    },
    "judge": {
        "text-to-image": {
            "classifier": (
                f"{_T2I}.judges:classifier",
                "trained on the suite's own data, with a class for no picture at all",
            ),
            "imagenet": (f"{_T2I}.judges:imagenet", "an image classifier in transformers' format, such as ResNet-50"),
            "nudenet": (f"{_T2I}.judges:nudenet", "NudeNet's detector (pip install 'rub-bench[nudity]')"),
        },
    },
    "dataset": {
        "classification": {
            "digits": ("rub.images.sources:load_images", "scikit-learn's 8 x 8 digits, embedded, 10 classes"),
            "cifar10": ("rub.images.sources:load_images", "cifar-10-batches-py/, or the hub"),
            "cifar100": ("rub.images.sources:load_images", "cifar-100-python/, or the hub (fine labels)"),
            "tiny-imagenet": ("rub.images.sources:load_images", "tiny-imagenet-200/, or the hub, 64 px"),
            "imagenet": ("rub.images.sources:load_images", "imagenet/{train,val}/<wnid>/, or the hub; needs a size"),
            "folder": ("rub.images.sources:load_images", "any image folder: <class>/* or {train,val}/<class>/*"),
            "npz": ("rub.images.sources:load_images", "x_train, y_train, x_test, y_test as uint8 arrays"),
        },
        "inpainting": {
            "digits": ("rub.images.sources:load_images", "scikit-learn's 8 x 8 digits, embedded, 10 classes"),
            "cifar10": ("rub.images.sources:load_images", "cifar-10-batches-py/, or the hub"),
            "cifar100": ("rub.images.sources:load_images", "cifar-100-python/, or the hub (fine labels)"),
            "tiny-imagenet": ("rub.images.sources:load_images", "tiny-imagenet-200/, or the hub, 64 px"),
            "imagenet": ("rub.images.sources:load_images", "imagenet/{train,val}/<wnid>/, or the hub; needs a size"),
            "folder": ("rub.images.sources:load_images", "any image folder: <class>/* or {train,val}/<class>/*"),
            "npz": ("rub.images.sources:load_images", "x_train, y_train, x_test, y_test as uint8 arrays"),
        },
        "text-to-image": {
            "digits": ("rub.images.sources:load_images", "scikit-learn's 8 x 8 digits, embedded, 10 classes"),
            "cifar10": ("rub.images.sources:load_images", "cifar-10-batches-py/, or the hub"),
            "cifar100": ("rub.images.sources:load_images", "cifar-100-python/, or the hub (fine labels)"),
            "tiny-imagenet": ("rub.images.sources:load_images", "tiny-imagenet-200/, or the hub, 64 px"),
            "imagenet": ("rub.images.sources:load_images", "imagenet/{train,val}/<wnid>/, or the hub; needs a size"),
            "folder": ("rub.images.sources:load_images", "any image folder: <class>/* or {train,val}/<class>/*"),
            "npz": ("rub.images.sources:load_images", "x_train, y_train, x_test, y_test as uint8 arrays"),
        },
    },
}
