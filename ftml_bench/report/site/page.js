"use strict";
// Tables that sort, charts that answer, texts to copy. All numbers are computed before; here they are only shown.

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const dark = matchMedia("(prefers-color-scheme: dark)");
const colorOf = (row) => (dark.matches ? row.onDark : row.color);
const plain = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(4))));

// -- tables

function sortable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      body.append(...(order === "none" ? original : sorted(original, column, order === "ascending" ? 1 : -1)));
    });
  });
}

// Cells without a number come last, whichever way; a column of texts is sorted as text.
function sorted(rows, column, sign) {
  const cells = rows.map((row) => row.cells[column]);
  const numeric = cells.some((cell) => cell.dataset.value);
  const key = (row) => {
    const cell = row.cells[column];
    if (!numeric) return cell.textContent;
    return cell.dataset.value ? Number(cell.dataset.value) : null;
  };
  return [...rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (numeric ? x - y : x.localeCompare(y));
  });
}

// -- charts

const SHAPES = { // paths of markers of half width r around (0, 0)
  o: (p, r) => p.arc(0, 0, r, 0, 2 * Math.PI),
  s: (p, r) => p.rect(-r, -r, 2 * r, 2 * r),
  "^": (p, r) => polygon(p, [[0, -r], [r, r], [-r, r]]),
  v: (p, r) => polygon(p, [[0, r], [r, -r], [-r, -r]]),
  D: (p, r) => polygon(p, [[0, -1.2 * r], [1.2 * r, 0], [0, 1.2 * r], [-1.2 * r, 0]]),
  P: (p, r) => { p.rect(-r, -r / 2.5, 2 * r, r / 1.25); p.rect(-r / 2.5, -r, r / 1.25, 2 * r); },
  X: (p, r) => polygon(p, [[-r, -r], [0, -r / 3], [r, -r], [r / 3, 0], [r, r], [0, r / 3], [-r, r], [-r / 3, 0]]),
  "*": (p, r) => polygon(p, [...Array(10).keys()].map((i) => {
    const size = i % 2 ? r / 2 : 1.3 * r;
    return [size * Math.sin((i * Math.PI) / 5), -size * Math.cos((i * Math.PI) / 5)];
  })),
};

function polygon(path, points) {
  points.forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
  path.closePath();
}

function swatch(row) {
  const canvas = document.createElement("canvas");
  const scale = 2;
  canvas.width = 30 * scale;
  canvas.height = 12 * scale;
  canvas.style.width = "30px";
  canvas.style.height = "12px";
  canvas.setAttribute("aria-hidden", "true");
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.strokeStyle = context.fillStyle = colorOf(row);
  context.lineWidth = row.grey ? 1 : 2;
  context.setLineDash(row.dash.map((length) => 2 * length));
  context.beginPath();
  context.moveTo(0, 6);
  context.lineTo(30, 6);
  context.stroke();
  mark(context, row, 15, 6, 4);
  return canvas;
}

function mark(context, row, x, y, r) {
  if (!row.marker) return;
  context.save();
  context.translate(x, y);
  context.fillStyle = colorOf(row);
  context.beginPath();
  SHAPES[row.marker](context, r);
  context.fill();
  context.restore();
}

// The index of the value nearest to x; of steps the last one before it.
function at(xs, x, steps) {
  if (steps) return Math.max(0, xs.findLastIndex((value) => value !== null && value <= x));
  let best = 0;
  xs.forEach((value, i) => {
    if (value !== null && Math.abs(value - x) < Math.abs(xs[best] - x)) best = i;
  });
  return best;
}

// One chart in its place. `show` draws it anew: there are few points, and no state to get out of step.
class Plot {
  constructor(place, readout) {
    this.place = place;
    this.readout = readout;
    place.addEventListener("keydown", (event) => this.key(event));
  }

