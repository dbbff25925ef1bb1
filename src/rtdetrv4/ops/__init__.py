"""Pure tensor functions (boxes, edge distributions, deformable sampling), collectives, and access to timm networks."""
