"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Map();
  const escape = (text) => String(text).replace(/[&<>"']/g, (c) => "&#" + c.charCodeAt(0) + ";");
  const number = (value, digits = 0) => value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });

  function ink() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    return { ink: read("--ink"), line: read("--line"), paper: read("--paper") };
  }

  function themed(option) {
    const colours = ink();
    const axis = (a, align) => a && { ...a, axisLabel: { color: colours.ink, ...a.axisLabel }, nameTextStyle: { color: colours.ink, align }, splitLine: { lineStyle: { color: colours.line, opacity: 0.5 } } };
    return {
      animation: false, aria: { enabled: true, decal: { show: false } },
      color: ["#3d7fc4", "#e08a3c", "#4a9f6d", "#b3589a", "#8a6fc9", "#b8a23a", "#3fa7b5", "#c45b52", "#7d8a97"],
      ...option,
      textStyle: { color: colours.ink },
      legend: option.legend && { ...option.legend, textStyle: { color: colours.ink } },
      tooltip: option.tooltip && { backgroundColor: colours.paper, textStyle: { color: colours.ink }, confine: true, ...option.tooltip },
      xAxis: axis(option.xAxis), yAxis: axis(option.yAxis, "left"),
    };
  }

  function draw(element, option) {
    let chart = drawn.get(element);
    if (!chart) { chart = echarts.init(element, null, { renderer: "canvas" }); drawn.set(element, chart); }
    chart.setOption(themed(option), true);
    return chart;
  }

  function described(c, i) {
    const unit = c.phase === "decode" ? "sequences" : "tokens";
    const variant = c.variants[c.variant[i]];
    return `${c.layouts[c.layout[i]]}, ${number(c.size[i])} ${unit} per DP rank` + (variant ? ` (${variant})` : "");
  }

  function figures(c, i) {
    const name = c.phase === "decode" ? "TPOT" : "prompt";
    const reason = c.reasons[c.violates[i]];
    return [`${number(c.rate[i])} tokens/s/GPU`, `${name} ${number(c.latency_ms[i], 1)} ms`, `${c.gpus[i]} GPUs an instance`,
      `memory ${number(c.memory_gb[i], 1)} of ${number(c.memory_limit_gb, 1)} GB`, `meets the latency limit with ${c.chance[i]} %`]
      .concat(reason ? [`does not fit: ${reason}`] : []);
  }

  function speed(c, i) { return c.phase === "decode" ? 1000 / c.latency_ms[i] : c.latency_ms[i] / 1000; }

  function span(c) {
    const values = c.layout.map((_, i) => speed(c, i));
    const low = Math.min(...values), high = Math.max(...values);
    return c.phase === "decode" ? { min: Number((low / 1.2).toPrecision(2)), max: Number((high * 1.2).toPrecision(2)) } : {};
  }

  function scatter(c) {
    const feasible = [], wrong = [], border = c.frontier.map((i) => [speed(c, i), c.rate[i], i]).sort((a, b) => a[0] - b[0]);
    c.layout.forEach((_, i) => (c.reasons[c.violates[i]] ? wrong : feasible).push([speed(c, i), c.rate[i], i]));
    const decode = c.phase === "decode";
    return {
      grid: { left: 8, right: 24, top: 48, bottom: 56, containLabel: true },
      legend: { top: 0 },
      tooltip: { trigger: "item", formatter: (p) => p.data && p.data.length > 2 ? `<b>${escape(described(c, p.data[2]))}</b><br>` + figures(c, p.data[2]).map(escape).join("<br>") : "" },
      xAxis: { type: decode ? "log" : "value", ...span(c), name: decode ? "tokens/s per user" : "seconds for one prompt alone", nameLocation: "middle", nameGap: 30, scale: true },
      yAxis: { type: "value", name: "tokens/s/GPU" },
      dataZoom: [{ type: "inside" }],
      series: [
        { name: "does not fit", type: "scatter", data: wrong, symbolSize: 4, large: true, itemStyle: { color: "#9aa5b1", opacity: 0.45 } },
        { name: "feasible", type: "scatter", data: feasible, symbolSize: 6, itemStyle: { color: "#3d7fc4", opacity: 0.75 } },
        { name: "frontier", type: "line", data: border, symbolSize: 9, itemStyle: { color: "#e08a3c" }, lineStyle: { color: "#e08a3c" } },
      ],
    };
  }

  function breakdown(c, i) {
    const names = Object.keys(c.groups).filter((name) => c.groups[name][i] !== 0).reverse();
    return {
      grid: { left: 8, right: 32, top: 8, bottom: 8, containLabel: true },
      tooltip: { trigger: "axis", axisPointer: { type: "shadow" } },
      xAxis: { type: "value", name: "ms" }, yAxis: { type: "category", data: names },
      series: [{ name: "of one step", type: "bar", data: names.map((name) => Math.round(c.groups[name][i] * c.step_ms[i]) / 1000) }],
    };
  }

  function pick(c, i) {
    document.getElementById("picked-title").textContent = described(c, i);
    document.getElementById("picked-text").textContent = figures(c, i).join(", ");
    const box = document.getElementById("picked-chart");
    draw(box, breakdown(c, i));
    box.dataset.candidate = String(i);
  }

  function candidates(c) {
    const select = document.getElementById("pick");
    for (const i of [...c.frontier].sort((a, b) => c.rate[b] - c.rate[a])) {
      const choice = document.createElement("option");
      choice.value = String(i);
      choice.textContent = `${number(c.rate[i])} tokens/s/GPU: ${described(c, i)}`;
      select.append(choice);
    }
    select.addEventListener("change", () => pick(c, Number(select.value)));
    const chart = draw(document.querySelector('[data-chart="candidates"]'), scatter(c));
    chart.on("click", (p) => { if (p.data && p.data.length > 2) pick(c, p.data[2]); });
    if (select.value) pick(c, Number(select.value));
  }

  function all() {
    for (const element of document.querySelectorAll("[data-chart]")) {
      const id = element.dataset.chart;
      if (id !== "candidates" && data.charts[id]) draw(element, data.charts[id]);
    }
    if (data.candidates && document.getElementById("pick")) {
      document.getElementById("pick").replaceChildren();
      candidates(data.candidates);
    }
    document.documentElement.dataset.drawn = String(drawn.size);
  }

  function said(text) { document.getElementById("said").textContent = text; }

  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      try { await navigator.clipboard.writeText(source.textContent); said("copied"); }
      catch { const range = document.createRange(); range.selectNodeContents(source); const s = getSelection(); s.removeAllRanges(); s.addRange(range); said("selected: copy with the keyboard"); }
    });
  }
  new ResizeObserver(() => drawn.forEach((chart) => chart.resize())).observe(document.body);
  window.addEventListener("beforeprint", () => { document.querySelectorAll("details").forEach((d) => { d.open = true; }); drawn.forEach((chart) => chart.resize()); });
  dark.addEventListener("change", all);
  all();
})();
