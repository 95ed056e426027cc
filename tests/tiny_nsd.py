"""A folder laid out as the Natural Scenes Dataset, of simulated brains that saw a few dozen small pictures."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch
from scipy.io import savemat
from torch.nn import functional as F

from models.nets.token_decoder import TokenDecoderConfig
from tests.scan_files import hdf5, mask_file
from tests.tiny_published import WIDTH
from training.brain_features import make_features
from training.brain_simulator import Subject, Trials, make_subject, simulate

SHARED, OWN, REPEATS = 30, 220, 3  # 750 trials
GRID = (7, 6, 8)
TINY = TokenDecoderConfig(
    width=48,
    blocks=2,
    dropout=(0.1, 0.0),
    tokens=17,
    dimension=WIDTH,
    token_width=8,
    attention_width=16,
    attention_heads=2,
    projector_width=32,
    prior_layers=1,
    prior_heads=2,
    prior_width=32,
    timesteps=10,
    latents=(4, 8, 8),
    channels=(32, 64),
)


def write_nsd(folder: Path, voxels: int, subjects: tuple[int, ...] = (1, 2)) -> dict[int, tuple[Subject, Trials]]:
    """Each subject has seen 220 pictures of its own, from number 30 on, and the 30 that all share, three times; the
    subjects of the simulator must have so many ``voxels``. Returns what each one saw and answered."""
    count = SHARED + OWN * len(subjects)
    rng = np.random.default_rng(0)
    corners = torch.from_numpy(rng.integers(0, 256, (count, 3, 3, 3))).float()
    pixels = F.interpolate(corners, (32, 32), mode="bilinear").permute(0, 2, 3, 1).byte().numpy()
    vectors = torch.from_numpy(rng.standard_normal((count, 64))).float()
    features = make_features(vectors, pixels, np.arange(count))
    order = np.ones(30_000, int)
    pictures = np.ones((8, 10_000), int)
    pictures[:, :SHARED] = np.arange(SHARED) + 1
    mask = np.zeros(GRID, bool)
    mask.ravel()[rng.permutation(mask.size)[:voxels]] = True
    found: dict[int, tuple[Subject, Trials]] = {}
    for place, number in enumerate(subjects):
        own = SHARED + OWN * place + np.arange(OWN)
        pictures[number - 1, 1000 : 1000 + OWN] = own + 1
        subject = make_subject(f"S{number}", features)
        trials = simulate(subject, features, np.concatenate([np.arange(SHARED), own]), REPEATS, seed=5)
        # All see them in one order, as in NSD: the first subject's.
        first = found[subjects[0]][1] if found else trials
        shown = np.where(first.image_id < SHARED, first.image_id, first.image_id + OWN * place)
        rows = {pair: row for row, pair in enumerate(zip(trials.image_id, trials.repeat, strict=True))}
        trials = trials.select(np.array([rows[pair] for pair in zip(shown, first.repeat, strict=True)]))
        found[number] = subject, trials
        if place == 0:
            order[: len(shown)] = np.where(shown < SHARED, shown, shown - SHARED + 1000) + 1
        name = f"subj{number:02d}/func1pt8mm"
        volumes = np.zeros((*GRID, len(shown)), np.int16)
        volumes[mask] = trials.betas.T
        betas = folder / f"nsddata_betas/ppdata/{name}/betas_fithrf_GLMdenoise_RR/betas_session01.hdf5"
        roi = folder / f"nsddata/ppdata/{name}/roi/nsdgeneral.nii.gz"
        for path in (betas, roi):
            path.parent.mkdir(parents=True)
        hdf5(betas, volumes)
        mask_file(roi, mask=mask)
    design = folder / "nsddata/experiments/nsd/nsd_expdesign.mat"
    stimuli = folder / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    for path in (design, stimuli):
        path.parent.mkdir(parents=True)
    savemat(design, {"masterordering": order[None], "subjectim": pictures})
    with h5py.File(stimuli, "w") as file:
        file.create_dataset("imgBrick", data=pixels)
    captions = [[f"a thing number {number}", "rain", "", "", ""] for number in range(count)]
    np.save(folder / "COCO_73k_annots_curated.npy", np.array(captions))
    return found
