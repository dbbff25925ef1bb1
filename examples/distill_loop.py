"""Distill into a detector of transformers in your own loop; needs rtdetrv4[train], transformers and pycocotools."""

import torch
from torchvision.datasets import CocoDetection
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from rtdetrv4.distillation import Modulation, Tap, load_teacher


def main(data, model, teacher, processor, tapped, epochs=50, batch=16, workers=4, device="cuda"):
    normalized = {"mean": processor.image_mean, "std": processor.image_std} if processor.do_normalize else {}
    gam = Modulation(5.0, rule="auto", default_weight=5.0, probe_epochs=4)  # λ starts at 5
    with Tap(model, teacher=teacher, modulation=gam, **tapped) as tap:
        optimizer = torch.optim.AdamW(model.to(device).train().parameters(), 1e-4)  # after the tap
        for _ in range(epochs):
            for samples in torch.utils.data.DataLoader(data, batch, shuffle=True, num_workers=workers, collate_fn=list):
                boxes = [{"image_id": index, "annotations": found} for index, (_, found) in enumerate(samples)]
                inputs = processor([image for image, _ in samples], annotations=boxes, return_tensors="pt").to(device)
                inputs["labels"] = [label.to(device) for label in inputs["labels"]]
                loss = model(**inputs).loss + tap.loss(inputs["pixel_values"], **normalized)
                optimizer.zero_grad()
                loss.backward()
                tap.observe()
                optimizer.step()
            print(loss.item(), tap.values(), tap.end_epoch())


if __name__ == "__main__":
    own = CocoDetection("datasets/mine/train", "datasets/mine/train/_annotations.coco.json")  # classes from 0
    dfine, name = {"layer": "model.encoder.aifi.0", "dim": 256}, "ustc-community/dfine-small-coco"  # others: the guide
    detector, processor = AutoModelForObjectDetection.from_pretrained(name), AutoImageProcessor.from_pretrained(name)
    main(own, detector, load_teacher(), processor, dfine)
