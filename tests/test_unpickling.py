"""A pickle from anybody gives arrays and plain containers, or is refused before anything of it has run."""

from __future__ import annotations

import collections
import contextlib
import copyreg
import functools
import io
import operator
import os
import pickle
import pickletools
import struct
import subprocess
import tracemalloc
import uuid
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_memory import LatentMemory
from latent_memory.errors import InputError, LatentMemoryError, StoreDamagedError
from latent_memory.formats import pickle as layout
from latent_memory.snapshot import Snapshot
from latent_memory.unpickling import _ALLOWED, unpickled

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
ran: list[str] = []


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def refused(data: bytes, name: str = "") -> str:
    with pytest.raises(InputError) as caught:
        unpickled(data, "memory.pkl")
    told = str(caught.value)
    assert told.startswith("memory.pkl: ")
    assert name in told
    return told


def sentinel(text: str) -> str:
    ran.append(text)
    return text


# -- attacks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        pytest.param(os.system, ("touch {canary}",), id="os.system"),
        pytest.param(eval, ("__import__('os').system('touch {canary}')",), id="eval"),
        pytest.param(exec, ("open('{canary}', 'w')",), id="exec"),
        pytest.param(open, ("{canary}", "w"), id="open"),
        pytest.param(__import__, ("os",), id="import"),
        pytest.param(getattr, ("x", "upper"), id="getattr"),
        pytest.param(subprocess.Popen, (["touch", "{canary}"],), id="Popen"),
        pytest.param(subprocess.check_output, (["touch", "{canary}"],), id="check_output"),
        pytest.param(functools.partial, (sentinel, "x"), id="partial"),
        pytest.param(functools.reduce, (operator.add, [1]), id="reduce"),
        pytest.param(operator.attrgetter, ("system",), id="attrgetter"),
        pytest.param(map, (sentinel, ["x"]), id="map"),
        pytest.param(pickle.loads, (pickle.dumps(Calls(sentinel, "inner")),), id="pickles inside pickles"),
        pytest.param(sentinel, ("x",), id="a function of somebody's"),
        pytest.param(np.load, ("x",), id="numpy.load"),
        pytest.param(np.dtype, ("O",), id="dtype of objects"),
        pytest.param(copyreg._reconstructor, (object, object, None), id="copyreg"),  # type: ignore[attr-defined]
    ],
)
def test_a_call_is_refused_before_it_runs(
    function: Callable[..., Any], arguments: tuple[Any, ...], protocol: int, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    ran.clear()
    given = tuple(a.format(canary=canary) if isinstance(a, str) else a for a in arguments)
    whole = {"embeddings": np.zeros((1, 2), np.float32), "metadata": [{"summary": [Calls(function, *given)]}]}
    refused(pickle.dumps(whole, protocol))
    assert not canary.exists()
    assert not ran


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("subprocess", "call"),
        ("importlib", "import_module"),
        ("_pickle", "loads"),
        ("copy_reg", "_reconstructor"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy.f2py.crackfortran", "myeval"),
        ("numpy._core.multiarray", "fromfile"),
        ("numpy", "ndarray.tofile"),
        ("collections", "namedtuple"),
        ("builtins", "set.__class__"),
        ("nothing.of.the.kind", "x"),
        ("ｏs", "system"),
    ],
)
def test_the_error_names_what_was_asked_for(module: str, name: str) -> None:
    old = f"c{module}\n{name}\n(S'echo'\ntR.".encode()
    parts = b"".join(b"\x8c" + bytes([len(t.encode())]) + t.encode() for t in (module, name))
    new = b"\x80\x04" + parts + b"\x93\x8c\x04echo\x85R."
    for data in (old, new):
        refused(data, f"{module}.{name}")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"Pid\n.", id="a persistent id, as text"),
        pytest.param(b"\x80\x02U\x01xQ.", id="a persistent id"),
        pytest.param(b"\x80\x02\x82\x01)R.", id="EXT1"),
        pytest.param(b"\x80\x02\x83\x01\x00)R.", id="EXT2"),
        pytest.param(b"\x80\x02\x84\x01\x00\x00\x00)R.", id="EXT4"),
        pytest.param(b"(S'echo'\nios\nsystem\n.", id="INST"),
        pytest.param(b"\x80\x02(cbuiltins\nset\no.", id="OBJ"),
        pytest.param(b"\x80\x05\x97.", id="a buffer from elsewhere"),
        pytest.param(b"\x80\x04cnumpy\ndtype\n.", id="a function alone"),
        pytest.param(b"\x80\x04]q\x00h\x00a.", id="a list within itself"),
        pytest.param(b"\x80\x04}q\x00X\x01\x00\x00\x00ah\x00s.", id="a dict within itself"),
    ],
)
def test_what_arrays_and_containers_never_need_is_refused(data: bytes) -> None:
    refused(data)


