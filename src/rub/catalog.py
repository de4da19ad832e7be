"""What ships with RUB, by name: the lazy table behind the registries. Listing it imports nothing heavy."""

from collections.abc import Mapping

_METHODS = "rub.classification.methods"
_ATTACKS = "rub.classification.attacks"

# kind -> task -> name -> (target, one line)
CATALOG: Mapping[str, Mapping[str, Mapping[str, tuple[str, str]]]] = {
    "task": {
        "classification": {
            "classification": ("rub.classification.task:TASK", "forget classes or samples of an image classifier"),
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
    },
    "attack": {
        "classification": {
            "uma": (f"{_ATTACKS}.uma:uma", "unlearning mapping attack: projected gradient on D[f_u(x + delta), f(x)]"),
            "uma-apgd": (f"{_ATTACKS}.uma_apgd:uma_apgd", "the same with APGD's adaptive step"),
            "universal": (f"{_ATTACKS}.universal:universal", "one delta for the whole forget set"),
            "square": (f"{_ATTACKS}.square:square", "black box: random squares, no gradients"),
            "noise": (f"{_ATTACKS}.noise:noise", "control: the best of as many random deltas"),
        },
    },
    "model": {
        "classification": {
            "resnet10": ("rub.classification.networks:build_network", "ResNet with one basic block per stage"),
            "resnet18": ("rub.classification.networks:build_network", "ResNet-18, torchvision's keys"),
            "resnet34": ("rub.classification.networks:build_network", "ResNet-34, torchvision's keys"),
            "resnet50": ("rub.classification.networks:build_network", "ResNet-50, torchvision's keys"),
            "resnet20": ("rub.classification.networks:build_network", "CIFAR ResNet-20, option-A shortcuts"),
            "resnet56": ("rub.classification.networks:build_network", "CIFAR ResNet-56, option-A shortcuts"),
        },
    },
    "dataset": {
        "classification": {
            "digits": ("rub.images.sources:load_images", "scikit-learn's 8 x 8 digits, embedded, 10 classes"),
            "cifar10": ("rub.images.sources:load_images", "cifar-10-batches-py/, or the hub"),
            "cifar100": ("rub.images.sources:load_images", "cifar-100-python/, or the hub (fine labels)"),
            "tiny-imagenet": ("rub.images.sources:load_images", "tiny-imagenet-200/, or the hub, 64 px"),
            "folder": ("rub.images.sources:load_images", "any image folder: <class>/* or {train,val}/<class>/*"),
            "npz": ("rub.images.sources:load_images", "x_train, y_train, x_test, y_test as uint8 arrays"),
        },
    },
}
