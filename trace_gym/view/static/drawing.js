// A tree in an SVG: laid out whole, but only what lies in the window is in the document, so thousands of nodes stay quick.
// Text from the run becomes text nodes and attribute values, never markup.

const ROW = 36, COLUMN = 215, LEVEL = 140; // pixels between siblings, between turns, and of a link's level part
const READABLE = 0.62, DETAIL = 0.4; // scale of a tree too large to fit; scale below which nodes are bare dots
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** `text` with a visible mark for what could reorder or hide it. */
export const plain = (text) => String(text ?? "").replace(CONTROLS, "\ufffd");
export const fixed = (x, sign = "") => (x === null || x === undefined ? "–" : (x >= 0 ? sign : "") + x.toFixed(2));

export class Drawing {
  constructor(svg, id, onSelect) {
    this.svg = d3.select(svg);
    this.id = id;
    this.onSelect = onSelect;
    this.data = null;
    this.selected = 0;
    this.folded = new Set();
    this.stage = this.svg.append("g");
    this.links = ["root", "continuation", "chosen"].map((kind) => this.stage.append("path").attr("class", `link ${kind}`));
    this.items = this.stage.append("g").attr("role", "none");
    this.zoom = d3.zoom().scaleExtent([0.01, 3]).on("zoom", ({ transform }) => {
      this.stage.attr("transform", transform);
      this.redraw();
    });
    this.svg.call(this.zoom).on("dblclick.zoom", null);
    new ResizeObserver(() => this.data && this.draw()).observe(svg);
  }

  show(data, selected) {
    this.data = data;
    this.folded.clear();
    this.children = data.parent.map(() => []);
    data.parent.forEach((parent, node) => parent >= 0 && this.children[parent].push(node));
    this.selected = selected < data.parent.length ? selected : 0;
    this.layOut();
    this.fit(true);
  }

  select(node, centre = false) {
    this.selected = node;
    for (let above = this.data.parent[node]; above >= 0; above = this.data.parent[above])
      if (this.folded.delete(above)) this.stale = true;
    if (this.stale) this.layOut();
    if (centre || !this.inside(node, 40)) this.centreOn(node);
    this.draw();
  }

  fold(node) {
    if (!this.children[node].length) return;
    if (!this.folded.delete(node)) this.folded.add(node);
    this.layOut();
    this.select(node);
  }

  // ---- where things are ----

  layOut() {
    const root = d3.hierarchy(0, (node) => (this.folded.has(node) ? [] : this.children[node]));
    d3.tree().nodeSize([ROW, COLUMN]).separation(() => 1)(root);
    this.place = new Map();
    this.rows = [];
    root.each((one) => {
      this.place.set(one.data, { x: one.y, y: one.x, depth: one.depth });
      (this.rows[one.depth] ??= []).push(one.data);
    });
    this.drawn = null;
    this.rows.forEach((row) => row.sort((a, b) => this.place.get(a).y - this.place.get(b).y));
    this.stale = false;
  }

  size() {
    const box = this.svg.node().getBoundingClientRect();
    return [Math.max(box.width, 1), Math.max(box.height, 1)];
  }

  inside(node, margin) {
    const { x, y } = this.place.get(node), t = d3.zoomTransform(this.svg.node()), [width, height] = this.size();
    const [sx, sy] = t.apply([x, y]);
    return sx > margin && sx < width - margin && sy > margin && sy < height - margin;
  }

  centreOn(node) {
    const { x, y } = this.place.get(node);
    this.svg.call(this.zoom.translateTo, x, y);
  }

  /** The whole tree in the window; at first, a part of it if the whole would be too small to read. */
  fit(atFirst = false) {
    const [width, height] = this.size(), places = [...this.place.values()];
    const [left, right] = [-60, Math.max(...[0].concat(this.rows.map((_, depth) => depth * COLUMN))) + COLUMN];
    const [top, bottom] = d3.extent(places, (p) => p.y).map((y, i) => y + (i ? 24 : -24));
    const whole = Math.min(width / (right - left), height / (bottom - top), 1.1);
    const k = atFirst && whole < READABLE ? READABLE : whole;
    const t = d3.zoomIdentity.scale(k);
    if (k === whole) {
      this.svg.call(this.zoom.transform, t.translate((width / k - right - left) / 2, (height / k - bottom - top) / 2));
    } else {
      this.svg.call(this.zoom.transform, t.translate(-left, height / 2 / k));
      if (!this.inside(this.selected, 40)) this.centreOn(this.selected);
    }
    this.draw();
  }

  // ---- drawing ----

  redraw() {
    this.waiting ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    cancelAnimationFrame(this.waiting);
    this.waiting = null;
    const t = d3.zoomTransform(this.svg.node()), [width, height] = this.size();
    const [x0, y0] = t.invert([0, 0]), [x1, y1] = t.invert([width, height]);
    const seen = [...this.place].filter(([, p]) => p.x > x0 - COLUMN && p.x < x1 + 20 && p.y > y0 - ROW && p.y < y1 + ROW);
    const detail = t.k >= DETAIL;
    this.svg.attr("aria-activedescendant", `${this.id}-n${this.selected}`);
    const items = this.items.selectAll("g.item").data(seen.map(([node]) => node), (node) => node);
    const same = this.drawn === `${this.selected} ${detail}` && items.enter().empty() && items.exit().empty();
    this.drawn = `${this.selected} ${detail}`;
    if (same) return; // moved or zoomed, and the same nodes in the window
    items
      .join((enter) => enter.append("g").attr("class", "item").attr("role", "treeitem").attr("id", (n) => `${this.id}-n${n}`)
        .on("click", (event, node) => this.onSelect(node)).on("dblclick", (event, node) => this.fold(node)))
      .each((node, i, all) => this.drawItem(d3.select(all[i]), node, detail));
    this.drawLinks(new Set(seen.map(([node]) => node)));
  }

