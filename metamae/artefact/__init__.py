"""What is kept of a run, ready for use: load it, embed with it, save and export it."""

from metamae.artefact.encoder import Encoder
from metamae.artefact.export import export
from metamae.artefact.loading import load
from metamae.artefact.module import EncoderModule
from metamae.artefact.reconstruction import Reconstruction

__all__ = ["Encoder", "EncoderModule", "Reconstruction", "export", "load"]
