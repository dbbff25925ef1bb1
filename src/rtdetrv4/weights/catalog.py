"""Facts about weights that others released: their classes, where they are, and which models their tensors fit."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from rtdetrv4.types import ClassMap

#: The 80 classes of COCO, in the order of the released checkpoints, and their ids in its annotations.
COCO = ClassMap(
    names=(
        *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
        *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
        *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
        *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
        *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
        *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
        *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard"),
        *("cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase"),
        *("scissors", "teddy bear", "hair drier", "toothbrush"),
    ),
    category_ids=(
        *range(1, 12),
        *range(13, 26),
        *(27, 28),
        *range(31, 45),
        *range(46, 66),
        *(67, 70),
        *range(72, 83),
        *range(84, 91),
    ),
)

#: The 365 classes of Objects365 v2 in the order of its category ids, spelled as its annotations spell them.
OBJECTS365 = ClassMap(
    names=(
        *("Person", "Sneakers", "Chair", "Other Shoes", "Hat", "Car", "Lamp", "Glasses", "Bottle", "Desk", "Cup"),
        *("Street Lights", "Cabinet/shelf", "Handbag/Satchel", "Bracelet", "Plate", "Picture/Frame", "Helmet", "Book"),
        *("Gloves", "Storage box", "Boat", "Leather Shoes", "Flower", "Bench", "Potted Plant", "Bowl/Basin", "Flag"),
        *("Pillow", "Boots", "Vase", "Microphone", "Necklace", "Ring", "SUV", "Wine Glass", "Belt", "Moniter/TV"),
        *("Backpack", "Umbrella", "Traffic Light", "Speaker", "Watch", "Tie", "Trash bin Can", "Slippers", "Bicycle"),
        *("Stool", "Barrel/bucket", "Van", "Couch", "Sandals", "Bakset", "Drum", "Pen/Pencil", "Bus", "Wild Bird"),
        *("High Heels", "Motorcycle", "Guitar", "Carpet", "Cell Phone", "Bread", "Camera", "Canned", "Truck"),
        *("Traffic cone", "Cymbal", "Lifesaver", "Towel", "Stuffed Toy", "Candle", "Sailboat", "Laptop", "Awning"),
        *("Bed", "Faucet", "Tent", "Horse", "Mirror", "Power outlet", "Sink", "Apple", "Air Conditioner", "Knife"),
        *("Hockey Stick", "Paddle", "Pickup Truck", "Fork", "Traffic Sign", "Ballon", "Tripod", "Dog", "Spoon"),
        *("Clock", "Pot", "Cow", "Cake", "Dinning Table", "Sheep", "Hanger", "Blackboard/Whiteboard", "Napkin"),
        *("Other Fish", "Orange/Tangerine", "Toiletry", "Keyboard", "Tomato", "Lantern", "Machinery Vehicle", "Fan"),
        *("Green Vegetables", "Banana", "Baseball Glove", "Airplane", "Mouse", "Train", "Pumpkin", "Soccer"),
        *("Skiboard", "Luggage", "Nightstand", "Tea pot", "Telephone", "Trolley", "Head Phone", "Sports Car"),
        *("Stop Sign", "Dessert", "Scooter", "Stroller", "Crane", "Remote", "Refrigerator", "Oven", "Lemon", "Duck"),
        *("Baseball Bat", "Surveillance Camera", "Cat", "Jug", "Broccoli", "Piano", "Pizza", "Elephant", "Skateboard"),
        *("Surfboard", "Gun", "Skating and Skiing shoes", "Gas stove", "Donut", "Bow Tie", "Carrot", "Toilet", "Kite"),
        *("Strawberry", "Other Balls", "Shovel", "Pepper", "Computer Box", "Toilet Paper", "Cleaning Products"),
        *("Chopsticks", "Microwave", "Pigeon", "Baseball", "Cutting/chopping Board", "Coffee Table", "Side Table"),
        *("Scissors", "Marker", "Pie", "Ladder", "Snowboard", "Cookies", "Radiator", "Fire Hydrant", "Basketball"),
        *("Zebra", "Grape", "Giraffe", "Potato", "Sausage", "Tricycle", "Violin", "Egg", "Fire Extinguisher", "Candy"),
        *("Fire Truck", "Billards", "Converter", "Bathtub", "Wheelchair", "Golf Club", "Briefcase", "Cucumber"),
        *("Cigar/Cigarette", "Paint Brush", "Pear", "Heavy Truck", "Hamburger", "Extractor", "Extention Cord", "Tong"),
        *("Tennis Racket", "Folder", "American Football", "earphone", "Mask", "Kettle", "Tennis", "Ship", "Swing"),
        *("Coffee Machine", "Slide", "Carriage", "Onion", "Green beans", "Projector", "Frisbee"),
        *("Washing Machine/Drying Machine", "Chicken", "Printer", "Watermelon", "Saxophone", "Tissue", "Toothbrush"),
        *("Ice cream", "Hotair ballon", "Cello", "French Fries", "Scale", "Trophy", "Cabbage", "Hot dog", "Blender"),
        *("Peach", "Rice", "Wallet/Purse", "Volleyball", "Deer", "Goose", "Tape", "Tablet", "Cosmetics", "Trumpet"),
        *("Pineapple", "Golf Ball", "Ambulance", "Parking meter", "Mango", "Key", "Hurdle", "Fishing Rod", "Medal"),
        *("Flute", "Brush", "Penguin", "Megaphone", "Corn", "Lettuce", "Garlic", "Swan", "Helicopter", "Green Onion"),
        *("Sandwich", "Nuts", "Speed Limit Sign", "Induction Cooker", "Broom", "Trombone", "Plum", "Rickshaw"),
        *("Goldfish", "Kiwi fruit", "Router/modem", "Poker Card", "Toaster", "Shrimp", "Sushi", "Cheese", "Notepaper"),
        *("Cherry", "Pliers", "CD", "Pasta", "Hammer", "Cue", "Avocado", "Hamimelon", "Flask", "Mushroon"),
        *("Screwdriver", "Soap", "Recorder", "Bear", "Eggplant", "Board Eraser", "Coconut", "Tape Measur/ Ruler"),
        *("Pig", "Showerhead", "Globe", "Chips", "Steak", "Crosswalk Sign", "Stapler", "Campel", "Formula 1"),
        *("Pomegranate", "Dishwasher", "Crab", "Hoverboard", "Meat ball", "Rice Cooker", "Tuba", "Calculator"),
        *("Papaya", "Antelope", "Parrot", "Seal", "Buttefly", "Dumbbell", "Donkey", "Lion", "Urinal", "Dolphin"),
        *("Electric Drill", "Hair Dryer", "Egg tart", "Jellyfish", "Treadmill", "Lighter", "Grapefruit"),
        *("Game board", "Mop", "Radish", "Baozi", "Target", "French", "Spring Rolls", "Monkey", "Rabbit"),
        *("Pencil Case", "Yak", "Red Cabbage", "Binoculars", "Asparagus", "Barbell", "Scallop", "Noddles", "Comb"),
        *("Dumpling", "Oyster", "Table Teniis paddle", "Cosmetics Brush/Eyeliner Pencil", "Chainsaw", "Eraser"),
        *("Lobster", "Durian", "Okra", "Lipstick", "Cosmetics Mirror", "Curling", "Table Tennis"),
    ),
    category_ids=tuple(range(1, 366)),
)

#: The classes of a released checkpoint, by the number of rows of its class heads. Heads trained on Objects365 have 366:
#: the row of a class is its category id, and row 0 belongs to no class.
RELEASED_CLASSES: Mapping[int, ClassMap] = MappingProxyType(
    {80: COCO, 365: OBJECTS365, 366: ClassMap(("class 0", *OBJECTS365.names), tuple(range(366)))}
)


def classes_of(names: Sequence[str]) -> ClassMap:
    """The classes of one of the data sets above if most of `names` agree with it, else `names`, numbered from 0.

    Not all names have to agree, because transformers calls COCO's couch a sofa.
    """
    known = RELEASED_CLASSES.get(len(names))
    if known is not None and sum(map(operator.eq, names, known.names)) > len(names) / 2:
        return known
    return ClassMap(tuple(names), tuple(range(len(names))))


class ReleasedCheckpoint(NamedTuple):
    """A checkpoint that its authors released, and where it is."""

    model: str
    url: str


def _released() -> Iterator[tuple[str, ReleasedCheckpoint]]:
    drive, dfine, rtdetr = (
        "https://drive.google.com/file/d/",
        "https://github.com/Peterande/storage/releases/download/dfinev1.0/",
        "https://github.com/lyuwenyu/storage/releases/download/",
    )
    coco = {
        "rtdetrv4-s": drive + "1jDAVxblqRPEWed7Hxm6GwcEl7zn72U6z",
        "rtdetrv4-m": drive + "1O-YpP4X-quuOXbi96y2TKkztbjroP5mX",
        "rtdetrv4-l": drive + "1shO9EzZvXZyKedE2urLsN4dwEv8Jqa_8",
        "rtdetrv4-x": drive + "19gnkMTgFveJsrOvSmEPQXCTG6v9oQHN3",
        "deim-n": drive + "1ZPEhiU9nhW4M5jLnYOFwTSLQC1Ugf62e",
        "deim-s": drive + "1tB8gVJNrfb6dhFvoHJECKOF5VpkthhfC",
        "deim-m": drive + "18Lj2a6UN6k_n_UzqnJyiaiLGpDzQQit8",
        "deim-l": drive + "1PIRf02XkrA2xAD3wEiKE2FaamZgSGTAr",
        "deim-x": drive + "1dPtbgtGgq1Oa7k_LgH1GXPelg1IVeu0j",
        "deimv2-atto": drive + "18sRJXX3FBUigmGJ1y5Oo_DPC5C3JCgYc",
        "deimv2-femto": drive + "16hh6l9Oln9TJng4V0_HNf_Z7uYb7feds",
        "deimv2-pico": drive + "1PXpUxYSnQO-zJHtzrCPqQZ3KKatZwzFT",
        "deimv2-n": drive + "1G_Q80EVO4T7LZVPfHwZ3sT65FX5egp9K",
        "deim-rtdetrv2-r18": drive + "153_JKff6EpFgiLKaqkJsoDcLal_0ux_F",
        "deim-rtdetrv2-r50": drive + "1mWknAXD5JYknUQ94WCEvPfXz13jcNOTI",
        **{f"dfine-{size}": f"{dfine}dfine_{size}_coco.pth" for size in "nsmlx"},
        "rtdetrv2-r18": rtdetr + "v0.2/rtdetrv2_r18vd_120e_coco_rerun_48.1.pth",
        "rtdetrv2-r34": rtdetr + "v0.1/rtdetrv2_r34vd_120e_coco_ema.pth",
        "rtdetrv2-r50m": rtdetr + "v0.1/rtdetrv2_r50vd_m_7x_coco_ema.pth",
        "rtdetrv2-r50": rtdetr + "v0.1/rtdetrv2_r50vd_6x_coco_ema.pth",
        "rtdetrv2-r101": rtdetr + "v0.1/rtdetrv2_r101vd_6x_coco_from_paddle.pth",
    }
    for model, url in coco.items():
        yield model, ReleasedCheckpoint(model, url)
    for size in "smlx":
        yield f"dfine-{size}-obj365", ReleasedCheckpoint(f"dfine-{size}", f"{dfine}dfine_{size}_obj365.pth")


RELEASED: Mapping[str, ReleasedCheckpoint] = MappingProxyType(dict(_released()))
"""Released checkpoints by name, as their authors' pages link them; COCO's have the name of the model. They are for
downloads by hand: no hashes of them are known here. `HUB_FILES` are fetched."""

Dataset = Literal["coco", "obj365", "obj2coco"]
"""What weights were trained on: COCO, Objects365, or Objects365 and then COCO."""


class HubFile(NamedTuple):
    """A file of weights on the Hugging Face Hub."""

    repository: str
    file: str
    ap: float | None = None
    """AP on COCO val2017 as published for this file; None if it was not."""
    sha256: str | None = None
    """None if it has to be asked of the hub."""
    size_mb: float | None = None
    license: str | None = "Apache-2.0"
    """None if the file's page states none."""


