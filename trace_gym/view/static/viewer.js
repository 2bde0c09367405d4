// The page: what is chosen stands in the address (#run=0&step=12&tree=3&node=5), and everything shown follows from it.
// Text from a run is a stranger's: it is set as text (textContent, attributes), and no string ever becomes markup.
import { Drawing, fixed, plain } from "./drawing.js";

const LIVE_MS = 2000;
const SHOW = {
  all: () => true,
  rolled: (t) => t.nodes > 1,
  mixed: (t) => t.mixed,
  surprise: (t) => t.surprise !== null,
  unsolved: (t) => t.unsolved > 0,
  failed: (t) => t.unscored > 0,
};
const $ = (id) => document.getElementById(id);
const state = { run: 0, step: null, tree: null, node: 0, beside: null, bstep: null, bnode: 0, pane: "a", show: "rolled", q: "" };
const shown = { steps: [], trees: [], stamp: null }; // what the lists hold now
let runs = [];
let turn = 0; // of `refresh`: an answer that comes late is dropped

// ---- small helpers ----

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true || typeof value === "string" || typeof value === "number") made.setAttribute(name, value === true ? "" : value);
  made.append(...children.filter((child) => child !== null && child !== undefined).map((c) => (c instanceof Node ? c : plain(c))));
  return made;
}

async function get(path) {
  let answer;
  try {
    answer = await fetch(`api/${path}`);
  } catch {
    throw new Error("the viewer no longer answers: was it stopped?");
  }
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ?? `status ${answer.status}`);
  return body;
}

const percent = (x) => (x === null ? "–" : `${Math.round(100 * x)} %`);

// ---- the address ----

function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  const number = (name) => (/^\d{1,12}$/.test(words.get(name) ?? "") ? Number(words.get(name)) : null);
  Object.assign(state, {
    run: number("run") ?? 0, step: number("step"), tree: number("tree"), node: number("node") ?? 0,
    beside: number("beside"), bstep: number("bstep"), bnode: number("bnode") ?? 0,
    pane: words.get("pane") === "b" ? "b" : "a",
    show: Object.hasOwn(SHOW, words.get("show") ?? "") ? words.get("show") : "rolled", q: words.get("q") ?? "",
  });
}

function writeAddress(push) {
  const words = new URLSearchParams();
  for (const name of ["run", "step", "tree", "node"]) words.set(name, state[name] ?? 0);
  if (state.beside !== null) for (const name of ["beside", "bstep", "bnode", "pane"]) words.set(name, state[name] ?? 0);
  if (state.show !== "rolled") words.set("show", state.show);
  if (state.q) words.set("q", state.q);
  history[push ? "pushState" : "replaceState"](null, "", `#${words}`);
}

/** Change what is chosen, and show it. */
function go(changes, { push = false } = {}) {
  Object.assign(state, changes);
  writeAddress(push);
  return refresh();
}

// ---- showing what is chosen ----

async function refresh() {
  const mine = ++turn;
  const current = () => mine === turn;
  $("main").setAttribute("aria-busy", "true");
  try {
    if (!(await showSteps(current)) || !(await showTrees(current))) return;
    await showPanes(current);
  } catch (error) {
    if (current()) $("detail").replaceChildren(el("p", { class: "error", role: "alert" }, error.message));
  } finally {
    if (current()) $("main").setAttribute("aria-busy", "false");
  }
}

async function showSteps(current) {
  if (state.run >= runs.length) throw new Error(`there is no run ${state.run}`);
  const steps = await get(`runs/${state.run}`);
  if (!current()) return false;
  shown.steps = steps;
  $("run").value = state.run;
  document.title = `${plain(runs[state.run].name)} – rollout trees`;
  if (!steps.length) {
    $("list").replaceChildren(el("li", { class: "note" }, "No trees were kept so far: training keeps them every log.trees_every_steps steps."));
    return false;
  }
  if (state.step === null) state.step = steps.at(-1).step;
  $("step").replaceChildren(...steps.map((s) => el("option", { value: s.step }, s.step)));
  $("step").value = state.step;
  const last = steps.at(-1), now = steps.find((s) => s.step === state.step);
  $("progress").textContent = `${steps.length} steps, newest ${last.step}` +
    (now && now.effective_ratio !== null ? ` · step ${now.step}: success ${fixed(now.success)}, mixed ${percent(now.effective_ratio)}` : "");
  shown.stamp = now?.stamp;
  return true;
}

