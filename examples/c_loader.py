"""Runs a SavedModel with TensorFlow's C library, the loader inside TF Serving, without Python's.

    python examples/c_loader.py results/served/digits/1 --inputs inputs.npz --outputs outputs.npz

Needs NumPy and an installed TensorFlow package, whose library it opens and whose Python it does
not import. Without `--inputs` it prints the signatures.
"""

import argparse
import ctypes
import importlib.util
import pathlib
import sys

import numpy as np

_DTYPES = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    4: np.uint8,
    5: np.int16,
    6: np.int8,
    9: np.int64,
    10: np.bool_,
    17: np.uint16,
    19: np.float16,
    22: np.uint32,
    23: np.uint64,
}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
_STRING = 7
_STRING_SIZE = 24  # bytes of a TF_TString


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    )


class _Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


def _open_library():
    package = importlib.util.find_spec("tensorflow")  # Finds it without importing it.
    if package is None:
        raise ImportError("The C loader needs the library of the `tensorflow` package.")
    root = pathlib.Path(package.submodule_search_locations[0])
    library = ctypes.CDLL(str(next(root.glob("libtensorflow_cc.*"))))
    for name in (
        "TF_NewStatus",
        "TF_NewSessionOptions",
        "TF_NewGraph",
        "TF_NewBuffer",
        "TF_LoadSessionFromSavedModel",
        "TF_GraphOperationByName",
        "TF_AllocateTensor",
        "TF_TensorData",
        "TF_StringGetDataPointer",
    ):
        getattr(library, name).restype = ctypes.c_void_p
    library.TF_Message.restype = ctypes.c_char_p
    for name in ("TF_Dim", "TF_StringGetSize", "TF_TensorByteSize"):
        getattr(library, name).restype = ctypes.c_size_t
    return library


class SavedModel:
    """A loaded SavedModel; `signatures` maps names to `{"inputs": ..., "outputs": ...}`."""

    def __init__(self, path):
        self._library = lib = _open_library()
        self._status = ctypes.c_void_p(lib.TF_NewStatus())
        self._graph = ctypes.c_void_p(lib.TF_NewGraph())
        meta_graph = ctypes.c_void_p(lib.TF_NewBuffer())
        self._session = ctypes.c_void_p(
            lib.TF_LoadSessionFromSavedModel(
                ctypes.c_void_p(lib.TF_NewSessionOptions()),
                None,
                str(path).encode(),
                (ctypes.c_char_p * 1)(b"serve"),
                1,
                self._graph,
                meta_graph,
                self._status,
            )
        )
        self._check()
        buffer = ctypes.cast(meta_graph, ctypes.POINTER(_Buffer)).contents
        self.signatures = _read_signatures(ctypes.string_at(buffer.data, buffer.length))

    def run(self, signature, **inputs):
        """Returns the outputs of a signature as a dict of arrays."""
        names = self.signatures[signature]
        if set(inputs) != set(names["inputs"]):
            raise ValueError(
                f"Expected inputs {sorted(names['inputs'])}. Received: {sorted(inputs)}"
            )
        lib = self._library
        count = len(names["outputs"])
        feeds = [self._output(names["inputs"][name]) for name in inputs]
        fetches = [self._output(name) for name in names["outputs"].values()]
        tensors = [self._to_tensor(np.asarray(array)) for array in inputs.values()]
        results = (ctypes.c_void_p * count)()
        lib.TF_SessionRun(
            self._session,
            None,
            (_Output * len(feeds))(*feeds),
            (ctypes.c_void_p * len(feeds))(*tensors),
            len(feeds),
            (_Output * count)(*fetches),
            results,
            count,
            None,
            0,
            None,
            self._status,
        )
        for tensor in tensors:
            lib.TF_DeleteTensor(ctypes.c_void_p(tensor))
        self._check()
        arrays = [self._to_array(ctypes.c_void_p(result)) for result in results]
        return dict(zip(names["outputs"], arrays, strict=True))

    def _check(self):
        if self._library.TF_GetCode(self._status) != 0:
            raise RuntimeError(self._library.TF_Message(self._status).decode())

    def _output(self, name):
        operation, _, index = name.partition(":")
        pointer = self._library.TF_GraphOperationByName(self._graph, operation.encode())
        return _Output(pointer, int(index))

    def _to_tensor(self, array):
        lib = self._library
        strings = array.dtype.kind in "OSU"
        code = _STRING if strings else _CODES[array.dtype]
        size = array.size * _STRING_SIZE if strings else array.nbytes
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        tensor = lib.TF_AllocateTensor(code, shape, array.ndim, ctypes.c_size_t(size))
        data = lib.TF_TensorData(ctypes.c_void_p(tensor))
        if not strings:
            ctypes.memmove(data, np.ascontiguousarray(array).ctypes.data, array.nbytes)
            return tensor
        for i, text in enumerate(array.ravel()):
            text = text if isinstance(text, bytes) else str(text).encode()
            item = ctypes.c_void_p(data + i * _STRING_SIZE)
            lib.TF_StringInit(item)
            lib.TF_StringCopy(item, text, ctypes.c_size_t(len(text)))
        return tensor

    def _to_array(self, tensor):
        lib = self._library
        shape = [lib.TF_Dim(tensor, i) for i in range(lib.TF_NumDims(tensor))]
        code, data = lib.TF_TensorType(tensor), lib.TF_TensorData(tensor)
        if code == _STRING:
            array = np.array(
                [self._text(data + i * _STRING_SIZE) for i in range(np.prod(shape, dtype=int))]
            )
        else:
            array = np.frombuffer(
                ctypes.string_at(data, lib.TF_TensorByteSize(tensor)), _DTYPES[code]
            )
        lib.TF_DeleteTensor(tensor)
        return array.reshape(shape)

    def _text(self, address):
        item = ctypes.c_void_p(address)
        size = self._library.TF_StringGetSize(item)
        return ctypes.string_at(self._library.TF_StringGetDataPointer(item), size).decode()


