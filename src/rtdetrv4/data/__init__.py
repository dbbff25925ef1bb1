"""Images and boxes: read annotations, augment, batch and load them; nothing here knows a model."""