async function showTrees(current) {
  const trees = await get(`runs/${state.run}/steps/${state.step}`);
  if (!current()) return false;
  shown.trees = trees;
  const list = chosenTrees();
  if (state.tree === null) state.tree = (list[0] ?? trees[0])?.tree ?? 0;
  $("show").value = state.show;
  if (document.activeElement !== $("search")) $("search").value = state.q;
  $("list").replaceChildren(...list.map(listItem));
  if (!list.length) $("list").append(el("li", { class: "note" }, state.show === "surprise" && trees.every((t) => t.predicted === null)
    ? "No predictions were kept: this algorithm makes none." : "No prompt fits."));
  const chosen = $("list").querySelector('[aria-selected="true"]');
  chosen?.scrollIntoView({ block: "nearest" });
  $("list").setAttribute("aria-activedescendant", chosen?.id ?? "");
  return true;
}

/** The step's trees that the filter lets through, in the order shown. */
function chosenTrees() {
  const trees = shown.trees.filter((t) => SHOW[state.show](t) && t.task.toLowerCase().includes(state.q.toLowerCase()));
  return state.show === "surprise" ? trees.sort((a, b) => b.surprise - a.surprise) : trees;
}

function listItem(t) {
  const told = [t.predicted === null ? `success ${fixed(t.realised)}` : `predicted ${fixed(t.predicted)} → ${fixed(t.realised)}`];
  if (t.surprise !== null) told.push(`max surprise ${t.surprise.toFixed(1)}`);
  if (t.nodes === 1) told.push("skipped");
  const what = `${t.leaves} rollouts${t.forks ? `, ${t.forks} of them continuations` : ""}, ${t.policy_tokens} sampled tokens`;
  return el("li", { role: "option", title: `${plain(t.task)}: ${what}`, id: `tree-${t.tree}`, "aria-selected": String(t.tree === state.tree), onclick: () => go({ tree: t.tree, node: 0, bnode: 0 }, { push: true }) },
    el("bdi", { class: "task" }, t.task), outcomeBar(t), el("span", { class: "facts" }, told.join(" · ")));
}

/** A box for each leaf: solved, unsolved, not scored. */
function outcomeBar(t) {
  const solved = t.leaves - t.unsolved - t.unscored, width = 256, step = Math.min(12, width / Math.max(1, t.leaves));
  const bar = d3.create("svg").attr("width", width).attr("height", 8).attr("role", "img")
    .attr("aria-label", `${solved} solved, ${t.unsolved} unsolved, ${t.unscored} not scored`);
  let x = 0;
  for (const [kind, count, height] of [["won", solved, 8], ["lost", t.unsolved, 5], ["open", t.unscored, 2]]) {
    if (count) bar.append("rect").attr("class", kind).attr("x", x).attr("y", 8 - height).attr("width", Math.max(1, step * count - 1)).attr("height", height);
    x += step * count;
  }
  return bar.node();
}

// ---- trees ----

const panes = {};

function makePane(key) {
  const title = el("h2", {}), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [name, value] of [["role", "tree"], ["tabindex", "0"], ["aria-label", "rollout tree"]]) svg.setAttribute(name, value);
  const box = el("div", { class: "pane", id: `pane-${key}` }, title, svg);
  $("panes").append(box);
  const nodeOf = key === "a" ? "node" : "bnode";
  const drawing = new Drawing(svg, key, (node) => go({ pane: key, [nodeOf]: node }));
  svg.addEventListener("focus", () => state.pane !== key && go({ pane: key }));
  return (panes[key] = { key, box, title, svg, drawing, nodeOf, where: null });
}