def test_an_extension_code_that_is_known_and_cached_is_refused() -> None:
    ran.clear()
    copyreg.add_extension(__name__, "sentinel", 0xF1)
    try:
        attack = pickle.dumps(Calls(sentinel, "x"), 2)
        assert b"\x82\xf1" in attack
        assert pickle.loads(attack) == "x"  # now it is cached
        ran.clear()
        refused(attack, "EXT1")
    finally:
        copyreg.remove_extension(__name__, "sentinel", 0xF1)
        copyreg.clear_extension_cache()
    assert not ran


STATE = b"}X\x03\x00\x00\x00addK\x01s"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x80\x04cnumpy\ndtype\n" + STATE + b"b.", id="a function"),
        pytest.param(b"\x80\x04cnumpy\ndtype\nN" + STATE + b"\x86b.", id="the slots of a function"),
        pytest.param(b"\x80\x04cnumpy\ndtype\n)RN" + STATE + b"\x86b" + STATE + b"b.", id="a recorder, twice"),
        pytest.param(b"\x80\x04cbuiltins\nset\n" + STATE + b"b.", id="a type"),
        pytest.param(b"\x80\x04cbuiltins\nset\nN" + STATE + b"\x86b.", id="the slots of a type"),
        pytest.param(b"\x80\x04ccollections\nOrderedDict\n" + STATE + b"b.", id="a dict's type"),
        pytest.param(b"\x80\x04cnumpy\nndarray\n)R.", id="a call of what is no function"),
    ],
)
def test_the_state_of_what_is_on_the_list_cannot_be_set(data: bytes) -> None:
    with pytest.raises(LatentMemoryError, match=r"memory\.pkl"):
        unpickled(data, "memory.pkl")
    assert {1}.union({2}) == {1, 2}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.", id="BINBYTES8"),
        pytest.param(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.", id="BINUNICODE8"),
        pytest.param(b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.", id="BYTEARRAY8"),
        pytest.param(b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.", id="FRAME"),
        pytest.param(b"\x80\x02\x8b" + struct.pack("<I", 1 << 31) + b"x.", id="LONG4"),
        pytest.param(b"\x80\x02Nr" + struct.pack("<I", (1 << 31) - 1) + b".", id="LONG_BINPUT"),
        pytest.param(b"Np2147483647\n.", id="PUT"),
        pytest.param(b"Np-1\n.", id="PUT below zero"),
        pytest.param(b"\x80\x04N.N.", id="something after its end"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xffhello", id="no pickle"),
    ],
)
def test_lengths_beyond_the_file_are_refused(data: bytes) -> None:
    with pytest.raises(StoreDamagedError, match=r"memory\.pkl"):
        unpickled(data, "memory.pkl")


def test_nested_references_do_not_fill_the_memory() -> None:
    nested: list[Any] = ["x" * 100]
    for _ in range(60):
        nested = [nested, nested]
    refused(pickle.dumps(nested), "far more")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x80\x02}K\x01" + b"2\x86" * 60 + b"Ns.", id="the key of a dict"),
        pytest.param(b"\x80\x04\x8f(K\x01" + b"2\x86" * 60 + b"\x90.", id="a member of a set"),
        pytest.param(b"\x80\x04(K\x01" + b"2\x86" * 60 + b"\x91.", id="a member of a frozen set"),
        pytest.param(b"\x80\x02cbuiltins\nset\n]K\x01" + b"2\x86" * 60 + b"a\x85R.", id="a set made by its name"),
        pytest.param(b"\x80\x02}" + (b"\x8a\x09" + b"\xff" * 8 + b"\x00") + b"Ns.", id="a long integer"),
    ],
)
def test_what_takes_long_to_hash_is_no_key(data: bytes) -> None:
    refused(data, "cannot be one")


