// Script of the status page: fetches the API each second and shows the answers. The gateway puts it into page.html.
"use strict";
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const HISTORY = 60;

// ---- small functions: elements, text that changes only if it differs, lists matched by key ----
function make(tag, options, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options || {})) {
    if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
function say(element, text) { if (element.textContent !== text) element.textContent = text; }
function mark(element, name) { if (element.className !== name) element.className = name; }
function updateList(parent, items, key, create, update) {
  const entries = parent.entries || (parent.entries = new Map());
  const present = new Set();
  let place = parent.firstChild;
  for (const item of items) {
    const id = key(item);
    present.add(id);
    let entry = entries.get(id);
    if (!entry) { entry = create(item); entries.set(id, entry); }
    update(entry, item);
    for (const node of entry.nodes) {
      if (node === place) place = place.nextSibling;
      else parent.insertBefore(node, place);
    }
  }
  for (const [id, entry] of entries) if (!present.has(id)) { entry.nodes.forEach((node) => node.remove()); entries.delete(id); }
}

// ---- numbers with their unit, which no line break separates; null means unknown and shows as a dash, not as zero ----
const known = (value) => value !== null && value !== undefined;
function seconds(value) {
  if (!known(value)) return "–";
  if (value < 0.00005) return "0 ms";
  if (value < 0.00995) return (value * 1000).toFixed(1) + "\u00a0ms";
  if (value < 0.9995) return (value * 1000).toFixed(0) + "\u00a0ms";
  if (value < 99.5) return value.toFixed(value < 9.95 ? 2 : 1) + "\u00a0s";
  return Math.round(value / 60) < 100 ? Math.floor(value / 60) + "\u00a0min " + Math.round(value % 60) + "\u00a0s" : long(value);
}
function long(value) {
  const minutes = Math.floor(value / 60), hours = Math.floor(minutes / 60), days = Math.floor(hours / 24);
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${Math.floor(value % 60)} s` : `${Math.floor(value)} s`;
}
const whole = (value) => known(value) ? Math.round(value).toLocaleString("en-GB") : "–";
function rate(value) { return !known(value) ? "–" : value === 0 ? "0" : value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : whole(value); }
function share(value) {
  if (!known(value)) return "–";
  const percent = value * 100;
  return (percent > 99 && percent < 99.95 ? percent.toFixed(1) : percent.toFixed(0)) + "\u00a0%";
}
const times = (count, one, many) => `${whole(count)} ${count === 1 ? one : many}`;
const clock = (wall) => new Date(wall * 1000).toLocaleTimeString("en-GB");

// ---- one model ----
const TILES = ["Requests", "Within SLO", "First token (TTFT)", "Between tokens (ITL)", "Cached tokens", "On home instances", "In flight"];
const history = new Map();
function remember(key, stats) {
  const past = history.get(key) || { rate: [], ttft: [] };
  past.rate.push(stats.window.requests_per_second);
  past.ttft.push(stats.window.ttft_seconds.p90);
  if (past.rate.length > HISTORY) { past.rate.shift(); past.ttft.shift(); }
  history.set(key, past);
  return past;
}
function sparkline() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${HISTORY} 20`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("class", "spark");
  svg.append(path);
  svg.draw = (values) => {
    const top = Math.max(...values.map((value) => value || 0), 1e-9);
    let drawing = "", pen = false;
    values.forEach((value, index) => {
      if (!known(value)) { pen = false; return; }
      const x = HISTORY - values.length + index + 0.5, y = 18.5 - 17 * value / top;
      drawing += `${pen ? "L" : "M"}${x} ${y.toFixed(2)}`;
      pen = true;
    });
    path.setAttribute("d", values.length > 2 ? drawing : "");
  };
  return svg;
}
function modelCard(model) {
  const title = make("h2", {}, make("span", { text: model.namespace + "/" }), model.name);
  const card = make("section", { class: "card model", "aria-label": `Model ${model.key}` });
  const entry = { nodes: [card], state: make("span"), preset: make("span", { class: "chip" }), simulated: make("span", { class: "chip", text: "simulated engines", title: "Their timing comes from a profile, their text is made up." }), objective: make("span", { class: "objective" }),
    banner: make("div", { class: "banner bad", role: "status", hidden: "" }), lost: make("p", { class: "lost bad" }), tiles: [], body: make("tbody"), caption: make("caption") };
  const tiles = make("dl", { class: "tiles" });
  for (const name of TILES) {
    const tile = { value: make("span"), unit: make("small"), note: make("dd", { class: "note" }), spark: null };
    const box = make("div", { class: "tile" }, make("dt", { text: name }), make("dd", { class: "value" }, tile.value, tile.unit), tile.note);
    if (name === TILES[0] || name === TILES[2]) { tile.spark = sparkline(); box.append(tile.spark); }
    tiles.append(box);
    entry.tiles.push(tile);
  }
  const columns = make("colgroup", {}, ...["name", "state", "", "", "", "wide", "", "", "wide", "", "age"].map((name) => make("col", { class: name })));
  const head = make("thead", {},
    make("tr", { class: "group" }, make("th", { colspan: "2" }), make("th", { colspan: "4", scope: "colgroup", text: "this gateway", class: "split" }),
      make("th", { colspan: "5", scope: "colgroup", text: "reported by the engine", class: "split" })),
    make("tr", {}, ...[["Instance", ""], ["State", ""], ["In flight", "number split"], ["Waiting", "number"], ["Backlog", "number"], ["Share of work", "number"],
      ["Running", "number split"], ["Waiting", "number"], ["KV in use", "number"], ["Cache hits", "number"], ["Reported", "number"]]
      .map(([text, name]) => make("th", { scope: "col", class: name, text }))));
  card.append(make("div", {}, title, entry.state, entry.preset, entry.simulated, entry.objective), entry.banner, entry.lost, tiles,
    make("div", { class: "scroll", role: "region", "aria-label": `Instances of ${model.key}`, tabindex: "0" }, make("table", { class: "instances" }, entry.caption, columns, head, entry.body)));
  return entry;
}
function objectiveWords(goal) {
  const parts = [];
  if (known(goal.ttft_seconds)) parts.push(`first token in ${seconds(goal.ttft_seconds)}` + (goal.ttft_per_kilo_token_seconds ? ` + ${seconds(goal.ttft_per_kilo_token_seconds)} per 1,000 prompt tokens` : ""));
  if (known(goal.itl_seconds)) parts.push(`${seconds(goal.itl_seconds)} between tokens`);
  return parts.length ? `SLO: ${share(goal.target)} with ${parts.join(" and ")}` : "No SLO set";
}
// What an instance is fit for. The state is that of its process; health is what requests and its metrics say.
const SILENT_SECONDS = 10;
const TONES = { Ready: "good", Starting: "warn", Draining: "warn", Sleeping: "none" };
function healthOf(instance) {
  const age = (instance.signals || {}).age_seconds, answered = instance.answer_age_seconds;
  if (instance.state !== "Ready") return { words: instance.state, tone: TONES[instance.state] || "none", title: "" };
  if (instance.standing === "Ejected") return { words: "ejected", tone: "bad", title: instance.standing_reason || "" };
  if (known(age) && age > SILENT_SECONDS) return { words: `silent ${seconds(age)}`, tone: "bad", title: "Its metrics do not answer." };
  if (!known(age) && instance.waiting && known(answered) && answered > 3 * SILENT_SECONDS) return { words: `silent ${seconds(answered)}`, tone: "bad", title: "Requests wait there, and none was answered." };
  if (instance.standing && instance.standing !== "Healthy") return { words: instance.standing === "Probing" ? "probing" : "warming up", tone: "warn", title: instance.standing_reason || "" };
  return { words: "Ready", tone: "good", title: "" };
}
function standingOf(model) {
  const count = (state) => model.instances.filter((instance) => instance.state === state).length;
  const ready = count("Ready"), asleep = count("Sleeping"), awake = model.instances.length - asleep;
  const lost = (model.lost || []).length, healths = model.instances.map((instance) => healthOf(instance).words.split(" ")[0]);
  const ill = ["ejected", "silent"].map((word) => [healths.filter((found) => found === word).length, word]).filter(([number]) => number);
  const fit = ready - ill.reduce((sum, [number]) => sum + number, 0), all = awake + lost;
  const more = [...ill, ...(lost ? [[lost, "lost"]] : []), ...(asleep ? [[asleep, "asleep"]] : [])].map(([number, word]) => `, ${number} ${word}`).join("");
  const parts = ["Starting", "Draining", "Sleeping"].filter(count).map((state) => `${count(state)} ${state.toLowerCase()}`);
  const there = parts.length ? `${times(model.instances.length, "instance", "instances")}: ${parts.join(", ")}.` : "This model has no instance.";
  const then = !model.wakes ? "Requests are answered 503 until one is ready." : asleep ? "The next request waits while one wakes." : "The next request waits while one starts.";
  const idle = ready === 0 && model.wakes && awake === 0;
  return {
    ready, words: `${there} ${then}`, idle,
    state: (idle ? "idle" : ready === 0 ? "no instance ready" : fit < all ? `${fit} of ${all} ready` : `${fit} ready`) + more,
    tone: idle ? "none" : fit === 0 || lost || ill.length ? "bad" : fit < all ? "warn" : "good",
  };
}
function tile(entry, value, unit, note, tone) {
  say(entry.value, value); say(entry.unit, unit); say(entry.note, note);
  mark(entry.value, tone || "");
}
const SEVERITY = { good: 0, none: 0, warn: 1, bad: 2 };
// Amber: one in a hundred is over the target. Red: one in ten is.
function toneOf(quantiles, target) {
  if (!known(target)) return "";
  return quantiles.p90 > target ? "bad" : quantiles.p99 > target ? "warn" : "";
}
function modelUpdate(entry, item) {
  const { model, stats, past } = item, goal = model.objectives, minute = stats.window;
  const standing = standingOf(model), all = model.instances.length;
  say(entry.state, standing.state);
  mark(entry.state, "pill " + standing.tone);
  say(entry.preset, model.preset);
  entry.simulated.hidden = !all || model.instances.some((instance) => instance.engine !== "sim");
  say(entry.objective, objectiveWords(goal));
  entry.banner.hidden = standing.ready > 0;
  mark(entry.banner, "banner " + (standing.idle ? "info" : "bad"));
  if (!standing.ready) entry.banner.replaceChildren(make("strong", { text: standing.idle ? "No requests, so no instance runs. " : "No instance of this model is ready. " }), standing.words);
  const met = minute.within_objective, missed = known(met) && met < goal.target;
  const problems = [minute.errors ? times(minute.errors, "error", "errors") : "", minute.retries ? times(minute.retries, "retry", "retries") : "",
    minute.rejected ? `${whole(minute.rejected)} refused` : "", minute.aborts ? times(minute.aborts, "client disconnect", "client disconnects") : ""].filter(Boolean);
  tile(entry.tiles[0], rate(minute.requests_per_second), "/s", problems.length ? problems.join(", ") : minute.requests ? "no errors" : "none in the last minute", minute.errors ? "bad" : "");
  entry.tiles[0].note.classList.toggle("bad", minute.errors > 0);
  tile(entry.tiles[1], share(met), "", !known(met) ? "nothing to assess" : missed ? `below the target ${share(goal.target)}` : `target ${share(goal.target)}, met`,
    !known(met) ? "" : !missed ? "good" : met < goal.target - 0.05 ? "bad" : "warn");
  tile(entry.tiles[2], seconds(minute.ttft_seconds.p50), known(minute.ttft_seconds.p50) ? "p50" : "", `p90\u00a0${seconds(minute.ttft_seconds.p90)} · p99\u00a0${seconds(minute.ttft_seconds.p99)}`, toneOf(minute.ttft_seconds, goal.ttft_per_kilo_token_seconds ? null : goal.ttft_seconds));
  tile(entry.tiles[3], seconds(minute.itl_seconds.p50), known(minute.itl_seconds.p50) ? "p50" : "", `p90\u00a0${seconds(minute.itl_seconds.p90)} · p99\u00a0${seconds(minute.itl_seconds.p99)}`, toneOf(minute.itl_seconds, goal.itl_seconds));
  tile(entry.tiles[4], share(minute.cached_token_share), "", known(minute.predicted_cached_token_share) ? `router predicted\u00a0${share(minute.predicted_cached_token_share)}` : "of prompt tokens");
  tile(entry.tiles[5], share(minute.share_on_homes), "", known(minute.load_cov) ? `load spread ${minute.load_cov.toFixed(2)}` : "of requests");
  tile(entry.tiles[6], whole(stats.in_flight), "", `${whole(stats.queue)} waiting`);
  entry.tiles[0].spark.draw(past.rate);
  entry.tiles[2].spark.draw(past.ttft);
  entry.body.closest(".scroll").hidden = !all;
  say(entry.caption, all ? `Instances · ${whole(minute.prompt_tokens)} prompt and ${whole(minute.output_tokens)} output tokens in the last minute` : "");
  say(entry.lost, (model.lost || []).map((gone) => `${gone.id} is gone since ${seconds(gone.seconds)}`).join(" · "));
  const byHealth = [...model.instances].sort((one, other) => SEVERITY[healthOf(other).tone] - SEVERITY[healthOf(one).tone]);
  updateList(entry.body, byHealth, (instance) => instance.id, instanceRow, (row, instance) => instanceUpdate(row, instance, stats.instances[instance.id]));
}
function meter() {
  const fill = make("b"), text = make("span");
  const node = make("span", { class: "meter" }, make("i", { "aria-hidden": "true" }, fill), text);
  return { node, show(value) { fill.style.width = known(value) ? `${Math.min(100, Math.max(0, value * 100))}%` : "0"; say(text, share(value)); } };
}
function instanceRow(instance) {
  const cells = Array.from({ length: 10 }, (_, index) => make("td", { class: index === 0 ? "" : index === 1 || index === 5 ? "number split" : "number" }));
  const state = make("span"), work = meter(), usage = meter();
  cells[0].append(state);
  cells[4].append(work.node);
  cells[7].append(usage.node);
  return { nodes: [make("tr", {}, make("th", { scope: "row", class: "mono", text: instance.id, title: instance.url }), ...cells)], cells, state, work, usage };
}
function instanceUpdate(row, instance, stats) {
  const signals = instance.signals || {}, cells = row.cells;
  const health = healthOf(instance);
  say(row.state, health.words);
  mark(row.state, "pill " + health.tone);
  row.state.title = health.title;
  say(cells[1], whole(instance.in_flight));
  say(cells[2], whole(instance.waiting));
  say(cells[3], seconds(instance.backlog_seconds));
  row.work.show(stats ? stats.share_of_work : null);
  say(cells[5], whole(signals.running));
  say(cells[6], whole(signals.waiting));
  row.usage.show(signals.kv_usage);
  say(cells[8], share(signals.prefix_hit_share));
  const lose = instance.index && instance.index.scale_down;
  cells[8].title = lose ? `No other instance has ${whole(lose.unique_blocks)} of its ${whole(lose.blocks)} blocks` : "";
  const age = signals.age_seconds, old = known(age) && age > 10;
  say(cells[9], known(age) ? `${age < 99.5 ? age.toFixed(1) + " s" : long(age)} ago` : "never");
  cells[9].classList.toggle("old", old || (!known(age) && instance.state === "Ready"));
}

// ---- decisions ----
const LABELS = { home: "home", backlog_seconds: "backlog", matched_tokens: "cached prefix", predicted_ttft_seconds: "predicted first token", cost_seconds: "cost", inflight: "in flight" };
function labelled(name, number) {
  const words = LABELS[name] || name.replace(/_seconds$/, "").replaceAll("_", " ");
  const value = name === "home" ? (number.value ? "yes" : "no") : name.endsWith("_seconds") ? seconds(number.value) : whole(number.value);
  return { words, value: known(number.age_seconds) ? `${value} (${seconds(number.age_seconds)} old)` : value };
}
function decisionRow(decision) {
  const open = make("button", { class: "open mono", type: "button", "aria-expanded": "false", title: decision.request_id, text: shorten(decision.request_id) });
  const when = make("div", { class: "why", text: clock(decision.wall) });
  const cells = Array.from({ length: 7 }, (_, index) => make("td", { class: index === 2 ? "words" : index > 2 && index < 6 ? "number" : "" }));
  const rule = make("span"), because = make("div"), why = make("div", { class: "why" });
  cells[1].append(rule);
  cells[2].append(because, why);
  const detail = make("td", { colspan: "8" });
  const row = { nodes: [make("tr", {}, make("td", {}, open, when), ...cells), make("tr", { class: "detail", hidden: "" }, detail)], cells, rule, because, why, detail, drawn: "" };
  open.addEventListener("click", () => {
    const shown = open.getAttribute("aria-expanded") !== "true";
    open.setAttribute("aria-expanded", String(shown));
    row.nodes[1].hidden = !shown;
  });
  return row;
}
function shorten(text) { return text.length > 22 ? text.slice(0, 14) + "…" + text.slice(-6) : text; }
function decisionUpdate(row, decision) {
  const last = decision.choices[decision.choices.length - 1], end = decision.outcome;
  const drawn = JSON.stringify([decision.choices.length, end]);
  if (row.drawn === drawn) return;
  row.drawn = drawn;
  const rejected = last.candidates.filter((candidate) => !candidate.chosen);
  say(row.cells[0], decision.model);
  say(row.rule, last.rule + (last.attempt > 1 && !last.rule.startsWith("retry") ? ` · attempt ${last.attempt}` : ""));
  mark(row.rule, "rule " + last.rule);
  row.because.replaceChildren(make("span", { class: "mono", text: last.instance === null ? "no instance" : last.instance }), `: ${last.reason}`);
  say(row.why, rejected.length ? `not ${rejected[0].id}: ${rejected[0].why}` + (rejected.length > 1 ? `; and ${times(rejected.length - 1, "other", "others")}` : "") : "");
  const known_prompt = end && known(end.prompt_tokens);
  say(row.cells[3], known_prompt ? whole(end.prompt_tokens) : "≈ " + whole(decision.prompt_tokens));
  say(row.cells[4], end && known(end.cached_tokens) && end.prompt_tokens ? share(end.cached_tokens / end.prompt_tokens) : "–");
  say(row.cells[5], end ? seconds(end.ttft_seconds) : "–");
  row.cells[5].classList.toggle("bad", Boolean(end && end.within_objective === false));
  const [words, tone] = endWords(end);
  row.cells[6].replaceChildren(make("span", { class: tone, text: words }));
  row.detail.replaceChildren(...decision.choices.map(choiceDetail), endDetail(decision));
}
function endWords(end) {
  if (!end) return ["running", "muted"];
  if (end.client_gone) return ["client disconnect", "muted"];
  const words = `${end.status}${end.error ? " " + end.error : ""} · ${seconds(end.duration_seconds)}`;
  return [words, end.status >= 500 || end.error ? "bad" : end.status >= 400 ? "warn" : ""];
}
function choiceDetail(choice) {
  const names = [...new Set(choice.candidates.flatMap((candidate) => Object.keys(candidate.inputs)))];
  const box = make("div", {}, make("strong", { text: `Attempt ${choice.attempt}, ${choice.rule}: ` }), `${choice.reason}.`);
  const general = Object.entries(choice.inputs).map(([name, number]) => { const made = labelled(name.split("/").pop(), number); return `${name.split("/")[0]} ${made.words} ${made.value}`; });
  if (known(choice.cost_seconds)) general.unshift(`expected cost ${seconds(choice.cost_seconds)} of engine time`);
  if (general.length) box.append(make("div", { class: "why", text: general.join(" · ") }));
  if (!choice.candidates.length) return box;
  const head = make("tr", {}, ...["Candidate", "Chosen", "Reason"].map((text) => make("th", { scope: "col", text })), ...names.map((name) => make("th", { scope: "col", class: "number", text: labelled(name, { value: null }).words })));
  const rows = choice.candidates.map((candidate) => make("tr", {}, make("th", { scope: "row", class: "mono", text: candidate.id }),
    make("td", { text: candidate.chosen ? "yes" : "no", class: candidate.chosen ? "good" : "" }), make("td", { text: candidate.why, class: "words" }),
    ...names.map((name) => make("td", { class: "number", text: candidate.inputs[name] ? labelled(name, candidate.inputs[name]).value : "–" }))));
  box.append(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  return box;
}
function endDetail(decision) {
  const end = decision.outcome, parts = [`request ${decision.request_id}`];
  if (end) {
    if (known(end.cached_tokens)) parts.push(`${whole(end.cached_tokens)} of ${whole(end.prompt_tokens)} prompt tokens cached` + (known(end.predicted_cached_tokens) ? ` (${whole(end.predicted_cached_tokens)} predicted)` : ""));
    if (known(end.output_tokens)) parts.push(times(end.output_tokens, "token generated", "tokens generated"));
    if (known(end.itl_mean_seconds)) parts.push(`${seconds(end.itl_mean_seconds)} between tokens`);
    if (known(end.within_objective)) parts.push(end.within_objective ? "within the SLO" : "SLO missed");
  }
  return make("p", { class: "why", text: parts.join(" · ") });
}

// ---- the page as a whole ----
function facts(pairs) {
  updateList(byId("facts"), pairs, (pair) => pair[0], (pair) => {
    const value = make("dd");
    return { nodes: [make("div", {}, make("dt", { text: pair[0] }), value)], value };
  }, (entry, pair) => say(entry.value, pair[1]));
}
function showModels(fleet, stats) {
  const holder = byId("models");
  if (!fleet.models.length) {
    if (!holder.querySelector(".nothing")) {
      holder.entries = null;
      holder.replaceChildren(make("section", { class: "card empty nothing" }, make("h2", { text: "No model yet" }),
        make("p", { text: "This gateway's fleet is empty, so every request gets 404. Models appear here as soon as the fleet has one; no restart is necessary." }),
        make("p", {}, "Locally ", make("code", { text: "fairlead up FILE" }), " starts one; in a cluster apply a ", make("code", { text: "ModelDeployment" }), ".")));
    }
    return;
  }
  if (!holder.entries) holder.replaceChildren();
  const items = fleet.models.filter((model) => stats.models[model.key]).map((model) => ({ model, stats: stats.models[model.key] }));
  for (const item of items) item.past = remember(item.model.key, item.stats);
  updateList(holder, items, (item) => item.model.key, (item) => modelCard(item.model), modelUpdate);
}
function targetWords(targets) {
  const entries = Object.entries(targets), sum = entries.reduce((total, [, weight]) => total + weight, 0);
  return entries.map(([model, weight]) => entries.length > 1 ? `${model} ${share(sum ? weight / sum : 0)}` : model).join(", ");
}
function fallbackWords(fallbacks) {
  return fallbacks.map((one) => `${one.model} after ${one.when.join(" or ")}${one.after === null ? "" : ` of ${one.after}`}`).join("; ");
}
function shadowWords(shadow, models) {
  if (!shadow) return "";
  const parts = [`${shadow.model}, ${shadow.percent}\u00a0% of conversations`];
  for (const one of models[shadow.model] ? models[shadow.model].shadows : []) {
    const answered = one.outcomes.answered || 0, failed = one.outcomes.failed || 0;
    const rest = Object.values(one.outcomes).reduce((total, count) => total + count, 0) - answered - failed;
    parts.push(`of ${one.original}: ${whole(answered)} answered, ${whole(failed)} failed, ${whole(rest)} without an answer`);
    for (const [name, field, show] of [["TTFT", "ttft_mean_seconds", seconds], ["TPOT", "tpot_mean_seconds", seconds], ["answer tokens", "output_tokens_mean", whole]])
      if (known(one.copies[field])) parts.push(`${name} ${show(one.copies[field])}, original ${show(one.originals[field])}`);
  }
  return parts.join("; ");
}
function routeRow(route) {
  const cells = Array.from({ length: 5 }, (_, index) => make("td", { class: index === 2 ? "number" : "words" }));
  return { nodes: [make("tr", {}, make("th", { scope: "row", class: "mono", text: route.key }), ...cells)], cells };
}
function routeUpdate(row, route, models) {
  [route.names.join(", ") || "–", targetWords(route.targets), whole(route.overrides), fallbackWords(route.fallbacks) || "–", shadowWords(route.shadow, models) || "–"].forEach((text, index) => say(row.cells[index], text));
}
function showRoutes(fleet, stats) {
  byId("routes-card").hidden = !fleet.routes.length;
  updateList(byId("routes"), fleet.routes, (route) => route.key, routeRow, (row, route) => routeUpdate(row, route, stats.models));
}
function showDecisions(fleet, list) {
  const select = byId("only"), keys = [...fleet.models, ...fleet.routes].map((named) => named.key);
  const options = Array.from(select.options).slice(1).map((option) => option.value);
  if (options.join("\n") !== keys.join("\n")) {
    const before = select.value;
    select.replaceChildren(make("option", { value: "", text: "all models and routes" }), ...keys.map((key) => make("option", { value: key, text: key })));
    select.value = keys.includes(before) ? before : "";
  }
  byId("decisions-card").hidden = !fleet.models.length && !list.decisions.length;
  byId("no-decisions").hidden = list.decisions.length > 0;
  byId("decisions").closest(".scroll").hidden = !list.decisions.length;
  updateList(byId("decisions"), list.decisions, (decision) => decision.request_id + decision.wall, decisionRow, decisionUpdate);
}
function show(fleet, stats, list) {
  const pill = byId("ready");
  say(pill, stats.ready ? "ready" : "not ready");
  mark(pill, "pill " + (stats.ready ? "good" : "bad"));
  document.title = (stats.ready ? "" : "not ready · ") + "Fairlead gateway";
  facts([["up", long(stats.uptime_seconds)], ["fleet", `version ${fleet.version}`], ["loop lag p99", seconds(stats.loop_lag_p99_seconds)], ["Fairlead", stats.version],
    ...(stats.gateways ? [["peers", stats.gateways.length ? `${stats.gateways.length}, last message ${seconds(Math.max(...stats.gateways.map((peer) => peer.age_seconds)))} ago` : "none"]] : []),
    ...(stats.unknown_model_requests ? [["unknown model", times(stats.unknown_model_requests, "request", "requests")]] : [])]);
  const notes = byId("notes");
  notes.hidden = !stats.notes.length;
  say(notes.querySelector("strong"), stats.ready ? "Warnings" : "Not ready");
  mark(notes, "banner " + (stats.ready ? "info" : "bad"));
  updateList(notes.querySelector("ul"), stats.notes, (note) => note, (note) => ({ nodes: [make("li", { text: note })] }), () => {});
  showModels(fleet, stats);
  showRoutes(fleet, stats);
  showDecisions(fleet, list);
}

// ---- requests to the API: one round each second, never two at a time ----
let answeredAt = null, paused = false, token = sessionStorage.getItem("fairlead-token");
async function fetchJson(path) {
  const stop = AbortSignal.timeout(4000);
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { signal: stop, headers, cache: "no-store" });
  if (answer.status === 401) throw Object.assign(new Error("token"), { token: true });
  if (!answer.ok) {
    const body = await answer.json().catch(() => null);
    throw Object.assign(new Error(path), { refused: body?.error ? body.error.message + (body.error.hint ? ` (${body.error.hint})` : "") : `${path} answered ${answer.status}` });
  }
  return answer.json();
}
async function round() {
  const only = byId("only").value;
  const filter = only ? `&model=${encodeURIComponent(only)}` : "";
  const [fleet, stats, list] = await Promise.all([fetchJson("/api/fleet"), fetchJson("/api/stats"), fetchJson(`/api/decisions?limit=30${filter}`)]);
  show(fleet, stats, list);
  answeredAt = Date.now();
  document.body.classList.remove("stale");
  byId("stale").hidden = true;
}
function tokenForm() {
  const field = make("input", { type: "password", "aria-label": "Management token", autocomplete: "off", placeholder: "management token" });
  const form = make("form", {}, field, make("button", { class: "button", text: "Show the status" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    token = field.value;
    sessionStorage.setItem("fairlead-token", token);
    byId("stale").hasForm = false;
    round().catch(showError);
  });
  return form;
}
function showError(error) {
  const banner = byId("stale");
  banner.hidden = false;
  if (error.token) {
    if (!banner.hasForm) banner.replaceChildren(make("strong", { text: "This gateway requires its management token" }), tokenForm());
    banner.hasForm = true;
    return;
  }
  banner.hasForm = false;
  document.body.classList.add("stale");
  mark(byId("ready"), "pill bad");
  say(byId("ready"), "no answer");
  document.title = "no answer · Fairlead gateway";
  const words = answeredAt ? `This data is from ${clock(answeredAt / 1000)}, ${long((Date.now() - answeredAt) / 1000)} ago.` : "There is no data yet.";
  if (!banner.detail) banner.detail = make("span");
  const title = error.refused ? "The gateway refused the request. " : "The gateway does not answer. ";
  if (banner.firstChild?.textContent !== title) banner.replaceChildren(make("strong", { text: title }), banner.detail);
  say(banner.detail, `${error.refused ? error.refused + ". " : ""}${words} This page keeps trying.`);
}
async function loop() {
  if (!paused && !document.hidden) await round().catch(showError);
  setTimeout(loop, 1000);
}
byId("only").addEventListener("change", () => round().catch(showError));
byId("pause").addEventListener("click", (event) => {
  paused = !paused;
  event.target.setAttribute("aria-pressed", String(paused));
  say(event.target, paused ? "Resume" : "Pause");
});
loop();