async function showPanes(current) {
  await showPane(panes.a ?? makePane("a"), state.run, state.step, state.tree, current);
  if (!current()) return;
  await showBeside(current);
  if (!current()) return;
  for (const pane of Object.values(panes)) pane.box.classList.toggle("chosen", state.beside !== null && pane.key === state.pane);
  await showNode(current);
}

async function showPane(pane, run, step, tree, current) {
  const where = `runs/${run}/steps/${step}/trees/${tree}`;
  if (pane.where === where) return pane.drawing.select(Math.min(state[pane.nodeOf], pane.drawing.data.parent.length - 1));
  const begun = performance.now();
  const data = await get(where);
  if (!current()) return;
  pane.where = where;
  const leaves = data.parent.length - new Set(data.parent.filter((parent) => parent >= 0)).size;
  pane.title.replaceChildren(plain(runs[run].name), ` (${plain(runs[run].algorithm)}), step ${step}: `, el("bdi", {}, data.task), `, ${data.parent.length} nodes, ${leaves} leaves`);
  pane.svg.setAttribute("aria-label", `tree of ${plain(data.task)} in ${plain(runs[run].name)}`);
  pane.drawing.show(data, state[pane.nodeOf]);
  pane.box.dataset.drawnMs = (performance.now() - begun).toFixed(1);
}

/** The same prompt in another run, or in another step. */
async function showBeside(current) {
  $("beside").value = state.beside ?? "";
  if (state.beside === null || state.beside >= runs.length) {
    panes.b?.box.remove();
    delete panes.b;
    Object.assign(state, { beside: null, pane: "a" });
    $("beside-step-label").hidden = true;
    return;
  }
  const task = panes.a.drawing.data.task;
  const places = await get(`runs/${state.beside}/places?${new URLSearchParams({ task })}`);
  if (!current()) return;
  const pane = panes.b ?? makePane("b");
  $("beside-step-label").hidden = !places.length;
  if (!places.length) {
    pane.where = null;
    pane.box.classList.add("empty");
    pane.title.replaceChildren(`${plain(runs[state.beside].name)} kept no tree of this prompt`);
    pane.svg.hidden = true;
    state.pane = "a";
    return;
  }
  pane.svg.hidden = false;
  const nearest = places.reduce((a, b) => (Math.abs(b.step - state.step) < Math.abs(a.step - state.step) ? b : a));
  const place = places.find((p) => p.step === state.bstep) ?? nearest;
  state.bstep = place.step;
  $("beside-step").replaceChildren(...places.map((p) => el("option", { value: p.step }, p.step)));
  $("beside-step").value = place.step;
  pane.tree = place.tree;
  await showPane(pane, state.beside, place.step, place.tree, current);
}

// ---- a node ----

const place = () => (state.pane === "b" && panes.b ? { run: state.beside, step: state.bstep, tree: panes.b.tree, node: state.bnode }
  : { run: state.run, step: state.step, tree: state.tree, node: state.node });

async function showNode(current) {
  const { run, step, tree, node } = place();
  const found = await get(`runs/${run}/steps/${step}/trees/${tree}/nodes/${node}`);
  if (!current()) return;
  writeAddress(false);
  const scroll = $("detail").dataset.where === `${run}/${step}/${tree}/${node}` ? $("detail").scrollTop : 0;
  $("detail").dataset.where = `${run}/${step}/${tree}/${node}`;
  $("detail").replaceChildren(el("h2", {}, node ? `node ${node}, turn ${found.turn}` : "node 0, the prompt"),
    ...facts(found), ...texts(found), ...commands(found, run, step, tree));
  $("detail").scrollTop = scroll;
  const drawing = panes[state.pane === "b" && panes.b ? "b" : "a"].drawing;
  $("said").textContent = drawing.describe(node);
}

