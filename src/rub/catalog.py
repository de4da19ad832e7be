"""What ships with RUB, by name: the lazy table behind the registries. Listing it imports nothing heavy."""

from collections.abc import Mapping

_I2I_METHODS = "rub.inpainting.methods"
_I2I_ATTACKS = "rub.inpainting.attacks"
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
    },
}
