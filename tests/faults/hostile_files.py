"""Files that take all memory or time, or hold tensors without values. Each function writes one and returns its path."""

import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import torch
from foreign_formats import vit
from safetensors.torch import save_file


def ops(*parts):
    return b'\x80\x02' + b''.join(parts) + b'.'


def name(module, attribute):
    return f'c{module}\n{attribute}\n'.encode()


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


def number(value):
    return b'\x8a' + bytes([9]) + value.to_bytes(9, 'little', signed=True)


def torch_zip(path, data, storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', compression, compresslevel=1) as archive:
        archive.writestr('archive/data.pkl', data)
        archive.writestr('archive/version', '3\n')
        for key, content in dict(storages).items():
            archive.writestr(f'archive/data/{key}', content)
    return path


def legacy(path, data, keys=(), values=b''):
    parts = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, dict(little_endian=True))]
    path.write_bytes(b''.join(parts) + data + pickle.dumps(list(keys), protocol=2) + values)
    return path


def storage(numel, key='0', more=b''):
    kind = name('torch', 'FloatStorage')
    return b'(' + text('storage') + kind + text(key) + text('cpu') + number(numel) + more + b'tQ'


def tensor(size, stride, numel, key='0', more=b''):
    """``_rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict())``."""
    numbers = [b'(' + b''.join(map(number, values)) + b't' for values in (size, stride)]
    hooks = name('collections', 'OrderedDict') + b')R'
    arguments = b'(' + storage(numel, key, more) + b'K\0' + numbers[0] + numbers[1] + b'\x89' + hooks + b't'
    return name('torch._utils', '_rebuild_tensor_v2') + arguments + b'R'


def entry(value):
    """``{'a': value}``."""
    return ops(b'}', text('a'), value, b's')


def doubled(kind, times=60):
    """An object that holds itself twice, that twice, ...: 2**times when written out."""
    if kind == 'tuple':
        return b')' + b'q\0h\0\x86' * times
    return b'](' * times + b']' + b'q\0h\0e' * times


def encoded(times):
    """Bytes in hex, in hex, ...: twice as long each time."""
    call = name('_codecs', 'encode')
    inner = call + text('x' * 1000) + text('latin1') + b'\x86R'
    for _ in range(times):
        inner = call + inner + text('hex') + b'\x86R'
    return inner


def overlapping(path):
    """Ten records with the same bytes."""
    values = b''.join(text(key) + tensor((2**18,), (1,), 2**18, key) for key in '0123456789')
    torch_zip(path, ops(b'}(', values, b'u'), {'0': bytes(2**20)})
    content = path.read_bytes()
    end = content.rindex(b'PK\x05\x06')
    at = content.rindex(b'PK\x01\x02')
    more = b''.join(content[at:end].replace(b'/0', f'/{key}'.encode()) for key in range(1, 10))
    start = struct.unpack('<I', content[end + 16 : end + 20])[0]
    tail = struct.pack('<4s4H2IH', b'PK\x05\x06', 0, 0, 12, 12, end - start + len(more), start, 0)
    path.write_bytes(content[:end] + more + tail)
    return path


def npz(path, header, data=b'', compression=zipfile.ZIP_STORED):
    record = b'\x93NUMPY\x01\0' + struct.pack('<H', len(header)) + header.encode() + data
    with zipfile.ZipFile(path, 'w', compression, compresslevel=1) as archive:
        archive.writestr('embedding/kernel.npy', record)
    return path


def header(shape, dtype='<f4'):
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n"


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def npz_of_objects(path):
    np.savez(path.with_suffix('.npz'), **{'embedding/kernel': np.array([None, 1], dtype=object)})
    return path.with_suffix('.npz')


def npz_with_damaged_directory(path):
    path = path.with_suffix('.npz')
    np.savez(path, **{'embedding/kernel': np.ones((8, 8, 3, 32), np.float32)})
    data = bytearray(path.read_bytes())
    at = data.rindex(b'PK\x01\x02')
    data[at : at + 4] = b'PK\x09\x09'
    path.write_bytes(data)
    return path


def safetensors(path, head, data=b''):
    path.write_bytes(struct.pack('<Q', len(head)) + head + data)
    return path


def states():
    return dict(vit().state_dict())


