"""Distill into transformers' D-FINE with its Trainer; needs rtdetrv4[train], transformers and pycocotools."""

from torchvision.datasets import CocoDetection
from transformers import DFineForObjectDetection, RTDetrImageProcessor, Trainer, TrainerCallback, TrainingArguments

from rtdetrv4.distillation import Modulation, Tap, load_teacher


class Gam(TrainerCallback):
    def on_pre_optimizer_step(self, *args, model, **kwargs):
        model.tap.observe()

    def on_epoch_end(self, *args, model, **kwargs):
        print(model.tap.end_epoch())


def main(data, model, teacher, processor, **settings):
    def collate(samples):
        boxes = [{"image_id": index, "annotations": found} for index, (_, found) in enumerate(samples)]
        return processor([image for image, _ in samples], annotations=boxes, return_tensors="pt")

    gam = Modulation(5.0, rule="auto", default_weight=5.0, probe_epochs=4)  # λ starts at 5
    with Tap(model, "model.encoder.aifi.0", teacher, gam, dim=model.config.encoder_hidden_dim).add_to_loss():
        Trainer(model, TrainingArguments(**settings), collate, data, callbacks=[Gam()]).train()


if __name__ == "__main__":
    own = CocoDetection("datasets/mine/train", "datasets/mine/train/_annotations.coco.json")  # classes from 0
    detector = DFineForObjectDetection.from_pretrained("ustc-community/dfine-small-coco")
    main(own, detector, load_teacher(), RTDetrImageProcessor(), output_dir="runs/dfine", num_train_epochs=50)
