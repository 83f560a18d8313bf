"""Pickles of torch -> plain values and tensors, in bounded time and memory. No name in a file reaches code."""

from __future__ import annotations

import argparse
import math
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from ..compat import bounded_getattr

# Far above what a checkpoint needs: about 40 reads per tensor, 10 levels.
MAX_READS = 2_000_000
MAX_DEPTH = 100
MAX_VALUES = 10_000_000
_MAX_KEY = 2**61 - 1  # larger integers can be made to collide in a dict, which takes quadratic time
_MAX_SHARES = 16  # tensors that share storages may be this many times as large as the file

STORAGE_TYPES = {
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16,
    'DoubleStorage': torch.float64,
    'LongStorage': torch.int64,
    'IntStorage': torch.int32,
    'ShortStorage': torch.int16,
    'CharStorage': torch.int8,
    'ByteStorage': torch.uint8,
    'BoolStorage': torch.bool,
}
_SIZED = (str, bytes, list, tuple, dict)
_OTHER_TENSORS = {
    '_rebuild_qtensor': 'a quantized tensor',
    '_rebuild_sparse_tensor': 'a sparse tensor',
    '_rebuild_sparse_csr_tensor': 'a sparse tensor',
    '_rebuild_meta_tensor_no_storage': 'a meta tensor, which has no values',
    '_rebuild_nested_tensor': 'a nested tensor',
    '_rebuild_tensor_v3': 'a tensor of a type that weights never have',
    '_rebuild_wrapper_subclass': 'a tensor of a subclass',
}
# What torch.save writes with its pickle protocol, 2.
_OPCODES = (
    pickle.PROTO + pickle.STOP + pickle.GLOBAL + pickle.MARK + pickle.NONE + pickle.NEWTRUE + pickle.NEWFALSE
    + pickle.BININT + pickle.BININT1 + pickle.BININT2 + pickle.LONG1 + pickle.BINFLOAT + pickle.BINUNICODE
    + pickle.SHORT_BINSTRING + pickle.EMPTY_DICT + pickle.EMPTY_LIST + pickle.EMPTY_TUPLE + pickle.TUPLE
    + pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3 + pickle.APPEND + pickle.APPENDS + pickle.SETITEM
    + pickle.SETITEMS + pickle.BINPUT + pickle.LONG_BINPUT + pickle.BINGET + pickle.LONG_BINGET + pickle.BINPERSID
    + pickle.NEWOBJ + pickle.REDUCE + pickle.BUILD
)  # fmt: skip


class RefusedError(pickle.UnpicklingError):
    """A pickle holds what no weight file needs; the message names it."""