  drawItem(item, node, detail) {
    const { x, y, depth } = this.place.get(node);
    item.attr("transform", `translate(${x},${y})`).attr("aria-selected", node === this.selected).attr("aria-level", depth + 1);
    const state = `${detail} ${this.folded.has(node)}`;
    if (item.property("__state") === state) return; // else only its place changed
    item.property("__state", state).selectAll("*").remove();
    item.attr("aria-label", this.describe(node)).attr("aria-expanded", this.children[node].length ? !this.folded.has(node) : null);
    item.append("circle").attr("class", "halo").attr("r", 14);
    if (!detail) return glyph(item, this.data, node, !this.children[node].length, 8);
    const predicted = this.data.predicted[node];
    if (predicted !== null) {
      item.append("circle").attr("class", "track").attr("r", 10);
      const arc = d3.arc().innerRadius(10).outerRadius(10).startAngle(0).endAngle(2 * Math.PI * predicted);
      item.append("path").attr("class", "predicted").attr("d", arc());
    }
    glyph(item, this.data, node, !this.children[node].length, 6);
    const lines = [shorten(plain(this.data.excerpt[node])) || "(no text)", this.figures(node)];
    item.append("text").attr("x", 15).attr("y", -4).text(lines[0]);
    item.append("text").attr("class", "small").attr("x", 15).attr("y", 14).text(lines[1]);
  }

  drawLinks(seen) {
    const parts = { root: [], continuation: [], chosen: [] };
    const above = new Set();
    for (let node = this.selected; node > 0; node = this.data.parent[node]) above.add(node);
    for (const [node, to] of this.place) {
      const parent = this.data.parent[node];
      if (parent < 0 || !(seen.has(node) || seen.has(parent))) continue;
      const from = this.place.get(parent);
      // level as far as the label reaches, between its lines, and only then to the next turn
      const d = `M${from.x},${from.y}h${LEVEL}C${from.x + LEVEL + 34},${from.y},${to.x - 34},${to.y},${to.x},${to.y}`;
      parts[above.has(node) ? "chosen" : this.data.origin[node]]?.push(d);
    }
    this.links.forEach((path, i) => path.attr("d", Object.values(parts)[i].join("")));
  }

  figures(node) {
    const { predicted, value, advantage } = this.data, words = [];
    if (predicted[node] !== null) words.push(`${fixed(predicted[node])} → ${fixed(value[node])}`);
    else if (this.children[node].length) words.push(fixed(value[node]));
    else words.push(outcome(this.data, node));
    if (advantage[node]) words.push(`adv ${fixed(advantage[node], "+")}`);
    if (this.folded.has(node)) words.push(`${this.below(node)} folded`);
    return words.join("   ");
  }

  below(node) {
    let count = 0;
    for (const stack = [...this.children[node]]; stack.length; count++) stack.push(...this.children[stack.pop()]);
    return count;
  }

  describe(node) {
    const text = shorten(plain(this.data.excerpt[node]), 80);
    return `node ${node}, ${this.figures(node).replace("→", "predicted, realised")}. ${text}`;
  }

  // ---- moving ----

  /** The node that an arrow key leads to; null where there is none. */
  neighbour(key) {
    const node = this.selected, row = this.rows[this.place.get(node).depth], at = row.indexOf(node);
    if (key === "ArrowLeft") return node > 0 ? this.data.parent[node] : null;
    if (key === "ArrowRight") return this.children[node][0] ?? null;
    return row[at + (key === "ArrowDown" ? 1 : -1)] ?? null;
  }

  mostSurprising() {
    const best = d3.maxIndex(this.data.surprise, (s) => s ?? -1);
    return this.data.surprise[best] === null ? null : best;
  }

  /** The next leaf, round about, that is not solved. */
  nextUnsolved() {
    const n = this.data.parent.length;
    for (let i = 1; i <= n; i++) {
      const node = (this.selected + i) % n;
      if (node > 0 && !this.children[node].length && this.data.solved[node] !== true) return node;
    }
    return null;
  }
}

const outcome = (data, node) => {
  const status = data.status[node];
  return status === "done" || status === "truncated"
    ? `${data.solved[node] ? "solved" : "unsolved"}${status === "truncated" ? ", cut short" : ""}` : status;
};

const shorten = (text, most = 26) => ([...text].length > most ? [...text].slice(0, most - 1).join("") + "…" : text);

/** The shape says how a leaf ended, the fill what was realised; a cross is an unsolved end. */
function glyph(item, data, node, leaf, r) {
  const status = data.status[node];
  if (leaf && status === "done" && !data.solved[node])
    return item.append("path").attr("class", "cross").attr("d", `M${-r},${-r}L${r},${r}M${r},${-r}L${-r},${r}`);
  const shape = leaf && status === "truncated" ? d3.symbolSquare : leaf && (status === "failed" || status === "censored")
    ? d3.symbolDiamond : d3.symbolCircle;
  return item.append("path").attr("class", "dot").attr("d", d3.symbol(shape, Math.PI * r * r)()).style("fill", colour(data.value[node]));
}

function colour(value) {
  if (value === null) return "var(--none)";
  const v = Math.min(1, Math.max(0, value)), [end, share] = v < 0.5 ? ["--v0", 1 - 2 * v] : ["--v1", 2 * v - 1];
  return `color-mix(in oklab, var(${end}) ${Math.round(100 * share)}%, var(--v5))`;
}
