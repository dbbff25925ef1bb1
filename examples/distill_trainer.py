"""Distill into a detector of transformers with its Trainer; needs rtdetrv4[train], transformers and pycocotools."""

from torchvision.datasets import CocoDetection
from transformers import AutoImageProcessor, AutoModelForObjectDetection, Trainer, TrainerCallback, TrainingArguments

from rtdetrv4.distillation import Modulation, Tap, load_teacher


class Gam(TrainerCallback):
    def on_pre_optimizer_step(self, *args, model, **kwargs):
        model.tap.observe()

    def on_epoch_end(self, *args, model, **kwargs):
        print(model.tap.values(), model.tap.end_epoch())


def main(data, model, teacher, processor, tapped, **settings):
    def collate(samples):
        boxes = [{"image_id": index, "annotations": found} for index, (_, found) in enumerate(samples)]
        return processor([image for image, _ in samples], annotations=boxes, return_tensors="pt")

    normalized = {"mean": processor.image_mean, "std": processor.image_std} if processor.do_normalize else {}
    gam = Modulation(5.0, rule="auto", default_weight=5.0, probe_epochs=4)  # λ starts at 5
    with Tap(model, teacher=teacher, modulation=gam, **tapped) as tap:
        tap.add_to_loss(**normalized)
        Trainer(model, TrainingArguments(**settings), collate, data, callbacks=[Gam()]).train()


if __name__ == "__main__":
    own = CocoDetection("datasets/mine/train", "datasets/mine/train/_annotations.coco.json")  # classes from 0
    rfdetr, name = {"layer": "model.backbone.projector", "dim": 256}, "Roboflow/rf-detr-base"  # others: the guide
    detector, processor = AutoModelForObjectDetection.from_pretrained(name), AutoImageProcessor.from_pretrained(name)
    main(own, detector, load_teacher(), processor, rfdetr, output_dir="runs/rfdetr", num_train_epochs=50)
