"""Recipe of ``assets/weights/v2a-mapper-lite`` and ``v2a-regression-lite``: from what is seen to what is heard.

    python -m training.mapper --data FOLDER

V2A-Mapper (arXiv 2308.09300): from the CLIP-lite vector of a picture to the CLAP-lite vector of a sound that belongs to
it, by diffusion and by regression. Both spaces are frozen and were trained apart. Each time a clip is met, one of the
pictures that show it is drawn; held-out clips are met with held-out pictures, where they have one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from models.mel import log_mel
from models.sound_text import load_sound_text
from training.bridges import (
    REGRESSION_STEPS,
    Task,
    compare,
    make_task,
    train_diffusion,
    train_regression,
    vectors_of_space,
)
from training.picture_sound import load_links
from training.pictures import data_folder, verify_checksums
from training.publish import write_sums
from training.sounds import Sounds, load_sounds, sound_arguments, weights_name

STEPS = 3700
# With 2 instead of 1 the right class is the nearest for 37 instead of 26 % of held-out files, at a Frechet distance of
# 0.10 instead of 0.07; 5 gives 40 %, at 0.15.
GUIDANCE = 2.0
WEIGHTS = Path("assets/weights")


def sound_vectors(sounds: Sounds, weights: Path) -> Tensor:
    """The CLAP-lite vector of every clip, in their order, (len(sounds.items), D)."""

    def batches() -> Iterator[Tensor]:
        model = load_sound_text(weights)
        for start in range(0, len(sounds.items), 64):
            yield model.embed_sounds(log_mel(sounds.waveforms(sounds.items[start : start + 64]), model.mel))

    return vectors_of_space("sound-vectors", weights, len(sounds.items), batches)


def load_task(folder: Path, permissive_only: bool) -> Task:
    """Sounds of the table in ``folder`` and the pictures linked to them, as vectors of the trained spaces.

    ``permissive_only`` leaves out training clips under attribution, share-alike and GPL licences.
    """
    verify_checksums(folder)
    sounds = load_sounds(folder)
    links = load_links(folder, sounds, permissive_only)
    left_out = {item.row for item in sounds.select("train") if permissive_only and not item.permissive}
    return make_task(
        links.vectors,
        sound_vectors(sounds, WEIGHTS / f"{weights_name('sound-text', permissive_only)}-lite"),
        [[] if item.row in left_out else links.kinds.get(item.row, []) for item in sounds.items],
        [item.name for item in sounds.items],
        [item.split for item in sounds.items],
        one_space=False,
    )


def main() -> None:
    arguments = sound_arguments(__doc__, STEPS).parse_args()
    task = load_task(data_folder(arguments.data), arguments.permissive_only)
    print(f"{len(task.train.targets)} clips with a picture, of {len(task.means)} classes", flush=True)
    name = weights_name("v2a-mapper", arguments.permissive_only)
    twin = weights_name("v2a-regression", arguments.permissive_only)
    regression = train_regression(twin, task, min(REGRESSION_STEPS, arguments.steps))
    diffusion = train_diffusion(name, task, arguments.steps, GUIDANCE)
    compare(name, task, diffusion, regression)
    for folder, bridge in ((WEIGHTS / f"{name}-lite", diffusion), (WEIGHTS / f"{twin}-lite", regression)):
        bridge.save_pretrained(folder)
        write_sums(folder)


if __name__ == "__main__":
    main()
