"""What nobody should hand in: every reader refuses it with one message, and never reads memory that is not its own."""

from __future__ import annotations

import contextlib
import fnmatch
import gzip
import json
import os
import re
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.auditing.commands import read_command
from autotune.calibrating.benchmarks import read_benchmark
from autotune.calibrating.fits import fit_table
from autotune.calibrating.timings import TimingTable, read_timings
from autotune.calibrating.traces import KernelRules
from autotune.calibrating.traces import read_kernel_trace as read_kernels
from autotune.cli.main import main
from autotune.documents.deployment import Deployment
from autotune.documents.planned_placement import PlannedPlacement
from autotune.errors import ProblemError
from autotune.placement.arrays_file import read_npy, read_npz
from autotune.placement.loads import read_loads
from autotune.placement.placing import checked_experts
from autotune.placement.torch_file import read_torch_file
from autotune.serving.requests import read_trace
from autotune.validating.cases import Measured
from cost_models import reading
from cost_models.catalog import _packaged, load_calibration, load_hardware, load_model, raw_calibration, read_yaml
from cost_models.elementwise import ElementwiseCoefficients
from cost_models.errors import AutotuneError, InputError
from cost_models.huggingface import model_from_config
from cost_models.patterns import compiled, wildcard

MODEL = load_model("deepseek-v3")
COUNTS = np.arange(58 * 256, dtype=np.int64).reshape(58, 256) + 1


