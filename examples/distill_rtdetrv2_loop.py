"""Distill into transformers' RT-DETRv2 in your own loop; needs rtdetrv4[train], transformers and pycocotools."""

import torch
from torchvision.datasets import CocoDetection
from transformers import RTDetrImageProcessor, RTDetrV2ForObjectDetection

from rtdetrv4.distillation import Modulation, Tap, load_teacher


def main(data, model, teacher, processor, epochs=50, batch=16, workers=4, device="cuda"):
    gam = Modulation(5.0, rule="auto", default_weight=5.0, probe_epochs=4)  # λ starts at 5
    with Tap(model, "model.encoder.aifi.0", teacher, gam, dim=model.config.encoder_hidden_dim) as tap:
        optimizer = torch.optim.AdamW(model.to(device).train().parameters(), 1e-4)
        for _ in range(epochs):
            for samples in torch.utils.data.DataLoader(data, batch, shuffle=True, num_workers=workers, collate_fn=list):
                boxes = [{"image_id": index, "annotations": found} for index, (_, found) in enumerate(samples)]
                inputs = processor([image for image, _ in samples], annotations=boxes, return_tensors="pt")
                images, labels = inputs["pixel_values"].to(device), [label.to(device) for label in inputs["labels"]]
                loss = model(images, labels=labels).loss + tap.loss(images)
                optimizer.zero_grad()
                loss.backward()
                tap.observe()
                optimizer.step()
            print(loss.item(), tap.end_epoch())


if __name__ == "__main__":
    own = CocoDetection("datasets/mine/train", "datasets/mine/train/_annotations.coco.json")  # classes from 0
    detector = RTDetrV2ForObjectDetection.from_pretrained("PekingU/rtdetr_v2_r18vd")
    main(own, detector, load_teacher(), RTDetrImageProcessor())
