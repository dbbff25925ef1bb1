"""Pure tensor functions: boxes, edge distributions, deformable sampling, collectives."""