class _BoundedFile:
    """Reads of an unpickler: no more bytes than there are, and not endlessly many."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left, self.reads = file, size, 0

    def read(self, size: int = -1) -> bytes:
        self._count(size)
        return self.file.read(size)

    def readline(self) -> bytes:
        line = self.file.readline(1000)
        self._count(len(line))
        return line

    def _count(self, size: int) -> None:
        self.reads += 1
        if self.reads > MAX_READS:
            raise RefusedError(f'its pickle has more than {MAX_READS} parts')
        if not 0 <= size <= self.left:
            raise EOFError('its pickle is cut short')
        self.left -= size


# The unpickler in Python, as joblib uses it: the one in C reserves memory for indices that a file makes up.
_Unpickler: Any = pickle._Unpickler


class BoundedUnpickler(_Unpickler):
    """Unpickler of what ``torch.save`` writes: tensors, plain values, NumPy arrays, argparse's options, HistoryBuffer.

    ``torch.load(weights_only=True)`` allows more, such as functions that allocate memory of any size, and its list of
    allowed names belongs to the whole process.

    Args:
        file: Positioned at the pickle.
        size: Bytes that the pickle may have.
        read_storage: ``(key, dtype, numel)`` -> values of that storage, ``(numel,)``.
        max_bytes: Bytes of all storages at most.
    """

    dispatch: dict[int, Callable[[Any], None]] = dict.fromkeys(range(256), lambda self: self.refuse_opcode())
    dispatch |= {code: _Unpickler.dispatch[code] for code in _OPCODES}

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        read_storage: Callable[[str, torch.dtype, int], Tensor] | None = None,
        max_bytes: int = 0,
    ) -> None:
        super().__init__(_BoundedFile(file, size), encoding='utf-8')
        self.read_storage, self.max_bytes = read_storage, max_bytes
        self.storages: dict[str, Tensor] = {}
        self.storage_bytes = self.tensor_bytes = 0
        self.arguments_left = size + 1000
        self.names = {
            'torch._utils._rebuild_tensor': self._tensor,
            'torch._utils._rebuild_tensor_v2': self._tensor,
            'torch._utils._rebuild_parameter': _parameter,
            'torch._tensor._rebuild_from_type_v2': self._with_attributes,
            **_NAMES,
        }
        self.functions = {id(function) for function in self.names.values() if not isinstance(function, type)}

    def load(self) -> Any:
        """Read one pickle.

        Returns:
            Its content: a tree without cycles.

        Raises:
            RefusedError: It names something else than plain data, or a value is larger than the file can hold.
            Exception: It is damaged, in one of many ways.
        """
        content = super().load()
        _count_values(content, {}, 0)
        return content

    def refuse_opcode(self) -> None:
        """Refuse an opcode that ``torch.save`` does not write."""
        raise RefusedError("its pickle is damaged, or of another protocol than torch.save's default, 2")

    def find_class(self, module: str, name: str) -> Any:
        """Return a substitute for a name; nothing is imported."""
        module = dict(__builtin__='builtins', copy_reg='copyreg').get(module, module)
        if module in ('torch', 'torch.cuda', 'torch.storage') and name in STORAGE_TYPES:
            return STORAGE_TYPES[name]
        if module == 'torch' and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        full_name = f'{module}.{name}'
        if full_name in self.names:
            return self.names[full_name]
        if module == 'torch._utils' and name in _OTHER_TENSORS:
            raise RefusedError(f'it holds {_OTHER_TENSORS[name]}: save dense tensors of floating point values')
        if module == 'torch' and name.endswith('Storage'):
            raise RefusedError(f'it holds a tensor of {name}: save dense tensors of floating point values')
        raise RefusedError(f'GLOBAL {full_name}')

    def persistent_load(self, pid: Any) -> Tensor:
        """Return the values of a storage."""
        kind, dtype, key, _, numel = pid[:5]
        if kind != 'storage' or not isinstance(dtype, torch.dtype) or any(pid[5:]) or self.read_storage is None:
            raise RefusedError('it refers to something else than plain storages of tensors')
        if type(numel) is not int or numel < 0:
            raise RefusedError(f'a storage has {numel} values')
        if str(key) not in self.storages:
            self.storage_bytes += numel * dtype.itemsize
            if self.storage_bytes > self.max_bytes:
                raise RefusedError(f'its tensors have more bytes ({self.storage_bytes}) than the file')
            self.storages[str(key)] = self.read_storage(str(key), dtype, numel)
        storage = self.storages[str(key)]
        if storage.dtype != dtype or storage.numel() != numel:
            raise RefusedError(f'the storage {key} has two sizes or types')
        return storage

    def load_reduce(self) -> None:
        """Call a function of the list; together, the calls get no more values than the pickle has bytes."""
        arguments, function = self.stack.pop(), self.stack[-1]
        if id(function) not in self.functions or type(arguments) is not tuple:
            raise RefusedError(f'GLOBAL call of {function!r:.80}')
        self.arguments_left -= sum(len(argument) for argument in arguments if isinstance(argument, _SIZED))
        if self.arguments_left < 0:
            raise RefusedError('its pickle copies values again and again')
        self.stack[-1] = function(*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self) -> None:
        """Make an empty object of a known class."""
        arguments, kind = self.stack.pop(), self.stack[-1]
        if kind not in (argparse.Namespace, HistoryBuffer) or arguments != ():
            raise RefusedError(f'GLOBAL object of {kind!r:.80}')
        self.stack[-1] = argparse.Namespace() if kind is argparse.Namespace else HistoryBuffer()

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_build(self) -> None:
        """Set the attributes of an object of a known class."""
        state, instance = self.stack.pop(), self.stack[-1]
        if type(instance) is OrderedDict:
            metadata = state.get('_metadata')
            if isinstance(metadata, dict) and all(isinstance(entry, dict) for entry in metadata.values()):
                vars(instance)['_metadata'] = metadata
        elif type(instance) is argparse.Namespace:
            vars(instance).update({str(name): value for name, value in state.items()})
        elif type(instance) is HistoryBuffer:
            _fill_history(instance, state)
        elif type(instance) is np.ndarray:
            _fill_array(instance, *state)
        elif isinstance(instance, np.dtype):
            if state[1] not in ('<', '|') or any(entry is not None for entry in state[2:5]):
                raise RefusedError('it holds NumPy arrays of a type that is not plain little-endian numbers')
        else:
            raise RefusedError(f'GLOBAL state of {type(instance)!r:.80}')

    dispatch[pickle.BUILD[0]] = load_build

    def load_setitems(self) -> None:
        """Fill a mapping."""
        items = self.pop_mark()
        self._set_items(self.stack[-1], items[::2], items[1::2])

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_setitem(self) -> None:
        """Fill a mapping with one item."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items(self.stack[-1], [key], [value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def _set_items(self, mapping: Any, keys: list[Any], values: list[Any]) -> None:
        if type(mapping) not in (dict, OrderedDict, Counter):
            raise RefusedError(f'it sets items of {type(mapping).__name__}')
        for key, value in zip(keys, values, strict=True):  # not update: that of Counter adds
            mapping[_key(key)] = value

    def load_appends(self) -> None:
        """Fill a list."""
        items = self.pop_mark()
        self._extend(self.stack[-1], items)

    dispatch[pickle.APPENDS[0]] = load_appends

    def load_append(self) -> None:
        """Fill a list with one item."""
        item = self.stack.pop()
        self._extend(self.stack[-1], [item])

    def _extend(self, values: Any, items: list[Any]) -> None:
        if type(values) is not list:
            raise RefusedError(f'it appends to {type(values).__name__}')
        values.extend(items)

    dispatch[pickle.APPEND[0]] = load_append

    def _tensor(self, storage: object, offset: object, size: object, stride: object, *_: object) -> Tensor:
        sizes, strides = _whole_numbers(size), _whole_numbers(stride)
        if not isinstance(storage, Tensor) or len(sizes) != len(strides):
            raise RefusedError('a tensor has no storage, or as many sizes as strides')
        first = _whole_numbers((offset,))[0]
        numel = math.prod(sizes)
        last = first + sum((n - 1) * step for n, step in zip(sizes, strides)) if numel else first - 1
        if last >= storage.numel() or numel > storage.numel():
            raise RefusedError(f'a tensor of shape {sizes} does not fit into its storage of {storage.numel()} values')
        self.tensor_bytes += numel * storage.itemsize
        if self.tensor_bytes > _MAX_SHARES * self.max_bytes:
            raise RefusedError(f'its tensors are together more than {_MAX_SHARES} times as large as the file')
        return torch.empty(0, dtype=storage.dtype).set_(storage.untyped_storage(), first, sizes, strides)

    def _with_attributes(self, function: object, kind: object, arguments: tuple[Any, ...], *_: object) -> Tensor:
        """Tensors with attributes: the attributes are left out."""
        if function == self._tensor:
            return self._tensor(*arguments)
        if function is _parameter:
            return _parameter(*arguments)
        raise RefusedError(f'GLOBAL tensor of {function!r:.80}')


