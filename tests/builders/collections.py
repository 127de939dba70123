"""Collections that tests make of pictures and a model in memory."""

from voken import Collection
from voken.collection.store import Store


def make_collection(folder, pictures, model, **options):
    """Index `pictures` into `folder`; the collection as a search sees it."""
    Collection.index(folder, pictures, model, **options)
    return Store.open(folder).snapshot()
