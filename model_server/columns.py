"""Tables that come as one tensor per column, as JSON objects and pandas codecs send them."""

from __future__ import annotations

from collections.abc import Collection

from model_server.backends.base import Arrays, Signature
from model_server.backends.tabular import INPUT_NAME, Tabular
from model_server.servables import Servable

__all__ = ["joined", "takes_columns"]


def takes_columns(servable: Servable, signature: Signature, names: Collection[str]) -> bool:
    """Whether the names of a request's tensors are meant as columns: several, or a known one."""
    model = servable.model
    return (
        isinstance(model, Tabular)
        and signature.method == "predict"
        and INPUT_NAME not in names
        and (len(names) > 1 or not set(names).isdisjoint(model.feature_names))
    )


def joined(servable: Servable, columns: Arrays) -> Arrays:
    """Put columns together as the model's one input; see ``Tabular.joined``.

    Raises:
        InvalidRequest: They are no columns of the model, or of unequal length.
    """
    model = servable.model
    assert isinstance(model, Tabular)  # takes_columns said so
    return {INPUT_NAME: model.joined(columns)}
