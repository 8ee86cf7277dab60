"""What is kept of a run, ready for use: load it, embed with it, save and export it."""

from metamae.artefact.encoder import Encoder, Reconstruction
from metamae.artefact.loading import load
from metamae.artefact.module import EncoderModule

__all__ = ["Encoder", "EncoderModule", "Reconstruction", "load"]