  show(chart, rows, { x, xTitle, steps, seeds, last }) {
    this.chart = chart;
    this.rows = rows.filter((row) => chart.lines[row.name]?.mean.length);
    this.lines = this.rows.map((row) => ({ ...chart.lines[row.name], x: x(row, chart.lines[row.name]) }));
    this.steps = steps;
    if (steps) {
      this.lines = this.lines.map((line) => ({
        ...line, x: [...line.x, last], mean: [...line.mean, line.mean.at(-1)], error: null, seeds: [], faint: null,
      }));
    }
    this.xTitle = xTitle;
    this.seeds = seeds;
    this.plot?.destroy();
    this.plot = null;
    this.place.replaceChildren();
    this.place.setAttribute("aria-label",
      `${chart.title}, over ${xTitle}: ${this.rows.map((row) => row.name).join(", ") || "no row"}. ` +
      "Arrow keys read values.");
    if (!this.rows.length) return;
    const { series, bands, tables } = this.series();
    this.logX = chart.logX || xTitle !== "round";
    const axis = { stroke: ink("--soft"), grid: { stroke: ink("--line"), width: 1 }, ticks: { stroke: ink("--line") },
      font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
    const places = (on) => (on ? { splits: decades, filter: (u, splits) => splits } : {});
    const numbers = (u, splits) => splits.map((value) => (value === null ? "" : short(value)));
    const log = { distr: 3, log: 10, range: (u, low, high) => [low / 1.02, high * 1.02] };
    const positive = !chart.logY && this.lines.every((line) => line.mean.every((value) => value === null || value >= 0));
    this.plot = new uPlot({
      width: this.place.clientWidth,
      height: this.place.clientHeight,
      legend: { show: false },
      cursor: { points: { show: false }, drag: { x: true, y: false } },
      scales: {
        x: { time: false, ...(this.logX ? log : {}) },
        y: chart.logY ? log : { range: (u, low, high) => [positive ? 0 : low, steps ? 1.03 : high + 0.05 * (high - low || 1)] },
      },
      axes: [
        { ...axis, ...places(this.logX), ...(xTitle === "round" ? { incrs: [1, 2, 5, 10, 20, 50, 100] } : {}), label: xTitle, values: numbers, size: 40, labelSize: 22 },
        { ...axis, ...places(chart.logY), label: chart.y, values: numbers, size: 52, labelSize: 22 },
      ],
      series,
      bands,
      hooks: {
        setCursor: [(u) => this.read(u)],
        draw: [(u) => this.marks(u)],
      },
    }, uPlot.join(tables, tables.map((table) => table.slice(1).map(() => 2))), this.place);
  }

  series() {
    const series = [{}];
    const bands = [];
    const tables = [];
    this.rows.forEach((row, i) => {
      const line = this.lines[i];
      const color = colorOf(row);
      const columns = [line.x];
      const add = (values, look) => {
        columns.push(values);
        series.push({ points: { show: false }, spanGaps: true, stroke: color, width: 1, ...look });
        return series.length - 1;
      };
      if (line.error?.length && !row.grey) {
        const edge = (sign) => line.mean.map((value, k) => (value === null ? null : value + sign * line.error[k]));
        const floor = this.chart.logY ? Math.min(...line.mean.filter((value) => value > 0)) / 10 : -Infinity;
        const high = add(edge(1), { width: 0 });
        const low = add(edge(-1).map((value) => Math.max(value, floor)), { width: 0 });
        bands.push({ series: [high, low], fill: color + "26" });
      }
      if (line.faint?.length && !row.grey) add(line.faint, { stroke: color + "4D" });
      if (this.seeds) line.seeds.forEach((seed) => add(seed, { stroke: color + "99", width: 0.7 }));
      const width = row.grey ? 1 : 2;
      add(line.mean, { width, dash: row.dash.map((length) => length * width),
        ...(this.steps ? { paths: uPlot.paths.stepped({ align: 1 }) } : {}) });
      tables.push(ascending(columns));
    });
    return { series, bands, tables };
  }

  // A marker at about every sixth part of a line, from another place on for every row.
  marks(u) {
    const scale = devicePixelRatio;
    this.rows.forEach((row, i) => {
      const { x, mean } = this.lines[i];
      const every = Math.max(1, Math.floor(mean.length / 6));
      for (let k = this.steps ? 0 : Object.keys(SHAPES).indexOf(row.marker) % every; k < mean.length; k += every) {
        if (mean[k] === null || x[k] === null || x[k] < u.scales.x.min || x[k] > u.scales.x.max) continue;
        mark(u.ctx, row, u.valToPos(x[k], "x", true), u.valToPos(mean[k], "y", true), 3.5 * scale);
      }
    });
  }

  read(u) {
    const { left } = u.cursor;
    if (left === undefined || left < 0) return;
    const x = u.posToVal(left, "x");
    const values = this.rows.map((row, i) => {
      const k = at(this.lines[i].x, x, this.steps);
      return { row, x: this.lines[i].x[k], value: this.lines[i].mean[k], error: this.lines[i].error?.[k] };
    });
    values.sort((a, b) => a.value - b.value);
    const places = new Set(values.map((value) => value.x));
    const shown = plain(places.size === 1 && !this.steps ? values[0].x : x);
    const head = document.createElement("b");
    head.textContent = `${this.chart.title} at ${this.xTitle} ${shown}: `;
    const text = values.map(({ row, value, error }) => `${row.name} ${plain(value)}${error ? ` ± ${Number(error.toPrecision(2))}` : ""}`);
    this.readout.replaceChildren(head, text.join(" · "));
  }

  // Arrow keys move along the values of the first row that is shown.
  key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !this.plot) return;
    event.preventDefault();
    const xs = this.lines[0].x.filter((x) => x !== null);
    const now = this.plot.cursor.left >= 0 ? at(xs, this.plot.posToVal(this.plot.cursor.left, "x"), false) : -1;
    const next = Math.min(xs.length - 1, Math.max(0, now + step));
    this.plot.setCursor({ left: this.plot.valToPos(xs[next], "x"), top: 10 });
  }
}

