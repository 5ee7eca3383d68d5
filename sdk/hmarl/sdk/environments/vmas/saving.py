"""Saves and restores a VMAS simulation as arrays: every tensor and number that its objects hold.

VMAS offers no state of its own, and its scenarios keep what they like as attributes (goals, shaping values, counters,
distributions). The objects are therefore walked in a fixed order. Tensors are saved by storage, so that two attributes
that share memory before share it afterwards; an object met a second time is saved as a reference to the first. Objects
are never created: the simulation that is restored must have been made with the same arguments.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

# A node describes one value: [kind, ...].
Node = list[Any]
_CONSTANTS = (FunctionType, BuiltinFunctionType, MethodType, ModuleType, type, enum.Enum, torch.device, torch.dtype)


class UnsavableError(Exception):
    """The simulation holds something that arrays cannot represent."""


def save(anchors: Sequence[Any], roots: Mapping[str, Any], own_modules: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """Everything reachable from ``anchors`` and ``roots`` as arrays.

    Args:
        anchors: objects that are known by their position here, wherever they are referred to from; a reference that
            changes at run time (the landmark that is today's goal) is restored as long as it points to one of them.
        roots: further values by name.
        own_modules: names of further modules whose classes are walked (those of VMAS and of torch's distributions are).

    Raises:
        UnsavableError: an object of an unknown kind was met.
    """
    saver = _Saver(anchors, own_modules)
    document = {
        "anchors": [saver.describe_object(anchor) for anchor in anchors],
        "roots": {name: saver.describe(value) for name, value in roots.items()},
        "tensors": saver.tensors,
    }
    arrays = {f"storage_{index}": data for index, data in enumerate(saver.storages)}
    arrays |= {f"array_{index}": data for index, data in enumerate(saver.arrays)}
    return {"structure": np.frombuffer(json.dumps(document).encode(), np.uint8), **arrays}


def restore(anchors: Sequence[Any], saved: Mapping[str, npt.NDArray[Any]], device: torch.device) -> dict[str, Any]:
    """Write what ``save`` returned into the objects of ``anchors``, given in the same order.

    Returns:
        The roots, anew.

    Raises:
        KeyError, IndexError, TypeError, ValueError: ``saved`` does not fit these objects.
    """
    document = json.loads(saved["structure"].tobytes())
    if len(document["anchors"]) != len(anchors):
        raise ValueError(f"got {len(document['anchors'])} objects, expected {len(anchors)}")
    restorer = _Restorer(anchors, document["tensors"], saved, device)
    for node, anchor in zip(document["anchors"], anchors, strict=True):
        restorer.fill_object(node, anchor)
    return {name: restorer.build(node, None) for name, node in document["roots"].items()}


class _Saver:
    def __init__(self, anchors: Sequence[Any], own_modules: tuple[str, ...]) -> None:
        self._own_modules = own_modules
        self._seen = {id(anchor): number for number, anchor in enumerate(anchors)}
        self._tensor_numbers: dict[int, int] = {}
        self._storage_numbers: dict[int, int] = {}
        # Keeps every tensor alive while its id stands for it.
        self._alive: list[Any] = []
        self.tensors: list[list[Any]] = []
        self.storages: list[npt.NDArray[np.uint8]] = []
        self.arrays: list[npt.NDArray[Any]] = []

    def describe(self, value: Any) -> Node:  # noqa: PLR0911 - one line a kind
        if value is None or type(value) in (bool, int, float, str):
            return ["value", value]
        if isinstance(value, torch.Tensor):
            return ["tensor", self._tensor(value)]
        if isinstance(value, np.ndarray):
            self.arrays.append(value.copy())
            return ["array", len(self.arrays) - 1]
        if isinstance(value, np.generic):
            self.arrays.append(np.asarray(value))
            return ["number", len(self.arrays) - 1]
        if isinstance(value, torch.Size):
            return ["size", list(value)]
        if type(value) is tuple:
            return ["tuple", [self.describe(item) for item in value]]
        if isinstance(value, set | frozenset):
            return self._set(value)
        if isinstance(value, _CONSTANTS):
            return ["constant"]
        return self._object(value)

    def _object(self, value: Any) -> Node:
        if id(value) in self._seen:
            return ["reference", self._seen[id(value)]]
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        if isinstance(value, list):
            return ["list", [self.describe(item) for item in value]]
        if isinstance(value, dict):
            return ["dict", [[self.describe(key), self.describe(item)] for key, item in value.items()]]
        return self.describe_object(value)

    def describe_object(self, value: Any) -> Node:
        """The object's own attributes, also where it is known already."""
        kind = type(value)
        module = kind.__module__
        known = module.startswith(("vmas.", "torch.distributions.")) or module in self._own_modules
        if not known or not hasattr(value, "__dict__"):
            raise UnsavableError(f"{module}.{kind.__qualname__}")
        return ["object", kind.__qualname__, {name: self.describe(item) for name, item in vars(value).items()}]

    def _set(self, value: set[Any] | frozenset[Any]) -> Node:
        if all(isinstance(item, type) for item in value):
            return ["constant"]
        if not all(isinstance(item, str | int) for item in value):
            raise UnsavableError(f"a set of {sorted({type(item).__name__ for item in value})}")
        return ["frozenset" if isinstance(value, frozenset) else "set", sorted(value, key=str)]

    def _tensor(self, tensor: torch.Tensor) -> int:
        if id(tensor) not in self._tensor_numbers:
            self._alive.append(tensor)
            self._tensor_numbers[id(tensor)] = len(self.tensors)
            kind = str(tensor.dtype).removeprefix("torch.")
            view = [tensor.storage_offset(), list(tensor.shape), list(tensor.stride())]
            self.tensors.append([self._storage(tensor), kind, *view])
        return self._tensor_numbers[id(tensor)]

    def _storage(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        # Empty storages all lie at address 0 and share nothing.
        key = storage.data_ptr() or -len(self.storages) - 1
        if key not in self._storage_numbers:
            self._storage_numbers[key] = len(self.storages)
            data = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            self.storages.append(data.detach().cpu().numpy().copy())
        return self._storage_numbers[key]


class _Restorer:
    def __init__(
        self,
        anchors: Sequence[Any],
        tensors: list[list[Any]],
        saved: Mapping[str, npt.NDArray[Any]],
        device: torch.device,
    ) -> None:
        self._saved = saved
        self._objects: list[Any] = list(anchors)
        storages: dict[int, torch.UntypedStorage] = {}
        self._tensors: list[torch.Tensor] = []
        for storage, kind, offset, shape, stride in tensors:
            if storage not in storages:
                data = torch.from_numpy(saved[f"storage_{storage}"].copy()).to(device)
                storages[storage] = data.untyped_storage()
            empty = torch.empty(0, dtype=getattr(torch, kind), device=device)
            self._tensors.append(empty.set_(storages[storage], offset, shape, stride))

    def build(self, node: Node, current: Any) -> Any:  # noqa: PLR0911 - one line a kind
        """The value that ``node`` describes; ``current`` is what stands in its place now."""
        kind, *details = node
        if kind == "value":
            return details[0]
        if kind == "tensor":
            return self._tensors[details[0]]
        if kind == "array":
            return self._saved[f"array_{details[0]}"].copy()
        if kind == "number":
            return self._saved[f"array_{details[0]}"][()]
        if kind == "size":
            return torch.Size(details[0])
        if kind == "tuple":
            present = current if isinstance(current, tuple) else ()
            return tuple(self.build(item, _at(present, index)) for index, item in enumerate(details[0]))
        if kind in ("set", "frozenset"):
            return set(details[0]) if kind == "set" else frozenset(details[0])
        if kind == "constant":
            return current
        if kind == "reference":
            return self._objects[details[0]]
        # Lists, dictionaries and objects are filled in place, in the order in which they were saved.
        if kind == "list":
            return self._fill_list(details[0], current if isinstance(current, list) else [])
        if kind == "dict":
            return self._fill_dict(details[0], current if isinstance(current, dict) else {})
        self._objects.append(current)
        return self.fill_object(node, current)

    def fill_object(self, node: Node, current: Any) -> Any:
        """Give an object the attributes that ``node`` describes, and no others."""
        _, name, attributes = node
        if type(current).__qualname__ != name:
            raise TypeError(f"got a {name}, expected a {type(current).__qualname__}")
        fields = vars(current)
        built = {field: self.build(item, fields.get(field)) for field, item in attributes.items()}
        fields.clear()
        fields.update(built)
        return current

    def _fill_list(self, items: list[Node], target: list[Any]) -> list[Any]:
        self._objects.append(target)
        before = list(target)
        target[:] = [self.build(item, _at(before, index)) for index, item in enumerate(items)]
        return target

    def _fill_dict(self, items: list[list[Node]], target: dict[Any, Any]) -> dict[Any, Any]:
        self._objects.append(target)
        before = dict(target)
        places = list(before)
        target.clear()
        for index, (key_node, node) in enumerate(items):
            key = self.build(key_node, _at(places, index))
            target[key] = self.build(node, before.get(key))
        return target


def _at(values: Any, index: int) -> Any:
    return values[index] if index < len(values) else None
