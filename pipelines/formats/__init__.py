"""The file formats of the media: arrays to bytes and back, one module a medium. Limits are checked before decoding."""
