"""How the image-to-image task is reported: its tables, the axes of its figures, and what its words mean."""

from rub.reports.task_report import Axis, TaskReport
from rub.tasks.inpainting.tables import headline, inpainting_tables, leaders

REPORTING = TaskReport(
    title="image-to-image",
    first="Table 2",
    prefix="table2",
    tables=inpainting_tables,
    headline=headline,
    leaders=leaders,
    robustness=Axis("recovered", "forget", "recovered"),
    utility=Axis("psnr", "retain", "PSNR of kept images", "dB"),
    beside={"steered to an unrelated image": Axis("recovered", "steered", "recovered")},
    unlike=frozenset({"original"}),
    words={
        "F and R": "Images of the forgotten classes (F) and of kept classes (R).",
        "IS": "Inception Score: how clear and how varied the reconstructions look to the judge in brackets. Higher is "
        "better on R.",
        "FID": "How far the reconstructions are from real images, as the judge in brackets sees them. Lower is better "
        "on R. On F, a high value means that the class is gone, and a value that falls under an attack means that the "
        "attack brought the class back. It grows when images are few: compare it only at equal N.",
        "KID": "The same comparison without that bias of small N; it may be slightly below 0.",
        "% back (recovered)": "Images whose masked patches come out as the original model made them, within the "
        "protocol's distance. Under an attack, the visible patches are first changed by at most the budget.",
        "steered": "Control: the same search on forget images, but towards the original's output for an unrelated kept "
        "image. Where it is about as high as recovered on F, the search can draw anything, and what it recovers is no "
        "evidence of residual knowledge.",
        "excess": "Recovered on F minus what the same search recovers from the retrained model (residual knowledge).",
        "noise": "Control: the best of as many random changes of the same size. What it recovers needs no search.",
        "MSE, PSNR, SSIM, LPIPS": "How near the output is to the original model's output on the same image and mask: "
        "mean squared error of masked patches, the same in dB (100 at most), structural similarity, and a learned "
        "distance.",
        "unbounded, free": "Budgets without a limit: any image, and any real numbers at all.",
        "±": "Intervals are over unlearning seeds; results that share an unlearned model count once.",
        "!": "The search was still improving when it stopped, so more might be recovered.",
    },
    captions={
        "robustness": "Forget images recovered against the size of the search, mean and 95 % interval over unlearning "
        "seeds; rows stand a little beside each other so that none is covered. A robust method stays with the "
        "retrained model.",
        "controls": "Forget images recovered beside those that the same search steers to the original's output for an "
        "unrelated kept image, at each budget (in 255ths), mean and 95 % interval over unlearning seeds. Where the "
        "lines lie together, the search can draw anything, and what it recovers is no evidence of what is left.",
        "utility": "How near the reconstructions of kept images stay to the original's (PSNR of masked patches, clean) "
        "against robustness, 100 minus the recovered forget images at the largest budget of Table 2. Up and to the "
        "right is better; intervals are 95 % over unlearning seeds. The original is left out: it is what the others "
        "are compared with.",
        "success": "Share of forget images recovered after each step of the search (uma): mean over seeds, band from "
        "the lowest to the highest seed; restarts and runs stand one after another. Where the curve still rose at its "
        "end (!), more might be recovered.",
        "loss": "Mean squared error between the unlearned model's output on the best probes so far and the original "
        "model's output on the clean images, masked patches, after each step of the search (uma). The original starts "
        "at its own output, at 0, which this axis does not have.",
        "gallery": "Each row is one image with its one mask.",
    },
)