function facts(n) {
  const cost = Object.entries(n.cost).filter(([, value]) => value).map(([name, value]) => `${value} ${name.replaceAll("_", " ")}`);
  const rows = [
    ["predicted success", n.predicted === null ? null : fixed(n.predicted)],
    ["realised success", n.realised === null ? "not scored" : fixed(n.realised) + (n.children.length ? ` over ${n.draws} draw${n.draws === 1 ? "" : "s"}` : "")],
    ["surprise", n.surprise === null ? null : `${n.surprise.toFixed(1)} standard errors`],
    ["advantage", n.advantage === null ? "none" : fixed(n.advantage, "+")],
    ["weight", n.weight === null ? null : n.weight.toPrecision(3)],
    ["why branched", n.why],
    ["came from", n.node ? `draw ${n.draw} at node ${n.parent}, ${n.origin === "root" ? "a rollout from the prompt" : "a continuation of a prefix"}` : null],
    ["ended", n.status === "running" ? null : n.status + (n.success === null ? "" : n.success ? ", solved" : ", unsolved") + (n.reward === null ? "" : `, reward ${n.reward}`)],
    ["reason", n.reason || null],
    ["format", n.format_error ? "the environment could not read the action" : null],
    ["policy version", n.node ? n.policy_version : null],
    ["cost", cost.join(", ") || null],
    ["state key", n.state_key || null],
  ];
  return [el("dl", {}, ...rows.filter(([, value]) => value !== null && value !== undefined)
    .flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, el("bdi", {}, value))]))];
}

function texts(n) {
  const part = (name, text) => (text ? [el("h3", {}, name), el("pre", { tabindex: 0 }, text)] : []);
  const turn = (t) => [...part("thought", t.thought), ...part("action", t.action), ...part(t.node ? "observation" : "prompt", t.observation)];
  const nodeOf = panes[state.pane]?.nodeOf ?? "node", before = n.path.slice(0, -1);
  const crumbs = n.path.map((t) => el("button", { type: "button", "aria-current": t.node === n.node && "true", onclick: () => go({ [nodeOf]: t.node }) }, t.node));
  const children = n.children.slice(0, 40).map((c) => el("button", { type: "button", onclick: () => go({ [nodeOf]: c }) }, c));
  return [
    ...turn(n.path.at(-1)),
    el("h3", {}, "path from the prompt"), el("div", { class: "path" }, ...crumbs),
    ...(children.length ? [el("h3", {}, "turns after it"), el("div", { class: "path" }, ...children, n.children.length > 40 ? `and ${n.children.length - 40} more` : null)] : []),
    ...(before.length ? [el("details", {}, el("summary", {}, "everything said before"), ...before.flatMap((t) => [el("h3", {}, `node ${t.node}`), ...turn(t)]))] : []),
  ];
}

function commands(n, run, step, tree) {
  if (!n.forkable) return [];
  const path = runs[run].path, word = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const lines = [["play on from here", `trace-gym fork ${word(path)} ${step} ${tree} ${n.node}`],
    ["how often does it succeed from here?", `trace-gym eval --from ${word(`${path}:${step}:${tree}:${n.node}`)} -k 32`]];
  return lines.flatMap(([what, line]) => [el("h3", {}, what), el("div", { class: "command" }, el("pre", {}, line),
    el("button", { type: "button", "aria-label": `copy the command: ${what}`, onclick: ({ target }) => navigator.clipboard.writeText(line).then(() => (target.textContent = "copied")) }, "copy"))]);
}

// ---- keys and controls ----

function moveTree(by) {
  const list = chosenTrees(), at = list.findIndex((t) => t.tree === state.tree);
  const next = list[at < 0 ? 0 : at + by];
  return next && go({ tree: next.tree, node: 0, bnode: 0 }, { push: true });
}

function moveStep(by) {
  const at = shown.steps.findIndex((s) => s.step === state.step), next = shown.steps[at + by];
  return next && go({ step: next.step, tree: null, node: 0, bstep: null, bnode: 0 }, { push: true });
}