BOMBS = {
    'compressed zeros': lambda p: torch_zip(
        p, entry(tensor((2**26,), (1,), 2**26)), {'0': bytes(2**28)}, zipfile.ZIP_DEFLATED
    ),
    'storage larger than its record': lambda p: torch_zip(p, entry(tensor((2**40,), (1,), 2**40)), {'0': bytes(64)}),
    'storage a little larger than its record': lambda p: torch_zip(p, entry(tensor((17,), (1,), 17)), {'0': bytes(64)}),
    'legacy storage larger than the file': lambda p: legacy(p, entry(tensor((2**34,), (1,), 2**34, more=b'N')), ['0']),
    'tensor repeated by strides of 0': lambda p: torch_zip(
        p, entry(tensor((2**20, 2**20), (0, 0), 16)), {'0': bytes(64)}
    ),
    'tensor outside of its storage': lambda p: torch_zip(p, entry(tensor((4, 4), (2**40, 1), 16)), {'0': bytes(64)}),
    'tuples doubled': lambda p: torch_zip(p, entry(doubled('tuple'))),
    'lists doubled': lambda p: torch_zip(p, entry(doubled('list'))),
    'doubled tuple as a key': lambda p: torch_zip(p, ops(b'}', doubled('tuple'), b'Ns')),
    'doubled tuple in a set': lambda p: torch_zip(
        p, entry(name('__builtin__', 'set') + b'](' + doubled('tuple') + b'e\x85R')
    ),
    'list that holds itself': lambda p: torch_zip(p, entry(b']q\0h\0a')),
    'dict that holds itself': lambda p: torch_zip(p, ops(b'}q\0', text('a'), b'h\0s')),
    'nested very deep': lambda p: torch_zip(p, entry(b']' * 100_000 + b'a' * 99_999)),
    'bytearray': lambda p: torch_zip(p, entry(name('__builtin__', 'bytearray') + number(2**37) + b'\x85R')),
    'FloatTensor': lambda p: torch_zip(p, entry(name('torch', 'FloatTensor') + number(2**36) + b'\x85R')),
    'new FloatTensor': lambda p: torch_zip(p, entry(name('torch', 'FloatTensor') + number(2**36) + b'\x85\x81')),
    'hex of hex': lambda p: torch_zip(p, entry(encoded(30))),
    'keys that collide': lambda p: torch_zip(
        p, entry(b'}(' + b''.join(number((2**61 - 1) * i) + b'N' for i in range(120)) + b'u')
    ),
    'index of the memo': lambda p: torch_zip(p, entry(b'Nr' + struct.pack('<I', 2**32 - 2))),
    'copies of a set': lambda p: torch_zip(
        p,
        ops(
            b'](' + b''.join(number(i) for i in range(50_000)) + b'eq\0',
            (name('__builtin__', 'set') + b'h\0\x85R') * 2000,
            b'h\0',
        ),
    ),
    'more bytes than there are': lambda p: torch_zip(p, ops(b'X\xff\xff\xff\xff')),
    'many small objects': lambda p: torch_zip(p, ops(b'](', b'}' * 3_000_000, b'e')),
    'overlapping records': overlapping,
    'two records of one name': lambda p: _twice(p),
    'npz with a large shape': lambda p: npz(p, header((2**40, 8))),
    'npz with a negative shape': lambda p: npz(p, header((-8, 8))),
    'npz of zeros': lambda p: npz(p, header((2**26,)), bytes(2**28), zipfile.ZIP_DEFLATED),
    'npz without a kernel': lambda p: npz(p, header((8,)), bytes(32)),
    'npz of objects': npz_of_objects,
    'npz with a damaged directory': npz_with_damaged_directory,
    'npz with a long header': lambda p: npz(p, header('(' * 20_000 + '1' + ')' * 20_000)),
    'safetensors header beyond the file': lambda p: safetensors(p, b'{}' + b' ' * 6) and _patch(p, 0, b'\xff' * 5),
    'safetensors offsets beyond the file': lambda p: safetensors(
        p, b'{"a":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4294967296]}}'
    ),
    'safetensors of an impossible shape': lambda p: safetensors(
        p, b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'
    ),
}
TENSORS = {
    'sparse': lambda p: saved(p, dict(a=torch.eye(4).to_sparse())),
    'sparse_csr': lambda p: saved(p, dict(a=torch.eye(4).to_sparse_csr())),
    'quantized': lambda p: saved(p, dict(a=torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8))),
    'meta': lambda p: saved(p, dict(a=torch.empty(4, device='meta'))),
    'nested': lambda p: saved(p, dict(a=torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))),
    'float8': lambda p: saved(p, {k: v.to(torch.float8_e4m3fn) for k, v in states().items()}),
    'float8 in safetensors': lambda p: _safetensors({k: v.to(torch.float8_e4m3fn) for k, v in states().items()}, p),
    'complex': lambda p: saved(p, {k: v.to(torch.complex64) for k, v in states().items()}),
    'int8': lambda p: saved(p, {k: (v * 10).to(torch.int8) for k, v in states().items()}),
    'int64': lambda p: saved(p, {k: v.long() for k, v in states().items()}),
    'bool': lambda p: saved(p, {k: v > 0 for k, v in states().items()}),
    'uint8 in safetensors': lambda p: _safetensors({k: v.to(torch.uint8) for k, v in states().items()}, p),
    'one int8 tensor': lambda p: saved(p, {**states(), 'blocks.1.norm1.weight': torch.ones(32).to(torch.int8)}),
    'NaN': lambda p: saved(p, {**states(), 'blocks.1.norm1.weight': torch.full((32,), torch.nan)}),
    'infinite': lambda p: saved(p, {**states(), 'pos_embed': states()['pos_embed'] + torch.inf}),
    'infinite in float32': lambda p: saved(p, {k: v.double() * 1e300 for k, v in states().items()}),
    'NaN in legacy': lambda p: saved(
        p, OrderedDict(states(), **{'norm.bias': torch.full((32,), torch.nan)}), _use_new_zipfile_serialization=False
    ),
    'int keys': lambda p: saved(p, dict(enumerate(states().values()))),
}


def _twice(path):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', entry(b'N'))
        archive.writestr('archive/version', '3\n')
        archive.writestr('archive/data.pkl', ops(b'N'))
    return path


def _patch(path, at, data):
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


def _safetensors(state, path):
    save_file(state, path)
    return path
