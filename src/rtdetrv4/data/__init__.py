"""Images and boxes: reading annotations, augmentation, batching and loading. Nothing here depends on a model."""