def test_what_stands_for_a_type_is_not_shown_at_length() -> None:
    refused(b"\x80\x02cnumpy\ndtype\n)" + b"2\x86" * 60 + b"\x85R.", "of the type a tuple")


@pytest.mark.parametrize("code", [b"\x8f", b"(", b"]", b"}"])
def test_containers_have_a_price_as_soon_as_they_are_made(code: bytes) -> None:
    program = b"\x80\x04" + code * 1_000_000 + b"0."
    tracemalloc.start()
    try:
        with contextlib.suppress(LatentMemoryError):
            unpickled(program, "memory.pkl")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 110 * len(program)


@pytest.mark.parametrize(
    ("value", "hint"), [(datetime(2025, 1, 1), "isoformat"), (Decimal(1), "plain"), (uuid.UUID(int=1), "plain")]
)
def test_honest_people_are_told_what_to_do(value: Any, hint: str) -> None:
    refused(pickle.dumps([value]), hint)


def test_small_sets_that_are_referred_to_do_not_fill_the_memory() -> None:
    made = b"\x8f(" + b"".join(b"K" + bytes([n]) for n in range(5)) + b"\x90q\x00"
    refused(b"\x80\x04](" + made + b"h\x00" * 1_000_000 + b"e.", "far more")


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(b"cbuiltins\nset\nh\x01\x85R", id="a set"),
        pytest.param(b"c_codecs\nencode\nh\x02X\x06\x00\x00\x00latin1\x86R", id="bytes"),
    ],
)
def test_calls_that_copy_the_same_over_and_over_do_not_fill_the_memory(call: bytes) -> None:
    numbers = b"".join(b"J" + struct.pack("<i", number) for number in range(10_000))
    text = b"X" + struct.pack("<I", 100_000) + b"x" * 100_000
    start = b"\x80\x02](" + numbers + b"eq\x01" + text + b"q\x02("
    refused(start + call * 10_000 + b"l.", "far more")


@pytest.mark.parametrize(
    "program", [b"(" * 300_000 + b"N", b"N" + b"\x85" * 300_000, b"]q\x00" + b"]" * 300_000 + b"a" * 300_000]
)
def test_deep_nesting_is_refused(program: bytes) -> None:
    if program[:1] == b"(":
        assert unpickled(b"\x80\x02" + program + b".", "x") is None  # marks hold nothing
    else:
        refused(b"\x80\x02" + program + b".", "nested")


def test_empty_lists_by_the_thousand_are_read() -> None:
    many: list[list[Any]] = [[] for _ in range(100_000)]
    assert unpickled(pickle.dumps(many, 4), "x") == many


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x80\x02q\x00.", id="a memo of nothing"),
        pytest.param(b"\x80\x02h\x05.", id="a place that nothing is in"),
        pytest.param(b"g5\n.", id="a place that nothing is in, as text"),
        pytest.param(b"\x80\x02K\x01\x87.", id="a tuple of too few"),
        pytest.param(b"\x80\x02t.", id="no mark"),
    ],
)
def test_a_stack_or_memo_without_what_is_asked_for_is_damage(data: bytes) -> None:
    with pytest.raises(StoreDamagedError, match=r"memory\.pkl"):
        unpickled(data, "memory.pkl")


