"""Whole commands, in process: outputs, exit codes and messages."""

from __future__ import annotations

import csv
import json
import stat
from pathlib import Path

import numpy as np
import pytest
import yaml

from autotune.cli.main import _narrowed, app, main
from autotune.documents.plan import SearchResult
from autotune.exporters.folders import _exported
from autotune.validating.cases import published

FAST = ["--trials", "6"]
SMALL = ("--model", "qwen3-30b-a3b", "--gpus", "4")
"""For what any search does: a quarter of the layouts of the default model on a whole machine."""


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["autotune", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def test_the_main_job_writes_a_complete_run_folder(run, tmp_path):
    code, out, err = run("search", "--hw", "gb200-nvl72", "--target", "decode", "--out", str(tmp_path), *FAST)
    assert (code, err) == (0, "")
    folder = next(tmp_path.iterdir())
    assert folder.name.endswith("_gb200-nvl72_deepseek-v3_decode")
    assert sorted(p.name for p in folder.iterdir()) == [
        "candidates.json", "launch", "plan.yaml", "report.html", "run.json", "trials.csv",
    ]  # fmt: skip
    for text in (
        "tokens/s/GPU",
        "Why not",
        "TP attention",
        "Step time by operator",
        "Memory per GPU",
        "Assumed",
        "Searched",
        str(folder),
    ):
        assert text in out
    document = json.loads((folder / "run.json").read_text())
    assert document["versions"]["python"]
    assert document["calibrations"] == ["gb200-vllm"]
    assert document["solver"][0]["status"] == "ENUMERATED"
    assert document["command"][1:4] == ["search", "--hw", "gb200-nvl72"]
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    assert [row["origin"] for row in rows[:2]] == ["analytic", "defaults"]
    assert len(rows) == 6
    scripts = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.sh"))
    assert scripts == [f"launch/plan-{i}/decode_node.sh" for i in (1, 2, 3)]
    assert (folder / scripts[0]).stat().st_mode & stat.S_IXUSR
    assert not list(tmp_path.glob(".autotune-*"))


@pytest.mark.slow
def test_wide_expert_parallelism_with_dp_attention_is_proposed_on_gb200(run, tmp_path):
    code, out, _ = run(
        "search",
        "--hw",
        "gb200-nvl72",
        "--isl",
        "2000",
        "--osl",
        "2000",
        "--tpot",
        "110ms",
        "--out",
        str(tmp_path),
        "--json",
        *FAST,
    )
    assert code == 0
    result = SearchResult.model_validate_json(out)
    layout = result.best.layout
    assert layout.tp == 1
    assert layout.ep == layout.dp >= 8
    lost = {a.kind: a for a in result.alternatives}
    assert "copies of each KV cache" in lost["TP attention, TP experts"].reason


@pytest.mark.slow
def test_a_second_run_gets_its_own_folder(run, tmp_path):
    for _ in range(2):
        run("search", "--hw", "hgx-b200", *SMALL, "--out", str(tmp_path), "--trials", "0")
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 2
    assert names[1] == names[0] + "_2"


def test_plan_yaml_round_trips_through_predict_and_export(run, tmp_path):
    run("search", "--hw", "gb200-nvl72", "--engine", "sglang", "--gpus", "16", "--out", str(tmp_path / "r"), *FAST)
    folder = next((tmp_path / "r").iterdir())
    result = SearchResult.model_validate(yaml.load((folder / "plan.yaml").read_text(), Loader=yaml.CSafeLoader))
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text(yaml.safe_dump(result.best.deployment.model_dump(mode="json")))
    code, out, _ = run("predict", str(deployment), "--json")
    assert code == 0
    assert json.loads(out)["tokens_per_s_per_gpu"] == pytest.approx(result.best.prediction.tokens_per_s_per_gpu)
    code, out, _ = run("export", str(folder), "--rank", "2")
    assert code == 0
    assert out.strip() == (folder / "launch/plan-2/decode_node.sh").read_text().strip()
    code, out, _ = run("export", str(folder), "--out", str(tmp_path / "scripts"))
    assert code == 0
    assert "Decode side of a disaggregated pair" in out
    assert (tmp_path / "scripts" / "decode_node.sh").exists()


def test_a_problem_file_equals_the_options(run, tmp_path):
    problem = tmp_path / "problem.yaml"
    data = {"hardware": "hgx-b200", "model": "qwen3-235b-a22b", "tpot_limit_s": 0.05, "trials": 0}
    problem.write_text(yaml.safe_dump({**data, "workload": {"isl_tokens": 1000, "osl_tokens": 500}}))
    _, from_file, _ = run("search", "--problem", str(problem), "--no-save", "--json")
    options = [
        "--hw",
        "hgx-b200",
        "--model",
        "qwen3-235b-a22b",
        "--tpot",
        "50ms",
        "--trials",
        "0",
        "--isl",
        "1000",
        "--osl",
        "500",
    ]
    _, from_options, _ = run("search", *options, "--no-save", "--json")
    first, second = (SearchResult.model_validate_json(text) for text in (from_file, from_options))
    assert first.plans == second.plans


TRTLLM = ("search", "--hw", "hgx-b200", "--engine", "trtllm", "--gpus", "8", "--trials", "0")


def test_a_version_without_scripts_gives_a_plan_and_says_so(run, tmp_path):
    code, out, _ = run(*TRTLLM, "--engine-version", "1.1", "--out", str(tmp_path))
    assert code == 0
    assert "scripts are written for TensorRT-LLM 1.3; 1.1 is judged and predicted only" in out
    assert not list(tmp_path.glob("*/launch/*/*.sh"))


def test_a_tensorrt_llm_plan_is_launched_from_a_settings_file_and_read_back(run, tmp_path):
    assert run(*TRTLLM, "--out", str(tmp_path))[0] == 0
    (folder,) = tmp_path.glob("*/launch/plan-1")
    assert {path.name for path in folder.iterdir()} == {"README.md", "decode_node.sh", "decode_settings.yml"}
    plan = json.loads(run("check", str(next(tmp_path.iterdir())), "--json")[1])
    written = json.loads(run("check", str(folder), "--json")[1])
    assert (written["answer"], written["gpus"]) == (plan["answer"], plan["gpus"])


def test_predict_prints_every_part(run, tmp_path):
    code, out, _ = run("predict", str(_deployment(tmp_path)))
    assert code == 0
    for text in ("tokens/s/GPU", "TPOT", "experts", "x roofline", "moe layers", "expert weights", "bottleneck", "room for KV"):
        assert text in out


SERVICE = """
hardware: gb200-nvl72
model: deepseek-r1
precision: nvfp4
engine: {name: sglang}
phase: serve
workload: {isl_tokens: 1024, osl_tokens: 256}
pools: {serve: {tp: 4}}
"""


def test_predict_replays_a_service(run, tmp_path):
    document = tmp_path / "service.yaml"
    document.write_text(SERVICE + "load: {concurrency: 8}\n")
    code, out, _ = run("predict", str(document))
    assert code == 0
    for text in ("tokens/s/GPU", "serve 1 x TP4", "TTFT", "TPOT", "P99", "80 requests replayed", "calibration gb200-sglang"):
        assert text in out
    code, out, _ = run("predict", str(document), "--json")
    assert code == 0
    assert json.loads(out)["ttft_s"]["p50"] <= json.loads(out)["ttft_s"]["p99"]


def test_predict_names_the_line_of_a_bad_trace(run, tmp_path):
    trace, document = tmp_path / "trace.csv", tmp_path / "service.yaml"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,0,44\n")
    document.write_text(SERVICE + f"load: {{trace: {trace}}}\n")
    code, out, err = run("predict", str(document))
    assert (code, out) == (1, "")
    assert "line 2: 0 input and 44 output tokens" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("kind", ["hw", "model", "engine"])
def test_catalogues_list_and_show(run, kind):
    code, out, _ = run(kind, "list", "--json")
    assert code == 0
    for row in json.loads(out)[::4]:  # all of them as JSON: tests/contracts/test_schemas.py
        code, shown, _ = run(kind, "show", row["name"])
        assert code == 0
        assert row["name"] in shown
    assert run(kind, "list")[0] == 0


@pytest.mark.parametrize(
    "document", ["deployment", "problem", "plan", "service-plan", "hardware", "calibration", "engine", "case"]
)
def test_schemas_are_published(run, document):
    code, out, _ = run("schema", document)
    assert code == 0
    assert json.loads(out)["type"] == "object"


@pytest.mark.slow
def test_a_service_is_searched_recorded_and_exported(run, tmp_path):
    out = tmp_path / "runs"
    code, text, _ = run("search", "--hw", "hgx-h200", "--target", "serve", "--gpus", "16", "--ttft-p99", "2s", "--out", str(out))
    assert code == 0
    for part in ("What requests see", "Pools", "Aggregated or disaggregated", "tokens/s/user", "TTFT P99 limit"):
        assert part in text
    (folder,) = out.iterdir()
    assert folder.name.endswith("_hgx-h200_deepseek-v3_serve")
    assert not (folder / "trials.csv").exists()
    assert (folder / "launch" / "plan-1" / "README.md").read_text().startswith("# Plan 1: ")
    scripts = tmp_path / "scripts"
    code, text, _ = run("export", str(folder), "--out", str(scripts))
    assert code == 0
    assert sorted(path.name for path in scripts.iterdir()) == sorted(p.name for p in (folder / "launch" / "plan-1").iterdir())
    assert all(_exported(path) for path in scripts.iterdir())  # so that the next export takes its place in one step


def test_the_command_line_builds_only_the_command_or_group_that_runs():
    alone, group, neither = (_narrowed([word]) for word in ("place", "model", "nothing"))
    assert ([c.name for c in alone.registered_commands], alone.registered_groups) == (["place"], [])
    assert ([g.name for g in group.registered_groups], group.registered_commands) == (["model"], [])
    assert neither is app  # whose help and near names are of all commands


@pytest.mark.slow
def test_experts_are_placed_and_written_for_every_engine(run, tmp_path):
    rng = np.random.default_rng(0)
    loads = tmp_path / "loads.npz"
    np.savez(loads, logical_count=np.rint(np.exp(rng.normal(0, 1, (58, 256))) * 1000))
    out = tmp_path / "map"
    code, text, _ = run("place", str(loads), "--gpus", "32", "--redundant", "32", "--out", str(out))
    assert code == 0
    assert "EPLB, global" in text
    names = {path.name for path in out.iterdir()}
    assert {
        "placement.json",
        "sglang_expert_location.json",
        "trtllm_moe_load_balancer.yaml",
        "vllm_ascend_expert_map.json",
    } <= names
    assert not any(name.endswith(".png") for name in names)
    assert "not drawn: --pictures" in text
    code, text, _ = run("place", str(loads), "--gpus", "32", "--redundant", "32", "--out", str(out), "--pictures")
    assert code == 0
    assert "not drawn" not in text
    assert {path.name for path in out.iterdir()} == names | {"balance_by_layer.png", "load_by_gpu.png"}
    code, _, err = run("place", str(loads), "--gpus", "32", "--redundant", "32", "--pictures")
    assert (code, "give --out FOLDER" in err) == (1, True)
    code, _, err = run("place", str(loads), "--gpus", "30", "--redundant", "32")
    assert code == 1
    assert "288 physical experts do not divide over 30 GPUs; use 44 redundant experts" in err


@pytest.mark.slow
def test_a_problem_file_names_the_target(run, tmp_path):
    problem = tmp_path / "problem.yaml"
    problem.write_text("hardware: hgx-h200\nmodel: qwen3-30b-a3b\ntarget: serve\ngpus: 4\ntop_k: 1\n")
    code, text, _ = run("search", "--problem", str(problem), "--rate", "4", "--no-save", "--json")
    assert code == 0
    document = json.loads(text)
    assert document["format"] == "autotune-service-plan/2"
    assert document["plans"][0]["prediction"]["requests_per_s"] == pytest.approx(4.0)


@pytest.mark.slow
def test_a_prefill_pool_is_searched_and_recorded(run, tmp_path):
    code, text, _ = run("search", "--hw", "gb200-nvl72", "--gpus", "8", "--target", "prefill", "--out", str(tmp_path), *FAST)
    assert code == 0
    assert "prompt tokens/s/GPU" in text
    assert "Instance sizes" in text
    (folder,) = tmp_path.iterdir()
    assert (folder / "launch" / "plan-1" / "prefill_node.sh").exists()
    assert "Prefill side of a disaggregated pair" in (folder / "launch" / "plan-1" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--target", "serve", "--tpot", "1ms"), 2, "latency_limit cannot hold"),
        (("--target", "serve", "--ttft-p99", "10ms"), 1, "before anything is computed"),
        (("--target", "serve", "--rate", "4000", "--gpus", "16"), 2, "requests/s were asked for"),
        (("--target", "serve", "--trace", "nothing.csv"), 1, "no such file"),
        (("--target", "serve", "--prefill-hw", "ascend-910c"), 1, "cannot reach each other"),
        (("--target", "prefill", "--ttft", "1ms"), 2, "TTFT limit"),
        (("--target", "decode", "--rate", "4"), 1, "belong to --target serve"),
        (("--target", "train"), 1, "target"),
    ],
)
def test_what_a_service_cannot_be_is_one_message(run, options, code, message):
    got, _, err = run("search", "--hw", "hgx-h200", "--no-save", *options)
    assert got == code
    assert message in err
    assert "Traceback" not in err


