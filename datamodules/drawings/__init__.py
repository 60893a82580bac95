"""What a person gives to generate from: an image, tracks, a brush, a camera or a driving video."""

from datamodules.drawings.backdrop import Backdrop
from datamodules.drawings.inputs import Inputs, find_inputs, inputs_from_json, inputs_json, read_inputs, write_inputs

__all__ = ["Backdrop", "Inputs", "find_inputs", "inputs_from_json", "inputs_json", "read_inputs", "write_inputs"]