def test_a_place_in_the_memo_that_is_written_again_holds_the_last() -> None:
    assert unpickled(b"\x80\x02K\x01q\x000K\x02q\x000h\x00.", "x") == 2
    attack = b"\x80\x02cnumpy\ndtype\nq\x000X\x02\x00\x00\x00osq\x000h\x00X\x06\x00\x00\x00system\x93."
    refused(attack, "os.system")


def test_a_text_that_is_repeated_by_reference_does_not_fill_the_memory() -> None:
    text = "x" * 1_000_000
    refused(pickle.dumps([text] * 100_000), "far more")


def array_call(dtype: bytes, shape: bytes, raw: bytes) -> bytes:
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n" + shape + b"cnumpy\ndtype\n(S'" + dtype + b"'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
        b"I00\n" + raw + b"tb."
    )


def test_an_array_written_by_hand_is_read() -> None:
    assert unpickled(array_call(b"f4", b"(I1\nI2\nt", b"S'\\x00\\x00\\x80?\\x00\\x00\\x00@'\n"), "x").tolist() == [
        [1, 2]
    ]


@pytest.mark.parametrize("dtype", [b"O8", b"V1000000000", b"S999999999", b"U99999", b"f16", b"M8[ns]", b"f4,f4", b"?"])
def test_arrays_of_anything_but_plain_numbers_are_refused(dtype: bytes) -> None:
    refused(array_call(dtype, b"(I1\nt", b"S'\\x00\\x00\\x80?'\n"))


@pytest.mark.parametrize("shape", [b"(I1000000000\nI1000000000\nt", b"(I2\nt", b"(I-1\nt", b"(F1.5\nt", b"(t"])
def test_an_array_has_the_bytes_of_its_shape(shape: bytes) -> None:
    told = array_call(b"f4", shape, b"S'\\x00\\x00\\x80?'\n")
    if shape == b"(t":
        assert unpickled(told, "x") == np.float32(1)
    else:
        refused(told)


def test_an_array_of_objects_and_structured_ones_are_refused() -> None:
    ran.clear()
    for array in (
        np.array([Calls(sentinel, "x"), None], dtype=object),
        np.array(["text"]),
        np.zeros(2, [("a", "f4"), ("b", "O")]),
        np.zeros(2, [("a", "f4")]),
        np.array([np.datetime64("2024-01-01")]),
    ):
        for protocol in PROTOCOLS:
            refused(pickle.dumps(array, protocol))
    assert not ran