def test_validate_prints_and_updates_the_table(run, tmp_path):
    """Of one case; all published ones: tests/contracts/test_schemas.py."""
    (decode, *_) = published()
    cases = tmp_path / "cases.yaml"
    cases.write_text(decode.model_copy(update={"cases": decode.cases[:1]}).model_dump_json())
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- autotune validate: begin -->\nold\n<!-- autotune validate: end -->\nafter\n")
    code, out, _ = run("validate", str(cases), "--update", str(readme))
    assert code == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert decode.title in out
    assert out.strip() in text


def _deployment(tmp_path: Path, **changes) -> Path:
    data = {
        "hardware": "gb200-nvl72",
        "model": "deepseek-v3",
        "precision": "nvfp4",
        "engine": {"name": "vllm"},
        "workload": {"isl_tokens": 2000, "osl_tokens": 2000},
        "pools": {"decode": {"dp": 8, "ep": 8, "batch_per_dp_rank": 64, "all2all_backend": "allgather_reducescatter"}},
        **changes,
    }
    path = tmp_path / "deployment.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


SEARCH = ("search", "--no-save", "--trials", "0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        ((*SEARCH, "--hw", "gb20"), "unknown hardware 'gb20'. Did you mean", 1),
        ((*SEARCH,), "give the hardware", 1),
        ((*SEARCH, "--hw", "gb200-nvl72", "--model", "deepseek"), "Names like it (deepseek-v3, ", 1),
        ((*SEARCH, "--hw", "gb200-nvl72", "--engine", "vllmm"), "Did you mean vllm", 1),
        ((*SEARCH, "--hw", "gb200-nvl72", "--engine-version", "0.10"), "unknown vllm version", 1),
        ((*SEARCH, "--hw", "gb200-nvl72", "--isl", "-5"), "workload.isl_tokens: Input should be greater than 0", 1),
        ((*SEARCH, "--hw", "gb200-nvl72", "--osl", "99999999"), "workload.osl_tokens", 1),
        ((*SEARCH, "--hw", "gb200-nvl72", "--gpus", "0"), "gpus: Input should be greater than 0", 1),
        ((*SEARCH, "--hw", "gb200-nvl72", "--tpot", "100"), "write a number with a unit", 1),
        ((*SEARCH, "--hw", "gb200-nvl72", "--target", "decoding"), "target", 1),
        ((*SEARCH, "--hw", "gb200-nvl72", "--objective", "speed"), "objective", 1),
        ((*SEARCH, "--hw", "gb200-nvl72", "--mtp-acceptance", "a,b"), "not a list of numbers", 1),
        (
            (*SEARCH, "--hw", "gb200-nvl72", "--mtp-acceptance", "coding"),
            "no acceptance 'coding' is published for deepseek-v3",
            1,
        ),
        ((*SEARCH, "--hw", "gb200-nvl72", "--calibration", "missing.yaml"), "missing.yaml: no such file", 1),
        ((*SEARCH, "--hw", "missing.yaml"), "missing.yaml: no such file", 1),
        ((*SEARCH, "--hw", "gb200-nvl72", "--model", "missing/config.json"), "no such file", 1),
        (
            ("search", "--hw", "gb200-nvl72", *SMALL, "--storage", "nonsense", "--no-save", "--trials", "2"),
            "storage nonsense cannot be used",
            1,
        ),
        ((*SEARCH, "--hw", "gb200-nvl72", "--nonsense"), "No such option", 1),
        (("frobnicate",), "No such command", 1),
        (("predict", "missing.yaml"), "no such file", 1),
        (("export", "missing"), "no such file", 1),
        (("schema", "deploymnt"), "Did you mean deployment", 1),
        (("hw", "show", "gb2000"), "Did you mean", 1),
        ((*SEARCH, "--hw", "hgx-h100"), "gpu_memory cannot hold", 2),
        ((*SEARCH, "--hw", "gb200-nvl72", "--gpus", "3"), "gpu_memory cannot hold", 2),
        ((*SEARCH, "--hw", "gb200-nvl72", *SMALL, "--tpot", "1ms"), "Smallest changes that fit", 2),
    ],
)
def test_bad_input_is_one_message_without_traceback(run, arguments, message, code):
    got, out, err = run(*arguments)
    assert got == code
    assert message in err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hardware: [", "not valid YAML"),
        ("- 1\n- 2\n", "expected a mapping"),
        ("hardware: gb200-nvl72\nspeed: fast\n", "speed: unknown key"),
        ("", "expected a mapping"),
    ],
)
def test_bad_deployment_files(run, tmp_path, text, message):
    path = tmp_path / "deployment.yaml"
    path.write_text(text)
    code, _, err = run("predict", str(path))
    assert code == 1
    assert message in err