document.addEventListener("keydown", (event) => {
  const writing = /^(input|select|textarea)$/i.test(event.target.tagName);
  if (event.key === "Escape" && writing) return event.target.blur();
  if (writing || event.ctrlKey || event.metaKey || event.altKey) return;
  const pane = panes[state.pane] ?? panes.a, drawing = pane?.drawing, key = event.key;
  const pick = (node) => node !== null && node !== undefined && go({ [pane.nodeOf]: node });
  const inPanel = $("detail").contains(event.target) || event.target.tagName === "BUTTON";
  if (document.activeElement === $("list") && /^Arrow(Up|Down)$/.test(key)) moveTree(key === "ArrowDown" ? 1 : -1);
  else if (/^Arrow/.test(key) && !inPanel && drawing?.data) pick(drawing.neighbour(key));
  else if (key === "Enter" && !inPanel && drawing?.data) drawing.fold(drawing.selected);
  else if (key === "n" || key === "p") moveTree(key === "n" ? 1 : -1);
  else if (key === "]" || key === "[") moveStep(key === "]" ? 1 : -1);
  else if (key === "s" && drawing?.data) pick(drawing.mostSurprising());
  else if (key === "f" && drawing?.data) pick(drawing.nextUnsolved());
  else if (key === "0") Object.values(panes).forEach((one) => one.drawing.data && one.drawing.fit());
  else if (key === "x" && panes.b) go({ pane: state.pane === "a" ? "b" : "a" });
  else if (key === "/") $("search").focus();
  else return;
  event.preventDefault();
});

const anew = { step: null, tree: null, node: 0, bstep: null, bnode: 0 };
$("run").addEventListener("change", ({ target }) => go({ ...anew, run: Number(target.value) }, { push: true }));
$("step").addEventListener("change", ({ target }) => go({ ...anew, step: Number(target.value) }, { push: true }));
$("step-back").addEventListener("click", () => moveStep(-1));
$("step-on").addEventListener("click", () => moveStep(1));
$("show").addEventListener("change", ({ target }) => go({ show: target.value }));
$("search").addEventListener("input", ({ target }) => go({ q: target.value }));
$("beside").addEventListener("change", ({ target }) => go({ beside: target.value === "" ? null : Number(target.value), bstep: null, bnode: 0 }, { push: true }));
$("beside-step").addEventListener("change", ({ target }) => go({ bstep: Number(target.value), bnode: 0 }));
$("follow").addEventListener("change", () => live());
window.addEventListener("popstate", () => (readAddress(), refresh()));
window.addEventListener("hashchange", () => (readAddress(), refresh()));

/** Look whether something was recorded. */
async function live() {
  if (document.hidden) return;
  try {
    const steps = await get(`runs/${state.run}`), before = JSON.stringify(shown.steps);
    if (JSON.stringify(steps) === before) return;
    const newest = steps.at(-1)?.step ?? null, now = steps.find((s) => s.step === state.step);
    if ($("follow").checked && newest !== state.step) return go({ ...anew, step: newest });
    if (now?.stamp !== shown.stamp) Object.values(panes).forEach((pane) => (pane.where = null));
    return refresh();
  } catch (error) {
    $("progress").textContent = error.message;
    shown.steps = []; // so that all is shown anew once it answers again
  }
}

async function begin() {
  readAddress();
  runs = await get("runs");
  $("run").replaceChildren(...runs.map((run, i) => el("option", { value: i }, `${run.name} (${run.algorithm}, ${run.env})`)));
  $("beside").replaceChildren(el("option", { value: "" }, "nothing"), ...runs.map((run, i) => el("option", { value: i }, run.name)));
  await refresh();
  setInterval(live, LIVE_MS);
}

begin().catch((error) => $("detail").replaceChildren(el("p", { class: "error", role: "alert" }, error.message)));
