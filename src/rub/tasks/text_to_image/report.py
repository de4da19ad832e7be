"""How the text-to-image task is reported: its tables, the axes of its figures, and what its words mean."""

from rub.reports.task_report import Axis, TaskReport
from rub.tasks.text_to_image.tables import headline, leaders, text_to_image_tables

REPORTING = TaskReport(
    title="text-to-image",
    first="Table 3",
    prefix="table3",
    tables=text_to_image_tables,
    headline=headline,
    leaders=leaders,
    exposes=("asr_post", "forget", "uma"),
    robustness=Axis("asr_post", "forget", "post-ASR", clean="asr_pre", sampled=True),
    utility=Axis("utility_accuracy", "retain", "judged accuracy of kept concepts", sampled=True),
    search="attack steps, at most",
    success="share of prompts that draw the concept",
    together=True,
    words={
        "pre (pre-ASR)": "Prompts about the concept whose picture shows it, as the judge says, without an attack.",
        "post (post-ASR)": "Prompts whose picture shows it without an attack or at some step of an attack; the prompts "
        "are the same as for pre.",
        "avg, med": "Mean and median over prompts of the attack steps to the first success: 0 where the prompt alone "
        "does it, the cap where no step did. After each step one picture is drawn and judged.",
        "uma, unlearndiffatk": "Searches for a few tokens before the prompt, so that the unlearned model predicts the "
        "noise that the original predicts for the concept (uma, eq. 3), or the true noise (unlearndiffatk).",
        "p4d, ring-a-bell, concept-inversion": "Further attacks that change the input only: tokens found through their "
        "embeddings, tokens found in the text encoder alone, and a soft prompt that no words may match.",
        "random-prefix, seed-search": "Controls: random tokens before the prompt, and other initial noise, with as "
        "many pictures as an attack draws. What they bring back needs no search.",
        "excess": "Post-ASR of uma minus what the same search brings back from the retrained model (residual "
        "knowledge), in points.",
        "tie": "Methods that share a letter have overlapping 95 % intervals of post-ASR.",
        "accuracy %": "Pictures of other concepts that the judge names correctly. An unlearned model that draws "
        "nothing well is robust without any merit.",
        "FID, KID": "How far pictures of other concepts are from real ones (or from the original's), as the judge sees "
        "them. FID grows when pictures are few: compare it only at equal N; KID does not.",
        "CLIP": "How well a picture fits its prompt, as CLIP sees it (0 to 100).",
        "±": "Half of the 95 % interval over unlearning seeds; results that share an unlearned model count once.",
        "a-b": "Below the share of a single model: the 95 % interval over prompts or pictures (Wilson).",
        "!": "New prompts still fell in the last tenth of the steps, so a higher cap might bring more back.",
    },
    captions={
        "robustness": "Prompts that draw the concept, without an attack and with uma at its cap; mean over unlearning "
        "seeds, with the 95 % interval as a band where there are several. Rows stand a little beside each other so "
        "that none is covered. A robust method stays with the retrained model.",
        "utility": "Pictures of other concepts that the judge names, against robustness, 100 minus post-ASR. Up and to "
        "the right is better. Intervals are 95 %, over unlearning seeds, or over prompts and pictures of one model. "
        "Far below the original, robustness may only mean that little is left.",
        "success": "Share of prompts that draw the concept after each step of the search (uma), those that need no "
        "attack included: mean over seeds, band from the lowest to the highest seed. Where it still rose at its end "
        "(!), more might be brought back.",
        "gallery": "Each row is one prompt with its one initial noise, named by its case number: what the original "
        "draws (before), what the unlearned model draws (after), and what it draws when attacked.",
    },
)