# ---- torch files: a description written by hand, and bytes that belong to it


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def whole(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def sizes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(whole(value) for value in values) + b"t"


def tensor(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, *, kind: str = "LongStorage", count: int = COUNTS.size
) -> bytes:
    """What torch.save writes for one tensor, in the order of its arguments."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("0") + text("cpu") + whole(count) + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + whole(offset) + sizes(size) + sizes(stride) + b"\x89N" + b"tR"


def saved(path: Path, description: bytes, storage: bytes = COUNTS.tobytes()) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + description + b".")
        archive.writestr("archive/data/0", storage)
    return path


def test_a_tensor_is_what_its_strides_say(tmp_path):
    assert np.array_equal(read_torch_file(saved(tmp_path / "a.pt", tensor((58, 256), (256, 1)))), COUNTS)
    assert np.array_equal(read_torch_file(saved(tmp_path / "b.pt", tensor((256, 58), (1, 256)))), COUNTS.T)
    assert np.array_equal(read_torch_file(saved(tmp_path / "c.pt", tensor((57, 256), (256, 1), 256))), COUNTS[1:])
    assert read_torch_file(saved(tmp_path / "d.pt", b"}" + text("a") + tensor((2,), (0,)) + b"s"))["a"].tolist() == [1, 1]
    assert read_torch_file(saved(tmp_path / "e.pt", tensor((), ()))).shape == ()


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.lists(st.integers(0, 400), min_size=1, max_size=4),
    st.integers(0, 300),
)
def test_a_tensor_lies_inside_its_storage_or_is_refused(tmp_path_factory, size, stride, offset):
    """Element by element: the same numbers as looking each of them up, or an error exactly where one would lie outside."""
    path = saved(
        tmp_path_factory.mktemp("t") / "a.pt", tensor(tuple(size), tuple(stride), offset, count=256), COUNTS[0].tobytes()
    )
    size, stride = size[: len(stride)], stride[: len(size)]
    path = saved(path, tensor(tuple(size), tuple(stride), offset, count=256), COUNTS[0].tobytes())
    places = offset + sum(np.indices(size)[axis] * step for axis, step in enumerate(stride))
    if places.size and places.max() >= 256:
        with pytest.raises(ProblemError, match="last element"):
            read_torch_file(path)
    else:
        found = read_torch_file(path)
        assert found.shape == tuple(size)
        assert np.array_equal(found, COUNTS[0][places.astype(int)] if places.size else found)


HOSTILE_PICKLES = {
    "stride": tensor((58, 256), (10**9, 1)),
    "size": tensor((10**6, 10**6), (0, 0)),
    "negative": tensor((-1, 2), (1, 1)),
    "negative stride": tensor((58, 256), (-1, 1)),
    "offset": tensor((1,), (1,), 10**12),
    "negative offset": tensor((1,), (1,), -1),
    "ranks": tensor((58, 256), (1,)),
    "more than stored": tensor((58, 256), (256, 1), count=10**9),
    "wider than stored": tensor((58, 256), (256, 1), kind="DoubleStorage", count=COUNTS.size + 1),
    "other storage": tensor((58, 256), (256, 1), kind="QInt8Storage"),
    "a function": b"cos\nsystem\n" + text("touch pwned") + b"\x85R",
    "a builtin": b"cbuiltins\neval\n" + text("1") + b"\x85R",
    "a storage called": b"ctorch\nLongStorage\n(tR",
    "an extension": b"\x82\x01",
    "another protocol": b"\x80\x63N",
    "a short id": b"(" + text("a") + b"tQ",
    "endless frame": b"\x95" + b"\xff" * 8 + b"N",
    "endless text": b"X\xff\xff\xff\x7fabc",
    "endless bytes": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "a huge memory": b"Nr\xff\xff\xff\x7f",
    "an empty memory": b"h\x05",
    "nothing on the stack": b"R",
    "no mark": b"t",
    "marks": b"((((",
    "set on nothing": b"NNNs",
    "append to a tuple": b")Na",
    "a dictionary as a key": b"}}Ns",
    "broken text": b"X\x01\x00\x00\x00\xff",
    "many digits": b"I" + b"9" * 5000 + b"\n",
    "a persistent text": b"Pabc\n",
    "state of a list": b"]}b",
    "rebuilt from nothing": b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    "rebuilt from a list": b"ctorch._utils\n_rebuild_tensor_v2\n(]NNNtR",
    "nested": b"]" * 100_000 + b"a" * 99_999,
    "a name with an escape": b"ctorch\n\x1b[2J\n)R",
}


@pytest.mark.parametrize("description", HOSTILE_PICKLES.values(), ids=HOSTILE_PICKLES.keys())
def test_a_crafted_description_is_refused(tmp_path, description):
    with pytest.raises(ProblemError):
        read_loads([saved(tmp_path / "l.pt", description)], MODEL)
    assert not list(tmp_path.glob("pwned"))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 400))
def test_any_bytes_in_a_description_give_a_message_or_arrays(tmp_path_factory, changes, cut):
    raw = bytearray(tensor((58, 256), (256, 1)))
    for at, byte in changes:
        raw[at % len(raw)] = byte
    path = saved(tmp_path_factory.mktemp("m") / "l.pt", bytes(raw[: cut or None]))
    with contextlib.suppress(AutotuneError):
        read_loads([path], MODEL)


# ---- archives and arrays


def packed(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


def header(shape: str, dtype: str = "<i8") -> bytes:
    return (
        b"\x93NUMPY\x01\x00v\x00"
        + f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117)
        + b"\n"
    )


def test_archives_that_unpack_to_more_than_they_may_are_refused_before(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ARRAYS", reading.Limit(10_000, "bytes of arrays"))
    monkeypatch.setattr("autotune.placement.arrays_file.ARRAYS", reading.ARRAYS)
    monkeypatch.setattr("autotune.placement.torch_file.DESCRIPTION", reading.ARRAYS)
    with pytest.raises(ProblemError, match="1,000,000 bytes of arrays, at most 10,000"):
        read_npz(packed(tmp_path / "a.npz", "a.npy", b"\0" * 10**6))
    with pytest.raises(ProblemError, match="1,000,000 bytes of arrays, at most 10,000"):
        read_torch_file(packed(tmp_path / "a.pt", "a/data.pkl", b"\0" * 10**6))
    (tmp_path / "b.npy").write_bytes(b"\0" * 20_000)
    with pytest.raises(ProblemError, match="20,000 bytes of arrays, at most 10,000"):
        read_npy(tmp_path / "b.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("(58, 1000000000)"), "0 bytes follow: cut off"),
        (header("(-1, 4)") + b"\0" * 32, "bytes follow"),
        (header("(1000000000, 1000000000, 1000000000)"), "bytes follow"),
        (header("(1,)", "O") + b"\0" * 8, "holds object"),
        (header("(1,)", "<U2") + b"\0" * 8, "not numbers"),
        (header("(1,)", "V1000000000"), "not numbers"),
        (b"\x93NUMPY\x09\x00", "version 9"),
        (b"PK\x03\x04", "cannot be read as an array"),
        (b"", "cannot be read as an array"),
    ],
)
def test_a_header_is_held_against_the_bytes_that_follow(tmp_path, content, message):
    (tmp_path / "l.npy").write_bytes(content)
    with pytest.raises(ProblemError, match=message):
        read_loads([tmp_path / "l.npy"], MODEL)


def test_arrays_are_read_as_numpy_reads_them(tmp_path):
    for array in (COUNTS, np.asfortranarray(COUNTS), COUNTS.astype(">f4"), np.array(3.0), np.zeros((0, 4))):
        np.save(tmp_path / "a.npy", array)
        assert np.array_equal(read_npy(tmp_path / "a.npy"), array)
        np.savez_compressed(tmp_path / "a.npz", x=array)
        assert np.array_equal(read_npz(tmp_path / "a.npz")["x"], array)


def test_counts_are_not_added_beyond_what_whole_numbers_hold(tmp_path):
    np.save(tmp_path / "l.npy", np.full((4, 58, 256), 2**62, dtype=np.int64))  # 4 x 2^62 wraps around to 0
    with pytest.raises(ProblemError, match=r"at most 1e\+15"):
        read_loads([tmp_path / "l.npy"], MODEL)


# ---- documents


HOSTILE_DOCUMENTS = {
    "int tag": b"a: !!int abc",
    "float tag": b"a: !!float abc",
    "bool tag": b"a: !!bool maybe",
    "timestamp tag": b"a: !!timestamp x",
    "date": b"a: 2026-99-99",
    "python tag": b"a: !!python/object/apply:os.system ['touch pwned']",
    "binary tag": b"a: !!binary '\xc3\xa9'",
    "digits": b"a: " + b"9" * 5000,
    "depth": b"[" * 100_000,
    "block depth": b"- " * 100_000,
    "depth that libyaml takes": b"[" * 500 + b"]" * 500,
    "recursion": b"a: &a [*a]",
    "laughs": b"a: &a [1,1,1,1,1,1,1,1,1]\n"
    + b"".join(b"%c: &%c [%s]\n" % (n, n, b",".join([b"*%c" % (n - 1)] * 9)) for n in range(98, 110)),
    "twice": b"phase: decode\nphase: prefill",
    "twice inside": b"pools: {decode: {tp: 1, tp: 2}}",
    "not UTF-8": b"a: \xff\xfe",
    "NUL": b"a: \0",
    "key that is a list": b"? [a]\n: 1",
    "infinity": b"layers: .inf",
    "beyond floats": b"layers: 1.0e+400",
    "beyond arrays": b"layers: 9223372036854775808",
    "empty": b"",
    "a list": b"- 1",
    "a merge of nothing": b"<<: 1",
    "an undefined alias": b"a: *b",
}


@pytest.mark.slow
@pytest.mark.parametrize("content", HOSTILE_DOCUMENTS.values(), ids=HOSTILE_DOCUMENTS.keys())
def test_a_hostile_document_is_one_message_that_names_the_file(tmp_path, content, monkeypatch, capsys):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    for words in (["predict", "x.yaml"], ["search", "--hw", "./x.yaml"], ["search", "--problem", "x.yaml", "--hw", "hgx-h200"]):
        code, err = ran(words, monkeypatch, capsys)
        assert code == 1 or (b"phase" not in content and not content and code in (0, 1, 2))
        assert err.startswith("error: ")
        assert len(err) < 3000
    assert not (tmp_path / "pwned").exists()


def ran(words: list[str], monkeypatch, capsys) -> tuple[int, str]:
    """Exit code and error text of a command; a fault of its own is an exception."""
    monkeypatch.setenv("AUTOTUNE_TRACEBACK", "1")
    monkeypatch.setattr("sys.argv", ["autotune", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\xff\xfe{",
        b'{"a": 1, "a": 2}',
        b'{"hidden_size": 1e400}',
        b"",
        b"null",
        b"[]",
    ],
)
def test_a_hostile_config_is_one_message(tmp_path, content):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(AutotuneError, match=r"c\.json"):
        load_model(str(tmp_path / "c.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts_per_tok": 200}, "200 experts per token of 128"),
        ({"num_experts": 10**9}, r"num_experts 1e\+09 is more than any model has"),
        ({"num_experts": 1, "num_experts_per_tok": 1}, "is a dense layer"),
        ({"num_key_value_heads": 2**63}, "is beyond 1e"),
        ({"num_key_value_heads": 10**12}, "more than any model has"),
        ({"num_hidden_layers": 10**6}, "more than any model has"),
        ({"head_dim": -1}, "head_dim"),
        ({"hidden_size": 0}, "hidden"),
    ],
)
def test_sizes_that_no_model_has_are_named(tmp_path, change, message):
    config = {**_packaged("models", "qwen3-235b-a22b")["config"], **change}
    (tmp_path / "m.json").write_text(json.dumps(config))
    with pytest.raises(AutotuneError, match=message):
        load_model(str(tmp_path / "m.json"))


@pytest.mark.parametrize("value", [0.0, -1.0, 1e300])
def test_facts_and_coefficients_have_bounds(tmp_path, value):
    hardware = load_hardware("hgx-h200").model_dump(mode="json")
    places = [("gpu", "processors"), ("gpu", "hbm_visible_bytes"), ("gpu", "hbm_bytes_per_s"), ("scale_up", "bytes_per_s"),
              ("scale_out", "nic_bits_per_s"), ("host_link", "bytes_per_s")]  # fmt: skip
    for group, name in places:
        changed = json.loads(json.dumps(hardware))
        changed[group][name]["value"] = value
        (tmp_path / f"{group}{name}.yaml").write_text(json.dumps(changed))
        with pytest.raises(AutotuneError, match=name):
            load_hardware(str(tmp_path / f"{group}{name}.yaml"))
    entry = raw_calibration("h200-vllm")
    for name in ("compute_efficiency", "start_s") if value else ("compute_efficiency",):
        changed = json.loads(json.dumps(entry))
        changed["families"]["grouped_gemm"]["fp8_block"]["coefficients"][name] = value
        (tmp_path / f"{name}.yaml").write_text(json.dumps(changed))
        with pytest.raises(AutotuneError, match=name):
            load_calibration(str(tmp_path / f"{name}.yaml"))


# ---- names, folders, pipes


def test_names_that_are_none_are_one_message(tmp_path):
    for name, message in (
        ("a\0b.yaml", "NUL"),
        ("n" * 300 + ".yaml", "too long"),
        ("none.yaml", "no such file"),
        ("\udcff.yaml", "UTF-8"),
    ):
        with pytest.raises(InputError, match=message):
            read_yaml(tmp_path / name)
        for read in (read_benchmark, read_timings, read_trace, read_npy, read_torch_file, read_kernels):
            with pytest.raises(AutotuneError, match=message):
                read(tmp_path / name)


def test_folders_pipes_and_devices_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.csv", "folder.csv"):
        for read in (read_benchmark, read_timings, read_trace, read_npy, read_torch_file, read_kernels):
            with pytest.raises(AutotuneError, match=r"is a folder|is no regular file"):
                read(tmp_path / name)
    with pytest.raises(InputError, match="is a folder"):
        read_yaml(tmp_path / "folder.csv")
    with pytest.raises(InputError, match="is no regular file"):
        read_yaml(Path("/dev/zero"))


def test_a_document_may_come_through_a_pipe_and_is_read_once(tmp_path):
    path = tmp_path / "pipe.yaml"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("a: 1",))
    writer.start()
    assert read_yaml(path) == {"a": 1}
    writer.join()
    assert read_yaml(path) == {"a": 1}  # what looks twice finds the same


def test_a_pipe_without_a_writer_does_not_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PIPE_WAIT_S", 0.2)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(InputError, match="nothing came"):
        read_yaml(tmp_path / "pipe.yaml")


def test_limits_are_said_with_both_numbers(tmp_path):
    with (tmp_path / "x.yaml").open("wb") as file:
        file.truncate(reading.DOCUMENT.most + 1)
    with pytest.raises(InputError, match="16,777,217 bytes of a document, at most 16,777,216 are read"):
        read_yaml(tmp_path / "x.yaml")
    assert all(limit.most > 0 and limit.of for limit in reading.LIMITS.values())


# ---- measurements


def test_what_unpacks_without_end_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "autotune.calibrating.traces.unpacked", lambda path: reading.unpacked(path, reading.Limit(10**5, "bytes"))
    )
    (tmp_path / "t.json.gz").write_bytes(gzip.compress(b" " * 10**7))
    with pytest.raises(ProblemError, match="at most 100,000 are read"):
        read_kernels(tmp_path / "t.json.gz")
    broken = bytearray(gzip.compress(json.dumps({"traceEvents": [{"a": i} for i in range(999)]}).encode()))
    broken[20:40] = b"\xff" * 20
    (tmp_path / "b.json.gz").write_bytes(broken)
    with pytest.raises(ProblemError, match="cannot be read"):
        read_kernels(tmp_path / "b.json.gz")


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JUNK = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.text(max_size=3), LEAVES, max_size=2)
EVENT = st.fixed_dictionaries({"cat": st.just("kernel"), "dur": JUNK}, optional={"name": JUNK, "ts": JUNK, "pid": JUNK})


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENT, max_size=3))
def test_events_of_any_type_give_times_or_a_message(tmp_path_factory, events):
    path = tmp_path_factory.mktemp("t") / "t.json"
    path.write_text(json.dumps({"traceEvents": events}))
    with contextlib.suppress(AutotuneError):
        times = read_kernels(path)
        assert all(isinstance(kernel.name, str) and 0 <= total < np.inf for kernel, total in times.total_s.items())


RESULT = {
    "median_tpot_ms": 9.0, "median_itl_ms": 9.0, "mean_tpot_ms": 9.0, "completed": 8, "total_input_tokens": 800,
    "total_output_tokens": 800, "output_throughput": 100.0, "request_throughput": 1.0, "max_concurrency": 8, "concurrency": 7.0,
    "request_rate": 1.0, "mean_ttft_ms": 90.0, "median_ttft_ms": 90.0, "accept_length": 1.0, "model_id": "a", "gpu": "H200",
}  # fmt: skip


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(RESULT)), JUNK, max_size=3))
def test_results_of_any_type_give_points_or_a_message(tmp_path_factory, changes):
    path = tmp_path_factory.mktemp("b") / "b.json"
    path.write_text(json.dumps({**RESULT, **changes}))
    with contextlib.suppress(AutotuneError):
        for point in read_benchmark(path)[0]:
            assert 0 < point.token_s < np.inf
            assert 0 <= point.sequences <= 10**6


COLUMNS = ("operator", "dtype", "gpu", "m", "n", "k", "latency_us")


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({}, optional={name: JUNK | st.just("dense_gemm") | st.just(5) for name in (*COLUMNS, "x")}),
        max_size=3,
    )
)
def test_rows_of_any_type_give_numbers_or_a_message(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("r") / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with contextlib.suppress(AutotuneError):
        table = read_timings(path)
        assert (table.rows.latency_s > 0).all()


@pytest.mark.parametrize(
    "line",
    [
        '{"timestamp":0,"input_length":1e300,"output_length":5}',
        '{"a":' * 50_000,
        "[]",
        "null",
        '{"timestamp":"x"}',
        "{" + "9" * 9999,
        "{\0}",
    ],
)
def test_lines_of_a_request_log_are_named_where_they_are_wrong(tmp_path, line):
    (tmp_path / "r.jsonl").write_text('{"timestamp":0,"input_length":5,"output_length":5}\n' + line + "\n")
    with pytest.raises(ProblemError, match="line 2"):
        read_trace(tmp_path / "r.jsonl")


def test_azure_traces_of_2023_and_2024_are_read_alike(tmp_path):
    """2023 writes times without a zone and seven digits, 2024 with a zone and six: both are UTC."""
    head = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    (tmp_path / "2023.csv").write_text(head + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n")
    (tmp_path / "2024.csv").write_text(head + "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01.01+00:00,239,6\n")
    assert read_trace(tmp_path / "2023.csv").arrival_s[1] == pytest.approx(4.314579, abs=2e-6)
    assert read_trace(tmp_path / "2024.csv").arrival_s[1] == pytest.approx(1.00007, abs=2e-6)


# ---- options


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "--hw", "hgx-h200", "--seed", "-1"], "seed: .*not -1"),
        (["search", "--hw", "hgx-h200", "--seed", "2147483648"], "2147483648 is beyond"),
        (["search", "--hw", "hgx-h200", "--throughput", "nan"], "not a finite number"),
        (["search", "--hw", "hgx-h200", "--isl", "9" * 40], "is beyond"),
        (["check", "d.yaml", "--tpot", "0s"], "tpot_s: .*greater than 0, not 0"),
        (["check", "d.yaml", "--tpot", "1e400s"], "longer than"),
        (["check", "d.yaml", "--throughput", "inf"], "not a finite number"),
        (["place", "--synthetic", "1", "--gpus", "8", "--redundant", "100000"], "100,000 redundant experts"),
        (["search", "--hw", "hgx-h200", "--target", "serve", "--rate", "1e-300"], "rate_per_s: .*equal to 0.000001"),
        (["place", "--synthetic", "1e300", "--gpus", "8"], "synthetic"),
    ],
)
def test_options_out_of_range_are_named_with_their_value(tmp_path, words, message, monkeypatch, capsys):
    pool = {"dp": 8, "ep": 8, "batch_per_dp_rank": 8, "all2all_backend": "deepep_low_latency"}
    deployment = Deployment.model_validate({
        "hardware": "hgx-h200", "model": "deepseek-v3", "precision": "fp8-block", "engine": {"name": "vllm"},
        "workload": {"isl_tokens": 100, "osl_tokens": 100}, "pools": {"decode": pool},
    })  # fmt: skip
    (tmp_path / "d.yaml").write_text(deployment.model_dump_json())
    monkeypatch.chdir(tmp_path)
    code, err = ran(words, monkeypatch, capsys)
    assert code in (1, 2)
    assert re.search(message, err), err


# ---- configurations


CONFIG_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 7168, "num_hidden_layers": 61, "first_k_dense_replace": 3,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "num_nextn_predict_layers": 1, "vocab_size": 129280,
    "max_position_embeddings": 163840,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("first_k_dense_replace", 62, "more dense layers than layers"),
        ("first_k_dense_replace", 3_000_000, "first_k_dense_replace must be a whole number"),
        ("n_shared_experts", {"value": 1}, "n_shared_experts must be a whole number"),
        ("q_lora_rank", -1, "q_lora_rank must be a whole number"),
        ("num_experts_per_tok", True, "num_experts_per_tok must be a whole number"),
        ("rope_theta", {"value": 1}, None),  # nothing is computed with it
    ],
)
def test_counts_of_a_config_are_counts(key, value, said):
    config = CONFIG_V3
    if said is None:
        assert model_from_config({**config, key: value}, name="x", source="x").layers == 61
        return
    with pytest.raises(AutotuneError, match=said):
        model_from_config({**config, key: value}, name="x", source="x")


# ---- what a day of mutated documents found, each by its kind

CONFIG = _packaged("models", "deepseek-v3")["config"]


def written_config(folder: Path, **changes: object) -> str:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return str(folder / "config.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_shared_experts": {"a": 1}}, "n_shared_experts"),
        ({"moe_intermediate_size": [2048]}, "intermediate"),
        ({"first_k_dense_replace": 3_000_000}, "first_k_dense_replace 3e"),
        ({"first_k_dense_replace": 500}, "more dense layers than layers|500 dense layers"),
        ({"quantization_config": {"quant_method": "fp8", "ignored_layers": ["re:(?!a)b"]}}, "look-around"),
    ],
)
def test_a_value_of_another_kind_in_a_config_is_named(tmp_path, changes, said):
    with pytest.raises(AutotuneError, match=said) as error:
        load_model(written_config(tmp_path, **changes))
    assert "unsupported operand" not in str(error.value)


CATASTROPHIC = ["(a+)+$", "(a|a)*b", "(.*a){20}c", "(x+x+)+y", r"^(\w+\s?)*$"]
"""Each takes time beyond any limit on fifty letters where an engine tries one way after the other."""


@pytest.mark.parametrize("pattern", CATASTROPHIC)
def test_patterns_of_people_take_linear_time(tmp_path, pattern):
    """That this test ends is the claim: 2^50 steps do not."""
    rules = KernelRules.model_validate({"rules": [{"pattern": pattern, "family": "ignore"}]})
    assert rules.family("a" * 50 + "x" * 50 + "!") in (None, "ignore")
    left_out = {"quant_method": "fp8", "ignored_layers": [f"re:.*{pattern}", "lm_head"]}
    assert load_model(written_config(tmp_path, quantization_config=left_out)).layers == 61


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?<=a)b", "a" * 3000, "((a{1000}){1000}){1000}"])
def test_a_rule_that_cannot_be_matched_in_linear_time_is_refused(pattern):
    with pytest.raises(ValueError, match=r"RE2|at most 2000"):
        KernelRules.model_validate({"rules": [{"pattern": pattern, "family": "ignore"}]})


@settings(max_examples=300, deadline=None)
@given(st.text("ab.[]!-*?", max_size=8), st.text("ab.[]!-", max_size=6))
def test_wildcards_mean_what_they_mean_in_a_shell(pattern, name):
    expected = re.match(fnmatch.translate(pattern), name) is not None
    try:
        found = compiled(wildcard(pattern)).fullmatch(name) is not None
    except ValueError:  # a range that runs backwards: the shell matches nothing, here it is said
        return
    assert found == expected


def test_text_that_is_not_utf8_in_a_parquet_file_is_a_message(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    names = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"g\xff")])
    table = pa.table({"operator": names, "dtype": ["bf16"], "gpu": ["H200"], "latency_us": [1.0]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ProblemError, match="cannot be read"):
        read_timings(tmp_path / "t.parquet")


def test_a_table_without_any_row_left_says_what_was_left_out():
    import pandas as pd

    table = TimingTable(pd.DataFrame(), {"less than one token per expert": 3})
    with pytest.raises(ProblemError, match=r"no timing is left to fit \(3 of less than one token"):
        fit_table(table, load_hardware("hgx-h20"), load_calibration("h200-vllm"))


def test_a_calibration_that_lacks_coefficients_says_which():
    calibration = load_calibration("h200-vllm")
    entry = calibration.entry("elementwise", "default").model_copy(update={"coefficients": {"launch_s": 1.0}})
    with pytest.raises(AutotuneError, match=r"lacks hidden_passes, .* and does not know launch_s"):
        calibration.of(entry, ElementwiseCoefficients, "elementwise.default")


def lines(*changes: tuple[int, str]) -> tuple[str, ...]:
    """The map of a model of 58 layers with experts on 32 GPUs, 8 on each, with some layers otherwise."""
    whole = " | ".join(" ".join(str(8 * gpu + slot) for slot in range(8)) for gpu in range(32))
    return tuple(dict(changes).get(layer, whole) for layer in range(58))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([(3, lines()[0].replace("255", "0"))], "no replica of expert 255 in layer 6"),
        ([(0, lines()[0].replace("255", "256"))], "expert 256 in layer 3"),
        ([(1, lines()[0].rsplit(" | ", 1)[0])], "differ in size"),
    ],
)
def test_the_map_of_an_edited_plan_is_checked_before_an_engine_gets_it(changes, said):
    assert checked_experts(planned(lines()).experts, MODEL).shape == (58, 32, 8)
    with pytest.raises(ProblemError, match=said):
        checked_experts(planned(lines(*changes)).experts, MODEL)


@pytest.mark.parametrize("line", ["0 1{50 2", "", "0 |1", "-1 2", "0  1", "٣ 1", "1" * 7])
def test_a_line_of_a_map_is_numbers(line):
    with pytest.raises(ValueError, match=r"layers\.0"):
        planned((line,))


def planned(layers: tuple[str, ...]) -> PlannedPlacement:
    return PlannedPlacement(gpus=32, slots=256, balanced=1.0, eplb_balanced=1.0, median_gap=0.0, layers=layers)


@pytest.mark.parametrize("option", ["--compilation-config '[1]'", "--speculative-config 5", "--eplb-config '\"x\"'"])
def test_a_document_of_another_type_in_an_option_is_refused_by_name(tmp_path, monkeypatch, capsys, option):
    (tmp_path / "s.sh").write_text(f"vllm serve deepseek-ai/DeepSeek-V3 --tensor-parallel-size 8 --enable-eplb {option}\n")
    code, err = told(monkeypatch, capsys, "check", str(tmp_path / "s.sh"), "--hw", "hgx-h200")
    assert code == 1
    assert f"{option.split()[0]} needs a JSON object" in err


def test_a_fault_of_autotunes_own_is_not_called_an_option_of_the_users(tmp_path, monkeypatch, capsys):
    (tmp_path / "s.sh").write_text("vllm serve deepseek-ai/DeepSeek-V3 --tensor-parallel-size 8\n")
    monkeypatch.setattr("autotune.auditing.commands.pool_of_command", lambda *_: 1 / 0)
    code, err = told(monkeypatch, capsys, "check", str(tmp_path / "s.sh"), "--hw", "hgx-h200")
    assert code == 1
    assert "a fault of autotune's own" in err
    assert "ZeroDivisionError" in err
    monkeypatch.setenv("AUTOTUNE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main()


def told(monkeypatch, capsys, *words: str) -> tuple[int, str]:
    """Exit code and message of a command."""
    monkeypatch.setattr("sys.argv", ["autotune", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize("families", ["text", ["dense_gemm"], {"dense_gemm": "text"}, {"dense_gemm": [1]}, {"dense_gemm": None}])
def test_families_of_a_calibration_are_mappings(tmp_path, families):
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"id": "mine", "inherits": "h200-vllm", "families": families}))
    with pytest.raises(AutotuneError, match="must be a mapping"):
        load_calibration(str(path))


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("fit", {"measured_over_predicted_80": [-0.9, 1.1]}, "-0.9 to 1.1 are no ratios"),
        ("fit", {"measured_over_predicted_80": [1.1, 0.9]}, "1.1 to 0.9 are no ratios"),
        ("fit", {"measured_over_predicted_80": [1e-29, 1.1]}, "1e-29 to 1.1 are no ratios"),
        ("box", {"n": [8, 4]}, "goes from 8 to 4"),
        ("ci95", {"compute_efficiency": [0.9, 0.8]}, "goes from 0.9 to 0.8"),
    ],
)
def test_intervals_of_a_calibration_have_their_lower_end_first(tmp_path, part, value, said):
    raw = raw_calibration("h200-vllm")
    raw = json.loads(json.dumps(raw))
    entry = raw["families"]["dense_gemm"]["bf16"]
    entry[part] = {**entry[part], **value}
    (tmp_path / "c.yaml").write_text(json.dumps(raw))
    with pytest.raises(AutotuneError, match=said):
        load_calibration(str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("length", ["9" * 400, "9" * 400 + "k", "1e999"])
def test_lengths_beyond_any_number_are_one_message(length):
    text = f"vllm serve deepseek-ai/DeepSeek-R1 --tensor-parallel-size 8 --max-model-len {length}"
    with pytest.raises(AutotuneError, match="max-model-len"):
        read_command(text, hardware="hgx-h200", version="0.24", isl_tokens=100, osl_tokens=100)


@pytest.mark.parametrize(("name", "value"), [("tpot_s", 1e-320), ("ttft_s", 1e300), ("tokens_per_s_per_gpu", 1e-300)])
def test_measurements_that_no_engine_has_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        Measured(**{"tokens_per_s_per_gpu": 100.0, name: value})
