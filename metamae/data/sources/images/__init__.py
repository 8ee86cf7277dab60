"""Natural images: pretraining at 32 x 32 pixels, and the sets that its encoder is probed on."""