// The numbers at a logarithmic axis: 1, 2 and 5 of every decade; more of less than one, fewer of many.
function decades(u, axis, low, high) {
  const size = Math.log10(high / low);
  const digits = size > 3.5 ? [1] : size > 0.8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
  const found = [];
  for (let k = Math.floor(Math.log10(low)); k <= Math.ceil(Math.log10(high)); k += 1) {
    digits.forEach((digit) => found.push(Number((digit * 10 ** k).toPrecision(3))));
  }
  return found.filter((value) => value >= low && value <= high);
}

const short = (value) => {
  const unit = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => Math.abs(value) >= size && value % 1 === 0);
  return unit && Math.abs(value) >= 1e4 ? `${plain(value / unit[0])}${unit[1]}` : plain(value);
};

// Columns [x, ...] without the places that have no x, by increasing x.
function ascending(columns) {
  const order = [...columns[0].keys()].filter((i) => columns[0][i] !== null).sort((a, b) => columns[0][a] - columns[0][b]);
  return columns.map((column) => order.map((i) => column[i]));
}

function explorer(place, board) {
  const rowPlace = place.querySelector(".rows");
  const curve = place.querySelector(".curve");
  const seeds = place.querySelector(".seeds");
  const over = [...place.querySelectorAll("input[type=radio]")];
  const [main, survival] = [".main", ".survival"].map((name) => {
    const found = place.querySelector(name);
    return found && new Plot(found, place.querySelector(".readout"));
  });
  const part = place.querySelector(".part select");
  const hidden = new Set();

  const options = (select, charts) => {
    const before = select.selectedOptions[0]?.text;
    select.replaceChildren(...charts.map((chart, i) => new Option(chart.title, i, false, chart.title === before)));
  };
  const draw = () => {
    const rows = board.rows.filter((row) => !hidden.has(row.name));
    const kind = over.find((radio) => radio.checked).value;
    const chart = board[kind === "spent" ? "rounds" : kind][curve.value];
    const x = (row, line) => (kind === "spent" ? line.x.map((t) => row.spent[t - 1] || null) : line.x);
    const xTitle = { rounds: "round", datapoints: "datapoints", spent: "gradient evaluations" }[kind];
    main.show(chart, rows, { x, xTitle, steps: false, seeds: seeds.checked });
    main.place.nextElementSibling.textContent = caption(chart, rows, kind, seeds.checked);
    if (!survival) return;
    const open = board.survival[part.value];
    survival.show(open, rows, { x: (row, line) => line.x, xTitle: "datapoints", steps: true, last: board.last });
    survival.place.nextElementSibling.textContent = survivalCaption(open, rows);
  };
  const toggle = () => {
    rowPlace.querySelectorAll("button.row").forEach((button) =>
      button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.row))));
    draw();
  };
  const button = (kind, label, action) => {
    const made = document.createElement("button");
    made.type = "button";
    made.className = kind;
    made.append(label);
    made.addEventListener("click", () => { action(); toggle(); });
    return made;
  };
  const legend = () => {
    const buttons = board.rows.map((row) => {
      const name = button("row", row.name, () => hidden.delete(row.name) || hidden.add(row.name));
      name.dataset.row = row.name;
      name.prepend(swatch(row));
      const only = button("only", "only", () => {
        board.rows.forEach((other) => hidden.add(other.name));
        hidden.delete(row.name);
      });
      only.setAttribute("aria-label", `only ${row.name}`);
      const both = document.createElement("span");
      both.append(name, only);
      return both;
    });
    rowPlace.replaceChildren(...buttons, button("all", "all", () => hidden.clear()));
    toggle();
  };
  const refill = () => {
    const kind = over.find((radio) => radio.checked).value;
    options(curve, board[kind === "spent" ? "rounds" : kind]);
    draw();
  };

  place.hidden = false;
  if (survival) {
    options(part, board.survival);
    part.value = String(board.survival.length - 1);
    part.addEventListener("change", draw);
  }
  over.forEach((radio) => radio.addEventListener("change", refill));
  [curve, seeds].forEach((input) => input.addEventListener("change", draw));
  options(curve, board.rounds);
  legend();
  dark.addEventListener("change", legend);
  let width = place.clientWidth;
  new ResizeObserver(() => {
    if (place.clientWidth === width) return;
    width = place.clientWidth;
    draw();
  }).observe(place);
}

