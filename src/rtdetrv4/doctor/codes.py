"""What each code means: its title, its severity, what training does about it, and what to do."""

from __future__ import annotations

from typing import NamedTuple

from rtdetrv4.doctor.finding import Severity


class Code(NamedTuple):
    """A kind of fault."""

    title: str
    severity: Severity
    effect: str
    """What training does about it, one sentence."""
    remedy: str
    """What to do, one sentence."""


CODES: dict[str, Code] = {
    "D301": Code(
        "Rare classes",
        "warning",
        "The class is hardly learned, and its AP says little.",
        "Label more of it, merge it into another class, or leave it out.",
    ),
    "D302": Code(
        "Images with more objects than queries",
        "warning",
        "The detector cannot find more objects than it has queries, in training and later.",
        "Cut the images into tiles, or train with more queries: --set model.num_queries=….",
    ),
    "D303": Code(
        "Images with boxes that are tiny at the input size",
        "warning",
        "Objects smaller than a cell of the finest feature map are hardly found.",
        "Train at the input size named (--imgsz), or cut the images into tiles.",
    ),
    "D304": Code(
        "Images of another shape than the input",
        "info",
        "They are stretched to the input, in training and later, which distorts the objects.",
        "Train at the shape named (--imgsz HEIGHTxWIDTH), or with --set model.resize=letterbox.",
    ),
    "D305": Code(
        "Mostly images without objects",
        "info",
        "They are trained on as background.",
        "Look whether their labels were forgotten; if not, fewer of them train faster.",
    ),
    "D306": Code(
        "Images much darker or brighter than the others",
        "info",
        "They are trained on like the others.",
        "Look whether they belong to the set.",
    ),
    "D307": Code(
        "Images much more blurred than the others",
        "info",
        "They are trained on like the others.",
        "Look whether objects can be seen in them; if not, take them out.",
    ),
    "D308": Code(
        "Copies within a part",
        "warning",
        "They are trained on, or counted, several times.",
        "Keep one of each; --fix does.",
    ),
    "D309": Code(
        "Copies within a part that are labeled differently",
        "warning",
        "The same image teaches contradicting labels.",
        "Keep the one that is labeled right; --fix keeps the one with the most boxes.",
    ),
    "D310": Code(
        "Images within a part that look alike",
        "info",
        "They are trained on, or counted, like any others, and teach less than as many different ones.",
        "Nothing, if they are frames of a video; else keep one of each.",
    ),
    "D311": Code(
        "The same images in two parts",
        "error",
        "The detector is measured on what it was trained on, so its AP is too good.",
        "Take them out of one part; --fix takes them out of the training part.",
    ),
    "D312": Code(
        "Images that look alike in two parts",
        "warning",
        "The detector is measured on nearly what it was trained on, so its AP may be too good.",
        "Keep what was taken together (a video, a place, a day) in one part.",
    ),
    "D313": Code(
        "Parts of different origin",
        "warning",
        "The AP says how the detector does on images that differ from those it was trained on.",
        "Divide the images anew at random, unless the difference is meant.",
    ),
    "D314": Code(
        "No validation part",
        "info",
        "A fifth of the training images is set aside, with its share of every class.",
        "Nothing, or name a part of your own; --fix writes down the division that training would make.",
    ),
    "D315": Code(
        "A small validation part",
        "warning",
        "The AP depends on few images, and so on chance.",
        "Move images from training to validation, about a fifth of all.",
    ),
    "D401": Code(
        "Objects that may lack a label",
        "info",
        "They are learned as background.",
        "Look at each: label it, or leave it.",
    ),
    "D402": Code(
        "Labels that may show nothing",
        "info",
        "They teach the detector to see what is not there.",
        "Look at each: delete it, or keep it as a hard example.",
    ),
    "D403": Code(
        "Labels that may be of another class",
        "info",
        "They teach the wrong class.",
        "Look at each: rename it, or keep it.",
    ),
    "D404": Code(
        "Boxes that may be misplaced",
        "info",
        "They teach a wrong place.",
        "Look at each: draw it again, or keep it.",
    ),
}