def test_wrong_types_are_named_field_by_field(run, tmp_path):
    code, _, err = run("predict", str(_deployment(tmp_path, engine={"name": 3}, layers="many")))
    assert code == 1
    assert "engine.name" in err
    assert "layers" in err


def test_an_unwritable_output_folder_stops_before_the_search(run, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    code, _, err = run("search", "--hw", "hgx-b200", "--out", str(blocker / "results"))
    assert code == 1
    assert "is not a folder" in err
    assert blocker.read_text() == ""


def test_a_failed_run_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("autotune.records.dump_yaml", fail)
    code, _, err = run("search", "--hw", "hgx-b200", *SMALL, "--out", str(tmp_path), "--trials", "0")
    assert code == 1
    assert "No space left on device" in err
    assert list(tmp_path.iterdir()) == []


def test_exporting_for_another_engine_is_refused(run, tmp_path):
    run("search", "--hw", "hgx-b200", *SMALL, "--out", str(tmp_path), "--trials", "0")
    folder = next(tmp_path.iterdir())
    code, _, err = run("export", str(folder), "--format", "sglang")
    assert code == 1
    assert "made for vllm" in err
    code, _, err = run("export", str(folder), "--rank", "9")
    assert code == 1
    assert "plans 1..3" in err


def _timings(path: Path, gpu: str = "H200") -> Path:
    from tests.unit.autotune.test_calibrating import gemm_rows

    gemm_rows(gpu).to_csv(path, index=False)
    return path


@pytest.mark.slow
def test_calibrate_writes_a_document_that_search_uses(run, tmp_path):
    out = tmp_path / "mine.yaml"
    table = str(_timings(tmp_path / "t.csv"))
    code, text, _ = run("calibrate", table, "--hw", "hgx-h200", "--out", str(out), "--dry-run")
    assert code == 0
    assert "nothing written" in text
    assert not out.exists()
    code, text, _ = run("calibrate", table, "--hw", "hgx-h200", "--out", str(out))
    assert code == 0
    assert "dense_gemm" in text
    assert "vllm-h200-decode-ep32" in text  # what would change
    code, text, _ = run("search", "--hw", "hgx-h200", "--calibration", str(out), "--no-save", "--trials", "0", "--json")
    assert code == 0
    assert SearchResult.model_validate_json(text).best.prediction.calibration == "mine"


def test_a_failed_calibration_leaves_the_old_one_untouched(run, tmp_path):
    out = tmp_path / "mine.yaml"
    out.write_text("old")
    code, _, err = run("calibrate", str(_timings(tmp_path / "t.csv", "H100")), "--hw", "hgx-h200", "--out", str(out))
    assert code == 1
    assert "timings are of H100" in err
    assert out.read_text() == "old"
    code, _, err = run("calibrate", "--hw", "hgx-h200", "--out", str(out))
    assert (code, out.read_text()) == (1, "old")
    assert "at least one file of measurements" in err


@pytest.mark.slow
def test_a_storage_resumes_the_same_problem_and_keeps_others_apart(run, tmp_path):
    import optuna

    url = f"sqlite:///{tmp_path / 'studies.db'}"
    base = ("search", "--hw", "hgx-b200", *SMALL, "--no-save", "--json", "--storage", url)
    for arguments in (("--trials", "4"), ("--trials", "7"), ("--trials", "4", "--tpot", "50ms")):
        assert run(*base, *arguments)[0] == 0
    trials = {s.study_name: s.n_trials for s in optuna.get_all_study_summaries(url)}
    assert sorted(trials.values()) == [4, 7]