const seedsOf = (chart, rows) => {
  const counts = rows.map((row) => chart.lines[row.name]?.seeds?.length).filter(Boolean);
  const ends = [...new Set([Math.min(...counts), Math.max(...counts)])];
  return counts.length ? `${ends.join(" to ")} seed${ends.at(-1) > 1 ? "s" : ""}` : "no seed";
};

function caption(chart, rows, kind, seeds) {
  const count = seedsOf(chart, rows);
  const smooth = kind !== "datapoints" && rows.some((row) => chart.lines[row.name]?.faint?.length);
  const lines = smooth
    ? `Faint: mean of each round over ${count}. Strong: its centred running mean over 5 rounds.`
    : `Strong: mean over ${count}.`;
  const each = seeds ? " Thin: every seed, as the strong line." : "";
  const spent = kind === "spent" ? " x: gradient evaluations so far at the end of each round, mean over seeds." : "";
  const shaded = ["1 seed", "no seed"].includes(count) ? "" : " Shaded: ± one standard error over seeds of the strong line.";
  return `${lines}${shaded}${each}${spent} ` +
    "Drag to zoom, double click to see all.";
}

function survivalCaption(chart, rows) {
  const medians = rows.filter((row) => chart.lines[row.name]).map((row) =>
    `${row.name} ${chart.lines[row.name].median ?? "none"}`);
  return `Kaplan-Meier: the share of rounds, of all seeds together, that have not reached γ after so many datapoints. ` +
    `Medians: ${medians.join(", ")}.`;
}

// -- copying

function copyable(element) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "copy";
  const text = element.textContent;
  button.addEventListener("click", async () => {
    await copy(text);
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 2000);
  });
  if (element.tagName === "PRE") element.before(button);
  else if (element.tagName === "DD") element.append(button);
  else element.after(button);
}

// Pages from the disk may not use the clipboard directly in every browser.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

document.documentElement.classList.add("interactive");
document.querySelectorAll("table").forEach(sortable);
const boards = JSON.parse(document.getElementById("data").textContent);
document.querySelectorAll(".explorer").forEach((place) => explorer(place, boards[place.dataset.benchmark]));
document.querySelectorAll(".copyable").forEach(copyable);
