"""Modules: layers and networks whose parameters have names, and can be saved and moved.

A module is a plain object. Nothing is registered: parameters and layers are found among its attributes.

* A Tensor attribute is a parameter, an array attribute a buffer (running statistics), a Module a child.
  Names are the attribute names joined by dots, in the order of assignment, and are torchvision's.
* Parameters and children are found in lists, tuples and dicts, too: "blocks.0.weight".
* A parameter with two names is one parameter: it is stepped once, and both names have the same value.
* Training or evaluating is an argument of the call, model(x, train=True), not a mode that one forgets.
* Inside the network, kernels are (K,K,C,D) and matrices (in,out), as the ops want them; `state_dict` uses
  torchvision's layout, (D,C,K,K) and (out,in).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NoReturn, Self

import numpy as np

from .backend import Array, device_of, is_array, to_device, to_numpy
from .engine.autograd import Tensor
from .values import float_dtype, members, refuse_hidden, unmasked

IGNORED = "num_batches_tracked"  # torch counts batches for another kind of running average, which we do not offer


class Module:
    """An object with parameters that can be called, saved, loaded and moved."""

    # The label has a slot of its own, so that vars(module) holds what the constructor assigned and nothing else.
    __slots__ = ("__dict__", "_label")

    # For each parameter, the axes of its array in the order in which torchvision stores them.
    stored_axes: ClassVar[dict[str, tuple[int, ...]]] = {}

    def __call__(self, x: Any, train: bool = False) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no __call__")

    def __setattr__(self, name: str, value: Any) -> None:
        for full_name, member in members(name, value):
            if isinstance(member, Module):
                label = f"{type(self).__name__}.{full_name}"
                if any(part is self for _, part in member.modules()):  # a search for parameters would never end
                    raise ValueError(f"{label}: a module cannot be part of itself; pass it to the call that needs it")
                member._label = label  # so an error can say which of many layers refused
        refuse_hidden(name, value, (Module, Tensor))  # in a set, for example: they would never be trained
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        """Return the tree of layers, one a line, with its type, the shapes of its parameters, and their number."""
        rows, above = [], [""]  # above: the prefixes of the modules in which this one lies
        # A table: the tree on the left, what each layer owns in the middle, and the totals on the right.
        for prefix, module in self.modules():
            while not prefix.startswith(above[-1]):
                above.pop()
            name = prefix.removeprefix(above[-1]).rstrip(".")  # "conv1", or "blocks.0" for one in a list
            own = {name: p.shape for name, p in module._own() if isinstance(p, Tensor)}
            # For example "weight (3,3,64,64)", in the layout inside the network.
            shapes = ", ".join(f"{name} ({','.join(map(str, shape))})" for name, shape in own.items())
            count = sum(math.prod(p.shape) for p in module.parameters())  # of all layers below, too
            title = "  " * (len(above) - (not prefix)) + (f"{name}: " if name else "") + type(module).__name__
            rows.append((title, shapes, f"{count:,}"))
            above += [prefix] if prefix else []
        wide = [max(len(row[k]) for row in rows) for k in range(3)]  # the width of each column
        lines = [f"{a:{wide[0]}}  {b:{wide[1]}}  {c:>{wide[2]}}" for a, b, c in rows]
        return "\n".join([lines[0] + " parameters", *lines[1:]])

    def modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield this module and all below it, each with the prefix of its parameters' names."""
        yield prefix, self  # "" at the top, "encoder.conv1." below
        for name, value in self._own():  # a dictionary keeps the order of assignment
            if isinstance(value, Module):  # depth first: torchvision's order
                yield from value.modules(f"{prefix}{name}.")

    def _own(self) -> list[tuple[str, Any]]:
        """Return the attributes, and in place of a list, tuple or dict what it holds: "blocks.0", "blocks.1" …"""
        return [member for name, value in vars(self).items() for member in members(name, value)]

    def _arrays(self) -> Iterator[tuple[str, Module, str, Any, Array]]:
        """Yield each parameter and buffer: its full name, the module that holds it, its name, itself, its array."""
        for prefix, module in self.modules():
            for name, value in module._own():
                if isinstance(value, Tensor):
                    yield prefix + name, module, name, value, value.data
                elif is_array(value) and name in vars(module):  # a buffer; one in a list is neither saved nor moved
                    yield prefix + name, module, name, value, value

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """Return every parameter once, in the order of assignment, with its full name (the first of several)."""
        found: dict[int, tuple[str, Tensor]] = {}
        for name, _, _, value, _ in self._arrays():
            if isinstance(value, Tensor):
                found.setdefault(id(value), (name, value))
        return list(found.values())

    def parameters(self) -> list[Tensor]:
        """Return every parameter, in the order of `named_parameters`: an optimizer takes this list."""
        # A list and not a set, because a checkpoint stores the optimizer's momentum by position.
        return [parameter for _, parameter in self.named_parameters()]

    def zero_grad(self) -> None:
        """Forget the gradient of every parameter."""
        for parameter in self.parameters():
            parameter.grad = None  # not zeros: None costs no memory, and says that there is no gradient

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return every parameter and buffer: a NumPy copy in torchvision's layout, under torchvision's name."""
        state = {}
        for full_name, module, name, _, array in self._arrays():
            axes = module.stored_axes.get(name, tuple(range(array.ndim)))
            state[full_name] = to_numpy(array).transpose(axes).copy(order="C")  # (D,C,K,K) or (out,in)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over all parameters and buffers; `num_batches_tracked` is ignored.

        Raises: ValueError, before anything is changed, if names or shapes differ, or the values of one parameter.
        """
        given = {name: np.asarray(unmasked(value, name)) for name, value in state.items() if not name.endswith(IGNORED)}
        self._require_state(given)  # all of it first: half a state would be worse than none
        rows, seen = [], dict[Any, Any]()  # seen: a parameter, or a buffer of a layer, may have two names
        for full_name, module, name, value, old in self._arrays():
            axes = module.stored_axes.get(name, tuple(range(old.ndim)))
            array = given[full_name].transpose(np.argsort(axes)).astype(old.dtype, order="C")  # (K,K,C,D) or (in,out)
            rows.append((module, name, value, to_device(array, device_of(old))))
            place = id(value) if isinstance(value, Tensor) else (id(module), name)
            first, same = seen.setdefault(place, (full_name, array))
            if not np.array_equal(array, same, equal_nan=True):
                raise ValueError(f"load_state_dict: {first} and {full_name} are one, but differ in the state")
        for module, name, value, array in rows:
            module._put(name, value, array)

    def _require_state(self, given: Mapping[str, Any]) -> None:
        """Refuse a state whose names, shapes or dtypes do not fit this module."""
        own = self.state_dict()  # in the stored layout, so that shapes can be compared as they are
        for verb, names in (("misses", own.keys() - given.keys()), ("has the unknown", given.keys() - own.keys())):
            if names:
                raise ValueError(f"load_state_dict: the state {verb} {_listed(names)}")
        for name, array in own.items():
            if given[name].shape != array.shape:
                raise ValueError(f"load_state_dict: {name} has shape {given[name].shape}, expected {array.shape}")
            if given[name].dtype.kind not in "fiub":  # float, signed, unsigned, bool
                raise ValueError(f"load_state_dict: {name} has dtype {given[name].dtype}, expected numbers")

    def astype(self, dtype: Any) -> Self:
        """Convert parameters and buffers, so that the module computes in this floating-point dtype from now on."""
        # Running statistics are converted too, because they are combined with the activations.
        return self._convert(lambda array: array.astype(float_dtype("astype", dtype)))

    def to(self, device: str) -> Self:
        """Move parameters and buffers to "cpu" or "cuda"."""
        return self._convert(lambda array: to_device(array, device))

    def _convert(self, change: Any) -> Self:
        for _, module, name, value, array in self._arrays():
            module._put(name, value, change(array))
        return self  # so that one can write model = SimCLR(…).to("cuda")

    def _put(self, name: str, value: Any, array: Array) -> None:
        """Replace a parameter's or buffer's array."""
        if isinstance(value, Tensor):
            value.data = array  # the Tensor object stays: the optimizer holds it
        else:
            setattr(self, name, array)  # a buffer is the array itself

    def _refuse(self, takes: str, x: Tensor) -> NoReturn:
        """Raise ValueError for an input of the wrong size, with the layer's name and both shapes."""
        # "ProjectionHead.linear1", for example. A layer that is part of no other has the name of its type alone.
        label = getattr(self, "_label", type(self).__name__)
        raise ValueError(f"{label} takes ({takes}), got ({','.join(map(str, x.shape))})")


def _listed(names: Any) -> str:
    names = sorted(names)
    # Three names tell what is wrong; a ResNet-152 has hundreds.
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
