"""Pure tensor functions (boxes, edge distributions, deformable sampling), collectives, and networks of others."""
