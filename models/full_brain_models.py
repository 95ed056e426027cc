"""The full profile's reader of brain maps: NeuroPictor as its authors published it."""

from __future__ import annotations

from models.sources import Hub
from models.spec import FLOAT32_BYTES, ModelSpec, imported_later

TASK_FILE = "epoch_015.pth"
ENCODER_FOLDER, ENCODER_FILE, ENCODER_SETTINGS = "fMRI2fMRI_UKB", "checkpoint_120000.pth", "fMRI_AutoEncoder.yaml"
SUBJECT = "sub01"  # of NSD, one of the four that it was refined for; the others are sub02, sub05 and sub07
# What is kept of the file: the encoder of maps with its positions, both heads, the control, the generator, the image
# autoencoder, and the states of no words.
PARAMETERS, BUFFERS = 1_622_292_369, 257 * 1024 + 77 * 1024

NEUROPICTOR = Hub(
    "Fudan-fMRI/neuropictor",
    "main",  # its authors name no commit; the checksum in an artifact's provenance says which file it was
    (
        f"NSD/finetune_single_sub/{SUBJECT}/{TASK_FILE}",  # first, because the folder is that of the first
        f"{ENCODER_FOLDER}/{ENCODER_SETTINGS}",
    ),
    "ckpt",
)


def neuropictor() -> ModelSpec:
    return ModelSpec(
        key="neuropictor",
        profile="full",
        source=NEUROPICTOR,
        load=imported_later("models.neuropictor_files", "load_neuropictor"),
        licence="its authors name none; its pictures are those of NSD (terms and conditions) and of Stable Diffusion "
        "2.1 (CreativeML Open RAIL++-M)",
        bytes=FLOAT32_BYTES * (PARAMETERS + BUFFERS),
        restricted=True,
        skeleton=imported_later("models.neuropictor_files", "neuropictor_skeleton"),
        note=f"refined for one person, {SUBJECT} of NSD; maps of others are read as if they were that one's",
    )
