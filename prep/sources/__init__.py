"""The known raw datasets: one small file each, listed here."""

import difflib

from prep.records import RawDataset
from prep.sources.aptos2019 import APTOS2019
from prep.sources.camelyon import CAMELYON
from prep.sources.cbis_ddsm import CBIS_DDSM, CBIS_DDSM_LESIONS
from prep.sources.chexpert import CHEXPERT, CHEXPERT_FRONTAL, CHEXPERT_LATERAL
from prep.sources.ddsm import DDSM, DDSM_FOLDER, DDSM_PATCHES
from prep.sources.idrid import IDRID
from prep.sources.isic2019 import ISIC2019
from prep.sources.slides import CAMELYON_SLIDES, SLIDES

KNOWN = (
    APTOS2019,
    CAMELYON,
    CAMELYON_SLIDES,
    CBIS_DDSM,
    CBIS_DDSM_LESIONS,
    CHEXPERT,
    CHEXPERT_FRONTAL,
    CHEXPERT_LATERAL,
    DDSM,
    DDSM_FOLDER,
    DDSM_PATCHES,
    IDRID,
    ISIC2019,
    SLIDES,
)
DATASETS: dict[str, RawDataset] = {dataset.name: dataset for dataset in KNOWN}


def find_dataset(name: str) -> RawDataset:
    """The dataset of that name; ValueError with the nearest and all known names otherwise."""
    if name in DATASETS:
        return DATASETS[name]
    folded = {known.lower(): known for known in DATASETS}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    hint = f"did you mean {folded[near[0]]}? " if near else ""
    raise ValueError(f"unknown dataset {name!r}: {hint}known: {', '.join(DATASETS)}, csv")
