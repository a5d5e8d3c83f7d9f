"""The server: tools with typed arguments over standard input and output, run folders as resources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from autotune.assistant import tools
from autotune.assistant.tools import Data, Workbench
from autotune.errors import ProblemError
from cost_models.errors import AutotuneError

T = TypeVar("T")
INSTRUCTIONS = """\
Plans and judges deployments of large language models from calibrated cost models; nothing is started.
Order of work: search (a problem as `schema` describes it) -> explain what was not chosen -> export its scripts.
For a command line or a manifest that somebody has: check; for what it measured: verify.
Say what a result assumes, and its interval, with every figure."""


def serve(runs: Path) -> None:
    """Answer on standard input and output until it is closed; raises ProblemError without the extra `mcp`."""
    build_server(runs).run("stdio")


def build_server(runs: Path) -> Any:
    """The server with its tools, not yet running."""
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        raise ProblemError("autotune mcp needs the extra: pip install 'moe-autotune[mcp]'") from error
    from autotune.versions import installed_version

    bench = Workbench(runs)
    server = MCPServer("autotune", instructions=INSTRUCTIONS, version=installed_version("moe-autotune"), log_level="ERROR")

    def answered(ask: Callable[[], T]) -> T:
        try:
            return ask()
        except AutotuneError as error:
            raise ToolError(str(error)) from None

    @server.tool()
    def schema() -> Data:
        """JSON schemas of what the other tools take: problem (search) and deployment (predict, check)."""
        from autotune.documents.deployment import Deployment
        from autotune.documents.problem import Problem

        return {"problem": Problem.model_json_schema(), "deployment": Deployment.model_json_schema()}

    @server.tool()
    def catalog() -> dict[str, list[str]]:
        """Names of hardware, model presets and engines."""
        from cost_models.catalog import hardware_names, model_names
        from search_spaces.loader import engine_names

        return {"hardware": hardware_names(), "models": model_names(), "engines": engine_names()}

    @server.tool()
    def search(problem: Data) -> Data:
        """Find the best deployment for a problem, e.g. {"hardware": "gb200-nvl72", "target": "decode"}. Writes a run folder."""
        return answered(lambda: tools.search(bench, problem))

    @server.tool()
    def check(
        deployment: Data | None = None,
        command: str | None = None,
        manifest: str | None = None,
        goals: Data | None = None,
        script: Data | None = None,
    ) -> Data:
        """Judge a deployment, an engine's command line, or the text of a manifest (Kubernetes, LeaderWorkerSet, llm-d, Dynamo,
        KServe, srt-slurm, compose, a vLLM recipe); goals e.g. {"tpot_s": 0.05}. What a command or manifest leaves out goes into
        script: {"hardware": ...} (a command needs it), version, isl_tokens, osl_tokens, size, model, precision, service, load;
        a message's --hw or --service means its entry there."""
        return answered(lambda: tools.check(tools.Given(deployment, command, manifest, script), goals))

    @server.tool()
    def verify(
        results: list[str],
        deployment: Data | None = None,
        command: str | None = None,
        manifest: str | None = None,
        limits: Data | None = None,
        script: Data | None = None,
    ) -> Data:
        """Compare measured runs (paths of vllm bench serve or latency, SGLang bench_serving results) with what is predicted for
        what ran, given as in check; limits e.g. {"ttft_p99_s": 2.0}."""
        return answered(lambda: tools.verify(results, tools.Given(deployment, command, manifest, script), limits))

    @server.tool()
    def predict(deployment: Data) -> Data:
        """Predict one deployment document: throughput, latencies, operators, memory."""
        return answered(lambda: tools.predict(deployment))

    @server.tool()
    def place(
        model: str,
        gpus: int,
        redundant_experts: int = 0,
        gpus_per_node: int = 8,
        loads: list[str] | None = None,
        synthetic: float | None = None,
    ) -> Data:
        """Place expert replicas on GPUs and say how balanced they are, beside EPLB and a lower bound."""
        asked = {"model": model, "gpus": gpus, "redundant_experts": redundant_experts, "gpus_per_node": gpus_per_node}
        return answered(lambda: tools.place({**asked, "loads": loads or [], "synthetic": synthetic}))

    @server.tool()
    def explain(run: str, layout: str) -> Data:
        """Why a layout such as "ep72" was chosen or not in a run."""
        return answered(lambda: tools.explain(bench, run, layout))

    @server.tool()
    def export(run: str, rank: int = 1) -> Data:
        """Launch scripts of a plan of a run, by file name."""
        return answered(lambda: tools.export(bench, run, rank))

    @server.tool()
    def validate() -> Data:
        """How far predictions lie from published measurements."""
        return answered(tools.validate)

    @server.tool()
    def runs_list() -> list[str]:
        """Names of the run folders, oldest first."""
        return bench.names()

    @server.resource("run://{run}/{file}")
    def run_file(run: str, file: str) -> str:
        """plan.yaml, run.json, report.html or candidates.json of a run."""
        return tools.read_file(bench, run, file)

    return server