def _hub_files() -> Iterator[tuple[str, Dataset, HubFile]]:
    """One file per line; of several files for the same model and data set, the preferred one comes first."""

    def libre(name: str, ap: float | None, sha256: str | None = None, size_mb: float | None = None) -> HubFile:
        return HubFile(f"LibreYOLO/Libre{name}", f"Libre{name}.pt", ap, sha256, size_mb)

    def transformers(repository: str, ap: float | None, size_mb: float | None = None) -> HubFile:
        return HubFile(repository, "model.safetensors", ap, size_mb=size_mb)

    for size, ap, sha256, size_mb, as_saved_mb in (
        ("s", 49.8, "f3173153eb33330d828d5ae7a353d700146152be845f2eeba66d0ac70f9c3303", 39.9, 161.4),
        ("m", 53.7, "100816fe69621d6074b97f2feace45c56dd52b8d41137ad0d44edc398f994f92", 75.4, 303.2),
        ("l", 55.4, None, None, 482.0),
        ("x", 57.0, "b9dbf4e0b5ba40817fc5b8da09cd22567e162c0d48060fdca1f07c05991b3c9f", 240.4, 963.7),
    ):
        as_saved = f"v4/RTv4-{size.upper()}-hgnet.pth"
        yield f"rtdetrv4-{size}", "coco", libre(f"RTDETRv4{size}", ap, sha256, size_mb)
        yield f"rtdetrv4-{size}", "coco", HubFile("eebyp/RT-DETR", as_saved, size_mb=as_saved_mb, license=None)
    for size, name, ap, size_mb in (
        ("n", "nano", 42.8, 15.3),
        ("s", "small", 48.5, 41.5),
        ("m", "medium", 52.3, 78.7),
        ("l", "large", 54.0, 126.0),
        ("x", "xlarge", 55.8, 252.0),
    ):
        yield f"dfine-{size}", "coco", transformers(f"ustc-community/dfine-{name}-coco", ap, size_mb)
    for size, name, ending, ap in (
        ("s", "small", "", 50.7),
        ("m", "medium", "", 55.1),
        ("l", "large", "-e25", 57.3),
        ("x", "xlarge", "", 59.3),
    ):
        yield f"dfine-{size}", "obj2coco", transformers(f"ustc-community/dfine-{name}-obj2coco{ending}", ap)
        yield f"dfine-{size}", "obj365", transformers(f"ustc-community/dfine-{name}-obj365", None)
    for size, ap in (("n", 43.0), ("s", 49.0), ("m", 52.7), ("l", 54.7), ("x", 56.5)):
        yield f"deim-{size}", "coco", libre(f"DEIM{size}", ap)
    for size, ap in (("atto", 23.8), ("femto", 31.0), ("pico", 38.5), ("n", 43.0)):
        repository = f"Intellindust/DEIMv2_HGNetv2_{size.upper()}_COCO"
        yield f"deimv2-{size}", "coco", HubFile(repository, "model.safetensors", ap, license=None)
    for size, ap in (("r18", 48.1), ("r34", 49.9), ("r50", 53.4), ("r101", 54.3)):
        yield f"rtdetrv2-{size}", "coco", transformers(f"PekingU/rtdetr_v2_{size}vd", ap)
    for size, ap, sha256 in (
        ("r18", None, "aa51698d1921e34f4e8d026b14bd916721e96d3ab8d0b1e3072a9e7c2fd620d6"),
        ("r50", None, "07f35a38eaa44fd0a462a2e5ed16efc8e5cb73caa82e17706b133c487140b442"),
        ("r101", None, "484549b61a44ce6bf75d1997be2f6462eaf024dd8d6a3f3784376631084813df"),
        ("r50m", 51.9, None),
    ):
        yield f"rtdetrv2-{size}", "coco", libre(f"RTDETRv2{size}", ap, sha256)


