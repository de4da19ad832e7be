"""How the classification task is reported: its tables, the axes of its figures, and what its words mean."""

from rub.reports.task_report import Axis, TaskReport
from rub.tasks.classification.tables import classification_tables, headline, leaders

REPORTING = TaskReport(
    title="image classification",
    first="Table 1",
    prefix="table1",
    tables=classification_tables,
    headline=headline,
    leaders=leaders,
    exposes=("logit_auc", "test", "none"),
    robustness=Axis("ua", "forget", "UA"),
    utility=Axis("ta", "test", "TA"),
    beside={
        "unseen images of the class": Axis("ua_test", "forget_test", "UA"),
        "kept images, steered": Axis("ua", "retain", "UA"),
    },
    words={
        "UA": "How many forgotten images are still recognised. Under an attack, each image is first changed by at most "
        "the budget to bring its old output back.",
        "MIA": "How many forgotten images a membership attack calls members of the training set.",
        "excess": "UA under the attack minus that of the retrained model under the same attack (residual knowledge): "
        "what an attack on a model that never saw the data does not explain.",
        "ratio": "The same comparison as a ratio: images recovered from the method per image recovered from the "
        "retrained model, with one added to both counts.",
        "test": "UA on images of forgotten classes that nobody trained on: is a class recalled, or training images?",
        "steer": "Control: how many kept images the same search pushes into a forgotten class. Where it is as high as "
        "UA, the search could have produced the class rather than found it.",
        "noise": "Control: the best of as many random changes of the same size. What it recovers needs no search.",
        "logit AUC, linear probe": "Read the knowledge behind the output: they do not move when an output is only "
        "lowered.",
        "± and tie": "Intervals are over unlearning seeds; results that share an unlearned model count once. Methods "
        "whose intervals overlap share a letter: the data do not order them.",
        "!": "The search was still improving when it stopped, so the number is a lower bound.",
    },
    captions={
        "robustness": "Forgotten images recognised (UA) against the size of the search, mean and 95 % interval over "
        "unlearning seeds; rows stand a little beside each other so that none is covered. A robust method stays with "
        "the retrained model.",
        "controls": "Forgotten images recognised (UA) beside unseen images of the same class and kept images that the "
        "same search steers into it, at each budget (in 255ths), mean and 95 % interval over unlearning seeds. Where "
        "the lines lie together, the search makes the class out of any image, and UA is no evidence of what is left.",
        "utility": "Accuracy on kept classes against robustness, 1 - UA after the attack at the largest budget of "
        "Table 1. Up and to the right is better; intervals are 95 % over unlearning seeds.",
        "success": "Share of forget images recovered after each step of the search (uma): mean over seeds, band from "
        "the lowest to the highest seed; restarts and runs stand one after another. Where the curve still rose at its "
        "end (!), UA is a lower bound.",
        "loss": "Mean distance between the unlearned model's output on the best probes so far and the original model's "
        "output on the clean images, after each step of the search (uma).",
    },
)
