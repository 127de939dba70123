"""A store of pictures that nobody painted: their entries, written by hand."""

import numpy as np

from builders.tiny_model import tiny_model
from voken.collection.store import Entry, FileFacts, Store


def new_store(folder, *, vectors=3, levels=2):
    model = tiny_model(levels=levels)
    return Store.create(
        folder, root=folder.parent, fingerprint=model.fingerprint, tokenizer=model.tokenizer, vectors=vectors
    )


def entry(name, sequence=(0, 0), *, vector=(1, 0, 0), metadata="", size=1):
    facts = FileFacts(size, 2, 3, bytes(range(15)) + b"\0")
    stored = None if vector is None else np.array(vector, dtype=np.float16)
    return Entry(name, name, np.array(sequence, dtype=np.int32), stored, facts, metadata)