def _fields(message):
    """Yields the field numbers and values of a protocol buffer message."""
    position = 0

    def varint():
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(message):
        field, kind = divmod(varint(), 8)
        if kind == 0:
            yield field, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        yield field, message[position : position + size]
        position += size


def _read_signatures(meta_graph):
    """Returns the tensor names of the signatures in a serialised `MetaGraphDef`."""
    signatures = {}
    for field, entry in _fields(meta_graph):
        if field != 5:  # signature_def, a map
            continue
        entry = dict(_fields(entry))
        signature = {"inputs": {}, "outputs": {}}
        for field, tensor in _fields(entry[2]):
            if field in (1, 2):  # inputs and outputs: maps to TensorInfo, whose field 1 is a name
                tensor = dict(_fields(tensor))
                name = dict(_fields(tensor[2])).get(1)
                if name is not None:
                    signature["inputs" if field == 1 else "outputs"][tensor[1].decode()] = (
                        name.decode()
                    )
        signatures[entry[1].decode()] = signature
    return signatures


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=pathlib.Path, help="directory of one version")
    parser.add_argument("--signature", default="serving_default")
    parser.add_argument("--inputs", type=pathlib.Path, help=".npz with an array for each input")
    parser.add_argument("--outputs", type=pathlib.Path, help=".npz to write")
    args = parser.parse_args(argv)
    model = SavedModel(args.path)
    if args.inputs is None:
        for name, signature in model.signatures.items():
            print(name, {key: sorted(tensors) for key, tensors in signature.items()})
        return
    with np.load(args.inputs) as inputs:
        outputs = model.run(args.signature, **inputs)
    if args.outputs:
        np.savez(args.outputs, **outputs)
    else:
        print(outputs)
    assert "tensorflow" not in sys.modules


if __name__ == "__main__":
    main()