# -- what is read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "dtype",
    [
        *(order + kind for order in "<>" for kind in ("f2", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8")),
        "i1",
        "u1",
        "?",
    ],
)
def test_arrays_come_back_as_they_were(dtype: str, protocol: int) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    for told in (array, np.asfortranarray(array), array[:0], array[:, 1:], np.stack([array] * 4).transpose(1, 0, 2)):
        data = pickle.dumps({"embeddings": told}, protocol)
        spellings = [data]
        if protocol < 4:
            spellings.append(data.replace(b"numpy._core.", b"numpy.core."))
        else:
            unframed = data[:2] + data[11:]
            for module in (b"multiarray", b"numeric"):
                new, old = b"numpy._core." + module, b"numpy.core." + module
                unframed = unframed.replace(bytes([len(new)]) + new, bytes([len(old)]) + old)
            assert b"_core" not in unframed
            spellings.append(unframed)
        for spelled in spellings:
            found = unpickled(spelled, "x")["embeddings"]
            assert found.dtype == told.dtype
            assert found.tobytes() == told.tobytes()
            assert found.shape == told.shape


# {"e": [[1, 2], [3, 4.5]] as float32, "m": np.float64(0.5)}, by NumPy 1.26.4.
BY_NUMPY_1 = {
    0: (
        "286470300a56650a70310a636e756d70792e636f72652e6d756c746961727261790a5f7265636f6e7374727563740a70320a2863"
        "6e756d70790a6e6461727261790a70330a2849300a7470340a635f636f646563730a656e636f64650a70350a2856620a70360a56"
        "6c6174696e310a70370a7470380a5270390a747031300a527031310a2849310a2849320a49320a747031320a636e756d70790a64"
        "747970650a7031330a285666340a7031340a4930300a4930310a747031350a527031360a2849330a563c0a7031370a4e4e4e492d"
        "310a492d310a49300a747031380a624930310a67350a28565c75303030305c7530303030803f5c75303030305c75303030304040"
        "5c75303030305c75303030305c7530303030405c75303030305c753030303090400a7031390a67370a747032300a527032310a74"
        "7032320a6273566d0a7032330a636e756d70792e636f72652e6d756c746961727261790a7363616c61720a7032340a286731330a"
        "285666380a7032350a4930300a4930310a747032360a527032370a2849330a6731370a4e4e4e492d310a492d310a49300a747032"
        "380a6267350a28565c75303030305c75303030305c75303030305c75303030305c75303030305c7530303030e03f0a7032390a67"
        "370a747033300a527033310a747033320a527033330a732e"
    ),
    2: (
        "80027d7100285801000000657101636e756d70792e636f72652e6d756c746961727261790a5f7265636f6e7374727563740a7102"
        "636e756d70790a6e6461727261790a71034b00857104635f636f646563730a656e636f64650a7105580100000062710658060000"
        "006c6174696e31710786710852710987710a52710b284b014b024b0286710c636e756d70790a64747970650a710d580200000066"
        "34710e898887710f527110284b0358010000003c71114e4e4e4affffffff4affffffff4b007471126289680558120000000000c2"
        "803f00000040000040400000c29040711368078671145271157471166258010000006d7117636e756d70792e636f72652e6d756c"
        "746961727261790a7363616c61720a7118680d580200000066387119898887711a52711b284b0368114e4e4e4affffffff4affff"
        "ffff4b0074711c6268055809000000000000000000c3a03f711d680786711e52711f867120527121752e"
    ),
    4: (
        "800495e6000000000000007d94288c0165948c156e756d70792e636f72652e6d756c74696172726179948c0c5f7265636f6e7374"
        "727563749493948c056e756d7079948c076e6461727261799493944b0085944301629487945294284b014b024b02869468058c05"
        "64747970659493948c02663494898887945294284b038c013c944e4e4e4affffffff4affffffff4b007494628843100000803f00"
        "0040400000004000009040947494628c016d9468028c067363616c6172949394680e8c02663894898887945294284b0368124e4e"
        "4e4affffffff4affffffff4b007494624308000000000000e03f9486945294752e"
    ),
    5: (
        "800595e7000000000000007d94288c0165948c126e756d70792e636f72652e6e756d65726963948c0b5f66726f6d627566666572"
        "949394289610000000000000000000803f000000400000404000009040948c056e756d7079948c0564747970659493948c026634"
        "94898887945294284b038c013c944e4e4e4affffffff4affffffff4b007494624b024b0286948c014394749452948c016d948c15"
        "6e756d70792e636f72652e6d756c74696172726179948c067363616c617294939468088c02663894898887945294284b03680c4e"
        "4e4e4affffffff4affffffff4b007494624308000000000000e03f9486945294752e"
    ),
}


@pytest.mark.parametrize("protocol", BY_NUMPY_1)
def test_what_numpy_1_wrote_is_read(protocol: int) -> None:
    found = unpickled(bytes.fromhex(BY_NUMPY_1[protocol]), "x")
    assert found["e"].dtype == np.float32
    assert found["e"].tolist() == [[1, 2], [3, 4.5]]
    assert found["m"] == 0.5
    assert type(found["m"]) is float


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(plain, st.sampled_from(PROTOCOLS))
def test_plain_data_comes_back_as_it_was(value: Any, protocol: int) -> None:
    assert unpickled(pickle.dumps(value, protocol), "x") == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sets_ordered_dicts_scalars_and_bytes_are_plain(protocol: int) -> None:
    value = {
        "set": {1, 2},
        "frozen": frozenset("ab"),
        "ordered": collections.OrderedDict([("a", 1), ("b", 2)]),
        "single": np.float32(0.5),
        "whole": np.int64(7),
        "bytes": b"\x00\xff",
        "none": b"",
        "array": bytearray(b"xyz"),
        "inner": pickle.dumps(Calls(sentinel, "x")),
    }
    ran.clear()
    found = unpickled(pickle.dumps(value, protocol), "x")
    assert found == {**value, "frozen": {"a", "b"}, "ordered": {"a": 1, "b": 2}, "array": b"xyz"}
    assert not ran


# -- damage ---------------------------------------------------------------------------------------------------


SMALL = {"embeddings": np.arange(4, dtype=np.float32).reshape(2, 2), "metadata": [{"summary": "a"}, {"summary": "ä"}]}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_that_was_cut_anywhere_is_refused(protocol: int) -> None:
    whole = pickle.dumps(SMALL, protocol)
    for length in range(len(whole)):
        with pytest.raises(LatentMemoryError):
            unpickled(whole[:length], "x")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_changed_byte_gives_data_or_an_error_of_ours(protocol: int) -> None:
    whole = pickle.dumps(SMALL, protocol)
    for place in range(len(whole)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            with contextlib.suppress(LatentMemoryError):
                unpickled(bytes(damaged), "x")


whole_pickles = [pickle.dumps(SMALL, protocol) for protocol in PROTOCOLS]


@settings(max_examples=500)
@given(
    st.sampled_from(whole_pickles),
    st.lists(st.tuples(st.integers(0), st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=5),
)
def test_a_mutated_pickle_gives_data_or_an_error_of_ours(data: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    for place, drop, put in changes:
        at = place % (len(data) + 1)
        data = data[:at] + put + data[at + drop :]
    with contextlib.suppress(LatentMemoryError):
        unpickled(data, "x")


opcodes = st.sampled_from([opcode.code.encode("latin-1") for opcode in pickletools.opcodes])
pieces = st.sampled_from(
    [
        *(f"c{module}\n{name}\n".encode() for module, name in _ALLOWED),
        *(b"K\x01", b"\x8c\x02f4", b"\x8c\x01<", b"C\x04\x00\x00\x80?", b"h\x00", b"q\x00", b"I01\n", b"S'x'\n"),
        *(b"(K\x03\x8c\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t", b"\x8c\x06latin1", b"(K\x01K\x02d"),
    ]
)


@settings(max_examples=1000)
@given(st.lists(opcodes | pieces | pieces, max_size=30))
def test_any_program_gives_data_or_an_error_of_ours(program: list[bytes]) -> None:
    with contextlib.suppress(LatentMemoryError):
        unpickled(b"\x80\x04" + b"".join(program) + b".", "x")


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda data: b"\x80\x04" + data + b"."))
def test_any_bytes_give_data_or_an_error_of_ours(data: bytes) -> None:
    with contextlib.suppress(LatentMemoryError):
        unpickled(data, "x")


# -- the format -----------------------------------------------------------------------------------------------


def test_a_written_file_is_read_by_pickle_and_refused_when_changed(tmp_path: Path) -> None:
    path = tmp_path / "memory.pkl"
    entries = [{"conversation_id": str(i), "summary": "text", "timestamp": None} for i in range(2)]
    layout.write(path, Snapshot.of(np.eye(2, dtype=np.float32), entries))
    with path.open("rb") as file:
        plainly = pickle.load(file)
    assert plainly["embeddings"].tolist() == [[1, 0], [0, 1]]
    assert plainly["metadata"][1]["summary"] == "text"
    assert layout.read(path).entries == entries

    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(LatentMemoryError, match=r"memory\.pkl"):
            layout.read(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(LatentMemoryError, match=r"memory\.pkl"):
            layout.read(path)


def test_opening_an_attack_runs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "memory.pkl"
    buffer = io.BytesIO()
    pickle.dump({"embeddings": Calls(os.system, f"touch {tmp_path / 'canary'}"), "metadata": []}, buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"system"):
        LatentMemory.open(path)
    assert [file.name for file in tmp_path.iterdir()] == ["memory.pkl"]
