"use strict";
(function () {
  const EVERY_MS = 700;
  const by = (id) => document.getElementById(id);
  const chosen = new Set();
  let form, editor, ended = new Set(), skipped = 0, opened = "";

  // Its cleaning puts text into a page to take markup out of it, and so loads what the markup names: text stays text here.
  JSONEditor.AbstractEditor.prototype.purify = (value) => value;

  function made(tag, text, attributes = {}) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }

  function button(text, label, act) {
    const element = made("button", text, { type: "button", "aria-label": label });
    element.addEventListener("click", act);
    return element;
  }

  // New rows in a list; whoever is on a control of a row stays on it.
  function redrawn(list, rows) {
    const name = (row) => row.dataset.job || row.dataset.run, controls = "a, button, input";
    const old = [...list.children].find((row) => row.contains(document.activeElement));
    const place = old ? [...old.querySelectorAll(controls)].indexOf(document.activeElement) : -1;
    list.replaceChildren(...rows);
    const now = old && rows.find((row) => name(row) === name(old));
    const control = now && [...now.querySelectorAll(controls)][place];
    if (control) control.focus();
  }

  function say(text) { by("said").textContent = text; }

  function fault(id, text) { by(id).textContent = text; by(id).hidden = !text; }

  async function ask(where, options) {
    let answer;
    try { answer = await fetch(where, options); }
    catch { throw new Error("the server does not answer: it was stopped; start `autotune ui` again and open its new link"); }
    if (!answer.ok) throw new Error(await answer.text());
    return answer;
  }

  async function data(where, options) { return (await ask(where, options)).json(); }

  function seconds(value) { return value < 60 ? `${value.toFixed(0)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`; }

  // JSON Editor takes a field that a value lacks off the page: values are put in as defaults instead.
  function filledIn(schema, values) {
    const properties = {};
    for (const [name, field] of Object.entries(schema.properties)) {
      const value = values[name];
      if (field.type === "object") properties[name] = filledIn(field, value || {});
      else properties[name] = value === undefined || value === null ? field : { ...field, default: value };
    }
    return { ...schema, properties };
  }

  function drawForm(values) {
    if (editor) editor.destroy();
    by("fields").replaceChildren();
    editor = new JSONEditor(by("fields"), {
      schema: filledIn(form.schema, values), theme: "barebones", disable_edit_json: true, disable_properties: true, disable_collapse: true,
      disable_array_reorder: true, disable_array_delete_last_row: true, use_default_values: false, show_errors: "never",
    });
    fault("fault", "");
  }

  function listNames({ choices, formats }) {
    for (const [name, options] of Object.entries(choices)) {
      const list = made("datalist", undefined, { id: `choices-${name}` });
      list.append(...options.map((option) => made("option", undefined, { value: option })));
      document.body.append(list);
    }
    by("format").append(...formats.map((name) => made("option", name, { value: name })));
  }

  function jobShown(job) {
    const item = made("li", undefined, { class: `state-${job.state}`, "data-job": job.id, "data-state": job.state });
    const head = made("div", undefined, { class: "row" });
    head.append(made("span", job.title, { class: "grow" }), made("strong", job.state), made("span", seconds(job.seconds), { class: "quiet" }));
    item.append(head);
    if (job.state === "running") {
      const steps = job.trials_asked ? `, trial ${job.trials} of ${job.trials_asked}` : "";
      item.append(made("p", `${job.stage || "starting"}${steps}`, { class: "quiet" }));
      item.append(made("progress", undefined, { "aria-label": `progress of ${job.title}`, ...(job.trials_asked ? { value: job.trials, max: job.trials_asked } : {}) }));
    }
    if (job.found.length && job.state !== "failed") item.append(made("p", `best so far: ${job.found[job.found.length - 1]}`, { class: "best" }));
    if (job.message) item.append(made("p", job.message, { class: "message" }));
    if (job.run) item.append(made("a", "Open the report", { href: `runs/${encodeURIComponent(job.run)}`, target: "_blank", rel: "noopener" }));
    if (job.state === "waiting" || job.state === "running") item.append(button("Cancel", `Cancel the search ${job.title}`, () => cancel(job.id)));
    return item;
  }

  async function cancel(id) {
    try { await ask(`searches/${id}`, { method: "DELETE" }); say("cancelled"); }
    catch (error) { say(error.message); }
    await look();
  }

  let drawn = "";
  async function look() {
    const jobs = await data("searches");
    const now = JSON.stringify(jobs);
    if (now === drawn) return;
    drawn = now;
    redrawn(by("jobs"), jobs.map(jobShown));
    by("no-jobs").hidden = jobs.length > 0;
    const over = jobs.filter((job) => !["waiting", "running"].includes(job.state));
    const fresh = over.filter((job) => !ended.has(job.id));
    if (fresh.length) { say(`${fresh[0].title}: ${fresh[0].state}`); ended = new Set(over.map((job) => job.id)); await history(true); }
  }

  async function watch() {
    try { await look(); fault("fault", by("fault").textContent.startsWith("the server does not") ? "" : by("fault").textContent); }
    catch (error) { fault("fault", error.message); }
    setTimeout(watch, EVERY_MS);
  }

  function runShown(run) {
    const item = made("li", undefined, { "data-run": run.run });
    const label = made("label"), box = made("input", undefined, { type: "checkbox" });
    box.checked = chosen.has(run.run);
    box.disabled = Boolean(run.fault);
    box.addEventListener("change", () => { if (box.checked) chosen.add(run.run); else chosen.delete(run.run); comparable(); });
    label.append(box, made("span", run.run));
    item.append(label);
    if (run.fault) { item.append(made("p", run.fault, { class: "fault" })); return item; }
    const rate = run.rate === null ? "" : `, ${run.rate.toLocaleString("en-US", { maximumFractionDigits: 0 })} tokens/s/GPU`;
    item.append(made("p", `${run.asked}; ${run.time}`, { class: "quiet" }));
    if (run.best) item.append(made("p", `${run.best}${rate}`, { class: "best" }));
    const row = made("div", undefined, { class: "row" });
    row.append(
      made("a", "Report", { href: `runs/${encodeURIComponent(run.run)}`, target: "_blank", rel: "noopener", "aria-label": `Report of ${run.run}` }),
      button("Why not", `Why not another layout in ${run.run}`, () => openWhy(run.run)),
      button("Export", `Export ${run.run}`, () => openExport(run.run)),
      button("Ask again", `Fill the form as in ${run.run}`, () => refill(run.run)),
    );
    item.append(row);
    return item;
  }

  async function history(anew) {
    if (anew) skipped = 0;
    const found = await data(`runs?skipped=${skipped}`);
    const rows = found.runs.map(runShown);
    if (anew) redrawn(by("runs"), rows); else by("runs").append(...rows);
    skipped += rows.length;
    by("runs-area").hidden = found.total === 0;
    by("no-runs").hidden = found.total > 0;
    by("older").hidden = skipped >= found.total;
  }

  function comparable() {
    by("compare").disabled = chosen.size < 2;
    by("compare-note").textContent = chosen.size < 2 ? "choose two or more" : `${chosen.size} chosen`;
  }

  async function refill(run) {
    try {
      const asked = await data(`runs/${encodeURIComponent(run)}/problem`);
      drawForm(asked);
      by("ask-title").scrollIntoView();
      say(`the form says what ${run} was asked`);
    } catch (error) { say(error.message); }
  }

  function openExport(run) {
    opened = run;
    by("export-run").textContent = run;
    fault("export-fault", "");
    by("exporting").showModal();
  }

  function openWhy(run) {
    opened = run;
    by("why-run").textContent = run;
    by("why-answer").textContent = "";
    fault("why-fault", "");
    by("asking").showModal();
  }

  async function why(event) {
    event.preventDefault();
    fault("why-fault", "");
    by("why-answer").textContent = "";
    try {
      const answer = await ask(`runs/${encodeURIComponent(opened)}/why?${new URLSearchParams({ layout: by("why").value })}`);
      by("why-answer").textContent = await answer.text();
    } catch (error) { fault("why-fault", error.message); }
  }

  async function download() {
    const asked = new URLSearchParams({ format: by("format").value, rank: by("rank").value, router_image: by("router").value });
    try {
      const answer = await ask(`runs/${encodeURIComponent(opened)}/export?${asked}`);
      const name = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition"))[1];
      const link = made("a", undefined, { href: URL.createObjectURL(await answer.blob()), download: name });
      link.click();
      URL.revokeObjectURL(link.href);
      fault("export-fault", "");
      say(`downloaded ${name}`);
    } catch (error) { fault("export-fault", error.message); }
  }

  async function search(event) {
    event.preventDefault();
    fault("fault", "");
    const problem = JSON.stringify(editor.getValue());
    try {
      await ask("searches", { method: "POST", headers: { "content-type": "application/json" }, body: problem });
      say("search started");
      await look();
    } catch (error) { fault("fault", error.message); }
  }

  async function start() {
    form = await data("form");
    listNames(form);
    drawForm({});
    by("form").addEventListener("submit", search);
    by("clear").addEventListener("click", () => drawForm({}));
    by("all-fields").addEventListener("change", () => by("fields").classList.toggle("few", !by("all-fields").checked));
    by("older").addEventListener("click", () => history(false).catch((error) => say(error.message)));
    by("compare").addEventListener("click", () => window.open(`compare?${new URLSearchParams([...chosen].map((run) => ["run", run]))}`, "_blank", "noopener"));
    by("download").addEventListener("click", download);
    by("why-form").addEventListener("submit", why);
    by("why-close").addEventListener("click", () => by("asking").close());
    by("export-close").addEventListener("click", () => by("exporting").close());
    await history(true);
    ended = new Set((await data("searches")).filter((job) => !["waiting", "running"].includes(job.state)).map((job) => job.id));
    document.documentElement.dataset.ready = "1";
    await watch();
  }

  start().catch((error) => fault("fault", error.message));
})();
