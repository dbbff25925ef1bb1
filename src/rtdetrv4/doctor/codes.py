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


_LEFT_OUT = "Up to 5 % of a part are left out; beyond that, training stops."

READING: dict[str, Code] = {
    "D001": Code(
        "What stops training",
        "error",
        "Training stops with this message; a test part stops only its evaluation.",
        "Do what the message says.",
    ),
    "D002": Code(
        "A validation part that is named but absent",
        "warning",
        "A fifth of the training images is set aside for validation.",
        "Add the files, or delete the entry.",
    ),
    "D003": Code(
        "No training part",
        "error",
        "Training stops.",
        "Name a folder, list or annotation file train, or describe the parts in a YAML file.",
    ),
    "D004": Code(
        "A test part that is named but absent",
        "info",
        "None: a test part is only read for evaluation.",
        "Nothing, or delete the entry; Roboflow writes it even if no image is in the part.",
    ),
}
FILES: dict[str, Code] = {
    "D101": Code("Truncated or damaged images", "warning", _LEFT_OUT, "Copy or download the files again."),
    "D102": Code("Files that are no images", "warning", _LEFT_OUT, "Save them as JPEG or PNG, or delete them."),
    "D103": Code("Empty image files", "warning", _LEFT_OUT, "Copy or download the files again."),
    "D104": Code(
        "Too many images that cannot be read",
        "error",
        "Training stops once it has met more than 5 % of a part.",
        "Replace the files, or delete them with their annotations.",
    ),
    "D105": Code(
        "Suffixes that do not match the content",
        "info",
        "None: the content decides.",
        "Rename the files, because other tools go by the suffix.",
    ),
    "D106": Code(
        "Photos that are stored turned",
        "info",
        "They are turned upright as their orientation tag says, in training and prediction alike.",
        "Look at a few of them with their boxes, because tools disagree about the tag.",
    ),
    "D107": Code(
        "Invalid orientation tags",
        "info",
        "The tag is ignored.",
        "Look at a few of them with their boxes, and delete the tag.",
    ),
    "D108": Code(
        "Photos that are annotated as stored, not as shown",
        "warning",
        "Training leaves them turned as they are stored, because the annotated size says so; prediction turns them "
        "upright.",
        "Turn the pixels and delete the orientation tag.",
    ),
    "D109": Code(
        "Gray images",
        "info",
        "The gray values are used for red, green and blue.",
        "Nothing, if the images to predict on are gray as well.",
    ),
    "D110": Code(
        "Images with transparency",
        "info",
        "Alpha is dropped, and what it hides shows.",
        "Look at a few of them, and flatten them if their background matters.",
    ),
    "D111": Code(
        "CMYK images",
        "info",
        "Pillow converts them without a color profile, so their colors differ from those on a screen.",
        "Convert them to RGB.",
    ),
    "D112": Code(
        "Images of more than 8 bits",
        "info",
        "16-bit values are divided by 256, floats are [0, 1] or [0, 255].",
        "Nothing, if they use the range of their type.",
    ),
    "D113": Code(
        "Images of 16 bits that are nearly black",
        "warning",
        "Training sees next to nothing, because only the lowest part of the range is used.",
        "Scale the values to the whole range of 16 bits, in the images to predict on as well.",
    ),
    "D114": Code(
        "Animations and files of several pages",
        "info",
        "Only the first picture is used.",
        "Save the others as files of their own.",
    ),
    "D115": Code(
        "Huge images",
        "info",
        "They are decoded anew in each epoch, which takes long, and their details are lost when they are scaled down.",
        "Scale them down, or cut them into tiles.",
    ),
    "D116": Code(
        "Tiny images",
        "warning",
        "They are enlarged many times, to blur.",
        "Delete them with their annotations, or use the originals.",
    ),
    "D117": Code(
        "Very long or very wide images",
        "warning",
        "They are stretched or squeezed to the shape of the input.",
        "Use model.resize=letterbox or a rectangular imgsz, or cut them.",
    ),
    "D118": Code(
        "Images of another size than annotated, but of the same shape",
        "info",
        "The boxes are scaled.",
        "Nothing, or use the images that were annotated.",
    ),
    "D119": Code(
        "Images of another shape than annotated",
        "warning",
        "The size of the file counts if the boxes fit into it; otherwise the image is left out.",
        "Correct width and height in the annotations, or use the images that were annotated.",
    ),
    "D120": Code(
        "Annotations without an image size",
        "info",
        "The size is read from the file.",
        "Nothing, or add width and height.",
    ),
    "D121": Code(
        "File names that are not UTF-8",
        "warning",
        "None: they are used as they are.",
        "Rename them, because archives and other systems change them.",
    ),
    "D122": Code(
        "File names that differ only in case",
        "warning",
        "Annotations may be assigned to the wrong one of them.",
        "Rename them; on Windows and macOS, one replaces the other.",
    ),
    "D123": Code(
        "File names that differ only in their Unicode form",
        "warning",
        "Annotations may be assigned to the wrong one of them.",
        "Rename them; on macOS, one replaces the other.",
    ),
    "D124": Code(
        "File names that Windows does not allow",
        "info",
        "None.",
        "Rename them if the data is to be used there.",
    ),
    "D125": Code(
        "Links that lead out of the data set",
        "info",
        "They are followed.",
        "Copy what they point to before you move or share the data.",
    ),
    "D126": Code(
        "Links that lead nowhere",
        "warning",
        "What they should show is missing.",
        "Restore what they point to, or delete them.",
    ),
    "D127": Code(
        "Images in hidden folders and under hidden names",
        "info",
        "They are left out: most are copies and previews that tools leave behind.",
        "Delete them, because other tools train on them.",
    ),
}
ANNOTATIONS: dict[str, Code] = {
    "D201": Code(
        "Images without a label file",
        "warning",
        "They are background: whatever they show is learned as nothing.",
        "Label them; where there is nothing to label, add an empty label file to say so.",
    ),
    "D202": Code(
        "Images that are of no part",
        "warning",
        "They are left out.",
        "Annotate, list or delete them.",
    ),
    "D203": Code("Annotated images that are missing", "warning", _LEFT_OUT, "Restore them, or delete their entries."),
    "D204": Code(
        "Annotation files without an image",
        "warning",
        "They are not used.",
        "Restore the images, or delete the files.",
    ),
    "D205": Code(
        "Annotations of images that are not listed",
        "warning",
        _LEFT_OUT,
        "List the images, or delete their annotations.",
    ),
    "D206": Code(
        "Annotation files that cannot be read",
        "warning",
        "In Pascal VOC, up to 5 % are left out with their images; otherwise training stops.",
        "Export or copy them again.",
    ),
    "D207": Code(
        "Malformed boxes",
        "warning",
        "They are dropped.",
        "Correct or delete them.",
    ),
    "D208": Code(
        "Unknown classes",
        "error",
        "Training stops.",
        "Add the class to the list of classes, or correct the annotation.",
    ),
    "D209": Code(
        "Objects without a class",
        "warning",
        "In Pascal VOC, they are dropped; otherwise training stops.",
        "Give them a class, or delete them.",
    ),
    "D210": Code(
        "Ids that are given more than once or not at all",
        "error",
        "Training stops, because annotations cannot be assigned.",
        "Give every image and every category an id of its own.",
    ),
    "D211": Code(
        "Class names that are given more than once",
        "warning",
        "They are one class.",
        "Rename one of them if they are meant to differ.",
    ),
    "D212": Code(
        "Class names that differ only in spelling",
        "warning",
        "They are different classes, which are hard to tell apart.",
        "Give them one name if they are the same.",
    ),
    "D213": Code(
        "Classes that are numbers",
        "info",
        "The number is the name.",
        "Give them names, in the annotations or in the YAML file.",
    ),
    "D214": Code(
        "Classes without a box",
        "info",
        "Groups of classes and entries called like another one are omitted; other classes are never learned.",
        "Delete them, or annotate them.",
    ),
    "D215": Code(
        "Classes that are not in the training part",
        "error",
        "They cannot be learned: their boxes are dropped or count as missed, and beyond 5 % training stops.",
        "Move some of their images to the training part, or correct the name.",
    ),
    "D216": Code(
        "Classes that are not in the validation part",
        "info",
        "They are learned but not measured, and the best weights are chosen without them.",
        "Move some of their images to the validation part.",
    ),
    "D217": Code("Boxes outside of the image", "warning", "They are dropped.", "Correct or delete them."),
    "D218": Code("Boxes that reach beyond the image", "warning", "They are clipped to the image.", "Correct them."),
    "D219": Code("Boxes without width or height", "warning", "They are dropped.", "Correct or delete them."),
    "D220": Code(
        "Boxes smaller than a pixel",
        "warning",
        "They are kept, and no model can find what they mark.",
        "Delete them.",
    ),
    "D221": Code(
        "Boxes of at most two pixels in width or height",
        "info",
        "They are kept, and hardly any model finds what they mark.",
        "Delete them, or train on larger images or tiles.",
    ),
    "D222": Code(
        "Boxes that cover the image",
        "info",
        "They are kept.",
        "Correct them where they stand for a label of the whole image.",
    ),
    "D223": Code(
        "Boxes that are given twice",
        "warning",
        "Both are kept, and teach double detections.",
        "Delete one of them.",
    ),
    "D224": Code(
        "The same box under two classes",
        "warning",
        "Both are kept, and contradict each other.",
        "Delete the wrong one.",
    ),
    "D225": Code(
        "Inverted boxes",
        "warning",
        "Corners in the wrong order are put right; boxes of negative width or height are dropped.",
        "Correct them.",
    ),
    "D226": Code(
        "Boxes in another unit than the format prescribes",
        "warning",
        "Fractions for pixels and corners for sides are converted if all boxes of a part are so; pixels in YOLO files "
        "are clipped to the image, and beyond 5 % training stops.",
        "Convert them; --fix does.",
    ),
    "D227": Code(
        "Crowds",
        "info",
        "They are neither trained on nor scored.",
        'Set "iscrowd" to 0 where a box is one object; CVAT sets it for objects drawn with the brush.',
    ),
    "D228": Code(
        "Polygons and other shapes",
        "info",
        "The upright boxes around them are used.",
        "Nothing, if that is meant.",
    ),
    "D229": Code(
        "Boxes with key points",
        "info",
        "The key points are ignored.",
        "Nothing, if that is meant.",
    ),
    "D230": Code(
        "Boxes with a confidence",
        "warning",
        "The confidence is ignored, and predictions are taken as truth.",
        "Use labels that a person has checked.",
    ),
    "D231": Code("Points, lines and tags", "info", "They are left out.", "Draw boxes if they mark objects to detect."),
    "D232": Code(
        "Images that are listed twice",
        "warning",
        "Each entry shows only its own boxes, so the objects of the other are learned as background.",
        "Join the entries.",
    ),
    "D233": Code(
        "Images that share an annotation file",
        "warning",
        "The boxes are used for both.",
        "Rename one of the images, or delete it if it is a copy.",
    ),
    "D234": Code(
        "Annotation files that are left out",
        "warning",
        "Of two files that list the same images, the one with more boxes is used.",
        "Delete the other, or give the one to use as data.",
    ),
    "D235": Code(
        "Nothing to train on",
        "error",
        "Training stops.",
        'Annotate objects; set "iscrowd" to 0 where a box is one object.',
    ),
    "D236": Code(
        "Annotation files that name another image",
        "info",
        "The image that is called like the file is used.",
        "Look at one of them with its boxes, and correct the name.",
    ),
    "D237": Code(
        "Folders of images that are of no part",
        "info",
        "They are not used.",
        "Name them in the description of the data set, or give such a folder as data to check it.",
    ),
    "D238": Code(
        "Class numbers that seem to start at 1",
        "error",
        "Training stops at the number without a name; without its boxes, each class would be called like the next one.",
        "Look at the examples. If the numbers start at 1, give them with the names in the YAML file, as in "
        "names: {1: cat, 2: dog}; if not, correct the labels. --fix does not guess.",
    ),
}
THE_SET: dict[str, Code] = {
    "D301": Code(
        "Rare classes",
        "info",
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
        "info",
        "The AP depends on few images, and so on chance.",
        "Move images from training to validation, up to a fifth of all; if it has that, annotate more.",
    ),
}
SUSPECTS: dict[str, Code] = {
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
CODES: dict[str, Code] = {**READING, **FILES, **ANNOTATIONS, **THE_SET, **SUSPECTS}
"""Every code, in order."""