def _by_model() -> Mapping[str, Mapping[Dataset, tuple[HubFile, ...]]]:
    table: dict[str, dict[Dataset, tuple[HubFile, ...]]] = {}
    for model, dataset, file in _hub_files():
        files = table.setdefault(model, {})
        files[dataset] = (*files.get(dataset, ()), file)
    return MappingProxyType(table)


HUB_FILES = _by_model()
"""Files of trained weights by model and training data, in the order in which they are tried."""

#: Tensors with one row per class.
CLASS_ROWS = re.compile(
    r"(query_selection\.score_head|decoder\.score_heads\.\d+)\.(weight|bias)|denoising\.class_embedding\.weight"
)

_ARCHITECTURES: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        3_747_307: ("rtdetrv4-n", "deim-n", "dfine-n"),
        10_247_043: ("rtdetrv4-s", "deim-s", "dfine-s"),
        19_518_310: ("rtdetrv4-m", "deim-m", "dfine-m"),
        31_200_070: ("rtdetrv4-l", "deim-l", "dfine-l"),
        62_690_054: ("rtdetrv4-x", "deim-x", "dfine-x"),
        20_106_704: ("rtdetrv2-r18",),
        31_350_772: ("rtdetrv2-r34",),
        36_550_972: ("rtdetrv2-r50m",),
        42_854_716: ("rtdetrv2-r50",),
        76_634_044: ("rtdetrv2-r101",),
        20_105_680: ("deim-rtdetrv2-r18",),
        42_853_692: ("deim-rtdetrv2-r50",),
        488_407: ("deimv2-atto",),
        952_279: ("deimv2-femto",),
        1_504_249: ("deimv2-pico",),
        3_565_035: ("deimv2-n",),
        492_695: ("deimv2-atto-hf",),
        961_783: ("deimv2-femto-hf",),
        1_517_129: ("deimv2-pico-hf",),
        3_581_803: ("deimv2-n-hf",),
        2_044_414: ("test",),
    }
)
"""Models by the number of elements in their tensors, without what depends on the classes. Models in the same row cannot
be told apart by a checkpoint: activations and losses have no tensors."""

MODELS = frozenset(name for names in _ARCHITECTURES.values() for name in names)

#: Models that transformers has too; see `weights.transformers`.
TRANSFORMERS_MODELS = frozenset(
    name
    for name in MODELS
    if (name.startswith(("dfine-", "rtdetrv2-")) and name != "rtdetrv2-r50m") or name.endswith("-hf")
)


def fitting_models(shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """The models that have tensors of these shapes.

    Args:
        shapes: by our names; may include the projector of DSI and batch counters.
    """
    count = sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if not (CLASS_ROWS.fullmatch(name) or name.startswith("injector.") or name.endswith("num_batches_tracked"))
    )
    names = _ARCHITECTURES.get(count, ())
    if any(name.startswith("injector.") for name in shapes):
        return tuple(name for name in names if name.startswith("rtdetrv4"))
    return names