class Inert:
    """Replaces every class that a TorchScript archive names. It keeps attributes and has no behavior."""


class ScriptUnpickler(BoundedUnpickler):
    """Unpickler of TorchScript archives: tensors in inert modules.

    ``torch.load(weights_only=True)`` refuses these archives, and ``torch.jit.load`` builds the module with its code.
    OpenAI published CLIP in this format only.
    """

    dispatch = dict(BoundedUnpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Return a substitute for a name: tensors as they are, everything else inert."""
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2') or name in STORAGE_TYPES:
            return super().find_class(module, name)
        return _ordered if (module, name) == ('collections', 'OrderedDict') else Inert

    def load_reduce(self) -> None:
        """Call a function of the list; others have an inert result."""
        if self.stack[-2] is Inert:
            self.stack[-2:] = [Inert()]
        else:
            super().load_reduce()

    def load_newobj(self) -> None:
        """Make an inert object."""
        self.stack[-2:] = [Inert()]

    def load_build(self) -> None:
        """Keep the attributes of an inert object."""
        if type(self.stack[-2]) is not Inert:
            super().load_build()
        elif isinstance(state := self.stack.pop(), Mapping):
            vars(self.stack[-1]).update({str(name): value for name, value in state.items()})

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build


def _count_values(value: Any, counts: dict[int, int], depth: int) -> int:
    """Count the values of a tree as often as they are reached, which is how long a walk over it takes."""
    children: Iterable[Any]
    if isinstance(value, (argparse.Namespace, Inert)):
        children = vars(value).values()
    elif isinstance(value, Mapping):
        children = value.values()
    elif isinstance(value, (list, tuple, set)):
        children = value
    else:
        return 1
    if id(value) in counts:
        if counts[id(value)] == 0:
            raise RefusedError('it holds an object that contains itself')
        return counts[id(value)]
    if depth > MAX_DEPTH:
        raise RefusedError(f'its objects are nested more than {MAX_DEPTH} levels deep')
    counts[id(value)] = 0
    count = 1 + sum(_count_values(child, counts, depth + 1) for child in children)
    if count > MAX_VALUES:
        raise RefusedError(f'its objects refer to one another: more than {MAX_VALUES} values when written out')
    counts[id(value)] = count
    return count


def _key(key: Any) -> str | int:
    """Return a key of a mapping. Not a nested tuple: its hash can take forever."""
    if type(key) is str or (type(key) in (int, bool) and abs(key) < _MAX_KEY):
        return key
    raise RefusedError(f'a key of a mapping is {type(key).__name__}, not a string or an integer')


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if len(values) > 64 or not all(type(value) is int and 0 <= value < 2**63 for value in values):
        raise RefusedError(f'a shape, stride or offset is not made of whole numbers: {values!r:.80}')
    return tuple(values)


def _parameter(tensor: object, *_: object) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise RefusedError('a parameter is no tensor')
    return tensor


def _ordered(pairs: Any = ()) -> OrderedDict[str | int, Any]:
    return OrderedDict((_key(key), value) for key, value in pairs)


def _counter(counts: dict[Any, Any]) -> Counter[str | int]:
    return Counter({_key(key): int(count) for key, count in counts.items()})


def _set(values: list[Any]) -> set[str | int]:
    return {_key(value) for value in values}


def _encode(text: Any = '', encoding: object = 'latin1') -> bytes:
    if encoding != 'latin1':  # how protocol 2 writes bytes; other encodings multiply their input
        raise RefusedError(f'GLOBAL _codecs.encode to {encoding!r:.40}')
    return str(text).encode('latin1')


def _device(kind: object, index: object = 0) -> torch.device:
    return torch.device(str(kind))


def _size(sizes: object) -> torch.Size:
    return torch.Size(_whole_numbers(sizes))


def _dtype(name: object, *_: object) -> np.dtype[Any]:
    dtype = np.dtype(name) if isinstance(name, str) and len(name) <= 4 else np.dtype('O')
    if dtype.kind not in 'biufc':
        raise RefusedError(f'it holds NumPy arrays of {name!r:.40}, which are no numbers')
    return dtype


def _array(*_: object) -> np.ndarray[Any, Any]:
    return np.empty(0)


def _scalar(dtype: Any, data: Any) -> Any:
    array = _array()
    _fill_array(array, 1, (), dtype, False, data)
    return array[()]


def _fill_array(array: np.ndarray[Any, Any], version: Any, shape: Any, dtype: Any, columns: Any, data: Any) -> None:
    if not isinstance(dtype, np.dtype) or type(data) is not bytes:
        raise RefusedError('it holds a NumPy array of objects')
    if len(data) != math.prod(_whole_numbers(shape)) * dtype.itemsize:
        raise RefusedError(f'a NumPy array of shape {shape} has {len(data)} bytes')
    array.__setstate__((1, tuple(shape), dtype, bool(columns), data))  # type: ignore[arg-type]


def _fill_history(history: HistoryBuffer, state: Mapping[str, Any]) -> None:
    """Set the values; the statistics are those of the class, whatever the file holds."""
    values, counts = state['_log_history'], state['_count_history']
    if not (isinstance(values, np.ndarray) and isinstance(counts, np.ndarray) and values.shape == counts.shape):
        raise RefusedError('a HistoryBuffer holds no arrays')
    history._log_history, history._count_history = values, counts
    history.max_length = int(state.get('max_length', 1_000_000))


_NAMES: dict[str, Any] = {
    'collections.OrderedDict': _ordered,
    'collections.Counter': _counter,
    'builtins.set': _set,
    'builtins.bytes': _encode,
    'builtins.getattr': bounded_getattr,
    'builtins.complex': lambda real, imaginary: complex(float(real), float(imaginary)),
    '_codecs.encode': _encode,
    'torch.Size': _size,
    'torch.device': _device,
    'torch.Tensor': Tensor,  # classes only name the kind of an object; none of them is called
    'torch.nn.parameter.Parameter': torch.nn.Parameter,
    'argparse.Namespace': argparse.Namespace,
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    'numpy.ndarray': np.ndarray,
    'numpy.dtype': _dtype,
    **{f'numpy.{core}.multiarray._reconstruct': _array for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray.scalar': _scalar for core in ('core', '_core')},
}
