"""Picture files to an encoder's vectors, through the cache.

Of the built-in encoder the features before its small head are what is kept: they cost nearly all the time and
are the same for every head, so that a second training, or another seed, decodes no picture again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from voken.encoders.cache import EncodedFiles, VectorCache
from voken.encoders.interface import Encoder
from voken.progress import Progress, no_progress


def picture_vectors(
    encoder: Encoder,
    paths: Sequence[Path],
    *,
    cache: VectorCache | None = None,
    hashes: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> EncodedFiles:
    """Vectors of the files that can be read, and the list of the others. Without `cache` nothing is kept.

    `hashes` are those of `voken.data.images.file_hash`, where they are known already.
    """
    from voken.encoders.two_tower import TwoTowerEncoder

    if cache is None:
        with tempfile.TemporaryDirectory(prefix="voken-") as folder:
            kept = VectorCache(Path(folder))
            return picture_vectors(encoder, paths, cache=kept, hashes=hashes, progress=progress)
    if not isinstance(encoder, TwoTowerEncoder):
        return cache.encode_files(paths, encoder.encode_images, encoder.fingerprint, hashes=hashes, progress=progress)
    pictures = encoder.pictures
    found = cache.encode_files(
        paths, encoder.features_of_images, pictures.fingerprint, hashes=hashes, progress=progress
    )
    vectors = encoder.project_images(found.vectors) if len(found.kept) else found.vectors
    return EncodedFiles(vectors, found.kept, found.skipped)
