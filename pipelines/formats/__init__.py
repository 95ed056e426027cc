"""The file formats of the media: arrays to bytes and back, one module or package each. Limits come before decoding."""
